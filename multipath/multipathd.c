/* SPDX-License-Identifier: MIT */
/*
 * multipathd.c - what is asked of multipathd, and told to it, about one map:
 * the key that it shall register on paths that (re)appear, whether it shall,
 * whether this host holds the reservation; and to suspend and resume the map.
 *
 * Each command takes a connection of its own. Both ways a packet is its
 * length, a size_t of this machine, and that many bytes of text, NUL
 * included (so a 32-bit helper cannot talk to a 64-bit multipathd).
 *
 * It must never take a listener that is not root's for multipathd, wait
 * longer than MULTIPATHD_TIMEOUT, or believe a reply that is not whole.
 *
 * Source: multipathd(8), and the observed replies of multipath-tools 0.9.4
 * to 0.15.1. Versions before 0.13 know nothing of holding.
 */
#include "multipathd.h"
#include "../sockets.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef MULTIPATHD_TIMEOUT
#define MULTIPATHD_TIMEOUT (12 * SECOND) /* busy, it takes over 4 s */
#endif

enum {
    COMMAND_SIZE = 512,   /* multipathd's own limit, MAX_CMD_LEN + NUL */
    REPLY_SIZE = 64,      /* as much as we look at */
    REPLY_MOST = 16 << 20 /* more is no reply */
};

/* It may still be told something when the caller's time is up. */
#define LEAST SECOND

struct packet {
    size_t size;
    char text[COMMAND_SIZE];
};

/* Takes all of it; returns false and errno if that does not come in time. */
static bool receive(int fd, void *data, size_t size, int64_t deadline)
{
    struct pollfd ready = { .fd = fd, .events = POLLIN };
    char *at = data;

    while (size > 0) {
        int64_t us = deadline > clock_us() ? deadline - clock_us() : 0;
        struct timespec timeout = { .tv_sec = (time_t)(us / SECOND),
                                    .tv_nsec = (long)(us % SECOND) * 1000 };
        ssize_t received = ppoll(&ready, 1, &timeout, NULL);

        if (received == 0)
            errno = ETIMEDOUT;
        if (received <= 0)
            return false;
        received = recv(fd, at, size, MSG_DONTWAIT);
        if (received == 0)
            errno = ECONNRESET;
        if (received <= 0)
            return false;
        at += received;
        size -= (size_t)received;
    }
    return true;
}

/* Returns a socket, or -1 and errno: EPERM if it is not root who listens. */
static int name_connect(const char *name, int64_t deadline)
{
    int fd = socket_connect(name, SOCK_STREAM, deadline);

    if (fd < 0 || socket_peer(fd).uid == 0)
        return fd;
    close(fd); /* the directory may belong to virtual machines */
    errno = EPERM;
    return -1;
}

/*
 * It is at $MULTIPATH_SOCKET_NAME; or at its name since 0.12; or beside our own
 * socket, where KubeVirt puts it; or at its name before 0.12.
 */
static int multipathd_connect(const struct multipathd *multipathd,
                              int64_t deadline)
{
    static const char name[] = "multipathd.socket";
    const char *own = multipathd->socket_path;
    const char *slash = own != NULL ? strrchr(own, '/') : NULL;
    const char *given = getenv("MULTIPATH_SOCKET_NAME");
    char beside[sizeof(((struct sockaddr_un *)0)->sun_path) + sizeof(name)];
    int fd;

    if (given != NULL)
        return name_connect(given, deadline);
    fd = name_connect("/run/multipathd.socket", deadline);
    if (fd < 0 && own != NULL) {
        snprintf(beside, sizeof(beside), "%.*s%s",
                 slash != NULL ? (int)(slash - own) + 1 : 0, own, name);
        fd = name_connect(beside, 0); /* whoever made it may keep it full */
        if (fd < 0 && errno == EPERM)
            log_warning("%s is not root's: not taken for multipathd", beside);
    }
    if (fd < 0)
        fd = name_connect("@/org/kernel/linux/storage/multipathd", deadline);
    return fd;
}

/*
 * Has multipathd execute a command; *reply is the beginning of what it said,
 * with a NUL at its end. Returns 0 or errno.
 */
static int exchange(const struct multipathd *multipathd,
                    const struct packet *command, char *reply, size_t room)
{
    int64_t deadline = clock_us() + MULTIPATHD_TIMEOUT;
    size_t size = offsetof(struct packet, text) + command->size, taken = 0;
    int fd, error = 0;

    if (multipathd->deadline != NULL && deadline > *multipathd->deadline)
        deadline = *multipathd->deadline;
    if (deadline < clock_us() + LEAST)
        deadline = clock_us() + LEAST;
    reply[0] = '\0';
    fd = multipathd_connect(multipathd, deadline);
    if (fd < 0)
        return errno;
    errno = EPROTO; /* if it is the length that is not right */
    if (send(fd, command, size, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)size
        || !receive(fd, &size, sizeof(size), deadline) || size == 0
        || size > REPLY_MOST
        || !receive(fd, reply, taken = size < room ? size : room - 1, deadline))
        error = errno;
    close(fd);
    reply[error == 0 ? taken : 0] = '\0'; /* or it is not whole */
    return error;
}

