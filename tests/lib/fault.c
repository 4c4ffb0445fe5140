/* SPDX-License-Identifier: MIT */
/*
 * Makes the helper's system calls fail on demand, for tests/host/test_fault.py.
 * It is linked with -Wl,--wrap for every function that has a __wrap_ here:
 * a call goes on to the real one, or to the simulated disk (sim_target.c,
 * compiled with its wrappers renamed to sim_...), unless the table says
 * otherwise. The table is the file that $FAULT_STATE names, shared by all
 * processes of a helper and by the test. It has an entry for each place that
 * a call was made from and each generation of processes that made it there:
 * how often, and which of these calls shall fail, with what errno.
 *
 * It must never be part of an installed helper, make a system call of its
 * own once main has begun (the helper may be sandboxed), or change errno if
 * a call succeeds. A close() that is made to fail has closed, as in Linux.
 */
#include "../../kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SITES = 1024, CRASH = 4095 };

/* As test_fault.py has it. */
struct site {
    int64_t key; /* 0: free. Return address and generation, see site_find() */
    uint32_t calls;
    uint32_t first; /* the first call that fails: 1, 2... */
    uint32_t count; /* how many fail from that one on */
    int32_t error;  /* errno, or CRASH; below 0: move at most so many bytes */
    uint32_t hits;  /* how many did fail */
    uint32_t reserved;
};

static struct site *sites;
static int generation; /* 0 is the process that was started */

/* What addresses are counted from; the test knows it by its name. */
void fault_anchor(void);

void fault_anchor(void)
{
}

__attribute__((constructor)) static void fault_start(void)
{
    const char *path = getenv("FAULT_STATE");
    void *map;
    int fd;

    if (path == NULL)
        return;
    fd = open(path, O_RDWR | O_CLOEXEC);
    map = mmap(NULL, SITES * sizeof(*sites), PROT_READ | PROT_WRITE, MAP_SHARED,
               fd, 0);
    if (map == MAP_FAILED)
        abort();
    close(fd);
    sites = map; /* the calls above were not of the helper's */
}

/* Without a lock, which a process that is killed would keep. */
static struct site *site_find(const void *caller)
{
    int64_t offset = (int64_t)((intptr_t)caller - (intptr_t)fault_anchor);
    int64_t key = offset * 256 + generation + 1;
    size_t i;

    for (i = 0; i < SITES; i++) {
        int64_t found = 0;

        if (__atomic_compare_exchange_n(&sites[i].key, &found, key, false,
                                        __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)
            || found == key)
            return &sites[i];
    }
    abort();
}

/* What this call shall come to: 0 as it comes, or as in struct site. */
static int fault(const void *caller)
{
    struct site *site;
    uint32_t number;

    if (sites == NULL)
        return 0;
    site = site_find(caller);
    number = __atomic_add_fetch(&site->calls, 1, __ATOMIC_ACQ_REL);
    if (number < site->first || number - site->first >= site->count)
        return 0;
    __atomic_add_fetch(&site->hits, 1, __ATOMIC_ACQ_REL);
    if (site->error == CRASH)
        __builtin_trap();
    if (site->error > 0)
        errno = site->error;
    return site->error;
}

#define FAULT() fault(__builtin_return_address(0))

/* A call that fails without being made, and returns that. */
#define WRAP_AS(name, type, failure, parameters, arguments)                    \
    type __real_##name parameters;                                             \
    type __wrap_##name parameters;                                             \
    type __wrap_##name parameters                                              \
    {                                                                          \
        return FAULT() > 0 ? (failure) : __real_##name arguments;              \
    }
#define WRAP(name, parameters, arguments)                                      \
    WRAP_AS(name, int, -1, parameters, arguments)

/* A call that also can move less than size. */
#define WRAP_MOVE(name, parameters, arguments)                                 \
    ssize_t __real_##name parameters;                                          \
    ssize_t __wrap_##name parameters;                                          \
    ssize_t __wrap_##name parameters                                           \
    {                                                                          \
        int error = FAULT();                                                   \
                                                                               \
        if (error > 0)                                                         \
            return -1;                                                         \
        if (error < 0 && size > (size_t)-error)                                \
            size = (size_t)-error;                                             \
        return __real_##name arguments;                                        \
    }

