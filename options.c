/* SPDX-License-Identifier: MIT */
/*
 * options.c - the command line, option by option what QEMU's helper takes.
 *
 * It must never start anything: it only fills in struct options, or says
 * what is wrong and exits (0 for --help, --version and -T help, else 1).
 * Arguments that are no options are ignored, as QEMU's helper does.
 */
#include "protocol.h"
#include "start.h"

#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef SANDBOX /* the sanitizers make system calls of their own */
#define SANDBOX true
#endif

#define PID_FILE LOCALSTATEDIR "/run/qemu-pr-helper.pid"

static const char usage[] =
    "Usage: " PROGRAM " [OPTIONS]\n"
    "Persistent reservation helper for QEMU\n"
    "\n"
    "  -h, --help               display this help and exit\n"
    "  -V, --version            output version information and exit\n"
    "\n"
    "  -d, --daemon             run in the background\n"
    "  -f, --pidfile=PATH       PID file, written if this or -d is given\n"
    "                           (default " PID_FILE ")\n"
    "  -k, --socket=PATH        path of the Unix socket\n"
    "                           (default " PROTOCOL_SOCKET ")\n"
    "  -u, --user=USER          user to drop privileges to\n"
    "  -g, --group=GROUP        group to drop privileges to\n"
    "  -q, --quiet              log errors only\n"
    "  -v, --verbose            log more; may be repeated\n"
    "  -T, --trace [[enable=]PATTERN][,events=FILE][,file=FILE]\n"
    "                           trace events; -T help lists them\n"
    "\n"
    "      --single-process     serve all clients in one process\n"
    "      --max-clients=N      clients served at a time (default 1024)\n"
    "      --client-timeout=SECONDS\n"
    "                           how long a client may stop in a message "
    "(default 30)\n"
    "      --stop-timeout=SECONDS\n"
    "                           how long commands may take at exit "
    "(default 8)\n"
    "      --sandbox=on|off     refuse what it does not need (default on)\n";

/* They are those of usage[]. */
static const struct options defaults = {
    .uid = (uid_t)-1,
    .gid = (gid_t)-1,
    .sandbox = SANDBOX,
    .max_clients = 1024,
    .client_timeout = 30 * SECOND,
    .stop_timeout = 8 * SECOND, /* libvirt, podman and docker kill after 10 */
};

static void print(const char *text)
{
    dprintf(STDOUT_FILENO, "%s", text);
    exit(EXIT_SUCCESS);
}

/* Returns optarg, which must be a number from least to most. */
static int64_t number(const char *option, int64_t least, int64_t most)
{
    int64_t value = number_of(optarg);

    if (value < least || value > most)
        fatal("--%s: '%s' is not a number from %d to %d", option, optarg,
              (int)least, (int)most);
    return value;
}

/* Reads a line without its end, as far as it fits. False: there is none. */
static bool line_read(int fd, const char *path, char *line, size_t size)
{
    size_t length = 0;
    ssize_t got;

    while ((got = read(fd, &line[length], 1)) > 0 && line[length] != '\n')
        length += length < size - 1;
    if (got < 0)
        fatal("%s:", path);
    line[length] = '\0';
    return got > 0 || length > 0;
}

/*
 * Returns the id that optarg has in passwd(5) or group(5), where it is a line's
 * third field; or else is itself. (libc's functions would load libraries into
 * us, or allocate memory, which nothing else here does.)
 */
static unsigned id_find(const char *kind, const char *file)
{
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    char line[256], *rest;
    int64_t id = -1;

    while (fd >= 0 && id < 0 && line_read(fd, file, line, sizeof(line))) {
        rest = line;
        if (strcmp(strsep(&rest, ":"), optarg) == 0) {
            (void)strsep(&rest, ":"); /* the password */
            id = number_of(strsep(&rest, ":"));
        }
    }
    if (fd >= 0)
        close(fd);
    if (id < 0)
        id = number_of(optarg);
    if (id < 0 || id > (uid_t)-2)
        fatal("invalid %s '%s': no number, and not in %s", kind, optarg, file);
    return (unsigned)id;
}

static int trace_open(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0666);

    if (fd < 0)
        fatal("%s:", path);
    return fd;
}

/* The file has a pattern on each line that is not empty or begins with #. */
static void trace_events(const char *path)
{
    int fd = trace_open(path, O_RDONLY);
    char line[128];

    while (line_read(fd, path, line, sizeof(line)))
        if (line[0] != '\0' && line[0] != '#')
            trace_enable(line);
    close(fd);
}

