/* SPDX-License-Identifier: MIT */
/*
 * sandbox.c - what the kernel refuses us although we could do it: system
 * calls (seccomp) and files (Landlock).
 *
 * A session talks to a client that may be hostile, and in the usual set-up
 * it is root, to whom files and processes of root's are open without any
 * capability. The filters take that away:
 *
 *	main     after start-up; the sum of what main, a session and a worker
 *	         do. Anything else fails with ENOSYS, which the kernel logs, so
 *	         that a libc that makes another call does not take the service
 *	         down.
 *	session  on top of main's; what serving one client takes. Anything
 *	         else kills the session, and main logs which client's it was.
 *	worker   likewise; what a session does, and to look into sysfs, open
 *	         devices and talk to multipathd, for one command on a map.
 *	files    main and workers can read what is in /sys and /dev, and main
 *	         can remove its socket. (Sessions have no call to open one.)
 *
 * A list must never name a call that no line of the code makes. Each libc
 * has its own idea of which call that is, so some lines name several.
 */
#include "log.h"
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/net.h>
#include <scsi/sg.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* The machine as the kernel calls it. */
#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#elif defined(__riscv) && __riscv_xlen == 64
#define ARCHITECTURE AUDIT_ARCH_RISCV64
#elif defined(__i386__)
#define ARCHITECTURE AUDIT_ARCH_I386
#elif defined(__ARMEL__)
#define ARCHITECTURE AUDIT_ARCH_ARM
#elif defined(__s390x__)
#define ARCHITECTURE AUDIT_ARCH_S390X
#elif defined(__powerpc64__) && defined(__LITTLE_ENDIAN__)
#define ARCHITECTURE AUDIT_ARCH_PPC64LE
#endif

#ifdef ARCHITECTURE

/* This system call may be made, perhaps only with one value. */
struct permission {
    enum process from; /* and those that follow in the enumeration */
    uint32_t number;
    int argument; /* NONE, or which argument must be value (its low 32 bits) */
    uint32_t value;
};

enum { NONE = -1 };
#define ANY(process, call)                                                     \
    {                                                                          \
        process, SYS_##call, NONE, 0                                           \
    }
#define WITH(process, call, argument, value)                                   \
    {                                                                          \
        process, SYS_##call, argument, value                                   \
    }

/* Descriptors that are known at run time; the latter only if there is one. */
#define QUEUE UINT32_MAX
#define TRACE_FILE (UINT32_MAX - 1)

/*
 * For calls without a condition Linux 5.11 and later do not run the filter,
 * so a session's with one come first. What libc does before an abort, as for
 * a stack that was smashed, fails, so that the process dies of the instruction
 * that comes next, and not of the sandbox.
 */
