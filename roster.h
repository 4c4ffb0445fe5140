/* SPDX-License-Identifier: MIT */
/*
 * roster.h - who is connected, in the process that has the listener, and what
 * an administrator is told of that. A client has a place in the table, and its
 * record.
 */
#ifndef ROSTER_H
#define ROSTER_H

#include "log.h"

struct pr_command;

/*
 * What the rest of the helper may know about a client, but see roster.c for
 * what it must not rely on.
 */
struct record {
    struct ucred peer; /* when it connected; pid 0: of no namespace here */
    int64_t since;     /* when it connected or last sent a command */
    unsigned long long commands;
    unsigned long long errors; /* commands that were not answered with GOOD */
    uint32_t state;            /* enum protocol_state: what it waits for */
    uint8_t busy; /* not 0: a device has a command, as yet unanswered */
};

struct place {
    pid_t pid; /* 0: free; the session that serves it, 1: there are none */
    int64_t leave_by; /* NEVER: it may stay; else when to kill it; 0: free */
};

#define NOBODY ((unsigned)-1)

/* roster.c: it must never know what a client's bytes mean. */
struct roster {
    unsigned most;          /* clients at a time */
    unsigned slots;         /* of the tables that follow */
    unsigned used;          /* the first so many; the rest never were */
    struct place *places;   /* this process's own */
    struct record *records; /* shared with the sessions */
    unsigned count;         /* of places that are not free, and */
    unsigned active;        /* of those that may stay */
    unsigned pending;       /* the place that waits for its client, or NOBODY */
    unsigned long long clients;          /* that ever were */
    unsigned long long commands, errors; /* of those that are gone */
    int64_t crowded_by; /* NEVER, or when one of too many has to go */
    int64_t retry;      /* when to try accept and fork again after a failure */
    bool complained;    /* of that failure */
    unsigned status_slot; /* where report_status() goes on */
    int64_t status_by;    /* and when; NEVER: nobody has asked */
};
/* Returns the place with that pid; 0: a free one. From .used on: nobody's. */
unsigned roster_find(const struct roster *, pid_t);
void roster_enter(struct roster *, unsigned place, pid_t); /* takes it in */
void roster_remove(struct roster *, unsigned place); /* its client has gone */
/* Have there been too many clients for a moment? */
bool roster_is_crowded(struct roster *, int64_t now);
/*
 * Says who of the active ones has to go, and logs it: of the peer with
 * the most connections, the one that has been idle for longest.
 */
unsigned roster_evict(const struct roster *);
/*
 * Says once what is wrong, until something works again. Until then the
 * listener is looked at now and then, or a persistent failure would make us
 * spin.
 */
void roster_back_off(struct roster *, const char *what, int error, int64_t now);

/* report.c: it must never change what it is about. */
/* A command has come, of the client with that record. */
void report_request(const struct record *, const struct pr_command *);
/* It is answered. The descriptor must still be open. */
void report_reply(const struct record *, const struct pr_command *,
                  size_t payload);
/*
 * Logs the sums if an administrator has asked, then a line for each client, a
 * few at a time, so that whoever reads them keeps up. Returns when to go on.
 */
int64_t report_status(struct roster *, bool is_asked, unsigned workers,
                      int64_t now);

#endif
