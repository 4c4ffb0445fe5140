/* SPDX-License-Identifier: MIT */
/*
 * LD_PRELOAD's part between a program that knows nothing of a helper, and one:
 * what the program sends by ioctl(SG_IO) goes to the helper that listens at
 * $THROUGH_HELPER if it is PERSISTENT RESERVE IN or OUT, and comes back as
 * from the disk. Without $THROUGH_HELPER these go to the disk, too, as all the
 * rest does. Each is a line in the file $THROUGH_LOG: CDB, status, sense key,
 * ASC and ASCQ, and so the tests know that it was not left out.
 *
 * It must never let such a command reach the disk past a helper that is named,
 * or answer one by itself: what comes to nothing is an error of the ioctl, and
 * "failed" in the log. One thing differs from SG_IO: more than 8192 bytes are
 * not asked for, as the protocol has no more.
 */
#include <errno.h>
#include <fcntl.h>
#include <scsi/sg.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    RESERVE_IN = 0x5e,
    RESERVE_OUT = 0x5f,
    CDB_SIZE = 16,
    SENSE_SIZE = 96,
    DATA_MAX = 8192,
    CHECK_CONDITION = 2,
    DRIVER_SENSE = 8
};

static uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8
           | p[3];
}

static bool read_all(int sock, void *data, size_t size)
{
    return size == 0 || recv(sock, data, size, MSG_WAITALL) == (ssize_t)size;
}

static bool write_all(int sock, const void *data, size_t size)
{
    return send(sock, data, size, MSG_NOSIGNAL) == (ssize_t)size;
}

/* A connection after the negotiation, or -1. */
static int helper_connect(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    uint8_t features[4];
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (sock < 0)
        return -1;
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    if (connect(sock, (struct sockaddr *)&address, sizeof address) == 0
        && read_all(sock, features, sizeof features)
        && write_all(sock, memset(features, 0, 4), sizeof features))
        return sock;
    (void)close(sock);
    return -1;
}

/* The CDB, with the descriptor of the disk. */
static bool send_cdb(int sock, int fd, struct iovec *cdb)
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int))];
    } control = { .space = { 0 } };
    struct msghdr message = { .msg_iov = cdb,
                              .msg_iovlen = 1,
                              .msg_control = &control,
                              .msg_controllen = sizeof control.space };
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);

    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    return sendmsg(sock, &message, MSG_NOSIGNAL) == CDB_SIZE;
}

/*
 * The disk, for writing, as QEMU has it open for a guest: in there a program
 * that reads it only may reserve it all the same, as mpathpersist does.
 */
static int writable(int fd)
{
    char path[32];

    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
}

/* One command and its answer; false if there is none that makes sense. */
static bool exchange(int sock, int fd, struct sg_io_hdr *io)
{
    uint8_t cdb[CDB_SIZE] = { 0 }, head[8], sense[SENSE_SIZE];
    struct iovec whole = { cdb, sizeof cdb };
    size_t length, size;

    memcpy(cdb, io->cmdp, io->cmd_len < CDB_SIZE ? io->cmd_len : CDB_SIZE);
    length = (size_t)cdb[7] << 8 | cdb[8];
    if (cdb[0] == RESERVE_IN && length > DATA_MAX) {
        length = DATA_MAX;
        cdb[7] = DATA_MAX >> 8;
        cdb[8] = 0;
    }
    if (length > io->dxfer_len || io->iovec_count != 0
        || !send_cdb(sock, fd, &whole)
        || (cdb[0] == RESERVE_OUT && !write_all(sock, io->dxferp, length))
        || !read_all(sock, head, sizeof head)
        || !read_all(sock, sense, sizeof sense))
        return false;

    size = be32(head + 4);
    if (size > (cdb[0] == RESERVE_IN ? length : 0)
        || !read_all(sock, io->dxferp, size))
        return false;
    io->status = head[3];
    io->masked_status = io->status >> 1;
    io->info = io->status != 0 ? SG_INFO_CHECK : SG_INFO_OK;
    io->resid = cdb[0] == RESERVE_IN ? (int)(io->dxfer_len - size) : 0;
    io->host_status = io->driver_status = io->msg_status = io->sb_len_wr = 0;
    if (io->status == CHECK_CONDITION && io->sbp != NULL) {
        io->driver_status = DRIVER_SENSE;
        io->sb_len_wr = io->mx_sb_len < SENSE_SIZE ? io->mx_sb_len : SENSE_SIZE;
        memcpy(io->sbp, sense, io->sb_len_wr);
    }
    return true;
}

static int through(const char *path, int fd, struct sg_io_hdr *io)
{
    int sock = helper_connect(path), disk = writable(fd);
    bool done = sock >= 0 && disk >= 0 && exchange(sock, disk, io);

    if (sock >= 0)
        (void)close(sock);
    if (disk >= 0)
        (void)close(disk);
    if (done)
        return 0;
    errno = EPIPE;
    return -1;
}

static void note(int result, const struct sg_io_hdr *io)
{
    const char *path = getenv("THROUGH_LOG");
    const uint8_t *sense = io->sbp;
    char line[128];
    int fd, at = 0;

    if (path == NULL)
        return;
    for (int i = 0; i < 10 && i < io->cmd_len; i++)
        at += snprintf(line + at, sizeof line - (size_t)at, "%02x",
                       io->cmdp[i]);
    if (result != 0)
        at += snprintf(line + at, sizeof line - (size_t)at, " failed\n");
    else if (io->status == CHECK_CONDITION && io->sb_len_wr > 13)
        at += snprintf(line + at, sizeof line - (size_t)at,
                       " %02x %X/%02X/%02X\n", io->status, sense[2] & 15U,
                       sense[12], sense[13]);
    else
        at += snprintf(line + at, sizeof line - (size_t)at, " %02x\n",
                       io->status);
    fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (fd >= 0) {
        if (write(fd, line, (size_t)at) != at)
            abort(); /* a test must not count what is not there */
        (void)close(fd);
    }
}

int ioctl(int fd, unsigned long request, ...)
{
    const char *path = getenv("THROUGH_HELPER");
    struct sg_io_hdr *io;
    void *argument;
    va_list arguments;
    int result, error;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    io = argument;
    if (request != SG_IO || io->interface_id != 'S' || io->cmd_len == 0
        || (io->cmdp[0] != RESERVE_IN && io->cmdp[0] != RESERVE_OUT))
        return (int)syscall(SYS_ioctl, fd, request, argument);
    if (path != NULL)
        result = through(path, fd, io);
    else
        result = (int)syscall(SYS_ioctl, fd, request, argument);
    error = errno;
    note(result, io);
    errno = error;
    return result;
}