static const struct permission permissions[] = {
    /* sg_io_execute(), client_busy(), is_open() */
    WITH(SESSION, ioctl, 1, SG_IO), WITH(SESSION, prctl, 0, PR_SET_PDEATHSIG),
    WITH(SESSION, fcntl, 1, F_GETFL),
    /* line_write(); libc, before an abort; client_send() */
    WITH(SESSION, write, 0, STDERR_FILENO), WITH(SESSION, write, 0, TRACE_FILE),
    WITH(SESSION, writev, 0, STDERR_FILENO), WITH(SESSION, sendto, 5, 0),
    /* multipath_ask(): with an address these two could talk to anyone. */
    WITH(SESSION, sendmsg, 0, QUEUE), WITH(SESSION, socketpair, 0, AF_UNIX),
    /* events_wait(), which sleeps when it is short of memory */
    ANY(SESSION, ppoll), ANY(SESSION, nanosleep), ANY(SESSION, clock_nanosleep),
    /* client_receive(), and all that is done with descriptors that come */
    ANY(SESSION, recvmsg), ANY(SESSION, fstat), ANY(SESSION, statx),
    ANY(SESSION, close),
    /* clock_us() without a vDSO; what the kernel itself calls after SIGSTOP */
    ANY(SESSION, clock_gettime), ANY(SESSION, restart_syscall),
    ANY(SESSION, rt_sigreturn), ANY(SESSION, exit_group),
    /* sysfs.c, multipath/; F_SETFD is of musl's open() with O_CLOEXEC */
    WITH(WORKER, socket, 0, AF_UNIX), WITH(WORKER, fcntl, 1, F_SETLK),
    WITH(WORKER, fcntl, 1, F_SETFD), ANY(WORKER, read), ANY(WORKER, openat),
    ANY(WORKER, getdents64), ANY(WORKER, connect), ANY(WORKER, getsockopt),
    ANY(WORKER, recvfrom),
    /* supervisor.c; session_begin() and what it calls; listen_remove() */
    WITH(MAIN, madvise, 2, MADV_DOFORK), WITH(MAIN, madvise, 2, MADV_DONTFORK),
    ANY(MAIN, wait4), ANY(MAIN, kill), ANY(MAIN, getppid), ANY(MAIN, prlimit64),
    ANY(MAIN, accept4), ANY(MAIN, close_range), ANY(MAIN, seccomp),
    ANY(MAIN, write), ANY(MAIN, unlinkat), ANY(MAIN, fork),
#ifdef SYS_setrlimit
    ANY(MAIN, setrlimit),
#endif
#ifdef SYS_sigreturn
    ANY(SESSION, sigreturn),
#endif
#ifdef SYS_open /* machines before aarch64 also have these */
    ANY(SESSION, stat), ANY(WORKER, open), ANY(MAIN, lstat), ANY(MAIN, unlink),
#endif
#ifdef SYS_fcntl64 /* machines of 32 bits: for long files and times */
    WITH(SESSION, fcntl64, 1, F_GETFL), WITH(WORKER, fcntl64, 1, F_SETLK),
    WITH(WORKER, fcntl64, 1, F_SETFD), ANY(SESSION, ppoll_time64),
    ANY(SESSION, fstat64), ANY(SESSION, fstatat64), ANY(SESSION, stat64),
    ANY(MAIN, lstat64), ANY(SESSION, clock_gettime64),
    ANY(SESSION, clock_nanosleep_time64),
    WITH(ABORTING, mmap2, 2, PROT_READ | PROT_WRITE),
#else /* newfstatat: fstat() of some, and stat() */
    ANY(SESSION, newfstatat), WITH(ABORTING, mmap, 2, PROT_READ | PROT_WRITE),
#endif
#ifdef SYS_socketcall /* how glibc makes some of the above: i386, s390x */
    WITH(SESSION, socketcall, 0, SYS_RECVMSG),
    WITH(SESSION, socketcall, 0, SYS_SEND), /* to no address */
    WITH(SESSION, socketcall, 0, SYS_SENDMSG),
    WITH(SESSION, socketcall, 0, SYS_SOCKETPAIR),
    WITH(WORKER, socketcall, 0, SYS_SOCKET),
    WITH(WORKER, socketcall, 0, SYS_CONNECT),
    WITH(WORKER, socketcall, 0, SYS_GETSOCKOPT),
    WITH(WORKER, socketcall, 0, SYS_RECV),
    WITH(WORKER, socketcall, 0, SYS_RECVFROM),
    WITH(MAIN, socketcall, 0, SYS_ACCEPT4),
#endif
    WITH(ABORTING, tgkill, 2, SIGABRT), WITH(ABORTING, tkill, 1, SIGABRT),
    ANY(ABORTING, rt_sigprocmask), ANY(ABORTING, rt_sigaction),
    ANY(ABORTING, getpid), ANY(ABORTING, gettid)
};

enum { REFUSED = SECCOMP_RET_ERRNO | ENOSYS };

#define FIELD(name) ((uint32_t)offsetof(struct seccomp_data, name))
#define LOAD(offset)                                                           \
    (struct sock_filter) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (offset))
#define RETURN(action) (struct sock_filter) BPF_STMT(BPF_RET | BPF_K, (action))
#define SKIP_IF(value, if_equal, else_skip)                                    \
    (struct sock_filter)                                                       \
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), (if_equal), (else_skip))

/*
 * Adds the instructions for a permission in front of a filter, whose
 * instruction at yes says what comes of it; returns the filter's new begin.
 */
static struct sock_filter *permission_write(struct sock_filter *begin,
                                            const struct sock_filter *yes,
                                            const struct permission *permission,
                                            uint32_t queue)
{
    const bool big_endian = __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__;
    const uint32_t low = FIELD(args[0]) + (big_endian ? 4 : 0);
    uint32_t value = permission->value == QUEUE        ? queue
                     : permission->value == TRACE_FILE ? (uint32_t)trace_file()
                                                       : permission->value;

    if (permission->argument == NONE) {
        begin[-1] = SKIP_IF(permission->number, (uint8_t)(yes - begin), 0);
        return begin - 1;
    }
    begin[-1] = LOAD(FIELD(nr));
    begin[-2] = SKIP_IF(value, (uint8_t)(yes - begin + 1), 0);
    begin[-3] = LOAD(low + (uint32_t)permission->argument * 8);
    begin[-4] = SKIP_IF(permission->number, 0, 3);
    return begin - 4;
}

