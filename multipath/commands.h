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
    char witness[32];  /* path that has kept its key; empty: none, ?: unsure */
    int64_t resume_by; /* then another worker does it */
};
/*
 * Has a command carried out that sg_io_vet() has found to be for a
 * device-mapper device: by a worker, for which it waits for room on the queue,
 * which all share; or here (queue is -1), and then a map that is left suspended
 * comes first, for which there is multipath_check(). Returns where
 * worker_answer() will find the result once that is readable, or -1 if the
 * command has it already.
 */
int multipath_ask(struct pr_command *, int queue, const char *socket_path,
                  struct suspension *);
/* An answer that has not come by then does not come. */
#define WORKER_WITHIN (65 * SECOND)
/*
 * Takes the result, or reports that the worker is gone or too late. Closes
 * answer.
 */
void worker_answer(int answer, struct pr_command *);
/*
 * Resumes that map if it is time. Returns the time after that; *wake becomes
 * sooner if it has to be tried again.
 */
int64_t multipath_check(const char *socket_path, struct suspension *,
                        int64_t now, int64_t *wake);

/* workers.c: the supervisor's book of them. */
struct workers {
    unsigned slots, used; /* as in the roster */
    unsigned count;       /* of places that are not free */
    pid_t *pids;          /* the supervisor's alone; 0: free, see workers.c */
    struct suspension *suspensions; /* shared with the workers */
    bool suspended;                 /* a map is, as of the last look */
    pid_t pending; /* the one that has not taken its command; 0: none */
    int64_t retry; /* when to fork the next, or kill the pending one */
};
void workers_reported(struct workers *); /* the pending one has a command */
/* One has ended: the map that it may have left suspended is to be resumed. */
void workers_ended(struct workers *, pid_t, int status, int64_t now);
/*
 * Kills who hangs in taking its command. *due is a map that somebody has to
 * resume, as who suspended it is dead or hangs; NULL: none. Returns when to
 * look again.
 */
int64_t workers_check(struct workers *, int64_t now, struct suspension **due);

#endif
