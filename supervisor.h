/* SPDX-License-Identifier: MIT */
/*
 * supervisor.h - the outer loop, and the processes that it forks.
 */
#ifndef SUPERVISOR_H
#define SUPERVISOR_H

#include "server.h"

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

enum { QUEUE_OUT, QUEUE_IN }; /* the ends: for workers, for the others */

/* Is there room to fork? Yes; a client was told to go for it; it has gone. */
enum room { ROOM_ENOUGH, ROOM_AWAITED, ROOM_MADE };

struct supervisor {
    struct server server; /* a session takes it over, but the roster */
    int64_t stop_timeout;
    pid_t pid;
    bool is_filtered; /* sandbox_main() has set a filter */
    int64_t stop_by;  /* NEVER, or when to leave whatever is in flight */
    enum room room;
    int report[2]; /* children write a byte when they have a descriptor */
    int queue[2];  /* commands on multipath maps: see multipath/worker.c */
    struct workers workers;
};
/* Returns true in a session, which has its client; false at the end. */
bool supervise(struct supervisor *);

/* multipath/worker.c; never returns. */
void worker_run(const struct supervisor *, struct suspension *, bool is_resumer)
    __attribute__((noreturn));

#endif