/* The next word of a list; a comma in a word is written twice, as in QEMU. */
static char *word_next(char **list)
{
    char *word = *list, *from = word, *to = word;

    while (*from != '\0' && (*from != ',' || *++from == ','))
        *to++ = *from++;
    *list = from;
    *to = '\0';
    return word;
}

static void trace_parse(char *list)
{
    bool is_first = true;

    for (; *list != '\0'; is_first = false) {
        char *word = word_next(&list);
        size_t key = strcspn(word, "=");

        if (strncmp(word, "events=", 7) == 0)
            trace_events(word + 7);
        else if (strncmp(word, "file=", 5) == 0)
            /* Without O_NONBLOCK this would wait for a FIFO's reader. */
            trace_file_set(trace_open(word + 5, O_WRONLY | O_CREAT | O_APPEND
                                                    | O_NONBLOCK | O_NOCTTY));
        else if (strncmp(word, "enable=", 7) == 0)
            trace_enable(word + 7);
        else if (is_first && word[key] == '\0')
            trace_enable(word);
        else
            fatal("Invalid parameter '%.*s'", (int)key, word);
    }
}

static const char *absolute(const char *path)
{
    if (path[0] != '/')
        fatal("socket path must be absolute");
    return path;
}

static bool is_on(const char *argument)
{
    if (strcmp(argument, "on") != 0 && strcmp(argument, "off") != 0)
        fatal("--sandbox: '%s' is neither on nor off", argument);
    return argument[1] == 'n';
}

static const char letters[] = "hVdf:k:u:g:qvT:";

/*
 * Each option has a letter (that of a long one alone is not in letters[]), a
 * name, perhaps an argument, which is in optarg then, and something it does.
 */
#define OPTIONS(OPTION)                                                        \
    OPTION('h', "help", 0, print(usage))                                       \
    OPTION('V', "version", 0, print(PROGRAM " " VERSION " (prhelper)\n"))      \
    OPTION('d', "daemon", 0, options->background = true)                       \
    OPTION('f', "pidfile", 1, options->pid_file = optarg)                      \
    OPTION('k', "socket", 1, options->socket_path = absolute(optarg))          \
    OPTION('u', "user", 1, options->uid = id_find("user", "/etc/passwd"))      \
    OPTION('g', "group", 1, options->gid = id_find("group", "/etc/group"))     \
    OPTION('q', "quiet", 0, options->level = LOG_ERRORS)                       \
    OPTION('v', "verbose", 0, options->level += options->level >= LOG_NORMAL)  \
    OPTION('T', "trace", 1, (void)0 /* see below */)                           \
    OPTION('P', "single-process", 0, options->single_process = true)           \
    OPTION('M', "max-clients", 1,                                              \
           options->max_clients = (unsigned)number("max-clients", 1, 8192))    \
    OPTION('C', "client-timeout", 1,                                           \
           options->client_timeout = SECOND                                    \
                                     * number("client-timeout", 1, 86400))     \
    OPTION('S', "stop-timeout", 1,                                             \
           options->stop_timeout = SECOND * number("stop-timeout", 0, 86400))  \
    OPTION('B', "sandbox", 1, options->sandbox = is_on(optarg))
#define LONG(letter, name, has_argument, action)                               \
    { (name), (has_argument), NULL, (letter) },
#define CASE(letter, name, has_argument, action)                               \
    case letter:                                                               \
        (action);                                                              \
        break;

void options_parse(struct options *options, int argc, char **argv)
{
    static const struct option long_options[32] = {
        OPTIONS(LONG)
        /* QEMU's helper has no other option that begins so. */
        { "s", required_argument, NULL, 'k' },
    };
    static char program[] = PROGRAM;
    int option;

    *options = defaults;
    if (argc > 0)
        argv[0] = program; /* the prefix of getopt's messages */
    while ((option = getopt_long(argc, argv, letters, long_options, NULL))
           != -1) {
        switch (option) {
            OPTIONS(CASE)
        default:
            fatal("Try `" PROGRAM " --help' for more information.");
        }
    }
    if (options->background && options->pid_file == NULL)
        options->pid_file = PID_FILE;
    log_level_set(options->level);
    /* -T is for another turn, as -q silences also what was said before it. */
    optind = 1;
    while ((option = getopt_long(argc, argv, letters, long_options, NULL))
           != -1)
        if (option == 'T' && optarg != NULL)
            trace_parse(optarg);
}
