/* SPDX-License-Identifier: MIT */
/*
 * server.h - the inner loop and its clients: in a session one, all with
 * --single-process, none in the supervisor.
 *
 * It must never know of processes: that is supervisor.h.
 */
#ifndef SERVER_H
#define SERVER_H

#include "multipath/commands.h"
#include "protocol.h"
#include "roster.h"
#include "start.h"

#include <poll.h>

struct service { /* what all clients of this process have in common */
    int64_t timeout;
    const char *socket_path; /* of the listener, NULL: a service manager's */
    int queue;               /* to the workers; -1: we serve maps ourselves, */
    struct suspension suspension; /* and resume this one */
};

/* client.c: a connected client. */
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
