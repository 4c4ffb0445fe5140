/* SPDX-License-Identifier: MIT */
/*
 * fuzz_listen.c - fuzzes LISTEN_PID, LISTEN_FDS, NOTIFY_SOCKET and
 * SYSTEMD_EXEC_PID, and what is found at the path of the socket. The input is
 * lines: PID=, FDS=, NOTIFY=, EXEC= and PATH= give a value; any other line is
 * taken byte by byte as what the system calls answer, each an index into what
 * its function lists.
 *
 * It must never let an activation pass that was not meant for this process,
 * nor a word to a service manager that did not start it, a name be removed
 * that is not a dead socket, nor an address go to the kernel that is not
 * exactly the name.
 */
#include "fuzz.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

char *fuzz_getenv(const char *name);
int fuzz_unsetenv(const char *name);
pid_t fuzz_getpid(void);
uid_t fuzz_geteuid(void);
int fuzz_getsockopt(int fd, int level, int option, void *value,
                    socklen_t *size);
int fuzz_setsockopt(int fd, int level, int option, const void *value,
                    socklen_t size);
int fuzz_fcntl(int fd, int command, ...);
int fuzz_socket(int domain, int type, int protocol);
int fuzz_bind(int fd, const struct sockaddr *address, socklen_t size);
int fuzz_connect(int fd, const struct sockaddr *address, socklen_t size);
int fuzz_listen(int fd, int backlog);
int fuzz_close(int fd);
int fuzz_open(const char *path, int flags, ...);
int fuzz_fstat(int fd, struct stat *st);
int fuzz_lstat(const char *path, struct stat *st);
int fuzz_unlink(const char *path);
int fuzz_stat(const char *path, struct stat *st);
int fuzz_rename(const char *from, const char *to);
int fuzz_nanosleep(const struct timespec *time, struct timespec *rest);
int fuzz_clock_gettime(clockid_t clock, struct timespec *now);
ssize_t fuzz_send(int fd, const void *data, size_t size, int flags);

enum { PID = 123, UID = 7, PASSED_FD = 3, FIRST_FD = 1000, NOTHING = 9 };

static struct {
    char *pid, *fds, *notify, *exec, *path; /* NULL: not set */
    bool taken_out[3];                      /* of the environment */
    bool passed_is_wrong;                   /* no listening socket, or error */
    bool takes_credentials, passed_is_ours; /* the passed one */
    int sockets, open_fds;
    int64_t slept;     /* ns */
    bool is_stream;    /* the last socket */
    uint32_t found;    /* by the last lstat() or fstat() */
    char node[32];     /* what was opened, as there is /proc; or empty */
    uint32_t made;     /* found by the first one after bind() */
    bool may_be_alive; /* what listens there */
    bool connected;    /* the last socket to it */
    bool bound;
    bool is_shared;
} place;

/* Digits may be written as such. Behind the end of the line there are 0. */
static uint32_t answer(uint32_t answers)
{
    uint32_t byte = input_number(1);

    return (byte >= '0' ? byte - '0' : byte) % answers;
}

char *fuzz_getenv(const char *name)
{
    if (strcmp(name, "LISTEN_PID") == 0)
        return place.pid;
    if (strcmp(name, "LISTEN_FDS") == 0)
        return place.fds;
    if (strcmp(name, "SYSTEMD_EXEC_PID") == 0)
        return place.exec;
    MUST(strcmp(name, "NOTIFY_SOCKET") == 0);
    return place.notify;
}

int fuzz_unsetenv(const char *name)
{
    static const char *const names[] = { "LISTEN_PID", "LISTEN_FDS",
                                         "LISTEN_FDNAMES" };

    for (int i = 0; i < 3; i++)
        if (strcmp(name, names[i]) == 0)
            place.taken_out[i] = true;
    return 0;
}

pid_t fuzz_getpid(void)
{
    return PID;
}

uid_t fuzz_geteuid(void)
{
    return UID;
}

