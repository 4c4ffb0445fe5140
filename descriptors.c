/* SPDX-License-Identifier: MIT */
/*
 * descriptors.c - which numbers descriptors have, and how many there can be.
 * A session's filter (sandbox.c) knows the queue and the trace file by their
 * numbers, so these have the highest two that there can be, and a session
 * lowers RLIMIT_NOFILE to the lower one: what a client sends it can get
 * neither in their place.
 *
 * It must never close a standard descriptor, or the trace file.
 */
#include "log.h"
#include "process.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

/*
 * As many descriptors can be on their way to workers (too_many_unix_fds(),
 * net/core/scm.c in the kernel).
 */
enum { HIGHEST_NUMBER = 512 };

/* The supervisor has opened none above; who started it may have left some. */
static int highest;

int descriptors_limit(rlim_t most)
{
    struct rlimit limit = { most, most };

    getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < most) {
        limit.rlim_cur = most < limit.rlim_max ? most : limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
        most = limit.rlim_cur;
    }
    return (int)most;
}

int descriptor_high(int fd)
{
    int high = fcntl(fd, F_DUPFD_CLOEXEC,
                     descriptors_limit(HIGHEST_NUMBER + 1) - 2);

    if (high < 0)
        fatal("too few descriptors, see ulimit -n:");
    if (high > highest)
        highest = high;
    return high;
}

void descriptors_close_except(int a, int b, int c)
{
    const int keep[] = { a, b, c, trace_file() };
    unsigned from = STDERR_FILENO + 1;

    for (;;) {
        unsigned next = ~0U, i;

        for (i = 0; i < COUNT(keep); i++)
            if (keep[i] >= (int)from && (unsigned)keep[i] < next)
                next = (unsigned)keep[i];
        if (next > from
            && syscall(SYS_close_range, from, next == ~0U ? next : next - 1, 0U)
                   < 0)
            for (; from < next && (int)from <= highest; from++)
                close((int)from); /* one by one before Linux 5.9 */
        if (next == ~0U)
            return;
        from = next + 1;
    }
}

int descriptors_seal(int queue)
{
    struct rlimit limit = { (rlim_t)queue, (rlim_t)queue };

    if (trace_file() >= 0 && trace_file() < queue)
        limit.rlim_cur = limit.rlim_max = (rlim_t)trace_file();
    return setrlimit(RLIMIT_NOFILE, &limit);
}
