/* SPDX-License-Identifier: MIT */
/*
 * events.h - what both loops wait for, and which numbers descriptors have.
 *
 * It must never know who is served.
 */
#ifndef EVENTS_H
#define EVENTS_H

#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <sys/resource.h>

/* events.c: signals are blocked but in events_wait(). */
enum { SIGNAL_STOP = 1 << SIGTERM | 1 << SIGINT | 1 << SIGHUP };
enum { SIGNAL_CHILD = 1 << SIGCHLD, SIGNAL_STATUS = 1 << SIGUSR1 };
void signals_set_up(void);
/* The signals that have come since the last call, a bit for each. */
unsigned signals_take(void);
/*
 * Waits for one of fds, the time wake, or a signal, with which none of fds is
 * ready. As with poll(), those whose fd is negative are passed over.
 */
void events_wait(struct pollfd *fds, nfds_t count, int64_t now, int64_t wake);

/* descriptors.c: allows most descriptors, or returns how many there can be. */
int descriptors_limit(rlim_t most);
/* Duplicates fd, with one of the two highest numbers that there can be. */
int descriptor_high(int fd);
/* Closes all but the standard ones, the trace file, and these (-1: none). */
void descriptors_close_except(int a, int b, int c);
/* Keeps a session's new ones below queue. Returns 0, or -1 and errno. */
int descriptors_seal(int queue);

#endif
