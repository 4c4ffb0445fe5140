/* SPDX-License-Identifier: MIT */
/*
 * process.h - what every process of the helper has: signals and events that it
 * waits for, descriptors, a sandbox, and how it is forked.
 *
 * It must never know a client.
 */
#ifndef PROCESS_H
#define PROCESS_H

#include "kernel.h"

#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <unistd.h>

/* events.c: signals are blocked but in events_wait(). */
enum { SIGNAL_STOP = 1 << SIGTERM | 1 << SIGINT | 1 << SIGHUP };
enum { SIGNAL_CHILD = 1 << SIGCHLD, SIGNAL_STATUS = 1 << SIGUSR1 };
void signals_set_up(void);
/* Returns the signals that have come since the last call, a bit for each. */
unsigned signals_take(void);
/*
 * Waits for one of fds, the time wake, or a signal, with which none of fds is
 * ready. As with poll(), those whose fd is negative are passed over.
 */
void events_wait(struct pollfd *fds, nfds_t count, int64_t now, int64_t wake);

/* descriptors.c: allows most descriptors; returns how many there can be. */
int descriptors_limit(rlim_t most);
/* Duplicates fd, with one of the two highest numbers that there can be. */
int descriptor_high(int fd);
/* Closes all but the standard ones, the trace file, and these (-1: none). */
void descriptors_close_except(int a, int b, int c);
/* Keeps a session's new ones below queue. Returns 0, or -1 and errno. */
int descriptors_seal(int queue);

/*
 * sandbox.c: sandbox_main() is for the process that has opened all that it
 * will, and will remove files in directory (empty: in none); it returns whether
 * there is a filter, and logs why not. sandbox_enter() is for a child, on top
 * of that; with -1 and errno it must not go on. Both need no_new_privs; queue
 * is a session's to the workers (-1: none).
 */
enum process { ABORTING, SESSION, WORKER, MAIN };
bool sandbox_main(const char *directory, int queue);
int sandbox_enter(enum process, int queue);

/* libc's fork() writes, for threads, to pages that each child has to copy. */
static inline pid_t process_fork(void)
{
    return (pid_t)syscall(SYS_fork, SIGCHLD, 0, 0, 0, 0);
}

#endif
