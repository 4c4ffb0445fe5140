/* SPDX-License-Identifier: MIT */
/*
 * server.h - the inner loop's parts: clients, who is connected, what is told
 * of them, descriptors and events. In a session these are about one client;
 * with --single-process about all; the supervisor uses all but client.c.
 *
 * It must never know of processes: that is supervisor.h.
 */
#ifndef SERVER_H
#define SERVER_H

#include "multipath/commands.h"
#include "protocol.h"
#include "start.h"

#include <poll.h>

#include <sys/resource.h>

/* events.c: signals are blocked but in events_wait(). */
enum { SIGNAL_STOP = 1, SIGNAL_CHILD = 2, SIGNAL_STATUS = 4 };
void signals_set_up(void);
/* Which have come, a bit for each, since it was called last. */
unsigned signals_take(void);
/*
 * Until one of fds is ready, or wake, or a signal: then none of them is ready.
 * As with poll(), those whose fd is negative are passed over.
 */
void events_wait(struct pollfd *fds, nfds_t count, int64_t now, int64_t wake);

/* descriptors.c: how many there can be, of which the caller wants most. */
int descriptors_limit(rlim_t most);
/* The same file, with one of the two highest numbers that there can be. */
int descriptor_high(int fd);
/* All but the standard ones, the trace file, and these (-1: none). */
void descriptors_close_except(int a, int b, int c);
/* In a session, whose new ones are to be below queue. 0, or -1 and errno. */
int descriptors_seal(int queue);

/*
 * client.c: a connected client. Its record is what the rest of the helper
 * may know about it; in a session the record is in memory shared with the
 * supervisor, which must not rely on it for more than fairness and statistics.
 */
struct record {
    struct log_peer peer; /* when it connected; pid 0: of no namespace here */
    int64_t since;        /* when it connected or last sent a command */
    unsigned long long commands;
    unsigned long long errors; /* commands that were not answered with GOOD */
    uint32_t state;            /* enum protocol_state: what it waits for */
    uint8_t busy; /* or 0: the device has, or had, a command not yet answered */
};

struct service { /* what all clients of this process have in common */
    int64_t timeout;
    const char *socket_path; /* ours, NULL: a service manager's */
    int queue; /* to the workers; -1: we do commands on maps ourselves, */
    struct suspension suspension; /* and resume this one */
};

struct client {
    int socket; /* -1: no client */
    struct service *service;
    int answer; /* of a command that a worker carries out; -1: none */
    int64_t deadline;
    bool refusal_logged;
    bool is_busy; /* as in its record, but nobody else can write that */
    struct record *record;
    struct conversation conversation;
};

/* Takes over the socket; service and record stay the caller's. */
void client_begin(struct client *, int socket, struct service *,
                  struct record *);
/* What to wait for: the client, or the answer of who works for it. */
void client_poll(const struct client *, struct pollfd *);
/*
 * Goes on with the conversation as far as it goes without waiting. Returns
 * false when it is over; the caller then closes the client.
 */
bool client_work(struct client *);
/* A command is being executed, or its reply has not all been sent. */
bool client_is_in_flight(const struct client *);
/*
 * True if the client has kept us waiting inside a frame for too long, or has
 * ended otherwise. A worker that hangs in the kernel is given up: it sends
 * nothing more when its own time is up.
 */
bool client_expire(struct client *, int64_t now);
/* We are leaving: the client has only so long to take its reply. */
void client_hurry(struct client *, int64_t now);
/* The client has done nothing wrong, but has to go. */
void client_leave(const struct client *);
/* Frees everything but the record. */
void client_close(struct client *);

/*
 * roster.c: who is connected, in the process that has the listener. A client
 * has a place in the table, and its record.
 */
struct place {
    pid_t pid; /* 0: free; the session that serves it, 1: there are none */
    bool has_client;
    int64_t leave_by; /* NEVER, or when to kill it if it is still there */
};

struct totals {
    unsigned long long clients; /* all that ever were */
    unsigned long long commands, errors;
};

struct roster {
    unsigned most;          /* clients at a time */
    unsigned slots;         /* of the tables that follow */
    unsigned used;          /* the first so many; the rest never were */
    struct place *places;   /* this process's own */
    struct record *records; /* shared with the sessions */
    struct totals totals;   /* commands and errors: of who is gone */
    int64_t crowded_by;     /* NEVER, or when too many clients are too many */
    int64_t retry;   /* when to try accept and fork again after a failure */
    bool complained; /* of that failure */
    unsigned status_slot; /* where report_status() goes on */
    int64_t status_by;    /* and when; NEVER: nobody has asked */
};
/* A free place; slots: there is none. */
unsigned roster_place(const struct roster *);
void roster_enter(struct roster *, unsigned place, pid_t);
/* Who is in that place has its client now. */
void roster_greet(struct roster *, unsigned place);
void roster_remove(struct roster *, unsigned place);
/* How many there are that have not been told to leave. */
unsigned roster_active(const struct roster *);
/* Have there been too many for a moment? */
bool roster_is_crowded(struct roster *, int64_t now);
/*
 * Who has to go, of those that are active, which is logged: of the peer with
 * the most connections, the one that has been idle for longest.
 */
unsigned roster_evict(const struct roster *);
/*
 * Says once what is wrong, until something works again. Until then the
 * listener is looked at now and then, or a persistent failure would make us
 * spin.
 */
void roster_back_off(struct roster *, const char *what, int error, int64_t now);

/* report.c: what an administrator is told of commands and clients. */
void report_request(const struct client *, const struct pr_command *);
/* The descriptor must still be open. */
void report_reply(const struct client *, const struct pr_command *,
                  size_t payload);
/* Somebody wants to know: the sums. report_status() goes on. */
void report_totals(struct roster *, unsigned workers, int64_t now);
/*
 * A line for each client, a few at a time, so that whoever takes them keeps
 * up. Returns when to go on.
 */
int64_t report_status(struct roster *, int64_t now);

/* prhelper.c: what the inner loop is about. */
struct server {
    struct listener *listener; /* NULL: it ends with its one client */
    struct roster *roster;     /* of the listener's clients; NULL likewise */
    int notify;
    struct service service;
    struct client *clients;
    unsigned used;      /* of that table */
    struct pollfd *fds; /* the listener's, then those of the clients */
};

#endif
