/* SPDX-License-Identifier: MIT */
/*
 * supervisor.h - the outer loop, and the processes that it forks. It must never
 * read what a client has sent.
 */
#ifndef SUPERVISOR_H
#define SUPERVISOR_H

#include "server.h"

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
    int queue;     /* from service.queue, for workers: see multipath/ask.c */
    struct workers workers;
};
/* Returns true in a session, which has its client; false at the end. */
bool supervise(struct supervisor *);

/*
 * multipath/workers.c: forks for a command on the queue or, with a suspension,
 * to resume that map. Returns 0, or errno if fork() has failed.
 */
int worker_start(struct supervisor *, struct suspension *, int64_t now);

#endif
