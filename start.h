/* SPDX-License-Identifier: MIT */
/*
 * start.h - what start-up consists of, in the order of main(), and the
 * listening socket.
 *
 * Nothing here may be called once clients are served, but listen_remove() and
 * notify_send().
 */
#ifndef START_H
#define START_H

#include "log.h"

#include <sys/stat.h>

/* Returns the decimal number that text is, or -1 if it is none, or NULL. */
static inline int64_t number_of(const char *text)
{
    char *end;
    int64_t number;

    if (text == NULL || text[0] < '0' || text[0] > '9')
        return -1;
    number = strtoll(text, &end, 10); /* one too large stays so */
    return *end == '\0' ? number : -1;
}

/* options.c: reads the command line, or says what is wrong and exits. */
struct options {
    const char *socket_path; /* NULL: none was given */
    const char *pid_file;    /* NULL: none is to be written */
    bool background;
    int level; /* of messages: LOG_ERRORS, LOG_NORMAL, LOG_VERBOSE or more */
    bool single_process;
    bool sandbox;
    uid_t uid; /* (uid_t)-1: as started */
    gid_t gid; /* (gid_t)-1: as started */
    unsigned max_clients;
    int64_t client_timeout;
    int64_t stop_timeout;
};
void options_parse(struct options *, int argc, char **argv);

/* listen.c: the listening socket, and the messages to a service manager. */
struct listener {
    int fd;
    const char *path;    /* the name that we made, NULL: none */
    char directory[108]; /* that it is in, with a slash at its end */
    struct stat made;    /* of that name; all 0: it was gone at once */
};
/*
 * Uses the socket that a service manager has passed to us, instead of one at
 * path; fd is -1 if there is none. What it may have been told to attach to each
 * message would take the place of a client's descriptor. Takes the variables
 * out of the environment. It must be called before the first fork.
 */
void listen_activated(struct listener *, const char *path);
/*
 * Makes the socket, in place of one that nobody listens on any more. The path
 * may be NULL: PROTOCOL_SOCKET.
 */
void listen_open(struct listener *, const char *path);
/* Removes the name if it is still the one that listen_open() made. */
void listen_remove(const struct listener *);
/*
 * Returns a socket to who waits for our messages, or -1 if nobody does:
 * libvirtd, for one, hands its own NOTIFY_SOCKET down, but systemd says in
 * SYSTEMD_EXEC_PID (since version 248) whose it is. Other managers do not set
 * that. It must be called before the first fork.
 */
int notify_open(void);
/* fd -1: nobody is told. If who waits is busy, waits for it until then. */
void notify_send(int fd, const char *state, int64_t deadline);

/* daemon.c: the background and the PID file. */
/* Opens those that are closed, lest a socket or a disk becomes stdout. */
void daemon_open_standard_fds(void);
/*
 * Goes on in a child. The caller's process stays in here until the child
 * has called daemon_background_ready() with what this returns, and leaves
 * with status 0; or until the child has died, and leaves with its status.
 */
int daemon_background(void);
/* Takes both; messages go to this socket of syslogd's then, -1: nowhere. */
void daemon_background_ready(int report, int syslog);
/*
 * Writes the PID file and locks it for as long as this process lives (such
 * locks are not inherited by children). The descriptor stays open. Closing
 * any other descriptor of that file would lose the lock.
 */
void daemon_pid_file(const char *path);

/* privdrop.c: stage 3 there; exits if that fails. An id of -1 stays. */
void privdrop(uid_t uid, gid_t gid);

#endif