/* With _FILE_OFFSET_BITS=64 glibc's functions have other names. */
#ifdef __GLIBC__
#define LARGE(macro, name, ...) macro(name##64, __VA_ARGS__)
#else
#define LARGE(macro, name, ...) macro(name, __VA_ARGS__)
#endif

WRAP(accept4, (int fd, struct sockaddr *a, socklen_t *n, int flags),
     (fd, a, n, flags))
WRAP(bind, (int fd, const struct sockaddr *a, socklen_t n), (fd, a, n))
WRAP(chdir, (const char *path), (path))
WRAP(dup, (int fd), (fd))
WRAP(dup2, (int from, int to), (from, to))
WRAP(getgroups, (int n, gid_t *groups), (n, groups))
WRAP(kill, (pid_t pid, int number), (pid, number))
WRAP(listen, (int fd, int backlog), (fd, backlog))
WRAP(madvise, (void *p, size_t size, int advice), (p, size, advice))
WRAP(nanosleep, (const struct timespec *time, struct timespec *rest),
     (time, rest))
WRAP(pipe2, (int *fds, int flags), (fds, flags))
WRAP(poll, (struct pollfd * fds, nfds_t n, int ms), (fds, n, ms))
WRAP(ppoll,
     (struct pollfd * fds, nfds_t n, const struct timespec *time,
      const sigset_t *mask),
     (fds, n, time, mask))
WRAP(setgroups, (size_t n, const gid_t *groups), (n, groups))
WRAP(setresgid, (gid_t real, gid_t effective, gid_t saved),
     (real, effective, saved))
WRAP(setresuid, (uid_t real, uid_t effective, uid_t saved),
     (real, effective, saved))
WRAP(sigaction,
     (int number, const struct sigaction *set, struct sigaction *old),
     (number, set, old))
WRAP(sigprocmask, (int how, const sigset_t *set, sigset_t *old),
     (how, set, old))
WRAP(setsockopt,
     (int fd, int level, int option, const void *value, socklen_t n),
     (fd, level, option, value, n))
WRAP(socket, (int domain, int type, int protocol), (domain, type, protocol))
WRAP(socketpair, (int domain, int type, int protocol, int *fds),
     (domain, type, protocol, fds))
WRAP(unlink, (const char *path), (path))
LARGE(WRAP, ftruncate, (int fd, off_t size), (fd, size))
LARGE(WRAP, getrlimit, (int which, struct rlimit *limit), (which, limit))
LARGE(WRAP, lstat, (const char *path, struct stat *st), (path, st))
LARGE(WRAP, setrlimit, (int which, const struct rlimit *limit), (which, limit))

WRAP(rename, (const char *from, const char *to), (from, to))
WRAP_AS(getppid, pid_t, -1, (void), ())
WRAP_AS(sendmsg, ssize_t, -1, (int fd, const struct msghdr *message, int flags),
        (fd, message, flags))
WRAP_AS(setsid, pid_t, -1, (void), ())
WRAP_AS(signal, sighandler_t, SIG_ERR, (int number, sighandler_t handler),
        (number, handler))
WRAP_AS(waitpid, pid_t, -1, (pid_t pid, int *status, int options),
        (pid, status, options))
LARGE(WRAP_AS, mmap, void *, MAP_FAILED,
      (void *p, size_t size, int access, int flags, int fd, off_t offset),
      (p, size, access, flags, fd, offset))

WRAP_MOVE(read, (int fd, void *data, size_t size), (fd, data, size))
WRAP_MOVE(send, (int fd, const void *data, size_t size, int flags),
          (fd, data, size, flags))
WRAP_MOVE(recv, (int fd, void *data, size_t size, int flags),
          (fd, data, size, flags))
WRAP_MOVE(write, (int fd, const void *data, size_t size), (fd, data, size))
LARGE(WRAP_MOVE, pwrite, (int fd, const void *data, size_t size, off_t offset),
      (fd, data, size, offset))

