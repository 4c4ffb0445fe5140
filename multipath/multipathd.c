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
#include "../protocol.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef MULTIPATHD_TIMEOUT
#define MULTIPATHD_TIMEOUT (12 * SECOND) /* busy, it takes over 4 s */
#endif

enum {
    COMMAND_SIZE = 512,    /* multipathd's own limit, MAX_CMD_LEN + NUL */
    REPLY_SIZE = 64,       /* as much as we look at */
    REPLY_MOST = 16 << 20, /* more is no reply */
    RETRY_NS = 50000000    /* while its backlog is full, or it is busy */
};

/* Even when the caller's time is up it may still be told something. */
#define LEAST SECOND

/* Sends (POLLOUT) or receives (POLLIN) all of it; returns -1 and errno if not.
 */
static int move_all(int fd, short direction, void *data, size_t size,
                    int64_t deadline)
{
    struct pollfd ready = { .fd = fd, .events = direction };
    char *at = data;

    while (size > 0) {
        int64_t us = deadline > clock_us() ? deadline - clock_us() : 0;
        struct timespec timeout = { .tv_sec = (time_t)(us / SECOND),
                                    .tv_nsec = (long)(us % SECOND) * 1000 };
        ssize_t moved = ppoll(&ready, 1, &timeout, NULL);

        if (moved == 0)
            errno = ETIMEDOUT;
        if (moved <= 0)
            return -1;
        moved = direction == POLLIN
                    ? recv(fd, at, size, MSG_DONTWAIT)
                    : send(fd, at, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (moved == 0)
            errno = ECONNRESET;
        if (moved <= 0 && errno != EAGAIN)
            return -1;
        if (moved > 0) {
            at += moved;
            size -= (size_t)moved;
        }
    }
    return 0;
}

static int name_connect(const char *name, int64_t deadline)
{
    struct ucred peer = { 0, (uid_t)-1, (gid_t)-1 };
    socklen_t size = sizeof(peer);
    struct sockaddr_un address;
    socklen_t length = protocol_address(&address, name);
    int fd, error;

    if (length == 0) {
        errno = ENAMETOOLONG;
        return -1;
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    while (connect(fd, (struct sockaddr *)&address, length) < 0) {
        if (errno != EAGAIN || clock_us() > deadline)
            goto failed;
        nanosleep(&(struct timespec){ .tv_nsec = RETRY_NS }, NULL);
    }
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
        goto failed;
    if (peer.uid == 0)
        return fd;
    errno = EPERM; /* the directory may belong to virtual machines */
failed:
    error = errno;
    close(fd);
    errno = error;
    return -1;
}

/*
 * $MULTIPATH_SOCKET_NAME; or the name that multipathd has since 0.12; or one
 * beside our own socket, where KubeVirt puts it; or the name before 0.12.
 */
static int multipathd_connect(const struct multipathd *multipathd,
                              int64_t deadline)
{
    static const char name[] = "multipathd.socket";
    const char *own = multipathd->socket_path;
    const char *given = getenv("MULTIPATH_SOCKET_NAME");
    char beside[sizeof(((struct sockaddr_un *)0)->sun_path) + sizeof(name)];
    int fd;

    if (given != NULL)
        return name_connect(given, deadline);
    fd = name_connect("/run/multipathd.socket", deadline);
    if (fd < 0 && own != NULL) {
        snprintf(beside, sizeof(beside), "%.*s/%s",
                 (int)(strrchr(own, '/') - own), own, name);
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
 * with a NUL at its end.
 */
static int exchange(const struct multipathd *multipathd, char *command,
                    char *reply, size_t room)
{
    int64_t deadline = clock_us() + MULTIPATHD_TIMEOUT;
    size_t size = strlen(command) + 1;
    int result = -1, error, fd;

    if (multipathd->deadline != NULL && deadline > *multipathd->deadline)
        deadline = *multipathd->deadline;
    if (deadline < clock_us() + LEAST)
        deadline = clock_us() + LEAST;
    fd = multipathd_connect(multipathd, deadline);
    if (fd < 0)
        return -1;
    memset(reply, 0, room);
    if (move_all(fd, POLLOUT, &size, sizeof(size), deadline) == 0
        && move_all(fd, POLLOUT, command, size, deadline) == 0
        && move_all(fd, POLLIN, &size, sizeof(size), deadline) == 0) {
        errno = EPROTO;
        if (size > 0 && size <= REPLY_MOST)
            result = move_all(fd, POLLIN, reply, size < room ? size : room - 1,
                              deadline);
    }
    error = errno;
    close(fd);
    errno = error;
    return result;
}

/* Since 0.9.9 "fail" precedes the reason. */
static const char *reason_find(const char *reply)
{
    return strncmp(reply, "fail\n", 5) == 0 && reply[5] != '\0' ? reply + 5
                                                                : reply;
}

/* While it is busy it answers "timeout" after 4 s: neither yes nor no. */
static bool is_busy(const struct multipathd *multipathd, const char *why)
{
    if (strncmp(why, "timeout", 7) != 0 || multipathd->deadline == NULL
        || clock_us() >= *multipathd->deadline)
        return false;
    nanosleep(&(struct timespec){ .tv_nsec = RETRY_NS }, NULL);
    return true;
}

/*
 * MULTIPATHD_SILENT: there is no reply, which has been logged. A reply other
 * than ok is in *reply: an answer, a refusal, or a usage text.
 */
__attribute__((format(printf, 4, 5))) static enum multipathd_said ask(
    const struct multipathd *multipathd, char *reply, size_t room,
    const char *format, ...)
{
    char command[COMMAND_SIZE];
    va_list arguments;
    const char *why;
    int length;

    va_start(arguments, format);
    length = vsnprintf(command, sizeof(command), format, arguments);
    va_end(arguments);
    reply[0] = '\0';
    if (length < 0 || (size_t)length >= sizeof(command))
        return MULTIPATHD_REFUSED;
    do {
        if (exchange(multipathd, command, reply, room) < 0) {
            log_warning("no answer from multipathd to '%.100s': %s", command,
                        strerror(errno));
            return MULTIPATHD_SILENT;
        }
        why = reason_find(reply);
    } while (is_busy(multipathd, why));
    length = (int)strcspn(why, "\n");
    trace(TRACE_MULTIPATHD, "multipathd, '%.100s': %.*s", command, length, why);
    if (strncmp(why, "permission deny", 15) == 0
        || strncmp(why, "timeout", 7) == 0)
        log_warning("multipathd, '%.100s': %.*s", command, length, why);
    if (strncmp(why, "timeout", 7) == 0)
        return MULTIPATHD_SILENT;
    return strncmp(reply, "ok\n", 3) == 0 ? MULTIPATHD_DONE
                                          : MULTIPATHD_REFUSED;
}

/* The word at the beginning of *text, which is then behind it. */
static bool next_is(const char **text, const char *word)
{
    size_t length;

    *text += strspn(*text, " ");
    length = strcspn(*text, " \n");
    *text += length;
    return length == strlen(word) && strncmp(*text - length, word, length) == 0;
}

void multipathd_paths_get(const struct multipathd *multipathd,
                          char table[MULTIPATHD_TABLE])
{
    if (ask(multipathd, table, MULTIPATHD_TABLE,
            "show paths format \"%%d %%t %%T\"")
        != MULTIPATHD_REFUSED)
        table[0] = '\0';
}

struct multipathd_path multipathd_path(const char *table, const char *name)
{
    struct multipathd_path path = { .is_ready = true };
    const char *at, *line = table;

    for (; *line != '\0'; line += strspn(line, "\n")) {
        at = line;
        line += strcspn(line, "\n");
        if (!next_is(&at, name))
            continue;
        path.is_failed = next_is(&at, "failed");
        line = at;
        path.is_ready = next_is(&at, "ready") || next_is(&line, "ghost");
        break;
    }
    return path;
}

bool multipathd_config_has(const struct multipathd *multipathd,
                           const char *word)
{
    char config[MULTIPATHD_TABLE];

    return ask(multipathd, config, sizeof(config), "show config local")
               == MULTIPATHD_REFUSED
           && strstr(config, word) != NULL;
}

bool multipathd_key_get(const struct multipathd *multipathd,
                        struct multipathd_key *key)
{
    char reply[REPLY_SIZE];
    char *end;

    if (ask(multipathd, reply, sizeof(reply), "getprkey map %s",
            multipathd->map)
        != MULTIPATHD_REFUSED)
        return false;
    *key = (struct multipathd_key){ 0, false };
    if (strcmp(reply, "none\n") == 0)
        return true;
    if (strncmp(reply, "0x", 2) != 0)
        return false;
    errno = 0;
    key->value = strtoull(reply, &end, 16);
    key->aptpl = strcmp(end, ":aptpl\n") == 0;
    return errno == 0 && key->value != 0
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

enum multipathd_said multipathd_registered(const struct multipathd *multipathd,
                                           const char *paths)
{
    char reply[REPLY_SIZE];
    enum multipathd_said said;

    said = ask(multipathd, reply, sizeof(reply),
               "setprstatus map %s pathlist \"%s\"", multipathd->map, paths);
    return said == MULTIPATHD_REFUSED
               ? multipathd_tell(multipathd, "setprstatus")
               : said;
}

enum multipathd_said multipathd_tell(const struct multipathd *multipathd,
                                     const char *command)
{
    char reply[REPLY_SIZE];

    return ask(multipathd, reply, sizeof(reply), "%s map %s", command,
               multipathd->map);
}

enum multipathd_flag multipathd_flag_get(const struct multipathd *multipathd,
                                         const char *command)
{
    char reply[REPLY_SIZE];

    if (ask(multipathd, reply, sizeof(reply), "%s map %s", command,
            multipathd->map)
        != MULTIPATHD_REFUSED)
        return FLAG_UNKNOWN;
    if (strcmp(reply, "set\n") == 0 || reply[0] == '1')
        return FLAG_SET;
    return strcmp(reply, "unset\n") == 0 ? FLAG_UNSET : FLAG_UNKNOWN;
}

enum multipathd_said multipathd_queue(const struct multipathd *multipathd,
                                      const char *command)
{
    char reply[REPLY_SIZE];
    enum multipathd_said said = ask(multipathd, reply, sizeof(reply),
                                    "%s map %s", command, multipathd->alias);

    if (said == MULTIPATHD_REFUSED && strncmp(reply, "fail\n", 5) != 0
        && strncmp(reply, "permission deny", 15) != 0)
        return MULTIPATHD_SILENT;
    return said;
}
