/* SPDX-License-Identifier: MIT */
/*
 * log.c - one line to stderr per call. In the background stderr is a socket
 * to syslogd; where it is the journal, a line begins with its priority. Trace
 * events, which -T chooses by name and pattern, can have a file of their own:
 * it is opened before the sandbox is there, and is the only one that a session
 * can write to. -v shows some of them, too.
 *
 * It must never block (whoever reads our stderr may have stopped), raise
 * SIGPIPE, fail loudly, or use stdio's streams and libc's syslog(), whose
 * system calls nobody counted; nor cost more than the test of a bit for an
 * event that is off. Nor may one client hide what there is to say of another:
 * warnings are limited for each. Lines that could not be written are counted
 * by all processes together, and the count goes out with the next line that
 * can, or by itself.
 */
#include "log.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#define NAME(event, name, is_verbose) name,
#define VERBOSE(event, name, is_verbose) | (is_verbose) << (event)
static const char names[TRACE_EVENTS][15] = { TRACES(NAME) };
enum { VERBOSE_EVENTS = 0 TRACES(VERBOSE) };

/* So many warnings may a client cause in a second, and so many clients. */
enum { WARNINGS_MOST = 10, WINDOWS = 32 };

/* A line that is longer is cut. */
enum { LINE_SIZE = 512, HEAD_SIZE = 128 };

/* A page, shared by all processes. */
struct shared {
    unsigned lost[2]; /* messages, lines of the trace file */
    struct window {
        struct ucred peer;
        int64_t since;
        unsigned warnings;
    } windows[WINDOWS];
};
static struct shared unshared;
static struct {
    int level;
    int facility; /* of the priorities on stderr; -1: there are none */
    char pid[11]; /* for syslogd, main's, as sessions may not ask */
    bool may_block;
    struct ucred peer;
    unsigned told;   /* how many were lost when it was last said */
    int64_t tell_by; /* 0, or when to say it */
    struct shared *shared;
    unsigned traced; /* a bit for each event */
    int trace_file;
} log_state = { .facility = -1, .shared = &unshared, .trace_file = -1 };

/* ---- Where lines go --------------------------------------------------- */

void log_open(bool is_syslog)
{
    const char *journal = getenv("JOURNAL_STREAM"); /* systemd's word */
    struct stat st = { 0 };
    char ours[48];

    (void)fstat(STDERR_FILENO, &st);
    snprintf(ours, sizeof(ours), "%ju:%ju", (uintmax_t)st.st_dev,
             (uintmax_t)st.st_ino);
    log_state.facility = -1;
    if (is_syslog) {
        log_state.facility = LOG_DAEMON;
        snprintf(log_state.pid, sizeof(log_state.pid), "[%d]", getpid());
    } else if (journal != NULL && strcmp(journal, ours) == 0) {
        log_state.facility = 0;
    }
    log_state.may_block = false;
    if (S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode)) {
        int fd = open("/proc/self/fd/2",
                      O_WRONLY | O_NONBLOCK | O_NOCTTY | O_APPEND | O_CLOEXEC);

        log_state.may_block = dup2(fd, STDERR_FILENO) < 0;
        close(fd);
    }
}

static void syslog_connect(int fd)
{
    static const struct sockaddr_un address = { .sun_family = AF_UNIX,
                                                .sun_path = _PATH_LOG };

    (void)connect(fd, (const struct sockaddr *)&address, sizeof(address));
}

int log_syslog_open(void)
{
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    syslog_connect(fd);
    return fd;
}

void log_syslog_renew(void)
{
    if (log_state.facility == LOG_DAEMON)
        syslog_connect(STDERR_FILENO);
}

void log_share(void *page)
{
    log_state.shared = memcpy(page, &unshared, sizeof(unshared));
}

struct ucred *log_about(void)
{
    return &log_state.peer;
}

/* ---- Lines ------------------------------------------------------------ */

/*
 * Each peer has a window of a second; those that find none have the last one
 * together. Races between processes cost a line too many, or too few.
 */
static bool rate_is_exceeded(struct shared *shared)
{
    const struct ucred peer = log_state.peer;
    struct window *window = NULL;
    int64_t now = clock_us();
    unsigned i;

    for (i = 0; i < WINDOWS; i++) {
        struct window *at = &shared->windows[i];
        bool is_open = (uint64_t)now - (uint64_t)at->since < (uint64_t)SECOND;

        if (is_open && at->peer.pid == peer.pid && at->peer.uid == peer.uid)
            return at->warnings++ >= WARNINGS_MOST;
        if (!is_open && window == NULL)
            window = at;
    }
    if (window == NULL)
        return shared->windows[WINDOWS - 1].warnings++ >= WARNINGS_MOST;
    *window = (struct window){ peer, now, 1 };
    return false;
}

void log_level_set(int level)
{
    log_state.level = level;
}