ssize_t __real_recvmsg(int fd, struct msghdr *message, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *message, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *message, int flags)
{
    int error = FAULT();

    if (error > 0)
        return -1;
    if (error < 0 && message->msg_iov->iov_len > (size_t)-error)
        message->msg_iov->iov_len = (size_t)-error;
    return __real_recvmsg(fd, message, flags);
}

int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd)
{
    int error = FAULT();
    int result = __real_close(fd);

    if (error <= 0)
        return result;
    errno = error;
    return -1;
}

/* ---- Calls with arguments that need not be there ---------------------- */

#define LAST_ARGUMENT(type, variable, after)                                   \
    do {                                                                       \
        va_list list;                                                          \
                                                                               \
        va_start(list, after);                                                 \
        (variable) = va_arg(list, type);                                       \
        va_end(list);                                                          \
    } while (0)

#define WRAP_FCNTL(name, ...)                                                  \
    int __real_##name(int fd, int command, ...);                               \
    int __wrap_##name(int fd, int command, ...);                               \
    int __wrap_##name(int fd, int command, ...)                                \
    {                                                                          \
        void *argument;                                                        \
                                                                               \
        LAST_ARGUMENT(void *, argument, command);                              \
        return FAULT() > 0 ? -1 : __real_##name(fd, command, argument);        \
    }
LARGE(WRAP_FCNTL, fcntl, )

long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...);
long __wrap_syscall(long number, ...)
{
    long argument[6], result;
    va_list list;
    int i;

    va_start(list, number);
    for (i = 0; i < 6; i++)
        argument[i] = va_arg(list, long);
    va_end(list);
    if (FAULT() > 0)
        return -1;
    result = __real_syscall(number, argument[0], argument[1], argument[2],
                            argument[3], argument[4], argument[5]);
    if (result == 0 && number == SYS_fork)
        generation++;
    return result;
}

/* ---- Calls that the simulated disks take part in ---------------------- */

#define WRAP_SIM(name, simulated, type, parameters, arguments)                 \
    type simulated parameters;                                                 \
    type __wrap_##name parameters;                                             \
    type __wrap_##name parameters                                              \
    {                                                                          \
        return FAULT() > 0 ? -1 : simulated arguments;                         \
    }

WRAP_SIM(clock_gettime, sim_clock_gettime, int,
         (clockid_t id, struct timespec *now), (id, now))
WRAP_SIM(connect, sim_connect, int,
         (int fd, const struct sockaddr *a, socklen_t n), (fd, a, n))
WRAP_SIM(getsockopt, sim_getsockopt, int,
         (int fd, int level, int option, void *value, socklen_t *n),
         (fd, level, option, value, n))
WRAP_SIM(readlink, sim_readlink, ssize_t,
         (const char *path, char *to, size_t size), (path, to, size))
LARGE(WRAP_SIM, fstat, sim_fstat, int, (int fd, struct stat *st), (fd, st))
LARGE(WRAP_SIM, stat, sim_stat, int, (const char *path, struct stat *st),
      (path, st))

int sim_open(const char *path, int flags, ...);
#define WRAP_OPEN(name, ...)                                                   \
    int __wrap_##name(const char *path, int flags, ...);                       \
    int __wrap_##name(const char *path, int flags, ...)                        \
    {                                                                          \
        int mode = 0;                                                          \
                                                                               \
        if (flags & O_CREAT)                                                   \
            LAST_ARGUMENT(int, mode, flags);                                   \
        return FAULT() > 0 ? -1 : sim_open(path, flags, mode);                 \
    }
LARGE(WRAP_OPEN, open, )

int sim_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
    void *argument;

    LAST_ARGUMENT(void *, argument, request);
    return FAULT() > 0 ? -1 : sim_ioctl(fd, request, argument);
}

int sim_prctl(int option, ...);
int __wrap_prctl(int option, ...);
int __wrap_prctl(int option, ...)
{
    unsigned long argument[4];
    va_list list;
    int i;

    va_start(list, option);
    for (i = 0; i < 4; i++)
        argument[i] = va_arg(list, unsigned long);
    va_end(list);
    if (FAULT() > 0)
        return -1;
    return sim_prctl(option, argument[0], argument[1], argument[2],
                     argument[3]);
}
