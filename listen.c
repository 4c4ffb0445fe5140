/* SPDX-License-Identifier: MIT */
/*
 * listen.c - the listening socket, our own or a service manager's, and the
 * messages to that manager: what sd_listen_fds(3) and sd_notify(3) say,
 * without libsystemd.
 *
 * It must never take a socket from a helper that is alive, remove what is no
 * socket, or trust a name because of where it is: the directory may belong to
 * virtual machines, which must not keep us from starting either.
 */
#include "kernel.h"
#include "protocol.h"
#include "sockets.h"
#include "start.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ACTIVATION_FD = 3 }; /* SD_LISTEN_FDS_START, sd-daemon.h */
/*
 * Clients are served in the order in which they have connected, so that one
 * who does nothing else would have all others wait behind it. Who finds no
 * place here waits in connect(), with the same chance of the next as anybody.
 */
enum { BACKLOG = 16 };

static int passed_option(int option)
{
    int value = -1; /* stays so if it is no socket */
    socklen_t size = sizeof(value);

    getsockopt(ACTIVATION_FD, SOL_SOCKET, option, &value, &size);
    return value;
}

void listen_activated(struct listener *listener, const char *path)
{
    static const int attached[] = { SO_PASSCRED, SO_PASSSEC, SO_PASSPIDFD };
    const int off = 0;
    int64_t count = number_of(getenv("LISTEN_FDS"));
    size_t i;

    listener->fd = -1;
    if (number_of(getenv("LISTEN_PID")) != getpid())
        return; /* they were for another process, and have come down to us */
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    if (count <= 0)
        return;
    if (path != NULL)
        fatal("Unix socket can't be set when using socket activation");
    if (count > 1)
        fatal(PROGRAM " does not support socket activation with "
                      "LISTEN_FDS > 1");
    if (passed_option(SO_DOMAIN) != AF_UNIX
        || passed_option(SO_TYPE) != SOCK_STREAM
        || passed_option(SO_ACCEPTCONN) != 1)
        fatal("socket activation failed: descriptor 3 is no listening Unix "
              "stream socket");
    if (fcntl(ACTIVATION_FD, F_SETFD, FD_CLOEXEC) < 0
        || fcntl(ACTIVATION_FD, F_SETFL, O_RDWR | O_NONBLOCK) < 0)
        fatal("socket activation failed:");
    for (i = 0; i < COUNT(attached); i++)
        setsockopt(ACTIVATION_FD, SOL_SOCKET, attached[i], &off, sizeof(off));
    /* Again, for our backlog; but the socket stays whose it is: root's. */
    if (socket_peer(ACTIVATION_FD).uid == geteuid())
        listen(ACTIVATION_FD, BACKLOG);
    listener->fd = ACTIVATION_FD;
}

/*
 * Does one of us listen there? A listener of another uid does not count: it
 * is a trap or a leftover. Who cannot be asked, as its backlog stays full, it
 * is of another type, or there is no memory, tells no uid: only where nobody
 * else can make a socket is it taken for ours.
 */
static bool is_alive(const char *name, bool is_shared)
{
    const int64_t again_by = clock_us() + (is_shared ? 0 : SECOND / 50);
    uid_t uid;
    int fd;

    /*
     * Who starts at the same time has bound it, but may not listen yet: it is
     * asked twice, with the pause of is_in_time() in between.
     */
    do
        fd = socket_connect(name, SOCK_STREAM, clock_us() + SECOND);
    while (fd < 0 && errno == ECONNREFUSED && is_in_time(again_by));
    if (fd < 0)
        return errno != ECONNREFUSED && errno != ENOENT && errno != EACCES
               && !is_shared;
    uid = socket_peer(fd).uid;
    close(fd);
    return uid == geteuid();
}

/* Does the path still name this file? */
static bool is_file(const char *path, const struct stat *file)
{
    struct stat st;

    return lstat(path, &st) == 0 && st.st_dev == file->st_dev
           && st.st_ino == file->st_ino;
}

/*
 * Makes room for the socket. What others may have put there is no reason not
 * to start: a socket is removed; what is none is given another name, as it
 * may be dear to somebody (and a directory need not be empty).
 */
