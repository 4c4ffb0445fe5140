/* SPDX-License-Identifier: MIT */
/*
 * fuzz_options.c - fuzzes the command line. The input is the arguments, one a
 * line. There is one user, "user", and one group, "group", with the id 5; a
 * trace file cannot be opened if its name begins with an x.
 *
 * It must never accept an option whose value is out of its bounds, and what
 * is in struct options must stand in the arguments, or be the default.
 */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int fuzz_open(const char *path, int flags, ...);
int fuzz_close(int fd);
ssize_t fuzz_read(int fd, void *data, size_t size);

enum { ARGUMENTS = 64, ID = 5, FD = 1000 };
enum {
    FILE_FLAGS = O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK | O_NOCTTY
                 | O_CLOEXEC
};

static struct {
    char text[4096]; /* of all arguments, one a line */
    char *argv[ARGUMENTS + 1];
    int argc, open_fds;
    const char *rest; /* of the file that is being read */
    bool has_user, has_group;
} line;

/* Is there an argument, or the end of one, that is a number and this id? */
static bool is_number_given(uint32_t id)
{
    const char *at;
    char *end;

    for (at = line.text; *at != '\0'; at++)
        if (*at >= '0' && *at <= '9' && strtoull(at, &end, 10) == id
            && (*end == '\0' || *end == '\n'))
            return true;
    return false;
}

ssize_t fuzz_read(int fd, void *data, size_t size)
{
    MUST(fd == FD && size == 1);
    if (*line.rest == '\0')
        return 0;
    *(char *)data = *line.rest++;
    return 1;
}

/*
 * Does that stand in the arguments? Only its begin is looked for, as a comma
 * is written there twice.
 */
static bool is_word_given(const char *key, const char *value)
{
    char word[sizeof(line.text) + 8];

    snprintf(word, sizeof(word), "%s%.*s", key, (int)strcspn(value, ","),
             value);
    return strstr(line.text, word) != NULL;
}

int fuzz_open(const char *path, int flags, ...)
{
    MUST(flags == (O_RDONLY | O_CLOEXEC) || flags == FILE_FLAGS);
    line.rest = "";
    if (strcmp(path, "/etc/passwd") == 0 || strcmp(path, "/etc/group") == 0) {
        line.rest = "\nuserx:x:6:6\nuser\ngroup:\ngroup:x:5\nuser:x:5:7\n";
        line.has_user |= path[5] == 'p';
        line.has_group |= path[5] == 'g';
        line.open_fds++;
        return FD;
    }
    MUST(is_word_given(flags == FILE_FLAGS ? "file=" : "events=", path));
    errno = ENOENT;
    if (path[0] == 'x')
        return -1;
    line.open_fds++;
    return FD;
}

int fuzz_close(int fd)
{
    MUST(fd == FD && line.open_fds-- > 0);
    return 0;
}

void trace_enable(const char *pattern)
{
    MUST(is_word_given("", pattern));
}

void trace_file_set(int fd)
{
    MUST(fd == FD && line.open_fds-- > 0);
}

/* Is it the end of an argument, or what stands there without one? */
static bool is_given(const char *value, const char *otherwise)
{
    for (int i = 1; i < line.argc; i++)
        if (value >= line.argv[i]
            && value <= line.argv[i] + strlen(line.argv[i]))
            return true;
    return strcmp(value, otherwise) == 0;
}

static void options_check(const struct options *options)
{
    static const struct options none;
    int64_t most = 86400 * SECOND;

    MUST(line.has_user == (options->uid != (uid_t)-1));
    MUST(line.has_group == (options->gid != (gid_t)-1));
    /* userx has the next one. */
    MUST(!line.has_user || options->uid - ID <= 1
         || is_number_given(options->uid));
    MUST(!line.has_group || options->gid - ID <= 1
         || is_number_given(options->gid));
    MUST(options->max_clients >= 1 && options->max_clients <= 8192);
    MUST(options->client_timeout >= SECOND && options->client_timeout <= most);
    MUST(options->stop_timeout >= none.stop_timeout);
    MUST(options->stop_timeout <= most);
    MUST(options->client_timeout % SECOND == 0);
    MUST(options->stop_timeout % SECOND == 0);
    if (options->socket_path != NULL) {
        MUST(options->socket_path[0] == '/');
        MUST(is_given(options->socket_path, ""));
    }
    if (options->pid_file != NULL && !is_given(options->pid_file, "")) {
        MUST(options->background);
        MUST(strcmp(options->pid_file, "/var/run/qemu-pr-helper.pid") == 0);
    }
}

static void arguments_split(void)
{
    char *text = strdup(line.text), *rest = text, *argument;

    line.argv[line.argc++] = strdup("name");
    while (line.argc < ARGUMENTS && (argument = strsep(&rest, "\n")) != NULL)
        line.argv[line.argc++] = strdup(argument);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static char *kept[ARGUMENTS];
    struct options options;

    memset(&line, 0, sizeof(line));
    input_begin(bytes, size);
    /* Users and groups are read in earnest, not as a list of events. */
    if (input_take(line.text, sizeof(line.text) - 1) != size
        || strstr(line.text, "=/etc/") != NULL)
        return 0;
    arguments_split();
    /* getopt changes their order, and the helper the first one. */
    memcpy(kept, line.argv, sizeof(kept));
    opterr = 0;
    optind = 0; /* anew */
    if (setjmp(fuzz_end) == 0) {
        options_parse(&options, line.argc, line.argv);
        options_check(&options);
    }
    MUST(line.open_fds == 0);
    for (int i = 0; i < ARGUMENTS; i++)
        free(kept[i]);
    return 0;
}
