/* SPDX-License-Identifier: MIT */
/*
 * options.c - the command line, option by option what QEMU's helper takes.
 *
 * It must never start anything: it only fills in struct options, or says
 * what is wrong and exits (0 for --help, --version and -T help, else 1).
 * Arguments that are no options are ignored, as QEMU's helper does.
 */
#include "prhelper.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef SANDBOX /* the sanitizers make system calls of their own */
#define SANDBOX true
#endif

enum { /* long options without a short one */
       OPTION_SINGLE_PROCESS = 256,
       OPTION_MAX_CLIENTS,
       OPTION_CLIENT_TIMEOUT,
       OPTION_STOP_TIMEOUT,
       OPTION_SANDBOX
};

static const struct options defaults = {
    .socket_path = PROTOCOL_SOCKET,
    .pid_file = LOCALSTATEDIR "/run/qemu-pr-helper.pid",
    .uid = (uid_t)-1,
    .gid = (gid_t)-1,
    .sandbox = SANDBOX,
    .max_clients = 1024,
    .client_timeout = 30 * SECOND,
    .stop_timeout = 8 * SECOND, /* libvirt, podman and docker kill after 10 */
};

static void usage(void)
{
    printf("Usage: " PROGRAM " [OPTIONS]\n"
           "Persistent reservation helper for QEMU\n"
           "\n"
           "  -h, --help               display this help and exit\n"
           "  -V, --version            output version information and exit\n"
           "\n"
           "  -d, --daemon             run in the background\n"
           "  -f, --pidfile=PATH       PID file, written if this or -d is "
           "given\n"
           "                           (default %s)\n"
           "  -k, --socket=PATH        path of the Unix socket\n"
           "                           (default %s)\n"
           "  -u, --user=USER          user to drop privileges to\n"
           "  -g, --group=GROUP        group to drop privileges to\n"
           "  -q, --quiet              log errors only\n"
           "  -v, --verbose            log more; may be repeated\n"
           "  -T, --trace [[enable=]PATTERN][,events=FILE][,file=FILE]\n"
           "                           trace events; -T help lists them\n"
           "\n"
           "      --single-process     serve all clients in one process\n"
           "      --max-clients=N      clients served at a time (default %u)\n"
           "      --client-timeout=SECONDS\n"
           "                           how long a client may stop inside "
           "a message\n"
           "                           (default %d)\n"
           "      --stop-timeout=SECONDS\n"
           "                           how long commands may take to end "
           "at exit\n"
           "                           (default %d)\n"
           "      --sandbox=on|off     refuse what the helper does not need\n"
           "                           (default on)\n",
           defaults.pid_file, defaults.socket_path, defaults.max_clients,
           (int)(defaults.client_timeout / SECOND),
           (int)(defaults.stop_timeout / SECOND));
}

/* A decimal number from least to most; anything else is fatal. */
static unsigned long number(const char *option, const char *text,
                            unsigned long least, unsigned long most)
{
    char *end;
    unsigned long value;

    errno = 0;
    value = strtoul(text, &end, 10);
    if (!isdigit((unsigned char)text[0]) || *end != '\0' || errno != 0
        || value < least || value > most)
        fatal("%s: '%s' is not a number from %lu to %lu", option, text, least,
              most);
    return value;
}

/* A number that fits an id, for names that are in no database. */
static bool id_parse(const char *text, unsigned long *id)
{
    char *end;

    errno = 0;
    *id = strtoul(text, &end, 10);
    return isdigit((unsigned char)text[0]) && *end == '\0' && errno == 0
           && *id < (uid_t)-1;
}

static uid_t user_id(const char *name)
{
    const struct passwd *user = getpwnam(name);
    unsigned long id;

    if (user != NULL)
        return user->pw_uid;
    if (!id_parse(name, &id))
        fatal("invalid user '%s'", name);
    return (uid_t)id;
}

static gid_t group_id(const char *name)
{
    const struct group *group = getgrnam(name);
    unsigned long id;

    if (group != NULL)
        return group->gr_gid;
    if (!id_parse(name, &id))
        fatal("invalid group '%s'", name);
    return (gid_t)id;
}

static int trace_open(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0666);

    if (fd < 0)
        fatal("%s: %s", path, strerror(errno));
    return fd;
}

static void trace_events(const char *path)
{
    int fd = trace_open(path, O_RDONLY);

    trace_enable_all(fd, path);
    close(fd);
}

