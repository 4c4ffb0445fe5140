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
#include "kernel.h"
#include "supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/net.h>
#include <scsi/sg.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

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

/* A system call that may be made, perhaps only with one value. */
struct permission {
    enum process from; /* this one on */
    uint32_t number;
    int argument; /* ANY, or which argument must be value (its low 32 bits) */
    uint32_t value;
};

enum { ANY = -1 };

/* Descriptors that are known at run time; the latter only if there is one. */
#define QUEUE UINT32_MAX
#define TRACE_FILE (UINT32_MAX - 1)

#define CALL(name) SYS_##name, ANY, 0
#define CALL_WITH(name, argument, value) SYS_##name, (argument), (value)

/*
 * For calls without a condition Linux 5.11 and later do not run the filter,
 * so a session's with one come first. What libc does before an abort, as for
 * a stack that was smashed, comes last: it fails, so that the process dies of
 * the instruction that comes next, and not of the sandbox.
 */
static const struct permission permissions[] = {
    { SESSION, CALL_WITH(ioctl, 1, SG_IO) },
    { SESSION, CALL_WITH(prctl, 0, PR_SET_PDEATHSIG) }, /* client_busy() */
    { SESSION, CALL_WITH(fcntl, 1, F_GETFL) },          /* sg_io_vet() */
    { SESSION, CALL_WITH(write, 0, STDERR_FILENO) },
    { SESSION, CALL_WITH(writev, 0, STDERR_FILENO) }, /* before an abort */
    { SESSION, CALL_WITH(write, 0, TRACE_FILE) },
    { SESSION, CALL_WITH(sendto, 5, 0) }, /* client_send(), line_write() */
    /* worker_ask(): with an address these two could talk to anyone. */
    { SESSION, CALL_WITH(sendmsg, 0, QUEUE) },
    { SESSION, CALL_WITH(socketpair, 0, AF_UNIX) },
    { SESSION, CALL(ppoll) },   /* events_wait() */
    { SESSION, CALL(recvmsg) }, /* client_receive() */
    { SESSION, CALL(close) },   /* every descriptor that came */
    { SESSION, CALL(fstat) },
    { SESSION, CALL(statx) },
    { SESSION, CALL(clock_gettime) },   /* where there is no vDSO */
    { SESSION, CALL(clock_nanosleep) }, /* events_wait() short of memory */
    { SESSION, CALL(nanosleep) },
    { SESSION, CALL(rt_sigreturn) },
    { SESSION, CALL(restart_syscall) }, /* the kernel's own, after SIGSTOP */
    { SESSION, CALL(exit_group) },
    /* sysfs.c, multipath/ */
    { WORKER, CALL_WITH(socket, 0, AF_UNIX) },
    { WORKER, CALL_WITH(fcntl, 1, F_SETLK) },
    { WORKER, CALL_WITH(fcntl, 1, F_SETFD) }, /* musl's open() with O_CLOEXEC */
    { WORKER, CALL(read) },
    { WORKER, CALL(openat) },
    { WORKER, CALL(getdents64) },
    { WORKER, CALL(connect) },
    { WORKER, CALL(getsockopt) },
    { WORKER, CALL(recvfrom) },
    { MAIN, CALL_WITH(madvise, 2, MADV_DOFORK) }, /* worker_start() */
    { MAIN, CALL_WITH(madvise, 2, MADV_DONTFORK) },
    { MAIN, CALL(wait4) },           /* children_reap() */
    { MAIN, CALL(kill) },            /* session_leave(), sessions_check() */
    { MAIN, CALL(clone) },           /* session_start() */
    { MAIN, CALL(set_robust_list) }, /* fork()'s own */
    { MAIN, CALL(set_tid_address) },
    { MAIN, CALL(rt_sigprocmask) },
    { MAIN, CALL(gettid) },
    { MAIN, CALL(getppid) }, /* session_begin() and what it calls */
    { MAIN, CALL(prlimit64) },
    { MAIN, CALL(accept4) },
    { MAIN, CALL(close_range) },
    { MAIN, CALL(seccomp) },
    { MAIN, CALL(write) },
    { MAIN, CALL(unlinkat) }, /* listen_remove() */
#ifdef SYS_setrlimit
    { MAIN, CALL(setrlimit) },
#endif
#ifdef SYS_newfstatat /* fstat() of some, and stat() */
    { SESSION, CALL(newfstatat) },
#endif
#ifdef SYS_sigreturn
    { SESSION, CALL(sigreturn) },
#endif
#ifdef SYS_open /* what machines before aarch64 have besides */
    { SESSION, CALL(stat) },
    { WORKER, CALL(open) },
    { MAIN, CALL(fork) },
    { MAIN, CALL(lstat) },
    { MAIN, CALL(unlink) },
#endif
#ifdef SYS_fcntl64 /* those of 32 bits: for long files and times */
    { SESSION, CALL_WITH(fcntl64, 1, F_GETFL) },
    { WORKER, CALL_WITH(fcntl64, 1, F_SETLK) },
    { WORKER, CALL_WITH(fcntl64, 1, F_SETFD) },
    { SESSION, CALL(ppoll_time64) },
    { SESSION, CALL(fstat64) },
    { SESSION, CALL(fstatat64) },
    { SESSION, CALL(stat64) },
    { MAIN, CALL(lstat64) },
    { SESSION, CALL(clock_gettime64) },
    { SESSION, CALL(clock_nanosleep_time64) },
#endif
#ifdef SYS_socketcall /* how glibc makes some of the above: i386, s390x */
    { SESSION, CALL_WITH(socketcall, 0, SYS_RECVMSG) },
    { SESSION, CALL_WITH(socketcall, 0, SYS_SEND) }, /* to no address */
    { SESSION, CALL_WITH(socketcall, 0, SYS_SENDMSG) },
    { SESSION, CALL_WITH(socketcall, 0, SYS_SOCKETPAIR) },
    { WORKER, CALL_WITH(socketcall, 0, SYS_SOCKET) },
    { WORKER, CALL_WITH(socketcall, 0, SYS_CONNECT) },
    { WORKER, CALL_WITH(socketcall, 0, SYS_GETSOCKOPT) },
    { WORKER, CALL_WITH(socketcall, 0, SYS_RECV) },
    { WORKER, CALL_WITH(socketcall, 0, SYS_RECVFROM) },
    { MAIN, CALL_WITH(socketcall, 0, SYS_ACCEPT4) },
#endif
#ifdef SYS_mmap2
    { ABORTING, CALL_WITH(mmap2, 2, PROT_READ | PROT_WRITE) },
#else
    { ABORTING, CALL_WITH(mmap, 2, PROT_READ | PROT_WRITE) },
#endif
    { ABORTING, CALL_WITH(tgkill, 2, SIGABRT) },
    { ABORTING, CALL_WITH(tkill, 1, SIGABRT) }, /* musl's */
    { ABORTING, CALL(rt_sigprocmask) },
    { ABORTING, CALL(rt_sigaction) },
    { ABORTING, CALL(getpid) },
    { ABORTING, CALL(gettid) },
};

