/* SPDX-License-Identifier: MIT */
/*
 * events.c - what both loops wait with: descriptors, the clock, signals.
 *
 * It must never let a signal interrupt anything but ppoll(): SG_IO on
 * /dev/sgN would send its command twice, or lose the result.
 */
#include "log.h"
#include "process.h"

#include <errno.h>
#include <signal.h>

/* How long something that is always ready may keep signals waiting. */
#define SIGNALS_WITHIN (SECOND / 100)

static volatile sig_atomic_t signals;
static int64_t signals_by;
static const sigset_t none;

static void signal_handle(int number)
{
    signals |= 1 << number;
}

void signals_set_up(void)
{
    static const int handled[] = { SIGTERM, SIGINT, SIGHUP, SIGCHLD, SIGUSR1 };
    struct sigaction action = { .sa_handler = signal_handle };
    size_t i;

    sigfillset(&action.sa_mask);
    if (sigprocmask(SIG_SETMASK, &action.sa_mask, NULL) < 0)
        fatal("cannot block signals:");
    for (i = 0; i < COUNT(handled); i++)
        if (sigaction(handled[i], &action, NULL) < 0)
            fatal("cannot handle signals:");
}

void events_wait(struct pollfd *fds, nfds_t count, int64_t now, int64_t wake)
{
    int64_t us = wake > now ? wake - now : 0;
    struct timespec timeout = { .tv_sec = (time_t)(us / SECOND),
                                .tv_nsec = (long)(us % SECOND) * 1000 };
    bool interrupted = false;

    /* While something is ready ppoll() lets no signal in, but this one does. */
    if (now >= signals_by) {
        signals_by = now + SIGNALS_WITHIN;
        interrupted = ppoll(NULL, 0, &(struct timespec){ 0 }, &none) < 0;
    }
    if (!interrupted
        && ppoll(fds, count, wake == NEVER ? NULL : &timeout, &none) >= 0)
        return;
    if (errno != EINTR) /* short of memory: do not spin */
        nanosleep(&(struct timespec){ .tv_nsec = 100000000 }, NULL);
    while (count > 0)
        fds[--count].revents = 0;
}

unsigned signals_take(void)
{
    unsigned taken = (unsigned)signals;

    if (taken != 0)
        signals = 0; /* they are blocked, so none comes in between */
    return taken;
}
