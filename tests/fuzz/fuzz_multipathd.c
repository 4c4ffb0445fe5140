/* SPDX-License-Identifier: MIT */
/*
 * fuzz_multipathd.c - fuzzes what is made of multipathd's replies. The input is
 * one byte that chooses what is asked, one for $MULTIPATH_SOCKET_NAME, and
 * then what the system calls answer, in their order: a byte for each, and the
 * reply's bytes as they are received.
 *
 * It must never be satisfied with a reply that is not whole, with one from a
 * listener that is not root's, or with a helper that waits without an end,
 * keeps a descriptor, or takes more than is there.
 */
#include "fuzz.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

char *fuzz_getenv(const char *name);
int fuzz_socket(int domain, int type, int protocol);
int fuzz_connect(int fd, const struct sockaddr *a, socklen_t size);
int fuzz_getsockopt(int fd, int level, int option, void *value,
                    socklen_t *size);
ssize_t fuzz_send(int fd, const void *data, size_t size, int flags);
ssize_t fuzz_recv(int fd, void *data, size_t size, int flags);
int fuzz_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout,
               const sigset_t *mask);
int fuzz_nanosleep(const struct timespec *time, struct timespec *rest);
int fuzz_clock_gettime(clockid_t id, struct timespec *now);
int fuzz_close(int fd);

enum { FD = 1000, CALLS_MOST = 100000, TEXT = 63, COMMAND = 512 };
enum { TABLE = (1 << 16) - 1 }; /* as much of that as is looked at */

/* 107 bytes would fit into an address. */
static char too_long[109];
static char *const names[] = { NULL, "/run/m", "@m", "", too_long };

static const char *const verbs[] = {
    "getprkey map dm-3",      "setprkey map dm-3 key ",
    "unsetprkey map dm-3",    "setprstatus map dm-3",
    "unsetprstatus map dm-3", "getprhold map dm-3",
    "setprhold map dm-3",     "unsetprhold map dm-3",
    "suspend map alias",      "resume map alias",
    "getprstatus map dm-3",   "show paths raw format \"/%d %t %T\""
};

static struct {
    unsigned verb, name, calls;
    bool is_open, is_connected, is_root;
    int64_t us;
    /* Of the last exchange: what was sent, and what came. */
    uint8_t sent[COMMAND + 64], received[sizeof(size_t) + TABLE + 1];
    size_t sent_size, received_size;
} system_;

static unsigned answer(void)
{
    MUST(++system_.calls < CALLS_MOST);
    return input_number(1);
}

char *fuzz_getenv(const char *name)
{
    MUST(strcmp(name, "MULTIPATH_SOCKET_NAME") == 0);
    return names[system_.name];
}

int fuzz_socket(int domain, int type, int protocol)
{
    MUST(domain == AF_UNIX && (type & SOCK_CLOEXEC) && protocol == 0);
    MUST(!system_.is_open);
    errno = EMFILE;
    if (answer() == 1)
        return -1;
    system_.is_open = true;
    system_.is_connected = system_.is_root = false;
    system_.sent_size = system_.received_size = 0;
    return FD;
}

int fuzz_connect(int fd, const struct sockaddr *a, socklen_t size)
{
    static const int errors[] = { 0, ENOENT, EAGAIN, ECONNREFUSED, EACCES };
    const struct sockaddr_un *address = (const struct sockaddr_un *)a;

    MUST(fd == FD && system_.is_open && !system_.is_connected);
    MUST(address->sun_family == AF_UNIX && size <= sizeof(*address)
         && size > offsetof(struct sockaddr_un, sun_path));
    errno = errors[answer() % (sizeof(errors) / sizeof(errors[0]))];
    system_.is_connected = errno == 0;
    return errno == 0 ? 0 : -1;
}

int fuzz_getsockopt(int fd, int level, int option, void *value, socklen_t *size)
{
    static const uid_t uids[] = { 0, 1000, (uid_t)-1 };
    struct ucred peer = { .pid = 1 };
    unsigned which = answer() % 4;

    MUST(fd == FD && system_.is_connected);
    MUST(level == SOL_SOCKET && option == SO_PEERCRED && *size == sizeof(peer));
    errno = EINVAL;
    if (which == 3)
        return -1;
    peer.uid = uids[which];
    system_.is_root = which == 0;
    *size = sizeof(peer);
    memcpy(value, &peer, sizeof(peer));
    return 0;
}

