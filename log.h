/* SPDX-License-Identifier: MIT */
/*
 * log.h - what everything stands on: the clock, messages, trace events.
 *
 * It must never know what a message is about.
 */
#ifndef LOG_H
#define LOG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

#define PROGRAM "qemu-pr-helper"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Time is in microseconds of the monotonic clock. NEVER is later than any. */
#define SECOND INT64_C(1000000)
#define NEVER INT64_MAX

static inline int64_t clock_us(void)
{
    struct timespec now = { 0 };

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * SECOND + now.tv_nsec / 1000;
}

static inline int64_t sooner(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* How long a process may take to leave that has no command at a device. */
#define LEAVE_WITHIN SECOND

/*
 * log.c writes a line per call to stderr or syslogd. It never blocks or fails,
 * and keeps errno. After a format that ends in a colon comes its meaning. What
 * somebody has asked for is logged whatever the level. Warnings are limited for
 * each peer that they are about, which *log_about() says; {0}: none.
 */
enum { LOG_ASKED = -2, LOG_ERRORS, LOG_NORMAL, LOG_VERBOSE, LOG_EVENT };
/*
 * Makes writes to stderr non-blocking without setting O_NONBLOCK on a file
 * description that other processes share: a pipe or a terminal is opened
 * anew, a socket is told with each line. To be called again when stderr has
 * become something else; is_syslog: what log_syslog_open() has returned.
 */
void log_open(bool is_syslog);
/* Returns a socket to syslogd, whether there is one or not; -1 and errno. */
int log_syslog_open(void);
/*
 * Finds a syslogd that was started since, for all processes: the socket is
 * one that they share. No session may do this, lest it talk to others.
 */
void log_syslog_renew(void);
void log_level_set(int level);
/* Gives it a page that all processes share, before the first is forked. */
void log_share(void *page);
/* The caller sets it to whom the warnings that follow are about. */
struct ucred *log_about(void);
/*
 * Says how many messages were lost since it last said so, if any were, a second
 * after the first; or at once, if now is NEVER. Returns when to call it again.
 */
int64_t log_check(int64_t now);
void log_at(int level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
#define log_asked(...) log_at(LOG_ASKED, __VA_ARGS__)
#define log_error(...) log_at(LOG_ERRORS, __VA_ARGS__)
#define log_warning(...) log_at(LOG_NORMAL, __VA_ARGS__)
#define log_verbose(...) log_at(LOG_VERBOSE, __VA_ARGS__)
/* For start-up only: says why and exits with status 1. */
#define fatal(...)                                                             \
    do {                                                                       \
        log_error(__VA_ARGS__);                                                \
        exit(EXIT_FAILURE);                                                    \
    } while (false)

/* Events that -T chooses, some of which -v logs, too. */
#define TRACES(EVENT)                                                          \
    EVENT(TRACE_CLIENT_CONNECT, "client_connect", 1)                           \
    EVENT(TRACE_CLIENT_END, "client_end", 1)                                   \
    EVENT(TRACE_REQUEST, "request", 0)                                         \
    EVENT(TRACE_PR_IN, "pr_in", 0)                                             \
    EVENT(TRACE_PR_OUT, "pr_out", 1)                                           \
    EVENT(TRACE_PATH, "path", 0)                                               \
    EVENT(TRACE_MULTIPATHD, "multipathd", 1)
#define TRACE_EVENT(event, name, is_verbose) event,
enum trace_event { TRACES(TRACE_EVENT) TRACE_EVENTS };
/*
 * Turns on what matches; with a - before the pattern, off. The pattern "help"
 * lists all events, and exits.
 */
void trace_enable(const char *pattern);
/* Takes over fd, and closes the one before. */
void trace_file_set(int fd);
int trace_file(void); /* -1: none */
bool trace_is_on(enum trace_event);
#define trace(event, ...) log_at(LOG_EVENT + (int)(event), __VA_ARGS__)

#endif