enum { REFUSED = SECCOMP_RET_ERRNO | ENOSYS };

#define FIELD(name) ((uint32_t)offsetof(struct seccomp_data, name))
#define LOAD(offset) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (offset))
#define RETURN(action) BPF_STMT(BPF_RET | BPF_K, (action))
#define EQUAL(value, if_true, if_false)                                        \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), (if_true), (if_false))

/* Writes "do that with this one"; returns the number of instructions. */
static size_t permission_write(struct sock_filter *filter,
                               const struct permission *permission,
                               uint32_t queue)
{
    const bool big_endian = __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__;
    const uint32_t low = FIELD(args) + (big_endian ? 4 : 0); /* of the first */
    bool any = permission->argument == ANY;
    uint32_t value = permission->value == QUEUE        ? queue
                     : permission->value == TRACE_FILE ? (uint32_t)trace_file()
                                                       : permission->value;
    const struct sock_filter part[] = {
        EQUAL(permission->number, 0, any ? 1 : 4),
        LOAD(low + (uint32_t)permission->argument * 8),
        EQUAL(value, 0, 1),
        RETURN(permission->from == ABORTING ? REFUSED : SECCOMP_RET_ALLOW),
        LOAD(FIELD(nr)),
    };
    size_t i, n = 0;

    for (i = 0; i < COUNT(part); i++)
        if (!any || i == 0 || i == 3)
            filter[n++] = part[i];
    return n;
}