/* 0: as it should be; 1: another value; 2: an error. */
int fuzz_getsockopt(int fd, int level, int option, void *value, socklen_t *size)
{
    uint32_t found = answer(3);
    struct ucred peer = { PID, UID + found, 0 };
    int number = 1; /* SOCK_STREAM, AF_UNIX, and yes */

    MUST(level == SOL_SOCKET);
    errno = ENOTSOCK;
    if (option == SO_PEERCRED) {
        MUST((fd == PASSED_FD || fd >= FIRST_FD) && *size == sizeof(peer));
        if (fd == PASSED_FD)
            place.passed_is_ours = found == 0;
        else if (!place.connected)
            peer = (struct ucred){ 0, (uid_t)-1, (gid_t)-1 };
        else
            place.may_be_alive = found == 0;
        memcpy(value, &peer, sizeof(peer));
        return found == 2 ? -1 : 0;
    }
    MUST(fd == PASSED_FD && *size == sizeof(number));
    if (found != 0)
        place.passed_is_wrong = true;
    number += (int)found;
    *size = sizeof(number);
    memcpy(value, &number, sizeof(number));
    return found == 2 ? -1 : 0;
}

/* Nothing but a descriptor may come with a message. Old kernels refuse. */
int fuzz_setsockopt(int fd, int level, int option, const void *value,
                    socklen_t size)
{
    int number;

    MUST(fd == PASSED_FD && level == SOL_SOCKET && size == sizeof(number));
    memcpy(&number, value, sizeof(number));
    MUST(number == 0);
    if (option == SO_PASSCRED)
        place.takes_credentials = false;
    errno = ENOPROTOOPT;
    return option == SO_PASSCRED || option == SO_PASSSEC ? 0 : -1;
}

int fuzz_fcntl(int fd, int command, ...)
{
    MUST(fd == PASSED_FD && (command == F_SETFD || command == F_SETFL));
    MUST(!place.passed_is_wrong);
    errno = EINVAL;
    return answer(4) == 1 ? -1 : 0;
}

int fuzz_socket(int domain, int type, int protocol)
{
    int flags = SOCK_CLOEXEC | SOCK_NONBLOCK;

    MUST(domain == AF_UNIX && protocol == 0 && (type & flags) == flags);
    place.is_stream = (type & ~flags) == SOCK_STREAM;
    MUST(place.is_stream || (type & ~flags) == SOCK_DGRAM);
    errno = EMFILE;
    if (answer(4) == 1)
        return -1;
    place.open_fds++;
    return FIRST_FD + place.sockets++;
}

int fuzz_close(int fd)
{
    MUST(fd >= FIRST_FD && fd < FIRST_FD + place.sockets);
    MUST(place.open_fds-- > 0);
    return 0;
}

/* An address is its name, not one byte more, with a NUL for a leading @. */
static void address_check(const struct sockaddr *address, socklen_t size,
                          const char *name)
{
    struct sockaddr_un un;
    size_t length = strlen(name);

    MUST(length > 0 && length < sizeof(un.sun_path));
    MUST(size == offsetof(struct sockaddr_un, sun_path) + length);
    memcpy(&un, address, size);
    MUST(un.sun_family == AF_UNIX);
    if (!place.is_stream && name[0] == '@')
        MUST(un.sun_path[0] == '\0');
    else
        MUST(un.sun_path[0] == name[0]);
    MUST(memcmp(un.sun_path + 1, name + 1, length - 1) == 0);
}

int fuzz_connect(int fd, const struct sockaddr *address, socklen_t size)
{
    static const int errors[] = { ECONNREFUSED, 0,      EAGAIN,
                                  EACCES,       ENOENT, ENOMEM };

    MUST(fd == FIRST_FD + place.sockets - 1);
    address_check(address, size,
                  !place.is_stream        ? place.notify
                  : place.node[0] != '\0' ? place.node
                                          : place.path);
    errno = errors[answer(6)];
    place.may_be_alive = (errno == EAGAIN || errno == ENOMEM)
                         && !place.is_shared;
    place.connected = errno == 0;
    return errno != 0 ? -1 : 0;
}

