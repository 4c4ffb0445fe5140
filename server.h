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
#include <signal.h>
#include <sys/resource.h>

/* events.c: signals are blocked but in events_wait(). */
enum { SIGNAL_STOP = 1 << SIGTERM | 1 << SIGINT | 1 << SIGHUP };
enum { SIGNAL_CHILD = 1 << SIGCHLD, SIGNAL_STATUS = 1 << SIGUSR1 };
void signals_set_up(void);
/* The signals that have come since the last call, a bit for each. */
unsigned signals_take(void);
/*
 * Waits for one of fds, the time wake, or a signal, with which none of fds is
 * ready. As with poll(), those whose fd is negative are passed over.
 */
void events_wait(struct pollfd *fds, nfds_t count, int64_t now, int64_t wake);

/* descriptors.c: allows most descriptors; returns how many there can be. */
int descriptors_limit(rlim_t most);
/* Duplicates fd, with one of the two highest numbers that there can be. */
int descriptor_high(int fd);
/* Closes all but the standard ones, the trace file, and these (-1: none). */
void descriptors_close_except(int a, int b, int c);
/* Keeps a session's new ones below queue. Returns 0, or -1 and errno. */
int descriptors_seal(int queue);

/*
 * client.c: a connected client. Its record is what the rest of the helper
 * may know about it, but see roster.c for what it must not rely on.
 */
struct record {
    struct log_peer peer; /* when it connected; pid 0: of no namespace here */
    int64_t since;        /* when it connected or last sent a command */
    unsigned long long commands;
    unsigned long long errors; /* commands that were not answered with GOOD */
    uint32_t state;            /* enum protocol_state: what it waits for */
    uint8_t busy; /* not 0: a device has a command, as yet unanswered */
};

struct service { /* what all clients of this process have in common */
    int64_t timeout;
    const char *socket_path; /* of the listener, NULL: a service manager's */
    int queue;               /* to the workers; -1: we serve maps ourselves, */
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
/*
 * Sets what to wait for, the client or the worker's answer, and makes *wake no
 * later than its deadline. Returns whether a command is being executed, or its
 * reply has not all been sent.
 */
bool client_poll(const struct client *, struct pollfd *, int64_t *wake);
/*
 * Goes on with the conversation as far as it goes without waiting, if there is
 * something to take or send (is_ready), or its deadline has passed: the client
 * has kept us waiting inside a frame for too long; or a worker hangs in the
 * kernel, which is given up, as it sends nothing more when its own time is up.
 * Returns false when it is over; the caller then closes the client.
 */
bool client_work(struct client *, bool is_ready, int64_t now);
/* Traces that the client, if there is one, has to go without a fault. */
void client_leave(const struct client *);
/* Frees everything but the record. */
void client_close(struct client *);

/*
 * roster.c: who is connected, in the process that has the listener. A client
 * has a place in the table, and its record.
 */
struct place {
    pid_t pid; /* 0: free; the session that serves it, 1: there are none */
    int64_t leave_by; /* NEVER: it may stay; else when to kill it; 0: free */
};

#define NOBODY ((unsigned)-1)

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
/* Who comes to that place has no client yet: it is pending. */
void roster_enter(struct roster *, unsigned place, pid_t);
/* The pending one has its client now. */
void roster_greet(struct roster *);
void roster_remove(struct roster *, unsigned place); /* its client has gone */
/* Have there been too many clients for a moment? */
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
/*
 * Logs the sums if an administrator has asked, then a line for each client, a
 * few at a time, so that whoever reads them keeps up. Returns when to go on.
 */
int64_t report_status(struct roster *, bool is_asked, unsigned workers,
                      int64_t now);

/* prhelper.c: what the inner loop is about. */
struct server {
    struct listener listener; /* fd -1: it ends with its one client */
    struct roster roster;     /* of the listener's clients */
    int notify;
    struct service service;
    struct client *clients; /* by their place in the roster; or its only one */
    struct pollfd *fds;     /* the listener's, then those of the clients */
};

#endif