ssize_t fuzz_send(int fd, const void *data, size_t size, int flags)
{
    unsigned how = answer();

    MUST(fd == FD && system_.is_root && system_.received_size == 0);
    MUST(flags & MSG_NOSIGNAL && size > 0);
    errno = how == 255 ? EAGAIN : EPIPE;
    if (how >= 254)
        return -1;
    if (how > 0 && how < size)
        size = how;
    MUST(system_.sent_size + size <= sizeof(system_.sent));
    memcpy(system_.sent + system_.sent_size, data, size);
    system_.sent_size += size;
    return (ssize_t)size;
}

ssize_t fuzz_recv(int fd, void *data, size_t size, int flags)
{
    unsigned how = answer();

    MUST(fd == FD && system_.is_root && size > 0);
    (void)flags;
    errno = how == 255 ? EAGAIN : ECONNRESET;
    if (how >= 254)
        return -1;
    if (how > 0 && how < size)
        size = how;
    size = how == 253 ? 0 : input_take(data, size);
    MUST(system_.received_size + size < sizeof(system_.received));
    memcpy(system_.received + system_.received_size, data, size);
    system_.received_size += size;
    return (ssize_t)size;
}

int fuzz_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout,
               const sigset_t *mask)
{
    unsigned how = answer();

    MUST(count == 1 && fds->fd == FD && system_.is_open);
    MUST(timeout != NULL && mask == NULL);
    fds->revents = fds->events;
    if (how >= 254)
        fds->revents = 0;
    system_.us += 1000;
    errno = EINTR;
    if (how != 255)
        return how == 254 ? -1 : 1;
    system_.us += timeout->tv_sec * SECOND + timeout->tv_nsec / 1000;
    return 0;
}

int fuzz_nanosleep(const struct timespec *time, struct timespec *rest)
{
    (void)rest;
    MUST(++system_.calls < CALLS_MOST);
    system_.us += time->tv_sec * SECOND + time->tv_nsec / 1000;
    return 0;
}

int fuzz_clock_gettime(clockid_t id, struct timespec *now)
{
    (void)id;
    now->tv_sec = (time_t)(system_.us / SECOND);
    now->tv_nsec = (long)(system_.us % SECOND) * 1000;
    return 0;
}

int fuzz_close(int fd)
{
    MUST(fd == FD && system_.is_open);
    system_.is_open = system_.is_connected = false;
    errno = EIO;
    return answer() == 1 ? -1 : 0;
}

/* What was sent is one command, whole, and the one that was meant. */
static bool was_asked(void)
{
    const char *verb = verbs[system_.verb];
    const char *text = (const char *)system_.sent + sizeof(size_t);
    size_t size;

    if (system_.sent_size < sizeof(size))
        return false;
    memcpy(&size, system_.sent, sizeof(size));
    MUST(size > 1 && size <= COMMAND);
    MUST(system_.sent_size <= sizeof(size) + size);
    if (system_.sent_size < sizeof(size) + size)
        return false;
    MUST(memchr(text, '\0', size) == text + size - 1);
    MUST(strncmp(text, verb, strlen(verb)) == 0);
    return true;
}

/* The reply's text, "" if there is none that is whole. */
static void reply_get(char text[TEXT + 1])
{
    size_t size;

    memset(text, 0, TEXT + 1);
    if (!was_asked() || system_.received_size < sizeof(size))
        return;
    memcpy(&size, system_.received, sizeof(size));
    if (size == 0 || size > 1 << 28)
        return;
    if (system_.received_size < sizeof(size) + (size < TEXT ? size : TEXT))
        return;
    memcpy(text, system_.received + sizeof(size), size < TEXT ? size : TEXT);
}