static void trace_parse(char *argument)
{
    char *word;
    bool first = true;

    for (word = strtok(argument, ","); word != NULL;
         word = strtok(NULL, ","), first = false) {
        char *value = strchr(word, '=');

        if (value != NULL)
            *value++ = '\0';
        if (value != NULL && strcmp(word, "events") == 0) {
            trace_events(value);
        } else if (value != NULL && strcmp(word, "file") == 0) {
            /* Not to wait for a FIFO's reader. */
            trace_file_set(trace_open(value, O_WRONLY | O_CREAT | O_APPEND
                                                 | O_NONBLOCK | O_NOCTTY));
        } else if (value != NULL ? strcmp(word, "enable") == 0 : first) {
            const char *pattern = value != NULL ? value : word;

            if (strcmp(pattern, "help") == 0) {
                trace_list();
                exit(EXIT_SUCCESS);
            }
            trace_enable(pattern);
        } else {
            fatal("Invalid parameter '%s'", word);
        }
    }
}

static void socket_path_check(const char *path)
{
    if (path[0] != '/')
        fatal("socket path must be absolute");
}

void options_parse(struct options *options, int argc, char **argv)
{
    static const struct option table[] = {
        { "help", no_argument, NULL, 'h' },
        { "version", no_argument, NULL, 'V' },
        { "daemon", no_argument, NULL, 'd' },
        { "pidfile", required_argument, NULL, 'f' },
        { "socket", required_argument, NULL, 'k' },
        { "user", required_argument, NULL, 'u' },
        { "group", required_argument, NULL, 'g' },
        { "quiet", no_argument, NULL, 'q' },
        { "verbose", no_argument, NULL, 'v' },
        { "trace", required_argument, NULL, 'T' },
        { "single-process", no_argument, NULL, OPTION_SINGLE_PROCESS },
        { "max-clients", required_argument, NULL, OPTION_MAX_CLIENTS },
        { "client-timeout", required_argument, NULL, OPTION_CLIENT_TIMEOUT },
        { "stop-timeout", required_argument, NULL, OPTION_STOP_TIMEOUT },
        { "sandbox", required_argument, NULL, OPTION_SANDBOX },
        { NULL, 0, NULL, 0 },
    };
    static const char letters[] = "hVdf:k:u:g:qvT:";
    static char name[] = PROGRAM;
    int option, level = LOG_NORMAL;
    bool quiet = false;

    *options = defaults;
    if (argc > 0)
        argv[0] = name; /* the prefix of getopt's messages */
    while ((option = getopt_long(argc, argv, letters, table, NULL)) != -1) {
        switch (option) {
        case 'h':
            usage();
            exit(EXIT_SUCCESS);
        case 'V':
            printf(PROGRAM " " VERSION " (prhelper)\n");
            exit(EXIT_SUCCESS);
        case 'd':
            options->background = true;
            break;
        case 'f':
            options->pid_file = optarg;
            options->pid_file_given = true;
            break;
        case 'k':
            socket_path_check(optarg);
            options->socket_path = optarg;
            options->socket_path_given = true;
            break;
        case 'u':
            options->uid = user_id(optarg);
            break;
        case 'g':
            options->gid = group_id(optarg);
            break;
        case 'q':
            quiet = true;
            break;
        case 'v':
            level++;
            break;
        case 'T': /* below */
            break;
        case OPTION_SINGLE_PROCESS:
            options->single_process = true;
            break;
        case OPTION_MAX_CLIENTS:
            options->max_clients = (unsigned)number("--max-clients", optarg, 1,
                                                    8192);
            break;
        case OPTION_CLIENT_TIMEOUT:
            options->client_timeout =
                (int64_t)number("--client-timeout", optarg, 1, 86400) * SECOND;
            break;
        case OPTION_STOP_TIMEOUT:
            options->stop_timeout =
                (int64_t)number("--stop-timeout", optarg, 0, 86400) * SECOND;
            break;
        case OPTION_SANDBOX:
            options->sandbox = strcmp(optarg, "off") != 0;
            if (options->sandbox && strcmp(optarg, "on") != 0)
                fatal("--sandbox: '%s' is neither on nor off", optarg);
            break;
        default:
            fatal("Try `" PROGRAM " --help' for more information.");
        }
    }
    level = quiet ? LOG_ERRORS : level;
    log_level_set(level);
    /* Once more, as -q silences also what was said before it. */
    optind = 1;
    while ((option = getopt_long(argc, argv, letters, table, NULL)) != -1)
        if (option == 'T')
            trace_parse(optarg);
    trace_begin(level >= LOG_VERBOSE);
}
