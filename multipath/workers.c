/* SPDX-License-Identifier: MIT */
/*
 * workers.c - the supervisor's book of workers: which there are, which one has
 * not taken its command from the queue yet, and which maps they have left
 * suspended, or keep so for too long, as they say in memory shared with it.
 *
 * No map must stay suspended. It must never read the queue: what is in it may
 * be a descriptor whose close() hangs.
 */
#include "multipath.h"

#include "../supervisor.h"

#include <signal.h>
#include <sys/wait.h>

#define RETRY_AFTER (SECOND / 10) /* after fork has failed */
#define RESUME_AGAIN (2 * SECOND) /* after one could not */
#define TAKE_WITHIN (2 * SECOND)  /* a command off the queue */
#define LOOK_AGAIN SECOND         /* what a worker has suspended meanwhile */

/* In place of a pid: it is dead, and has left a map suspended. */
#define DEAD ((pid_t)-1)

/* (A look at a place that is free would take memory for it.) */
static bool is_suspender(const struct workers *workers, unsigned i)
{
    return workers->pids[i] != 0 && workers->suspensions[i].alias[0] != '\0';
}

unsigned workers_place(const struct workers *workers)
{
    unsigned i;

    for (i = 0; i < workers->used && workers->pids[i] != 0; i++)
        ;
    return i;
}

void workers_started(struct workers *workers, unsigned place, pid_t pid,
                     struct suspension *suspension, int64_t now)
{
    if (pid > 0) {
        workers->pids[place] = pid;
        workers->used += place == workers->used;
    }
    if (suspension != NULL) {
        if (pid < 0)
            suspension->resume_by = now + RETRY_AFTER;
        return;
    }
    workers->pending = pid > 0 ? pid : 0;
    workers->retry = now + (pid > 0 ? TAKE_WITHIN : RETRY_AFTER);
}

/* The next command may be for a map that is suspended: that goes first. */
void workers_reported(struct workers *workers)
{
    unsigned i;

    workers->pending = 0;
    workers->retry = 0;
    for (i = 0; i < workers->used; i++)
        if (workers->pids[i] == DEAD)
            workers->suspensions[i].resume_by = 0;
}

/* A dead one's place is taken by who resumes its map. */
struct suspension *workers_resume(struct workers *workers, int64_t now,
                                  unsigned *place)
{
    unsigned i;

    for (i = 0; i < workers->used; i++) {
        struct suspension *suspension = &workers->suspensions[i];

        if (!is_suspender(workers, i) || now < suspension->resume_by)
            continue;
        *place = workers->pids[i] == DEAD ? i : workers_place(workers);
        if (workers->pids[i] != DEAD && *place < workers->slots)
            log_error("map %.*s has been suspended for too long: having it "
                      "resumed",
                      ALIAS_SIZE - 1, suspension->alias);
        suspension->resume_by = now + COMMAND_WITHIN;
        return suspension;
    }
    return NULL;
}

int64_t workers_check(struct workers *workers, int64_t now)
{
    int64_t next = NEVER;
    unsigned i;

    if (workers->pending != 0 && now >= workers->retry) {
        kill(workers->pending, SIGKILL);
        workers->retry = now + TAKE_WITHIN;
    }
    if (now < workers->retry)
        next = workers->retry;
    for (i = 0; i < workers->used; i++) {
        int64_t *resume_by = &workers->suspensions[i].resume_by;

        if (workers->pids[i] == 0)
            continue;
        next = sooner(next, now + LOOK_AGAIN);
        if (!is_suspender(workers, i)) {
            if (workers->pids[i] == DEAD) /* it was another that resumed it */
                workers->pids[i] = 0;
            continue;
        }
        /* No worker takes longer; or its place would be lost. */
        *resume_by = sooner(*resume_by, now + COMMAND_WITHIN);
        next = sooner(next, *resume_by);
    }
    return next;
}

void workers_ended(struct workers *workers, pid_t pid, int status, int64_t now)
{
    unsigned i;

    if (workers->pending == pid)
        workers_reported(workers);
    for (i = 0; i < workers->used && workers->pids[i] != pid; i++)
        ;
    if (i == workers->used)
        return;
    if (WIFSIGNALED(status))
        log_error("a command on a multipath map died of signal %d",
                  WTERMSIG(status));
    workers->pids[i] = is_suspender(workers, i) ? DEAD : 0;
    if (workers->pids[i] == DEAD) {
        log_error("map %.*s may be suspended: having it resumed",
                  ALIAS_SIZE - 1, workers->suspensions[i].alias);
        workers->suspensions[i].resume_by =
            now + (WIFSIGNALED(status) ? RETRY_AFTER : RESUME_AGAIN);
    }
}

unsigned workers_count(const struct workers *workers)
{
    unsigned i, count = 0;

    for (i = 0; i < workers->used; i++)
        count += workers->pids[i] > 0;
    return count;
}

bool workers_any(const struct workers *workers)
{
    unsigned i;

    for (i = 0; i < workers->used; i++)
        if (workers->pids[i] > 0 || is_suspender(workers, i))
            return true;
    return false;
}
