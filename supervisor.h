/* SPDX-License-Identifier: MIT */
/*
 * supervisor.h - the outer loop, and the processes that it forks.
 */
#ifndef SUPERVISOR_H
#define SUPERVISOR_H

#include "server.h"

/*
 * sandbox.c: for the process that has opened all that it will; then for its
 * children, on top. It needs no_new_privs. socket_path: what it will remove,
 * or NULL; queue: a session's to the workers, -1: none. False: no filter, and
 * the log says why; -1 and errno: who has been forked must not go on.
 */
enum process { ABORTING, SESSION, WORKER, MAIN };
bool sandbox_main(const char *socket_path, int queue);
int sandbox_enter(enum process, int queue);

/* multipath/workers.c: the supervisor's book of them. */
struct workers {
    unsigned slots, used; /* as in the roster */
    pid_t *pids;          /* the supervisor's alone; 0: free, see workers.c */
    struct suspension *suspensions; /* shared with the workers */
    pid_t pending; /* the one that has not taken its command; 0: none */
    int64_t retry; /* when to fork the next, or kill the pending one */
};
/* A free place; slots: there is none. */
unsigned workers_place(const struct workers *);
/*
 * A worker has been forked (pid < 0: could not be) for a command on the queue
 * or, with a suspension, to resume that map.
 */
void workers_started(struct workers *, unsigned place, pid_t,
                     struct suspension *, int64_t now);
void workers_reported(struct workers *);
void workers_ended(struct workers *, pid_t, int status, int64_t now);
/*
 * A map that somebody has to resume, in that place; NULL: none. Who suspended
 * it is dead, or hangs.
 */
struct suspension *workers_resume(struct workers *, int64_t now,
                                  unsigned *place);
/* Kills who hangs in taking its command. Returns when to look again. */
int64_t workers_check(struct workers *, int64_t now);
unsigned workers_count(const struct workers *);
/* Is there any, or a map that is to be resumed? */
bool workers_any(const struct workers *);

enum { QUEUE_OUT, QUEUE_IN }; /* the ends: for workers, for the others */

/* For a process more: since fork() failed a client was told to go, has gone. */
enum room { ROOM_ENOUGH, ROOM_AWAITED, ROOM_MADE };

#define NOBODY ((unsigned)-1)

struct supervisor {
    const struct options *options;
    struct listener *listener;
    int notify;
    pid_t pid;
    bool is_filtered; /* system calls are */
    int64_t stop_by;  /* NEVER, or when to leave whatever is in flight */
    enum room room;
    int report[2];    /* children write a byte when they have a descriptor */
    int queue[2];     /* commands on multipath maps: see multipath/ask.c */
    unsigned pending; /* the place of the session that has no client yet */
    struct roster *roster;
    struct workers workers;
};
/* Returns true in a session, which has its client; false at the end. */
bool supervise(struct supervisor *, struct server *session);

/* multipath/worker.c; never returns. */
void worker_run(const struct supervisor *, struct suspension *, bool is_resumer)
    __attribute__((noreturn));

#endif
