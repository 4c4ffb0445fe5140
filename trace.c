/* SPDX-License-Identifier: MIT */
/*
 * trace.c - the events that -T chooses by name and pattern, and where their
 * lines go: to a file, or where all messages go. -v shows some of them, too.
 *
 * It must never cost more than the test of a bit while an event is off, nor
 * wait for a file: one write() for each line, and what that does not take is
 * lost. The file is opened before the sandbox is there, and is the only one
 * that a session can write to.
 */
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* In the order of enum trace_event. */
static const char names[TRACE_EVENTS][15] = { "client_connect", "client_end",
                                              "request",        "pr_in",
                                              "pr_out",         "path",
                                              "multipathd" };

/* What -v logs. */
enum {
    VERBOSE_EVENTS = 1 << TRACE_CLIENT_CONNECT | 1 << TRACE_CLIENT_END
                     | 1 << TRACE_PR_OUT | 1 << TRACE_MULTIPATHD
};

static struct {
    unsigned traced; /* a bit for each event */
    unsigned logged; /* a bit for each that -v logs */
    int file;
} trace_state = { .file = -1 };

void trace_list(void)
{
    int event;

    for (event = 0; event < TRACE_EVENTS; event++)
        dprintf(STDOUT_FILENO, "%s\n", names[event]);
}

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
    bool is_off = pattern[0] == '-';
    unsigned event, matching = 0;

    pattern += is_off;
    for (event = 0; event < TRACE_EVENTS; event++)
        if (matches(pattern, names[event]))
            matching |= 1U << event;
    trace_state.traced |= matching;
    if (is_off)
        trace_state.traced ^= matching;
    if (matching == 0 && strpbrk(pattern, "*?") == NULL)
        log_warning("trace event '%s' does not exist", pattern);
}

void trace_file_set(int fd)
{
    if (trace_state.file >= 0)
        close(trace_state.file);
    trace_state.file = fd;
}

int trace_file(void)
{
    return trace_state.file;
}

/* Comes after all options, as -v does not repeat what is traced to stderr. */
void trace_begin(bool is_verbose)
{
    trace_state.logged = is_verbose ? VERBOSE_EVENTS : 0;
    if (trace_state.file < 0)
        trace_state.logged &= ~trace_state.traced;
}

bool trace_is_on(enum trace_event event)
{
    return ((trace_state.traced | trace_state.logged) >> event & 1) != 0;
}

void trace(enum trace_event event, const char *format, ...)
{
    bool is_traced = (trace_state.traced >> event & 1) != 0;
    bool is_logged = (trace_state.logged >> event & 1) != 0;

    while (is_traced || is_logged) {
        va_list arguments;

        va_start(arguments, format);
        log_line(is_traced ? trace_state.file : -1,
                 is_traced ? LOG_ASKED : LOG_VERBOSE,
                 is_traced ? names[event] : "", format, arguments);
        va_end(arguments);
        is_logged = is_logged && is_traced;
        is_traced = false;
    }
}