/*
 * Installs a filter, on top of main's if it has one: what this process may do,
 * and what comes of the rest. Numbers of another ABI (x32's have bit 30 set)
 * are not in the table, another architecture's are not looked up at all. As the
 * kernel translates it for each session it is short: it is written from its end
 * on, to which it jumps. Returns -1 and errno if the process must not go on.
 */
int sandbox_enter(enum process process, int queue)
{
    struct sock_filter filter[7 + 4 * COUNT(permissions)];
    struct sock_filter *const end = filter + COUNT(filter), *begin = end;
    struct sock_fprog program;
    unsigned flags = SECCOMP_FILTER_FLAG_LOG;
    size_t i;

    *--begin = RETURN(SECCOMP_RET_ALLOW);
    *--begin = RETURN(REFUSED);
    *--begin = RETURN(process == MAIN ? REFUSED : SECCOMP_RET_KILL_PROCESS);
    for (i = COUNT(permissions); i-- > 0;)
        if (permissions[i].from <= process)
            begin = permission_write(
                begin, permissions[i].from == ABORTING ? end - 2 : end - 1,
                &permissions[i], (uint32_t)queue);
    *--begin = LOAD(FIELD(nr));
    *--begin = RETURN(SECCOMP_RET_KILL_PROCESS);
    *--begin = SKIP_IF(ARCHITECTURE, 1, 0);
    *--begin = LOAD(FIELD(arch));
    program.len = (unsigned short)(end - begin);
    program.filter = begin;
    errno = E2BIG; /* no jump goes farther than UINT8_MAX */
    while (program.len > UINT8_MAX
           || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program)
                  < 0) {
        if (errno != EINVAL || flags == 0)
            return -1;
        flags = 0; /* before Linux 4.14: what is refused is not logged */
    }
    return 0;
}

#else

int sandbox_enter(enum process process, int queue)
{
    (void)process;
    (void)queue;
    errno = ENOSYS;
    return -1;
}

#endif

/*
 * For all processes: to read in /sys and /dev, and to remove the socket. What
 * is not there, or cannot be reached with the capabilities that are left, needs
 * no rule. Returns -1 and errno if that is not to be had. (The filter knows
 * which ioctl there is, so the right to that, of the 5th version, is not asked
 * for.)
 */
static int landlock_restrict(long version, const char *directory)
{
    const struct landlock_ruleset refused = {
        .files = (UINT64_C(1) << (version < 3 ? 12 + version : 15)) - 1,
        .network = version >= 4 ? LANDLOCK_BIND_AND_CONNECT_TCP : 0,
        .scopes = version >= 6 ? LANDLOCK_SIGNALS : 0,
    };
    const uint64_t given[] = { LANDLOCK_READ_FILE | LANDLOCK_READ_DIR,
                               LANDLOCK_READ_FILE, LANDLOCK_REMOVE_FILE };
    const char *const in[COUNT(given)] = { "/sys/", "/dev/", directory };
    int ruleset = (int)syscall(SYS_landlock_create_ruleset, &refused,
                               sizeof(refused), 0);
    int result = 0;
    size_t i;

    if (ruleset < 0)
        return -1;
    for (i = 0; i < COUNT(given) && result == 0; i++) {
        int fd = open(in[i], O_PATH | O_DIRECTORY | O_CLOEXEC);
        const struct landlock_path rule = { given[i], fd };

        if (fd < 0 && errno != ENOENT && errno != EACCES)
            result = -1;
        if (fd < 0)
            continue;
        result = (int)syscall(SYS_landlock_add_rule, ruleset,
                              LANDLOCK_PATH_BENEATH, &rule, 0);
        close(fd);
    }
    if (result == 0)
        result = (int)syscall(SYS_landlock_restrict_self, ruleset, 0);
    close(ruleset);
    return result;
}

bool sandbox_main(const char *directory, int queue)
{
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0,
                           LANDLOCK_VERSION);

    /* glibc does this but once: 2.41's strerror() allocates memory, */
    (void)strerror(ENOSYS);
    (void)gmtime(&(time_t){ 0 }); /* and this one looks for a time zone. */
    if (version < 1)
        log_verbose("this kernel has no Landlock:");
    else if (landlock_restrict(version, directory) < 0)
        log_warning("Landlock does not work, so that no file is refused:");
    if (sandbox_enter(MAIN, queue) == 0)
        return true;
    log_warning("no seccomp filter:");
    return false;
}