int fuzz_bind(int fd, const struct sockaddr *address, socklen_t size)
{
    MUST(fd == FIRST_FD && place.is_stream);
    address_check(address, size, place.path);
    errno = EADDRINUSE;
    place.bound = answer(4) != 1;
    return place.bound ? 0 : -1;
}

int fuzz_listen(int fd, int backlog)
{
    MUST(backlog > 0);
    if (fd == PASSED_FD) /* or it would become ours */
        MUST(place.passed_is_ours);
    else
        MUST(fd == FIRST_FD && place.is_stream && place.bound);
    errno = EADDRINUSE;
    return answer(4) == 1 ? -1 : 0;
}

/* 0: nothing is there. What is must not be entered, nor be another by then. */
int fuzz_open(const char *path, int flags, ...)
{
    MUST(strcmp(path, place.path) == 0 && !place.bound);
    MUST(flags == (O_PATH | O_NOFOLLOW | O_CLOEXEC));
    errno = ENOENT;
    if (answer(4) == 0)
        return -1;
    place.open_fds++;
    snprintf(place.node, sizeof(place.node), "/proc/self/fd/%d",
             FIRST_FD + place.sockets);
    return FIRST_FD + place.sockets++;
}

/* 0 or 1: a socket, ours or none of ours; 2: a file; 3: another socket. */
static void found(struct stat *st)
{
    place.found = answer(4);
    memset(st, 0, sizeof(*st));
    st->st_mode = place.found == 2 ? S_IFREG : S_IFSOCK;
    st->st_ino = place.found;
}

int fuzz_fstat(int fd, struct stat *st)
{
    MUST(fd == FIRST_FD + place.sockets - 1);
    found(st);
    return 0;
}

int fuzz_lstat(const char *path, struct stat *st)
{
    MUST(strcmp(path, place.path) == 0);
    found(st);
    if (place.bound && place.made == NOTHING)
        place.made = place.found;
    return 0;
}

/* The directory: ours alone, or such that others can write to it. */
int fuzz_stat(const char *path, struct stat *st)
{
    static const struct stat directories[] = {
        { .st_mode = S_IFDIR | 0755, .st_uid = UID },
        { .st_mode = S_IFDIR | 0775, .st_uid = UID },
        { .st_mode = S_IFDIR | 0757, .st_uid = UID },
        { .st_mode = S_IFDIR | 0755, .st_uid = UID + 1 },
    };
    uint32_t found = answer(4);

    if (place.node[0] != '\0') {
        MUST(strcmp(path, place.node) == 0);
        if (found == 3)
            place.node[0] = '\0'; /* there is no /proc */
        errno = ENOENT;
        return found == 3 ? -1 : 0;
    }
    MUST(strncmp(path, place.path, strlen(path)) == 0);
    MUST(path[strlen(path) - 1] == '/');
    MUST(strchr(place.path + strlen(path), '/') == NULL);
    *st = directories[found];
    place.is_shared = found != 0;
    return 0;
}

/* What is no socket, and only where others can have put it. */
int fuzz_rename(const char *from, const char *to)
{
    static const int errors[] = { 0, ENOENT, EACCES };
    size_t length = strlen(place.path);

    MUST(strcmp(from, place.path) == 0 && strncmp(to, from, length) == 0);
    MUST(to[length] == '.' && strchr(to + length, '/') == NULL);
    MUST(place.is_shared && place.found == 2 && !place.bound);
    errno = errors[answer(3)];
    return errno != 0 ? -1 : 0;
}

int fuzz_nanosleep(const struct timespec *time, struct timespec *rest)
{
    MUST(time->tv_sec == 0 && rest == NULL);
    place.slept += time->tv_nsec;
    return 0;
}