/* So begins a reply that says something. */
static const struct {
    char text[16];
    enum multipathd_said said;
} replies[] = {
    { "ok\n", MULTIPATHD_DONE },     { "fail\n", MULTIPATHD_REFUSED },
    { "set\n", MULTIPATHD_SET },     { "1", MULTIPATHD_SET }, /* < 0.9.9 */
    { "unset\n", MULTIPATHD_UNSET },
};

/*
 * Returns MULTIPATHD_SILENT if there is no reply, or it is busy, or denies it,
 * which has been logged, and MULTIPATHD_OTHER if it is none of those, but a
 * usage text, or an answer. That is in *reply.
 */
__attribute__((format(printf, 4, 5))) static enum multipathd_said ask(
    const struct multipathd *multipathd, char *reply, size_t room,
    const char *format, ...)
{
    struct packet command;
    bool is_busy, is_mute;
    va_list arguments;
    const char *why;
    int length, error;
    size_t i;

    va_start(arguments, format);
    length = vsnprintf(command.text, COMMAND_SIZE, format, arguments);
    va_end(arguments);
    command.size = (size_t)length + 1;
    reply[0] = '\0';
    if (length < 0 || length >= COMMAND_SIZE)
        return MULTIPATHD_REFUSED;
    do {
        error = exchange(multipathd, &command, reply, room);
        why = reply; /* since 0.9.9 "fail" precedes it */
        if (strncmp(reply, "fail\n", 5) == 0 && reply[5] != '\0')
            why += 5;
        is_busy = strncmp(why, "timeout", 7) == 0; /* after 4 s */
    } while (is_busy && multipathd->deadline != NULL
             && is_in_time(*multipathd->deadline));
    length = (int)strcspn(why, "\n");
    if (error != 0)
        log_warning("no answer from multipathd to '%.100s': %s", command.text,
                    strerror(error));
    else
        trace(TRACE_MULTIPATHD, "multipathd, '%.100s': %.*s", command.text,
              length, why);
    is_mute = is_busy || strncmp(why, "permission deny", 15) == 0;
    if (is_mute)
        log_warning("multipathd, '%.100s': %.*s", command.text, length, why);
    for (i = 0; !is_mute && i < COUNT(replies); i++)
        if (strncmp(reply, replies[i].text, strlen(replies[i].text)) == 0)
            return replies[i].said;
    return is_mute || error != 0 || reply[0] == '\0' ? MULTIPATHD_SILENT
                                                     : MULTIPATHD_OTHER;
}

void multipathd_show(const struct multipathd *multipathd, const char *command,
                     char text[MULTIPATHD_TEXT])
{
    ask(multipathd, text, MULTIPATHD_TEXT, "%s", command);
}

struct multipathd_path multipathd_path(const char *table, const char *name)
{
    struct multipathd_path path = { .is_ready = true };
    const char *at = table;
    char wanted[64];
    int length = snprintf(wanted, sizeof(wanted), "/%s ", name);

    while (*at != '\0' && strncmp(at, wanted, (size_t)length) != 0)
        at += 1 + strcspn(at + 1, "/"); /* strstr() has 1 kB in musl */
    if (*at == '\0')
        return path;
    at += length;
    path.is_failed = strncmp(at, "failed ", 7) == 0;
    at += strcspn(at, " \n");
    path.is_ready = strncmp(at, " ready\n", 7) == 0
                    || strncmp(at, " ghost\n", 7) == 0;
    return path;
}

bool multipathd_key_get(const struct multipathd *multipathd,
                        struct multipathd_key *key)
{
    char reply[REPLY_SIZE];
    char *end;

    ask(multipathd, reply, sizeof(reply), "getprkey map %s", multipathd->map);
    errno = 0;
    key->value = strtoull(reply, &end, 16);
    key->aptpl = strcmp(end, ":aptpl\n") == 0;
    if (strcmp(reply, "none\n") == 0)
        return true;
    return strncmp(reply, "0x", 2) == 0 && errno == 0 && key->value != 0
           && (key->aptpl || strcmp(end, "\n") == 0);
}

enum multipathd_said multipathd_key_set(const struct multipathd *multipathd,
                                        const struct multipathd_key *key)
{
    char reply[REPLY_SIZE];

    if (key->value == 0)
        return multipathd_tell(multipathd, "unsetprkey");
    return ask(multipathd, reply, sizeof(reply), "setprkey map %s key %llx%s",
               multipathd->map, (unsigned long long)key->value,
               key->aptpl ? ":aptpl" : "");
}

enum multipathd_said multipathd_tell(const struct multipathd *multipathd,
                                     const char *command)
{
    bool is_named = strcmp(command, "suspend") == 0
                    || strcmp(command, "resume") == 0;
    char reply[REPLY_SIZE];

    return ask(multipathd, reply, sizeof(reply), "%s map %s", command,
               is_named ? multipathd->alias : multipathd->map);
}
