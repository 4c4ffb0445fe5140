/* SPDX-License-Identifier: MIT */
/*
 * commands.h - a persistent reservation command on a multipath map, as the rest
 * of the helper sees it: asked for, or carried out.
 *
 * Nobody outside of this folder may need to know more.
 */
#ifndef COMMANDS_H
#define COMMANDS_H

#include "../sg_io.h"
#include "multipathd.h"

/* This is known of a multipath map as long as somebody must resume it. */
struct suspension {
    dev_t device;
    char alias[ALIAS_SIZE]; /* empty: there is none */
    char witness[32];       /* the path that has kept its key; empty: none */
    int64_t resume_by;      /* then another worker does it */
};
/*
 * Carries out what sg_io_vet() has found to be for a device-mapper device.
 * lock is a file that all share who do this, which they lock, each map a byte
 * of it; -1: nobody else does. Then the map that a command has left suspended
 * is for the caller to recover first, from resume_by on.
 */
void multipath_execute(struct pr_command *, const char *socket_path, int lock,
                       struct suspension *);
/*
 * Somebody has died who had suspended the map, or hangs: does what is left to
 * do. The paths get their keys back first; but if somebody else has the lock,
 * they have to wait, and I/O has not. Only the path that was the witness can
 * be that still, as others may have been registered since; if there was none
 * yet, nothing was.
 */
void multipath_recover(const char *socket_path, int lock, struct suspension *);

/*
 * worker.c: has a worker carry out a command. An answer that has not come
 * within WORKER_WITHIN does not come.
 */
#define WORKER_WITHIN (65 * SECOND)
/*
 * Asks for a command to be carried out; waits for room on the queue, which all
 * share. Returns where worker_answer() will find the result once that is
 * readable, or -1 and errno if it cannot be asked for.
 */
int worker_ask(int queue, const struct pr_command *);
/*
 * Takes the result, or reports that the worker is gone or too late. Closes
 * answer.
 */
void worker_answer(int answer, struct pr_command *);

/* workers.c: the supervisor's book of them. */
struct workers {
    unsigned slots, used; /* as in the roster */
    pid_t *pids;          /* the supervisor's alone; 0: free, see workers.c */
    struct suspension *suspensions; /* shared with the workers */
    pid_t pending; /* the one that has not taken its command; 0: none */
    int64_t retry; /* when to fork the next, or kill the pending one */
};
/*
 * Returns a free place, or that of the dead one whose map is to be resumed; or
 * slots, if there is none.
 */
unsigned workers_place(const struct workers *, const struct suspension *);
/*
 * A worker has been forked (or could not be: pid < 0) for a command on the
 * queue or, with a suspension, to resume that map.
 */
void workers_started(struct workers *, unsigned place, pid_t,
                     struct suspension *, int64_t now);
void workers_reported(struct workers *); /* the pending one has a command */
void workers_ended(struct workers *, pid_t, int status, int64_t now);
/*
 * Kills who hangs in taking its command. *due is a map that somebody has to
 * resume, as who suspended it is dead or hangs; NULL: none. Returns when to
 * look again.
 */
int64_t workers_check(struct workers *, int64_t now, struct suspension **due);
/* Counts those that are still to be forked to resume a map, too. */
unsigned workers_count(const struct workers *);

#endif
