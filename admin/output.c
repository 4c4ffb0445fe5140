/* SPDX-License-Identifier: MIT */
/*
 * output.c - writes what the administrator's client has found out, as words or
 * as JSON, and its messages.
 *
 * It must never write JSON that is not whole, let a byte through that is not
 * printable ASCII within JSON, or end with success although something could
 * not be written.
 */
#include "output.h"
#include "client.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void output_begin(struct output *output, bool is_json)
{
    memset(output, 0, sizeof(*output));
    output->is_json = is_json;
    output->is_first = true;
    output->out = is_json ? open_memstream(&output->document, &output->size)
                          : stdout;
    if (output->out == NULL)
        die(EXIT_OTHER, "no memory is left");
}

void output_end(struct output *output, bool is_whole)
{
    if (!output->is_json)
        return;
    if (fclose(output->out) != 0)
        die(EXIT_OTHER, "no memory is left");
    if (is_whole)
        puts(output->document);
    free(output->document);
}

void words(struct output *output, const char *format, ...)
{
    va_list arguments;

    if (output->is_json)
        return;
    va_start(arguments, format);
    vfprintf(output->out, format, arguments);
    va_end(arguments);
}

/* Text between quotes. Bytes that are no ASCII characters are numbers. */
static void quoted_print(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text != '\0'; text++)
        if (*text < ' ' || *text > '~')
            fprintf(out, "\\u%04x", (unsigned char)*text);
        else
            fprintf(out, *text == '"' || *text == '\\' ? "\\%c" : "%c", *text);
    fputc('"', out);
}

/* What stands before a value. */
static void name_print(struct output *output, const char *name)
{
    if (!output->is_first)
        fputs(", ", output->out);
    output->is_first = false;
    if (name != NULL)
        fprintf(output->out, "\"%s\": ", name);
}

void json_begin(struct output *output, const char *name, char bracket)
{
    if (!output->is_json)
        return;
    name_print(output, name);
    fputc(bracket, output->out);
    output->is_first = true;
}

void json_end(struct output *output, char bracket)
{
    if (!output->is_json)
        return;
    fputc(bracket, output->out);
    output->is_first = false;
}

void json_text(struct output *output, const char *name, const char *text)
{
    if (!output->is_json)
        return;
    name_print(output, name);
    if (text != NULL)
        quoted_print(output->out, text);
    else
        fputs("null", output->out);
}

void json_number(struct output *output, const char *name, uint64_t number)
{
    if (!output->is_json)
        return;
    name_print(output, name);
    fprintf(output->out, "%" PRIu64, number);
}

void json_key(struct output *output, const char *name, uint64_t key)
{
    if (!output->is_json)
        return;
    name_print(output, name);
    fprintf(output->out, "\"0x%" PRIx64 "\"", key);
}

void json_bool(struct output *output, const char *name, bool is_so)
{
    if (!output->is_json)
        return;
    name_print(output, name);
    fputs(is_so ? "true" : "false", output->out);
}

static void message_print(const char *format, va_list arguments)
{
    fflush(stdout); /* what was printed before is to be read before */
    fputs(CLIENT ": ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
}

void say(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    message_print(format, arguments);
    va_end(arguments);
}

/* multipath/multipathd.c, which the helper has too, speaks by this one. */
void log_at(int level, const char *format, ...)
{
    va_list arguments;

    if (level >= LOG_EVENT)
        return;
    va_start(arguments, format);
    message_print(format, arguments);
    va_end(arguments);
}

void die(int status, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    message_print(format, arguments);
    va_end(arguments);
    exit(status);
}

/* /dev/null is open for reading only: who prints there hears of it. */
void streams_open(void)
{
    int fd;

    for (fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDONLY) != fd)
            exit(EXIT_OTHER);
}

/* Some libc's flush forgets what a line that ended before has met. */
void finish(int status)
{
    if (fflush(stdout) != 0 || ferror(stdout))
        die(EXIT_OTHER, "cannot write to standard output");
    exit(status);
}