/*
 * Installs a filter, on top of main's if it has one: what this process may do,
 * and what comes of the rest. Numbers of another ABI (x32's have bit 30 set)
 * are not in the table, another architecture's are not looked up at all.
 * Returns -1 and errno if the process must not go on.
 */
int sandbox_enter(enum process process, int queue)
{
    static const struct sock_filter head[] = {
        LOAD(FIELD(arch)),
        EQUAL(ARCHITECTURE, 1, 0),
        RETURN(SECCOMP_RET_KILL_PROCESS),
        LOAD(FIELD(nr)),
    };
    const struct sock_filter otherwise = RETURN(
        process == MAIN ? REFUSED : SECCOMP_RET_KILL_PROCESS);
    struct sock_filter filter[COUNT(head) + 5 * COUNT(permissions) + 1];
    struct sock_fprog program = { .filter = filter };
    unsigned flags = SECCOMP_FILTER_FLAG_LOG;
    size_t i, n = COUNT(head);

    memcpy(filter, head, sizeof(head));
    for (i = 0; i < COUNT(permissions); i++)
        if (permissions[i].from <= process)
            n += permission_write(filter + n, &permissions[i], (uint32_t)queue);
    filter[n++] = otherwise;
    program.len = (unsigned short)n;
    while (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program) < 0) {
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
 * Gives rights in and below the directory that path has before its last slash.
 * One that is not there, or that we can no longer reach with the capabilities
 * that are left, needs no rule.
 */
static int landlock_allow(int ruleset, const char *path, uint64_t rights)
{
    struct landlock_path rule = { .rights = rights };
    char directory[128]; /* a socket's path is shorter */
    int result;

    snprintf(directory, sizeof(directory), "%.*s",
             (int)(strrchr(path, '/') - path) + 1, path);
    rule.directory = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (rule.directory < 0)
        return errno == ENOENT || errno == EACCES ? 0 : -1;
    result = (int)syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_PATH_BENEATH,
                          &rule, 0);
    close(rule.directory);
    return result;
}

/*
 * For all processes: to read in /sys and /dev, and to remove the socket.
 * Returns -1 and errno if that is not to be had. (The filter knows which
 * ioctl there is, so the right to that, of the 5th version, is not asked for.)
 */
static int landlock_restrict(long version, const char *socket_path)
{
    const struct landlock_ruleset refused = {
        .files = (UINT64_C(1) << (version < 3 ? 12 + version : 15)) - 1,
        .network = version >= 4 ? LANDLOCK_BIND_AND_CONNECT_TCP : 0,
        .scopes = version >= 6 ? LANDLOCK_SIGNALS : 0,
    };
    int ruleset = (int)syscall(SYS_landlock_create_ruleset, &refused,
                               sizeof(refused), 0);
    int result = -1;

    if (ruleset < 0)
        return -1;
    if (landlock_allow(ruleset, "/sys/", LANDLOCK_READ_FILE | LANDLOCK_READ_DIR)
            == 0
        && landlock_allow(ruleset, "/dev/", LANDLOCK_READ_FILE) == 0
        && (socket_path == NULL
            || landlock_allow(ruleset, socket_path, LANDLOCK_REMOVE_FILE) == 0))
        result = (int)syscall(SYS_landlock_restrict_self, ruleset, 0);
    close(ruleset);
    return result;
}

bool sandbox_main(const char *socket_path, int queue)
{
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0,
                           LANDLOCK_VERSION);

    /* glibc 2.41's gets memory when it is first called: now or never. */
    (void)strerror(ENOSYS);
    if (version < 1)
        log_verbose("this kernel has no Landlock: %s", strerror(errno));
    else if (landlock_restrict(version, socket_path) < 0)
        log_warning("Landlock does not work, so what files can be opened is "
                    "not restricted: %s",
                    strerror(errno));
    if (sandbox_enter(MAIN, queue) == 0)
        return true;
    log_warning("no seccomp filter: %s", strerror(errno));
    return false;
}
