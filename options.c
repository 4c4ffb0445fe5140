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

#include <ctype.h>
#include <errno.h>
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
    "                           how long a client may stop inside a message\n"
    "                           (default 30)\n"
    "      --stop-timeout=SECONDS\n"
    "                           how long commands may take to end at exit\n"
    "                           (default 8)\n"
    "      --sandbox=on|off     refuse what the helper does not need\n"
    "                           (default on)\n";

/* As usage[] says. */
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

/* A decimal number up to most, and nothing else. */
static bool number_parse(const char *text, unsigned long most,
                         unsigned long *value)
{
    char *end;

    errno = 0;
    *value = strtoul(text, &end, 10);
    return isdigit((unsigned char)text[0]) && *end == '\0' && errno == 0
           && *value <= most;
}

/* The argument of an option: one from least to most; anything else is fatal. */
static int64_t number(const char *option, unsigned long least,
                      unsigned long most)
{
    unsigned long value;

    if (!number_parse(optarg, most, &value) || value < least)
        fatal("--%s: '%s' is not a number from %lu to %lu", option, optarg,
              least, most);
    return (int64_t)value;
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
 * The id that optarg has in passwd(5) or group(5), where it is the third field
 * of a line; or else is itself. (libc's functions would load libraries into us,
 * or allocate memory, which nothing else here does.)
 */
static unsigned id_find(const char *kind, const char *file)
{
    const char *name = optarg;
    size_t length = strcspn(name, ":");
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    char line[256], *text;
    unsigned long id;

    while (fd >= 0 && line_read(fd, file, line, sizeof(line)))
        if (name[length] == '\0' && strncmp(line, name, length) == 0
            && line[length] == ':'
            && (text = strchr(line + length + 1, ':')) != NULL) {
            name = text + 1;
            text[1 + strcspn(text + 1, ":")] = '\0';
            break;
        }
    if (fd >= 0)
        close(fd);
    if (!number_parse(name, (uid_t)-2, &id))
        fatal("invalid %s '%s': no number, and not in %s", kind, name, file);
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
        char *word = word_next(&list), *value = strchr(word, '=');
        const char *key = word;

        if (value != NULL)
            *value++ = '\0';
        if (value == NULL && is_first) {
            value = word;
            key = "enable";
        }
        if (value != NULL && strcmp(key, "events") == 0) {
            trace_events(value);
        } else if (value != NULL && strcmp(key, "file") == 0) {
            /* Without O_NONBLOCK this would wait for a FIFO's reader. */
            trace_file_set(trace_open(value, O_WRONLY | O_CREAT | O_APPEND
                                                 | O_NONBLOCK | O_NOCTTY));
        } else if (value == NULL || strcmp(key, "enable") != 0) {
            fatal("Invalid parameter '%s'", word);
        } else if (strcmp(value, "help") == 0 || strcmp(value, "?") == 0) {
            trace_list();
            exit(EXIT_SUCCESS);
        } else {
            trace_enable(value);
        }
    }
}

static const char *absolute(const char *path)
{
    if (path[0] != '/')
        fatal("socket path must be absolute");
    return path;
}

static bool is_on(const char *option)
{
    bool on = strcmp(optarg, "on") == 0;

    if (!on && strcmp(optarg, "off") != 0)
        fatal("--%s: '%s' is neither on nor off", option, optarg);
    return on;
}

static const char letters[] = "hVdf:k:u:g:qvT:";

/*
 * Each option: its letter (that of a long one alone is not in letters[]), its
 * name, and what it does; ALONE or with an ARGUMENT, which is in optarg then.
 */
#define OPTIONS(ALONE, ARGUMENT)                                               \
    ALONE('h', "help", print(usage))                                           \
    ALONE('V', "version", print(PROGRAM " " VERSION " (prhelper)\n"))          \
    ALONE('d', "daemon", options->background = true)                           \
    ARGUMENT('f', "pidfile", options->pid_file = optarg)                       \
    ARGUMENT('k', "socket", options->socket_path = absolute(optarg))           \
    ARGUMENT('u', "user", options->uid = id_find("user", "/etc/passwd"))       \
    ARGUMENT('g', "group", options->gid = id_find("group", "/etc/group"))      \
    ALONE('q', "quiet", options->quiet = true)                                 \
    ALONE('v', "verbose", options->verbosity++)                                \
    ARGUMENT('T', "trace", (void)0 /* see below */)                            \
    ALONE('P', "single-process", options->single_process = true)               \
    ARGUMENT('M', "max-clients",                                               \
             options->max_clients = (unsigned)number("max-clients", 1, 8192))  \
    ARGUMENT('C', "client-timeout",                                            \
             options->client_timeout = number("client-timeout", 1, 86400)      \
                                       * SECOND)                               \
    ARGUMENT('S', "stop-timeout",                                              \
             options->stop_timeout = number("stop-timeout", 0, 86400)          \
                                     * SECOND)                                 \
    ARGUMENT('B', "sandbox", options->sandbox = is_on("sandbox"))
#define LONG_ALONE(letter, name, action)                                       \
    { (name), no_argument, NULL, (letter) },
#define LONG_ARGUMENT(letter, name, action)                                    \
    { (name), required_argument, NULL, (letter) },
#define CASE(letter, name, action)                                             \
    case letter:                                                               \
        (action);                                                              \
        break;

void options_parse(struct options *options, int argc, char **argv)
{
    static const struct option long_options[32] = {
        OPTIONS(LONG_ALONE, LONG_ARGUMENT)
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
            OPTIONS(CASE, CASE)
        default:
            fatal("Try `" PROGRAM " --help' for more information.");
        }
    }
    if (options->background && options->pid_file == NULL)
        options->pid_file = PID_FILE;
    log_level_set(options->quiet ? LOG_ERRORS : options->verbosity);
    /* -T is for another turn, as -q silences also what was said before it. */
    optind = 1;
    while ((option = getopt_long(argc, argv, letters, long_options, NULL))
           != -1)
        if (option == 'T' && optarg != NULL)
            trace_parse(optarg);
}
