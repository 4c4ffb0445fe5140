/* SPDX-License-Identifier: MIT */
/*
 * roster.c - who is connected, and who has to go when there are too many.
 * With a process for each client the supervisor has it, and the records are
 * in memory that the sessions can write to; with --single-process the one
 * process.
 *
 * It must never believe a record for more than fairness and statistics, or
 * let one peer's connections cost another peer his.
 */
#include "roster.h"

#include <errno.h>

#define RETRY_AFTER (SECOND / 10) /* after accept or fork has failed */

/* For so long there may be too many clients: some may just be leaving. */
#define CROWDED_FOR (SECOND / 4)

unsigned roster_find(const struct roster *roster, pid_t pid)
{
    unsigned i;

    for (i = 0; i < roster->used && roster->places[i].pid != pid; i++)
        ;
    return i;
}

void roster_enter(struct roster *roster, unsigned i, pid_t pid)
{
    roster->places[i] = (struct place){ .pid = pid, .leave_by = NEVER };
    roster->used += i == roster->used;
    roster->count++;
    roster->active++;
}

void roster_remove(struct roster *roster, unsigned i)
{
    roster->active -= roster->places[i].leave_by == NEVER;
    roster->places[i] = (struct place){ 0 };
    roster->count--;
    if (roster->pending == i)
        roster->pending = NOBODY;
    roster->commands += roster->records[i].commands;
    roster->errors += roster->records[i].errors;
}

static bool same_peer(const struct record *a, const struct record *b)
{
    return a->peer.pid == b->peer.pid && a->peer.uid == b->peer.uid;
}

/* How many connections the peer of place i has. */
static unsigned peer_connections(const struct roster *roster, unsigned i)
{
    unsigned j, count = 0;

    for (j = 0; j < roster->used; j++)
        count += roster->places[j].leave_by == NEVER
                 && same_peer(&roster->records[i], &roster->records[j]);
    return count;
}

/*
 * Of two clients whose peers have as many connections, does a go first? Not if
 * it has come, or sent a command, since there have been too many; nor if it has
 * a command at a device; else it is who has been idle for longer that goes.
 */
static bool goes_before(const struct roster *roster, const struct record *a,
                        const struct record *b)
{
    int64_t crowded = roster->crowded_by - CROWDED_FOR;

    if ((a->since < crowded) != (b->since < crowded))
        return a->since < crowded;
    return a->busy != b->busy ? b->busy : a->since < b->since;
}

/* This is quadratic in the number of peers, but only done at the limit. */
unsigned roster_evict(const struct roster *roster)
{
    unsigned i, victim = 0, most = 0;

    for (i = 0; i < roster->used; i++) {
        const struct record *record = &roster->records[i];
        const struct record *best = &roster->records[victim];
        unsigned connections;

        if (roster->places[i].leave_by != NEVER)
            continue;
        connections = most > 0 && same_peer(record, best)
                          ? most
                          : peer_connections(roster, i);
        if (connections < most
            || (connections == most && !goes_before(roster, record, best)))
            continue;
        victim = i;
        most = connections;
    }
    *log_about() = roster->records[victim].peer;
    log_warning("%u clients: disconnecting one of pid %d uid %u",
                roster->active < roster->most ? roster->active : roster->most,
                log_about()->pid, log_about()->uid);
    *log_about() = (struct ucred){ 0 };
    return victim;
}

bool roster_is_crowded(struct roster *roster, int64_t now)
{
    if (roster->active <= roster->most)
        roster->crowded_by = NEVER;
    else if (roster->crowded_by == NEVER)
        roster->crowded_by = now + CROWDED_FOR;
    return roster->crowded_by <= now;
}

void roster_back_off(struct roster *roster, const char *what, int error,
                     int64_t now)
{
    errno = error;
    if (!roster->complained)
        log_error("cannot %s, trying again:", what);
    roster->complained = true;
    roster->retry = now + RETRY_AFTER;
}