static bool line_write(int fd, const char *line, size_t size)
{
    struct pollfd ready = { .fd = fd, .events = POLLOUT };
    ssize_t written = send(fd, line, size, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (written < 0 && errno == ENOTSOCK
        && (!log_state.may_block
            || ppoll(&ready, 1, &(struct timespec){ 0 }, NULL) == 1))
        written = write(fd, line, size);
    return written == (ssize_t)size;
}

/* What comes before the text: who we are, the priority or the time (UTC). */
static void head_write(char head[HEAD_SIZE], int file, int level)
{
    static const int priorities[] = { LOG_NOTICE, LOG_ERR, LOG_WARNING,
                                      LOG_INFO };
    struct timespec now = { 0 };
    struct tm utc;

    if (file < 0 && log_state.facility >= 0) {
        /* sd-daemon(3), or RFC 3164 without what syslogd adds */
        snprintf(head, HEAD_SIZE, "<%d>" PROGRAM "%s: ",
                 log_state.facility | priorities[level - LOG_ASKED],
                 log_state.pid);
    } else if (level != LOG_ASKED && level != LOG_VERBOSE) {
        snprintf(head, HEAD_SIZE, PROGRAM ": ");
    } else {
        clock_gettime(CLOCK_REALTIME, &now);
        gmtime_r(&now.tv_sec, &utc);
        snprintf(head, HEAD_SIZE, "%s%d-%02d-%02dT%02d:%02d:%02d.%06ldZ ",
                 file < 0 ? PROGRAM ": " : "", utc.tm_year + 1900,
                 utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min,
                 utc.tm_sec, now.tv_nsec / 1000);
    }
}

static void log_line(int file, int level, const char *prefix, const char *text)
{
    /* A pipe takes up to PIPE_BUF (4096) bytes whole or not at all. */
    char line[LINE_SIZE], head[HEAD_SIZE], before[32] = "";
    unsigned *lost = &log_state.shared->lost[file >= 0], count;
    size_t size;

    count = __atomic_exchange_n(lost, 0, __ATOMIC_RELAXED);
    if (count > 0)
        snprintf(before, sizeof(before), "(%u lines lost) ", count);
    head_write(head, file, level);
    snprintf(line, sizeof(line), "%s%s%s%s%s", head, before, prefix,
             prefix[0] != '\0' ? ": " : "", text);
    for (size = 0; line[size] != '\0'; size++)
        if (iscntrl((unsigned char)line[size]))
            line[size] = '?';
    if (file >= 0 || log_state.facility != LOG_DAEMON)
        line[size++] = '\n';
    if (!line_write(file >= 0 ? file : STDERR_FILENO, line, size))
        __atomic_fetch_add(lost, count + 1, __ATOMIC_RELAXED);
}

void log_at(int level, const char *format, ...)
{
    unsigned event = 0;
    bool is_traced = false;
    char text[LINE_SIZE];
    va_list arguments;
    int error = errno;
    size_t length;

    if (level >= LOG_EVENT) {
        event = (unsigned)(level - LOG_EVENT);
        is_traced = (log_state.traced >> event & 1) != 0;
        /* -v does not repeat what is traced to the same place. */
        level = (VERBOSE_EVENTS >> event & 1) == 0
                        || (is_traced && log_state.trace_file < 0)
                    ? INT_MAX
                    : LOG_VERBOSE;
    }
    if (!is_traced && level > log_state.level)
        return;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    length = strlen(text);
    if (format[strlen(format) - 1] == ':')
        snprintf(text + length, sizeof(text) - length, " %s", strerror(error));
    if (is_traced)
        log_line(log_state.trace_file, LOG_ASKED, names[event], text);
    if (level == LOG_NORMAL && log_state.level == LOG_NORMAL
        && rate_is_exceeded(log_state.shared))
        __atomic_fetch_add(&log_state.shared->lost[0], 1, __ATOMIC_RELAXED);
    else if (level <= log_state.level)
        log_line(-1, level, level == LOG_NORMAL ? "warning" : "", text);
    errno = error;
}

int64_t log_check(int64_t now)
{
    const unsigned *lost = &log_state.shared->lost[0];

    if (*lost == 0) /* or another line has said it */
        log_state.told = 0;
    if (*lost == log_state.told || log_state.level < LOG_NORMAL)
        return NEVER;
    if (log_state.tell_by == 0 && now != NEVER)
        log_state.tell_by = now + SECOND;
    if (now < log_state.tell_by)
        return log_state.tell_by;
    log_state.tell_by = 0;
    log_line(-1, LOG_NORMAL, "warning",
             "they were too many of one client (-v has all), or nobody took "
             "them");
    log_state.told = *lost;
    return NEVER;
}

/* ---- Trace events ------------------------------------------------------ */

/* In a pattern, * stands for any characters, and ? for one. */
static bool matches(const char *pattern, const char *name)
{
    for (; *pattern != '*'; pattern++, name++)
        if (*name == '\0' || (*pattern != '?' && *pattern != *name))
            return *pattern == *name;
    return matches(pattern + 1, name)
           || (*name != '\0' && matches(pattern, name + 1));
}

void trace_enable(const char *pattern)
{
    bool is_help = strcmp(pattern, "help") == 0 || strcmp(pattern, "?") == 0;
    bool is_off = pattern[0] == '-';
    unsigned event, matching = 0;

    for (event = 0; event < TRACE_EVENTS; event++) {
        if (is_help)
            dprintf(STDOUT_FILENO, "%s\n", names[event]);
        if (matches(pattern + is_off, names[event]))
            matching |= 1U << event;
    }
    if (is_help)
        exit(EXIT_SUCCESS);
    log_state.traced |= matching;
    if (is_off)
        log_state.traced ^= matching;
    if (matching == 0 && strpbrk(pattern, "*?") == NULL)
        log_warning("trace event '%s' does not exist", pattern + is_off);
}

void trace_file_set(int fd)
{
    if (log_state.trace_file >= 0)
        close(log_state.trace_file);
    log_state.trace_file = fd;
}

int trace_file(void)
{
    return log_state.trace_file;
}

bool trace_is_on(enum trace_event event)
{
    unsigned logged = log_state.level >= LOG_VERBOSE ? VERBOSE_EVENTS : 0;

    return ((log_state.traced | logged) >> event & 1) != 0;
}