/* 0x, digits, and perhaps :aptpl. Returns whether it is a key. */
static bool key_parse(const char *text, uint64_t *key, bool *aptpl)
{
    static const char digits[] = "0123456789abcdef0123456789ABCDEF";

    *key = 0;
    *aptpl = false;
    if (strcmp(text, "none\n") == 0)
        return true;
    if (strncmp(text, "0x", 2) != 0)
        return false;
    for (text += 2; *text != '\0'; text++) {
        const char *digit = strchr(digits, *text);

        if (digit == NULL)
            break;
        if (*key >> 60 != 0)
            return false;
        *key = *key << 4 | (uint64_t)(digit - digits) % 16;
    }
    *aptpl = strcmp(text, ":aptpl\n") == 0;
    return *key != 0 && (*aptpl || strcmp(text, "\n") == 0);
}

static void key_check(const struct multipathd *multipathd)
{
    struct multipathd_key key = { 0x55, true };
    char text[TEXT + 1];
    uint64_t value;
    bool aptpl, found = multipathd_key_get(multipathd, &key);

    reply_get(text);
    MUST(found == key_parse(text, &value, &aptpl));
    if (found)
        MUST(key.value == value && key.aptpl == aptpl);
}

static void said_check(enum multipathd_said said)
{
    char text[TEXT + 1];

    reply_get(text);
    MUST((said == MULTIPATHD_DONE) == (strncmp(text, "ok\n", 3) == 0));
    if (said == MULTIPATHD_REFUSED)
        MUST(was_asked());
}

/* What the line of sda begins with, if that is one. */
static void path_check(const struct multipathd *multipathd)
{
    static char table[MULTIPATHD_TEXT];
    char *text = (char *)system_.received + sizeof(size_t), *line;
    struct multipathd_path path;
    bool found;

    multipathd_show(multipathd, MULTIPATHD_PATHS, table);
    path = multipathd_path(table, "sda");
    found = table[0] != '\0';
    MUST(!found || was_asked());
    system_.received[system_.received_size] = '\0';
    line = strstr(text, "/sda ");
    if (!found || line == NULL)
        return;
    MUST(path.is_failed == (strncmp(line, "/sda failed ", 12) == 0));
    if (strncmp(line, "/sda active faulty\n", 19) == 0
        || strncmp(line, "/sda failed faulty\n", 19) == 0)
        MUST(!path.is_ready);
    if (strncmp(line, "/sda active ready\n", 18) == 0
        || strncmp(line, "/sda failed ghost\n", 18) == 0)
        MUST(path.is_ready);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    const struct multipathd multipathd = { .map = "dm-3",
                                           .alias = "alias",
                                           .socket_path = "/run/s" };
    struct multipathd_key key = { UINT64_MAX, true };
    enum multipathd_said hold;
    char text[TEXT + 1];
    bool is_set;

    memset(&system_, 0, sizeof(system_));
    memset(too_long, 'n', sizeof(too_long) - 1);
    input_begin(bytes, size);
    system_.verb = input_number(1) % (sizeof(verbs) / sizeof(verbs[0]));
    system_.name = input_number(1) % (sizeof(names) / sizeof(names[0]));
    switch (system_.verb) {
    case 0:
        key_check(&multipathd);
        break;
    case 1:
    case 2:
        if (system_.verb == 2)
            key.value = 0;
        said_check(multipathd_key_set(&multipathd, &key));
        break;
    case 3:
        said_check(multipathd_tell(&multipathd, "setprstatus"));
        break;
    case 4:
        said_check(multipathd_tell(&multipathd, "unsetprstatus"));
        break;
    case 5:
        hold = multipathd_tell(&multipathd, "getprhold");
        reply_get(text);
        MUST((hold == MULTIPATHD_SET)
             == (strncmp(text, "set\n", 4) == 0 || text[0] == '1'));
        MUST((hold == MULTIPATHD_UNSET) == (strncmp(text, "unset\n", 6) == 0));
        break;
    case 6:
    case 7:
        said_check(multipathd_tell(
            &multipathd, system_.verb == 6 ? "setprhold" : "unsetprhold"));
        break;
    case 8:
        said_check(multipathd_tell(&multipathd, "suspend"));
        break;
    case 9:
        said_check(multipathd_tell(&multipathd, "resume"));
        break;
    case 10:
        is_set = multipathd_tell(&multipathd, "getprstatus") == MULTIPATHD_SET;
        reply_get(text);
        MUST(is_set == (strncmp(text, "set\n", 4) == 0 || text[0] == '1'));
        break;
    default:
        path_check(&multipathd);
    }
    MUST(!system_.is_open);
    return 0;
}