static void place_clear(const char *path, bool is_shared)
{
    char aside[sizeof(((struct sockaddr_un *)0)->sun_path) + 24], node[32];
    /* By its name we could be led to another socket than we look at here. */
    int fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;

    if (fd < 0 && errno == ENOENT)
        return;
    if (fd < 0)
        fatal("cannot look at %s:", path);
    snprintf(node, sizeof(node), "/proc/self/fd/%d", fd);
    if (fstat(fd, &st) < 0) {
        log_verbose("cannot look at %s:", path); /* it is tried again */
    } else if (!S_ISSOCK(st.st_mode)) {
        if (!is_shared)
            fatal("cannot bind socket to %s: it exists and is no socket", path);
        snprintf(aside, sizeof(aside), "%s.%lld", path, (long long)clock_us());
        /* This is said first, as who made it may make the next one at once. */
        log_warning("%s is no socket: renaming it to %s", path, aside);
        if (rename(path, aside) < 0 && errno != ENOENT)
            fatal("cannot rename %s, which is no socket:", path);
    } else if (is_alive(stat(node, &st) == 0 ? node : path, is_shared)) {
        fatal("cannot bind socket to %s: another process listens there", path);
    } else if (is_file(path, &st) && unlink(path) < 0 && errno != ENOENT) {
        fatal("cannot replace the stale socket %s:", path);
    }
    close(fd);
}

void listen_open(struct listener *listener, const char *path)
{
    struct sockaddr_un address;
    socklen_t length;
    int tries = 1000;
    bool is_shared;
    struct stat st;

    if (path == NULL)
        path = PROTOCOL_SOCKET;
    length = socket_address(&address, path);
    if (length == 0)
        fatal("UNIX socket path '%s' is too long: the limit is %zu bytes", path,
              sizeof(address.sun_path) - 1);
    snprintf(listener->directory, sizeof(listener->directory), "%.*s",
             (int)(strrchr(path, '/') - path) + 1, path);
    /* Who owns it, is in its group or access list, can put things there. */
    is_shared = stat(listener->directory, &st) == 0
                && (st.st_uid != geteuid()
                    || (st.st_mode & (S_IWGRP | S_IWOTH)) != 0);
    listener->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
                          0);
    if (listener->fd < 0)
        fatal("cannot create a socket:");
    while (bind(listener->fd, (const struct sockaddr *)&address, length) < 0) {
        if (errno != EADDRINUSE || --tries == 0)
            fatal("cannot bind socket to %s:", path);
        place_clear(path, is_shared);
    }
    /* Whoever could connect may have put another in its place already. */
    (void)lstat(path, &listener->made); /* 0 if it is gone, as no file is */
    listener->path = path;
    if (listen(listener->fd, BACKLOG) < 0)
        fatal("cannot listen on %s:", path);
    /* Who started at the same time may have found nobody listening yet. */
    if (!is_shared && !is_file(path, &listener->made))
        fatal("cannot listen on %s: another process has taken it", path);
}

void listen_remove(const struct listener *listener)
{
    /* After stage 3 we may not be able to change the directory any more. */
    if (listener->path != NULL && is_file(listener->path, &listener->made)
        && unlink(listener->path) < 0)
        log_verbose("cannot remove %s:", listener->path);
}

int notify_open(void)
{
    const char *name = getenv("NOTIFY_SOCKET");
    const char *whose = getenv("SYSTEMD_EXEC_PID");
    int fd;

    if (name == NULL || name[0] == '\0'
        || (whose != NULL && number_of(whose) != getpid()))
        return -1;
    fd = socket_connect(name, SOCK_DGRAM, 0);
    if (fd < 0)
        log_warning("cannot connect to NOTIFY_SOCKET '%s':", name);
    return fd;
}

void notify_send(int fd, const char *state, int64_t deadline)
{
    ssize_t sent;

    do
        sent = fd < 0 ? 0 : send(fd, state, strlen(state), MSG_NOSIGNAL);
    while (sent < 0 && errno == EAGAIN && is_in_time(deadline));
    if (sent < 0)
        log_warning("cannot notify the service manager:");
}