int fuzz_clock_gettime(clockid_t clock, struct timespec *now)
{
    MUST(clock == CLOCK_MONOTONIC);
    memset(now, 0, sizeof(*now));
    now->tv_sec = (time_t)(place.slept / 1000000000);
    now->tv_nsec = (long)(place.slept % 1000000000);
    return 0;
}

int fuzz_unlink(const char *path)
{
    static const int errors[] = { 0, ENOENT, EACCES };

    MUST(strcmp(path, place.path) == 0);
    if (place.bound)
        MUST(place.found == place.made);
    else
        MUST(place.found != 2 && !place.may_be_alive);
    errno = errors[answer(3)];
    return errno != 0 ? -1 : 0;
}

ssize_t fuzz_send(int fd, const void *data, size_t size, int flags)
{
    MUST(fd >= FIRST_FD && flags == MSG_NOSIGNAL);
    MUST(size == 7 && memcmp(data, "READY=1", size) == 0);
    errno = ECONNREFUSED;
    return answer(4) == 1 ? -1 : (ssize_t)size;
}

/* A whole number in decimal, not beyond 1000; -1: it is none. */
static int decimal(const char *text)
{
    int number = 0;

    if (*text == '\0')
        return -1;
    for (; *text != '\0'; text++) {
        if (!isdigit((unsigned char)*text))
            return -1;
        number = number * 10 + (*text - '0');
        if (number > 1000)
            number = 1000;
    }
    return number;
}

/* What the environment says: so many descriptors, 0: it is not for us. */
static int activation(void)
{
    int number;

    if (place.pid == NULL || place.fds == NULL || place.fds[0] == '\0'
        || decimal(place.pid) != PID)
        return 0;
    number = decimal(place.fds);
    return number < 0 ? 0 : number;
}

static void place_use(void)
{
    const char *given = answer(2) == 1 ? "/given" : NULL;
    struct listener listener = { .fd = 0 };
    int expected = activation();
    int notify, open_fds;

    if (setjmp(fuzz_end) != 0)
        return;
    listen_activated(&listener, given);
    if (listener.fd >= 0) {
        MUST(expected == 1 && given == NULL);
        MUST(place.taken_out[0] && place.taken_out[1] && place.taken_out[2]);
        MUST(!place.passed_is_wrong && !place.takes_credentials);
        MUST(listener.fd == PASSED_FD && listener.path == NULL);
    } else {
        MUST(expected == 0);
        listen_open(&listener, place.path);
        MUST(place.bound && listener.fd >= FIRST_FD && place.open_fds == 1);
    }
    open_fds = place.open_fds;
    notify = notify_open();
    MUST(place.notify != NULL || notify == -1);
    MUST(place.exec == NULL || decimal(place.exec) == PID || notify == -1);
    MUST(place.open_fds == open_fds + (notify >= 0));
    notify_send(notify, "READY=1", 0);
    listen_remove(&listener);
}

/* Of the exact size, so that a sanitizer sees its end. */
static void line_take(char *line, const char *name, char **value)
{
    if (strncmp(line, name, strlen(name)) != 0)
        return;
    free(*value);
    *value = strdup(line + strlen(name));
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    char *text = calloc(1, size + 1), *rest = text, *line;

    memset(&place, 0, sizeof(place));
    place.takes_credentials = true;
    place.made = NOTHING;
    place.path = strdup("/run/s");
    if (size > 0)
        memcpy(text, bytes, size);
    input_begin(NULL, 0);
    while ((line = strsep(&rest, "\n")) != NULL) {
        if (strchr(line, '=') == NULL)
            input_begin((const uint8_t *)line, strlen(line));
        line_take(line, "PID=", &place.pid);
        line_take(line, "FDS=", &place.fds);
        line_take(line, "NOTIFY=", &place.notify);
        line_take(line, "EXEC=", &place.exec);
        line_take(line, "PATH=", &place.path);
    }
    if (place.path == NULL || place.path[0] == '/')
        place_use();
    free(place.pid);
    free(place.fds);
    free(place.notify);
    free(place.exec);
    free(place.path);
    free(text);
    return 0;
}
