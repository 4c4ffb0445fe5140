/* SPDX-License-Identifier: MIT */
/*
 * workers.c - the supervisor's side: forks workers, and keeps book of which
 * there are, which one has not taken its command from the queue yet, and which
 * maps they have left suspended, or keep so for too long, as they say in memory
 * shared with it.
 *
 * No map must stay suspended. It must never read the queue: what is in it may
 * be a descriptor whose close() hangs.
 */
#include "multipath.h"

#include "../process.h"
#include "../supervisor.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define RETRY_AFTER (SECOND / 10) /* fork has failed, or a worker has died */
#define TAKE_WITHIN (2 * SECOND)  /* a worker has its command off the queue */
#define LOOK_AGAIN SECOND         /* for what workers have suspended since */

/* It stands for a pid: the worker is dead, and has left a map suspended. */
#define DEAD ((pid_t)-1)

/* It is not to be asked of a place that is free: a look takes memory. */
static bool is_suspender(const struct suspension *suspension)
{
    return suspension->alias[0] != '\0';
}

/* A free place, or that of the dead one whose map is to be resumed. */
static unsigned place_find(const struct workers *workers,
                           const struct suspension *suspension)
{
    unsigned i;

    if (suspension != NULL
        && workers->pids[suspension - workers->suspensions] == DEAD)
        return (unsigned)(suspension - workers->suspensions);
    for (i = 0; i < workers->used && workers->pids[i] != 0; i++)
        ;
    return i;
}

int worker_start(struct supervisor *supervisor, struct suspension *suspension,
                 int64_t now)
{
    struct workers *workers = &supervisor->workers;
    size_t size = workers->slots * sizeof(struct suspension);
    unsigned place = place_find(workers, suspension);
    pid_t pid = -1;
    int error = 0;

    if (place < workers->slots) { /* else again when one ends */
        /* They are for workers; a session is forked without them. */
        if (madvise(workers->suspensions, size, MADV_DOFORK) == 0)
            pid = process_fork();
        if (pid < 0)
            error = errno;
        if (pid == 0)
            worker_run(supervisor, suspension, &workers->suspensions[place]);
        madvise(workers->suspensions, size, MADV_DONTFORK);
    }
    if (pid > 0) {
        workers->count += workers->pids[place] == 0;
        workers->pids[place] = pid;
        workers->used += place == workers->used;
    }
    if (suspension == NULL) {
        workers->pending = pid > 0 ? pid : 0;
        workers->retry = now + (pid > 0 ? TAKE_WITHIN : RETRY_AFTER);
        return error;
    }
    suspension->resume_by = now + (pid > 0 ? COMMAND_WITHIN : RETRY_AFTER);
    if (pid > 0 && suspension != &workers->suspensions[place])
        log_error("map %.*s has been suspended for too long: having it resumed",
                  ALIAS_SIZE - 1, suspension->alias);
    return error;
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

int64_t workers_check(struct workers *workers, int64_t now,
                      struct suspension **due)
{
    int64_t next = NEVER;
    unsigned i;

    *due = NULL;
    workers->suspended = false;
    if (workers->pending != 0 && now >= workers->retry) {
        kill(workers->pending, SIGKILL);
        workers->retry = now + TAKE_WITHIN;
    }
    if (now < workers->retry)
        next = workers->retry;
    for (i = 0; i < workers->used; i++) {
        struct suspension *suspension = &workers->suspensions[i];

        if (workers->pids[i] == 0)
            continue;
        next = sooner(next, now + LOOK_AGAIN);
        if (!is_suspender(suspension))
            continue;
        workers->suspended = true;
        /* No worker takes longer: who says so would have its place for ever. */
        suspension->resume_by = sooner(suspension->resume_by,
                                       now + COMMAND_WITHIN);
        next = sooner(next, suspension->resume_by);
        if (suspension->resume_by <= now)
            *due = suspension;
    }
    return next;
}

void workers_ended(struct workers *workers, pid_t pid, int status, int64_t now)
{
    unsigned i;

    if (workers->pending == pid)
        workers_reported(workers);
    for (i = 0; i < workers->used; i++) {
        struct suspension *suspension = &workers->suspensions[i];

        if (workers->pids[i] == pid) {
            workers->pids[i] = DEAD;
            suspension->resume_by =
                now + (WIFSIGNALED(status) ? RETRY_AFTER : RESUME_AGAIN);
            if (WIFSIGNALED(status))
                log_error("a command on a multipath map died of signal %d",
                          WTERMSIG(status));
            if (is_suspender(suspension))
                log_error("map %.*s may be suspended: having it resumed",
                          ALIAS_SIZE - 1, suspension->alias);
        }
        if (workers->pids[i] == DEAD && !is_suspender(suspension)) {
            workers->pids[i] = 0; /* whoever has resumed it */
            workers->count--;
        }
    }
}
