/* SPDX-License-Identifier: MIT */
/*
 * options.c - fuzzes the command line. The input is the arguments, one a
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
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int fuzz_open(const char *path, int flags, ...);
int fuzz_close(int fd);
struct passwd *fuzz_getpwnam(const char *name);
struct group *fuzz_getgrnam(const char *name);
void fuzz_exit(int status) __attribute__((noreturn));

enum { ARGUMENTS = 64, ID = 5, FD = 1000 };
enum {
    FILE_FLAGS = O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK | O_NOCTTY
                 | O_CLOEXEC
};

static struct {
    char text[4096]; /* of all arguments, one a line */
    char *argv[ARGUMENTS + 1];
    int argc, open_fds;
    bool has_user, has_group;
    int64_t user, group; /* that the last -u and -g mean; -1: invalid */
} line;

/* "7", "007": an id; what is too long for one or no number is none. */
static int64_t id_of(const char *name)
{
    int64_t id = 0;

    if (*name == '\0')
        return -1;
    for (; *name != '\0'; name++) {
        if (*name < '0' || *name > '9')
            return -1;
        id = id * 10 + (*name - '0');
        if (id > 4294967294)
            return -1;
    }
    return id;
}

struct passwd *fuzz_getpwnam(const char *name)
{
    static struct passwd user = { .pw_uid = ID };
    bool is_known = strcmp(name, "user") == 0;

    line.has_user = true;
    line.user = is_known ? ID : id_of(name);
    return is_known ? &user : NULL;
}

struct group *fuzz_getgrnam(const char *name)
{
    static struct group group = { .gr_gid = ID };
    bool is_known = strcmp(name, "group") == 0;

    line.has_group = true;
    line.group = is_known ? ID : id_of(name);
    return is_known ? &group : NULL;
}

int fuzz_open(const char *path, int flags, ...)
{
    char word[sizeof(line.text) + 8];

    MUST(flags == (O_RDONLY | O_CLOEXEC) || flags == FILE_FLAGS);
    snprintf(word, sizeof(word), "%s=%s",
             flags == (O_RDONLY | O_CLOEXEC) ? "events" : "file", path);
    MUST(strstr(line.text, word) != NULL);
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

void trace_list(void)
{
}

void trace_enable(const char *pattern)
{
    MUST(strstr(line.text, pattern) != NULL);
}

void trace_enable_all(int fd, const char *path)
{
    MUST(fd == FD && strstr(line.text, path) != NULL);
}

void trace_file_set(int fd)
{
    MUST(fd == FD && line.open_fds-- > 0);
}

void trace_begin(bool is_verbose)
{
    (void)is_verbose;
}

void fuzz_exit(int status)
{
    longjmp(fuzz_end, status + 1);
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
    int64_t user = line.has_user ? line.user : (uid_t)-1;
    int64_t group = line.has_group ? line.group : (gid_t)-1;
    int64_t most = 86400 * SECOND;

    MUST(options->uid == user && options->gid == group);
    MUST(options->max_clients >= 1 && options->max_clients <= 8192);
    MUST(options->client_timeout >= SECOND && options->client_timeout <= most);
    MUST(options->stop_timeout >= none.stop_timeout);
    MUST(options->stop_timeout <= most);
    MUST(options->client_timeout % SECOND == 0);
    MUST(options->stop_timeout % SECOND == 0);
    MUST(options->socket_path[0] == '/');
    MUST(is_given(options->socket_path, "/var/run/qemu-pr-helper.sock"));
    MUST(is_given(options->pid_file, "/var/run/qemu-pr-helper.pid"));
    MUST(options->socket_path_given || !is_given(options->socket_path, ""));
    MUST(options->pid_file_given || !is_given(options->pid_file, ""));
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
    if (input_take(line.text, sizeof(line.text) - 1) != size)
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
