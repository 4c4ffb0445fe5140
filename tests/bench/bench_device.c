/*
 * bench_device.c - the bench device, for `make bench` only
 *
 * The benched build of the helper is its ordinary objects and this one,
 * linked with -Wl,--wrap=fstat,--wrap=fstat64,--wrap=ioctl. A loop device
 * (and /dev/null, for a user who may not open that) then counts as the SCSI
 * disk 8:0, so that the helper makes the same real SG_IO as the stock helper;
 * the kernel fails it at once, and only the helper is measured. A PERSISTENT
 * RESERVE IN of 8191 bytes hangs for a minute first, as on a dying path.
 * Compiled with -D__wrap_ioctl=ioctl as a shared object, that much can be
 * preloaded into the stock helper.
 *
 * It must never be part of a helper that is installed, and must add no system
 * call to a command that does not hang.
 */
#include <fcntl.h>
#include <poll.h>
#include <scsi/sg.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

enum { LOOP_MAJOR = 7, HANG_SECONDS = 60 };

int __wrap_fstat(int fd, struct stat *status);
int __wrap_fstat64(int fd, struct stat *status)
    __attribute__((alias("__wrap_fstat")));
int __wrap_ioctl(int fd, int request, ...);

int __wrap_fstat(int fd, struct stat *status)
{
    /* Neither name of fstat(), which would come back here. */
    if (fstatat(fd, "", status, AT_EMPTY_PATH) < 0)
        return -1;
    if ((S_ISBLK(status->st_mode) && major(status->st_rdev) == LOOP_MAJOR)
        || (S_ISCHR(status->st_mode) && status->st_rdev == makedev(1, 3))) {
        status->st_mode = S_IFBLK;
        status->st_rdev = makedev(8, 0);
    }
    return 0;
}

int __wrap_ioctl(int fd, int request, ...)
{
    va_list arguments;
    void *argument;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    if (request == SG_IO) {
        const struct sg_io_hdr *command = argument;
        struct timespec minute = { HANG_SECONDS, 0 };

        if (command->cmdp[0] == 0x5e && command->cmdp[7] == 0x1f
            && command->cmdp[8] == 0xff)
            ppoll(NULL, 0, &minute, NULL);
    }
    return (int)syscall(SYS_ioctl, fd, request, argument);
}
