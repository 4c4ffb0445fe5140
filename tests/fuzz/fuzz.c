/* SPDX-License-Identifier: MIT */
/*
 * fuzz.c - what the fuzz targets share: the input, taken piece by piece, and
 * the functions of log.c, which here write nothing but read every
 * byte that they would write. See fuzz.h.
 *
 * It must never end the process but for a check that failed.
 */
#include "fuzz.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

jmp_buf fuzz_end;

static struct {
    const uint8_t *bytes;
    size_t left;
} input;

void input_begin(const uint8_t *bytes, size_t size)
{
    input.bytes = bytes;
    input.left = size;
}

size_t input_take(void *to, size_t size)
{
    if (size > input.left)
        size = input.left;
    if (size == 0) /* and perhaps no input */
        return 0;
    memcpy(to, input.bytes, size);
    input.bytes += size;
    input.left -= size;
    return size;
}

/* The next bytes, at most four, as a big-endian number. */
uint32_t input_number(size_t bytes)
{
    uint32_t value = 0;

    while (bytes-- > 0) {
        uint8_t byte = 0;

        input_take(&byte, 1);
        value = value << 8 | byte;
    }
    return value;
}

void must_fail(const char *what, const char *file, int line)
{
    fprintf(stderr, "%s:%d: this must hold: %s\n", file, line, what);
    abort();
}

void log_level_set(int level)
{
    MUST(level >= LOG_ERRORS);
}

/* These two are weak, as admin/output.c has its own. */
__attribute__((weak)) void log_at(int level, const char *format, ...)
{
    char line[512];
    va_list arguments;

    MUST(level >= LOG_ERRORS && level < LOG_EVENT + TRACE_EVENTS);
    va_start(arguments, format);
    MUST(vsnprintf(line, sizeof(line), format, arguments) > 0);
    va_end(arguments);
}

struct ucred *log_about(void)
{
    static struct ucred peer;

    return &peer;
}

bool trace_is_on(enum trace_event event)
{
    return event < TRACE_EVENTS;
}

void fuzz_exit(int status)
{
    longjmp(fuzz_end, status + 1);
}
