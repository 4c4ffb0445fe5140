/* SPDX-License-Identifier: MIT */
/*
 * qemu-pr-client.c - asks a helper, as QEMU does, for one persistent
 * reservation command on one device, and says in words what came of it. For
 * administrators whose cluster does not form; man/qemu-pr-client.1 says what
 * it promises.
 *
 * It must never send a command to the device by itself, send PERSISTENT
 * RESERVE OUT without being asked to or twice, hand the device to a stranger,
 * wait without a limit, or believe what the helper and the disk say about the
 * length of anything.
 */
#include "../log.h"
#include "../protocol.h"
#include "../sg_io.h"
#include "check.h"
#include "decode.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define CLIENT "qemu-pr-client"

enum { /* exit status; most of those above 2 are sg_persist's */
       EXIT_GOOD = 0,
       EXIT_USAGE = 1,
       EXIT_NO_HELPER = 2,
       EXIT_ILLEGAL_REQUEST = 5,
       EXIT_UNIT_ATTENTION = 6,
       EXIT_INVALID_OPCODE = 9,
       EXIT_ABORTED_COMMAND = 11,
       EXIT_NO_DEVICE = 15,
       EXIT_RESERVATION_CONFLICT = 24,
       EXIT_BUSY = 26,
       EXIT_NO_ANSWER = 33,
       EXIT_FINDING = 36,
       EXIT_MALFORMED = 97,
       EXIT_OTHER = 98
};

/* How long a helper may take to say hello. */
#define HELLO_WITHIN (5 * SECOND)

/* What check() does not let pass as a time for one command. */
#define SLOW (5 * SECOND)

/* A read meets unit attentions that are older; so many are passed over. */
enum { ATTENTIONS_MOST = 8 };

enum { /* what a command needs, or may be given */
       KEY = 1,
       NEW_KEY = 2,
       VICTIM = 4,
       TYPE = 8,
       POWER_LOSS = 16
};

struct command {
    const char *name;
    uint8_t opcode, action;
    unsigned needs, takes;
    const char *conflict; /* what a RESERVATION CONFLICT says */
};

#define OLD_RESERVE                                                            \
    "another initiator has reserved the disk with the command RESERVE"
#define NOT_WITH_THIS_KEY                                                      \
    "this host is not registered with the key that --key says"

static const struct command commands[] = {
    { "keys", PERSISTENT_RESERVE_IN, READ_KEYS, 0, 0, OLD_RESERVE },
    { "reservation", PERSISTENT_RESERVE_IN, READ_RESERVATION, 0, 0,
      OLD_RESERVE },
    { "capabilities", PERSISTENT_RESERVE_IN, REPORT_CAPABILITIES, 0, 0,
      OLD_RESERVE },
    { "status", PERSISTENT_RESERVE_IN, READ_FULL_STATUS, 0, 0, OLD_RESERVE },
    { "register", PERSISTENT_RESERVE_OUT, REGISTER, NEW_KEY,
      KEY | NEW_KEY | POWER_LOSS,
      "this host is registered with another key than --key says, or is not; "
      "register-ignore does not ask" },
    { "register-ignore", PERSISTENT_RESERVE_OUT, REGISTER_AND_IGNORE, NEW_KEY,
      NEW_KEY | POWER_LOSS, OLD_RESERVE },
    { "reserve", PERSISTENT_RESERVE_OUT, RESERVE, KEY | TYPE, KEY | TYPE,
      NOT_WITH_THIS_KEY ", or there is another reservation" },
    { "release", PERSISTENT_RESERVE_OUT, RELEASE, KEY | TYPE, KEY | TYPE,
      NOT_WITH_THIS_KEY },
    { "clear", PERSISTENT_RESERVE_OUT, CLEAR, KEY, KEY, NOT_WITH_THIS_KEY },
    { "preempt", PERSISTENT_RESERVE_OUT, PREEMPT, KEY | VICTIM | TYPE,
      KEY | VICTIM | TYPE,
      NOT_WITH_THIS_KEY ", or nobody with the one that --victim says" },
    { "preempt-abort", PERSISTENT_RESERVE_OUT, PREEMPT_AND_ABORT,
      KEY | VICTIM | TYPE, KEY | VICTIM | TYPE,
      NOT_WITH_THIS_KEY ", or nobody with the one that --victim says" },
    { "check", PERSISTENT_RESERVE_IN, READ_KEYS, 0, 0, OLD_RESERVE },
    { NULL, 0, 0, 0, 0, NULL },
};

struct arguments {
    const struct command *command;
    const char *socket_path;
    const char *device;
    unsigned given;
    uint64_t key;
    uint64_t action_key; /* --new-key or --victim */
    uint8_t type;
    int64_t timeout;
};

struct helper {
    int socket;
    struct ucred maker;  /* of the socket: perhaps a service manager */
    struct ucred sender; /* of what was read last */
    int64_t timeout;     /* for a command */
};

struct reply {
    uint8_t status;
    uint8_t sense[PROTOCOL_SENSE_SIZE];
    uint8_t payload[PROTOCOL_DATA_MAX];
    size_t size;  /* of the payload */
    int64_t took; /* the helper and the disk, in microseconds */
};

static void line_print(const char *format, va_list arguments)
{
    fflush(stdout); /* what was printed before is to be read before */
    fputs(CLIENT ": ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
}

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    line_print(format, arguments);
    va_end(arguments);
}

__attribute__((format(printf, 2, 3), noreturn)) static void die(
    int status, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    line_print(format, arguments);
    va_end(arguments);
    exit(status);
}

/*
 * A stream that is closed must not become the disk, which what is printed
 * would then be written to, or the helper's socket. /dev/null is open for
 * reading only: who prints there hears of it.
 */
static void streams_open(void)
{
    int fd;

    for (fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDONLY) != fd)
            exit(EXIT_OTHER);
}

/* Some libc's flush forgets what a line that ended before has met. */
__attribute__((noreturn)) static void finish(int status)
{
    if (fflush(stdout) != 0 || ferror(stdout))
        die(EXIT_OTHER, "cannot write to standard output");
    exit(status);
}

/* ---- The command line -------------------------------------------------- */

static void usage(void)
{
    printf(
        "Usage: " CLIENT " [OPTIONS] COMMAND DEVICE\n"
        "Persistent reservations through qemu-pr-helper, as QEMU makes them\n"
        "\n"
        "  check           can virtual machines use reservations here?\n"
        "  keys            list the registered keys\n"
        "  reservation     show the reservation\n"
        "  status          list who is registered, and who holds what\n"
        "  capabilities    show what the disk can do\n"
        "  register        --new-key=KEY [--key=KEY] [--aptpl]\n"
        "  register-ignore --new-key=KEY [--aptpl]\n"
        "  reserve         --key=KEY --type=TYPE\n"
        "  release         --key=KEY --type=TYPE\n"
        "  clear           --key=KEY\n"
        "  preempt         --key=KEY --victim=KEY --type=TYPE\n"
        "  preempt-abort   --key=KEY --victim=KEY --type=TYPE\n"
        "\n"
        "  -h, --help             display this help and exit\n"
        "  -V, --version          output version information and exit\n"
        "  -k, --socket=PATH      the helper's socket\n"
        "                         (default " PROTOCOL_SOCKET ")\n"
        "  -t, --timeout=SECONDS  how long the command may take "
        "(default 90)\n"
        "      --key=KEY          this host's registered key, in "
        "hexadecimal\n"
        "      --new-key=KEY      the key to register, 0 for none any more\n"
        "      --victim=KEY       whose registration to remove (or --new-key)\n"
        "      --type=TYPE        of the reservation:\n");
    for (unsigned type = 0; type <= TYPE_MOST; type++)
        if (decode_type(type) != NULL)
            printf("                           %u %s\n", type,
                   decode_type(type));
    printf("      --aptpl            registrations are to survive a loss of "
           "power\n");
}

/* The number that text is, from least to most; what says so in words. */
static uint64_t number(const char *option, const char *text, const char *what,
                       int base, uint64_t least, uint64_t most)
{
    unsigned long long value;
    char *end;

    errno = 0;
    value = strtoull(text, &end, base);
    if (!isxdigit((unsigned char)text[0]) || *end != '\0' || errno != 0
        || value < least || value > most)
        die(EXIT_USAGE, "%s: '%s' is not %s", option, text, what);
    return value;
}

static uint64_t key_parse(const char *option, const char *text)
{
    static const char what[] = "a key of at most 16 hexadecimal digits";
    bool has_prefix = text[0] == '0' && (text[1] | 0x20) == 'x';

    if (strlen(text) > (has_prefix ? 18 : 16))
        die(EXIT_USAGE, "%s: '%s' is not %s", option, text, what);
    return number(option, text, what, 16, 0, UINT64_MAX);
}

static uint8_t type_parse(const char *text)
{
    static const char what[] = "a type of reservation";
    unsigned type;

    for (type = 0; type <= TYPE_MOST; type++)
        if (decode_type(type) != NULL && strcmp(text, decode_type(type)) == 0)
            return (uint8_t)type;
    type = (unsigned)number("--type", text, what, 10, 0, TYPE_MOST);
    if (decode_type(type) == NULL)
        die(EXIT_USAGE, "--type: '%u' is not %s", type, what);
    return (uint8_t)type;
}

static const struct command *command_find(const char *name)
{
    const struct command *command = commands;

    while (command->name != NULL && strcmp(command->name, name) != 0)
        command++;
    if (command->name == NULL)
        die(EXIT_USAGE, "there is no command '%s'; see " CLIENT " --help",
            name);
    return command;
}

static void arguments_check(struct arguments *arguments)
{
    static const char *const names[] = { "--key", "--new-key", "--victim",
                                         "--type", "--aptpl" };
    const struct command *command = arguments->command;
    size_t i;

    /* Both are the SERVICE ACTION RESERVATION KEY. */
    if ((command->needs & ~arguments->given & VICTIM) != 0
        && (arguments->given & NEW_KEY) != 0)
        arguments->given ^= NEW_KEY | VICTIM;
    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (command->needs & ~arguments->given & 1U << i)
            die(EXIT_USAGE, "%s needs %s", command->name, names[i]);
        if (arguments->given & ~command->takes & 1U << i)
            die(EXIT_USAGE, "%s has no use for %s", command->name, names[i]);
    }
}

static const struct option options[] = {
    { "help", no_argument, NULL, 'h' },
    { "version", no_argument, NULL, 'V' },
    { "socket", required_argument, NULL, 'k' },
    { "timeout", required_argument, NULL, 't' },
    { "key", required_argument, NULL, KEY },
    { "new-key", required_argument, NULL, NEW_KEY },
    { "victim", required_argument, NULL, VICTIM },
    { "type", required_argument, NULL, TYPE },
    { "aptpl", no_argument, NULL, POWER_LOSS },
    { NULL, 0, NULL, 0 },
};

static void arguments_parse(struct arguments *arguments, int argc, char **argv)
{
    static char name[] = CLIENT;
    int option;

    memset(arguments, 0, sizeof(*arguments));
    arguments->socket_path = PROTOCOL_SOCKET;
    arguments->timeout = 90 * SECOND;
    if (argc > 0)
        argv[0] = name; /* the prefix of getopt's messages */
    while ((option = getopt_long(argc, argv, "hVk:t:", options, NULL)) != -1) {
        switch (option) {
        case 'h':
            usage();
            finish(EXIT_GOOD);
        case 'V':
            printf(CLIENT " " VERSION " (prhelper)\n");
            finish(EXIT_GOOD);
        case 'k':
            arguments->socket_path = optarg;
            break;
        case 't':
            arguments->timeout = (int64_t)number(
                                     "--timeout", optarg,
                                     "a number of seconds from 1 to 86400", 10,
                                     1, 86400)
                                 * SECOND;
            break;
        case KEY:
            arguments->key = key_parse("--key", optarg);
            break;
        case NEW_KEY:
            arguments->action_key = key_parse("--new-key", optarg);
            break;
        case VICTIM:
            arguments->action_key = key_parse("--victim", optarg);
            break;
        case TYPE:
            arguments->type = type_parse(optarg);
            break;
        case POWER_LOSS:
            break;
        default:
            die(EXIT_USAGE, "see " CLIENT " --help");
        }
        if (option <= POWER_LOSS)
            arguments->given |= (unsigned)option;
    }
    if (argc - optind != 2)
        die(EXIT_USAGE,
            "a command and a device are needed; see " CLIENT " --help");
    arguments->command = command_find(argv[optind]);
    arguments->device = argv[optind + 1];
    arguments_check(arguments);
}

/* ---- The helper -------------------------------------------------------- */

/* Once. Nothing else than who sent it can come along. */
static ssize_t helper_receive(struct helper *helper, void *to, size_t size)
{
    struct iovec vector = { .iov_base = to, .iov_len = size };
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(struct ucred))];
    } control;
    struct msghdr message = { .msg_iov = &vector,
                              .msg_iovlen = 1,
                              .msg_control = &control,
                              .msg_controllen = sizeof(control) };
    ssize_t got = recvmsg(helper->socket, &message, 0);

    if (got > 0 && message.msg_controllen >= sizeof(control)
        && control.header.cmsg_type == SCM_CREDENTIALS)
        memcpy(&helper->sender, CMSG_DATA(&control.header),
               sizeof(helper->sender));
    return got;
}

/* Reads all of size bytes, or ends the program: with late, if they are. */
static void helper_read(struct helper *helper, void *to, size_t size,
                        int64_t by, int late)
{
    struct pollfd ready = { .fd = helper->socket, .events = POLLIN };
    uint8_t *at = to;

    while (size > 0) {
        int64_t left = by - clock_us();
        ssize_t got;

        if (left <= 0)
            die(late, late == EXIT_NO_HELPER
                          ? "the helper accepts, but says nothing"
                          : "no answer in time; the disk may still carry the "
                            "command out");
        if (poll(&ready, 1, (int)(left / 1000 + 1)) <= 0)
            continue;
        got = helper_receive(helper, at, size);
        if (got == 0)
            die(EXIT_NO_HELPER,
                "the helper closed the connection: see what it logs with -v");
        if (got < 0 && errno != EINTR)
            die(EXIT_NO_HELPER, "cannot read from the helper: %s",
                strerror(errno));
        if (got > 0) {
            at += got;
            size -= (size_t)got;
        }
    }
}

/* Sends a few bytes, which fit into any socket's buffer; fd may be -1. */
static void helper_send(const struct helper *helper, const void *bytes,
                        size_t size, int fd)
{
    struct iovec vector = { .iov_base = (void *)bytes, .iov_len = size };
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1 };

    memset(&control, 0, sizeof(control));
    if (fd >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof(control.space);
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(sizeof(fd));
        memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
    }
    if (sendmsg(helper->socket, &message, MSG_NOSIGNAL) != (ssize_t)size)
        die(EXIT_NO_HELPER, "cannot send to the helper: %s", strerror(errno));
}

static const char *no_helper(int error)
{
    switch (error) {
    case ENOENT:
        return ": no helper was started with this socket, or not yet";
    case ECONNREFUSED:
        return ": it was left behind by a helper that has ended, or is no "
               "socket";
    case EACCES:
        return ": the mode of the socket, or of its directory, keeps you out";
    case EAGAIN:
        return ": the helper is there, but does not accept";
    default:
        return "";
    }
}

/*
 * Who listens there gets the device from us. The directory of a socket may
 * belong to virtual machines, so that must be root, or ourselves.
 */
static void helper_trust(struct helper *helper, const char *path)
{
    socklen_t size = sizeof(helper->maker);

    if (getsockopt(helper->socket, SOL_SOCKET, SO_PEERCRED, &helper->maker,
                   &size)
        < 0)
        die(EXIT_OTHER, "cannot tell who listens on %s: %s", path,
            strerror(errno));
    if (helper->maker.uid != 0 && helper->maker.uid != geteuid())
        die(EXIT_NO_HELPER,
            "who listens on %s is not trusted with the device: process %ld of "
            "user %lu",
            path, (long)helper->maker.pid, (unsigned long)helper->maker.uid);
}

/* Connects, and says hello: no feature is requested. */
static void helper_open(struct helper *helper, const char *path)
{
    const struct timeval patience = { .tv_sec = (time_t)(HELLO_WITHIN
                                                         / SECOND) };
    const int64_t by = clock_us() + HELLO_WITHIN;
    uint8_t features[PROTOCOL_HELLO_SIZE];
    struct sockaddr_un address;
    socklen_t length = protocol_address(&address, path);

    if (length == 0)
        die(EXIT_USAGE, "'%s' is no path of a socket: the limit is %zu bytes",
            path, sizeof(address.sun_path) - 1);
    helper->socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (helper->socket < 0)
        die(EXIT_OTHER, "cannot make a socket: %s", strerror(errno));
    /* Who speaks to us, from the first byte on. */
    setsockopt(helper->socket, SOL_SOCKET, SO_PASSCRED, &(int){ 1 },
               sizeof(int));
    /* That of connect() is this one, too. */
    setsockopt(helper->socket, SOL_SOCKET, SO_SNDTIMEO, &patience,
               sizeof(patience));
    if (connect(helper->socket, (struct sockaddr *)&address, length) < 0) {
        int error = errno;

        die(EXIT_NO_HELPER, "cannot connect to %s: %s%s", path, strerror(error),
            no_helper(error));
    }
    helper_trust(helper, path);
    helper_read(helper, features, sizeof(features), by, EXIT_NO_HELPER);
    memset(features, 0, sizeof(features));
    helper_send(helper, features, sizeof(features), -1);
}

/* One command: the CDB with the descriptor, list unless NULL, the reply. */
static void helper_ask(struct helper *helper, int fd, const uint8_t *cdb,
                       const uint8_t *list, struct reply *reply)
{
    const int64_t begin = clock_us(), by = begin + helper->timeout;
    size_t most = cdb[0] == PERSISTENT_RESERVE_IN ? be16_get(cdb + 7) : 0;
    uint8_t head[PROTOCOL_STATUS_SIZE];
    uint32_t status, size;

    helper_send(helper, cdb, PROTOCOL_CDB_SIZE, fd);
    if (list != NULL)
        helper_send(helper, list, LIST_SIZE, -1);
    helper_read(helper, head, sizeof(head), by, EXIT_NO_ANSWER);
    status = be32_get(head);
    size = be32_get(head + 4);
    if (status != GOOD)
        most = 0;
    if (status > UINT8_MAX)
        die(EXIT_MALFORMED, "the helper's reply has a status of %" PRIu32,
            status);
    if (size > most)
        die(EXIT_MALFORMED,
            "the helper's reply has %" PRIu32 " bytes of data, where there "
            "may be %zu: QEMU would abort",
            size, most);
    reply->status = (uint8_t)status;
    memcpy(reply->sense, head + 8, sizeof(reply->sense));
    helper_read(helper, reply->payload, size, by, EXIT_NO_ANSWER);
    reply->size = size;
    reply->took = clock_us() - begin;
}

/* ---- Commands ---------------------------------------------------------- */

static int exit_status(const struct reply *reply)
{
    uint32_t code;

    switch (reply->status) {
    case GOOD:
        return EXIT_GOOD;
    case RESERVATION_CONFLICT:
        return EXIT_RESERVATION_CONFLICT;
    case BUSY:
    case TASK_SET_FULL:
        return EXIT_BUSY;
    case CHECK_CONDITION:
        break;
    default:
        return EXIT_OTHER;
    }
    if (!decode_sense(&code, reply->sense))
        return EXIT_OTHER;
    switch (SENSE_KEY(code)) {
    case ILLEGAL_REQUEST:
        return code == SENSE_CODE(ILLEGAL_REQUEST, 0x20, 0x00)
                   ? EXIT_INVALID_OPCODE
                   : EXIT_ILLEGAL_REQUEST;
    case UNIT_ATTENTION:
        return EXIT_UNIT_ATTENTION;
    case ABORTED_COMMAND:
        return EXIT_ABORTED_COMMAND;
    default:
        return EXIT_OTHER;
    }
}

/*
 * What the helper has refused, this program's copy of sg_io.c would refuse,
 * too: *refusal is why, NULL if it would not. Returns whether the descriptor
 * is of a device-mapper device.
 */
static bool is_mapped(int fd, const uint8_t *cdb, const char **refusal)
{
    uint8_t sense[PROTOCOL_SENSE_SIZE];
    struct pr_command vetted = { .fd = fd, .cdb = cdb, .sense = sense };
    bool mapped = sg_io_vet(&vetted) == VET_MAPPED;

    *refusal = mapped ? "a device-mapper device is served only if it is a "
                        "multipath map, and its name has no odd characters"
                      : sg_io_refusals[vetted.refusal];
    return mapped;
}

/* Why a command failed, in plain words; NULL if no more is to be said. */
static const char *reason(const struct command *command, int fd,
                          const uint8_t *cdb, const struct reply *reply)
{
    const char *refusal;
    uint32_t code;

    if (reply->status == RESERVATION_CONFLICT)
        return command->conflict;
    if (reply->status != CHECK_CONDITION || !decode_sense(&code, reply->sense))
        return NULL;
    switch (code) {
    case SENSE_CODE(ILLEGAL_REQUEST, 0x20, 0x00):
        is_mapped(fd, cdb, &refusal);
        return refusal != NULL ? refusal
                               : "the disk has no persistent reservations";
    case SENSE_CODE(ABORTED_COMMAND, 0x00, 0x06):
        is_mapped(fd, cdb, &refusal);
        return refusal != NULL ? refusal
                               : "the kernel refuses the helper: it needs "
                                 "CAP_SYS_RAWIO";
    case SENSE_CODE(ABORTED_COMMAND, 0x08, 0x00):
        if (is_mapped(fd, cdb, &refusal))
            return "no path of the map is usable, or multipathd cannot be "
                   "told (is it running, with reservation_key file?): see "
                   "the helper's log";
        /* fall through */
    case SENSE_CODE(ABORTED_COMMAND, 0x05, 0x00):
    case SENSE_CODE(ABORTED_COMMAND, 0x29, 0x07):
    case SENSE_CODE(ABORTED_COMMAND, 0x2e, 0x02):
        return "the disk does not answer the host, or not in time: see the "
               "kernel's log";
    case SENSE_CODE(ILLEGAL_REQUEST, 0x55, 0x04):
        return "the disk has no room for another registration";
    default:
        return NULL;
    }
}

/* Says how the command ended, unless well. Returns the exit status. */
static int outcome_print(const struct command *command, int fd,
                         const uint8_t *cdb, const struct reply *reply)
{
    const char *why = reason(command, fd, cdb, reply);
    char text[128];

    if (reply->status == GOOD)
        return EXIT_GOOD;
    decode_status(text, sizeof(text), reply->status, reply->sense);
    say("%s: %s", command->name, text);
    if (why != NULL)
        say("%s", why);
    return exit_status(reply);
}

static int device_open(const char *path, int mode)
{
    int fd = open(path, mode | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0)
        die(EXIT_NO_DEVICE, "cannot open %s: %s", path, strerror(errno));
    return fd;
}

/*
 * A PERSISTENT RESERVE IN. A unit attention tells of something that happened
 * before, and the command was not carried out: it is reported, and the
 * command sent again. Returns the exit status.
 */
static int read_in(struct helper *helper, const struct command *command, int fd,
                   struct reply *reply)
{
    uint8_t cdb[PROTOCOL_CDB_SIZE] = { PERSISTENT_RESERVE_IN, command->action };
    unsigned tries = 0;
    int status;

    be16_put(cdb + 7, PROTOCOL_DATA_MAX);
    do {
        helper_ask(helper, fd, cdb, NULL, reply);
        status = outcome_print(command, fd, cdb, reply);
    } while (status == EXIT_UNIT_ATTENTION && ++tries <= ATTENTIONS_MOST);
    return status;
}

static int payload_print(const struct command *command,
                         const struct reply *reply)
{
    if (decode_payload(stdout, command->action, reply->payload, reply->size))
        return EXIT_GOOD;
    say("%s: what the disk answered makes no sense (%zu bytes)", command->name,
        reply->size);
    return EXIT_MALFORMED;
}

static int read_in_print(struct helper *helper, const struct command *command,
                         int fd)
{
    struct reply reply;
    int status = read_in(helper, command, fd, &reply);

    return status == EXIT_GOOD ? payload_print(command, &reply) : status;
}

static int write_out(struct helper *helper, const struct arguments *arguments)
{
    const struct command *command = arguments->command;
    int fd = device_open(arguments->device, O_RDWR);
    uint8_t cdb[PROTOCOL_CDB_SIZE] = { PERSISTENT_RESERVE_OUT, command->action,
                                       arguments->type };
    uint8_t list[LIST_SIZE] = { 0 };
    struct reply reply;
    int status;

    be16_put(cdb + 7, LIST_SIZE);
    be64_put(list, arguments->key);
    be64_put(list + 8, arguments->action_key);
    if (arguments->given & POWER_LOSS)
        list[LIST_FLAGS] = APTPL;
    helper_ask(helper, fd, cdb, list, &reply);
    status = outcome_print(command, fd, cdb, &reply);
    if (status == EXIT_UNIT_ATTENTION)
        say("the command was not carried out: see what has changed, and if "
            "it is still wanted");
    return status;
}

/* ---- Is all well? ------------------------------------------------------ */

/* What a cluster cannot do without; true if all is there. */
static bool capabilities_suffice(const struct reply *reply)
{
    unsigned supported = decode_types_supported(reply->payload, reply->size);

    if (supported == 0 || supported >> WRITE_EXCLUSIVE_REGISTRANTS_ONLY & 1)
        return true;
    say("the disk does not have %s, which Windows and fence_scsi use",
        decode_type(WRITE_EXCLUSIVE_REGISTRANTS_ONLY));
    return false;
}

/*
 * All that can be seen without changing anything. Ends at the first command
 * that fails, and returns the exit status.
 */
static int check(struct helper *helper, const struct arguments *arguments,
                 int64_t took)
{
    const struct command *capabilities = command_find("capabilities");
    const struct command *full_status = command_find("status");
    const struct command *reservation = command_find("reservation");
    struct reply reply, full = { 0 };
    int fd, status, finding = EXIT_GOOD;

    printf("The helper at %s answers: process %ld of user %lu, in %" PRId64
           " us.\n",
           arguments->socket_path, (long)helper->sender.pid,
           (unsigned long)helper->sender.uid, took);
    if (helper->maker.pid != helper->sender.pid)
        printf("The socket was made by process %ld of user %lu.\n",
               (long)helper->maker.pid, (unsigned long)helper->maker.uid);
    fd = device_open(arguments->device, O_RDONLY);
    status = read_in(helper, command_find("keys"), fd, &reply);
    if (status != EXIT_GOOD)
        return status;
    printf("It serves %s: READ KEYS takes %" PRId64 " us.\n", arguments->device,
           reply.took);
    if (reply.took > SLOW) {
        say("that is slow: virtual machines give up after 30 to 60 seconds");
        finding = EXIT_FINDING;
    }
    /* SPC-2 has neither this one nor READ FULL STATUS. */
    status = read_in(helper, capabilities, fd, &reply);
    if (status == EXIT_GOOD)
        status = payload_print(capabilities, &reply);
    if (status == EXIT_GOOD && !capabilities_suffice(&reply))
        finding = EXIT_FINDING;
    if (status == EXIT_GOOD)
        status = read_in(helper, full_status, fd, &full);
    if (status == EXIT_GOOD)
        status = payload_print(full_status, &full);
    if (status == EXIT_ILLEGAL_REQUEST)
        status = read_in_print(helper, command_find("keys"), fd);
    if (status == EXIT_GOOD)
        status = read_in(helper, reservation, fd, &reply);
    if (status == EXIT_GOOD)
        status = payload_print(reservation, &reply);
    if (status == EXIT_GOOD
        && !check_map(fd, arguments->socket_path, full.payload, full.size,
                      reply.payload, reply.size))
        finding = EXIT_FINDING;
    if (status == EXIT_GOOD && finding == EXIT_GOOD)
        puts("Nothing is wrong so far; no command was tried that changes "
             "anything.");
    return status != EXIT_GOOD ? status : finding;
}

int main(int argc, char **argv)
{
    struct arguments arguments;
    struct helper helper;
    int64_t begin;
    int status;

    streams_open();
    arguments_parse(&arguments, argc, argv);
    helper.timeout = arguments.timeout;
    begin = clock_us();
    helper_open(&helper, arguments.socket_path);
    if (strcmp(arguments.command->name, "check") == 0)
        status = check(&helper, &arguments, clock_us() - begin);
    else if (arguments.command->opcode == PERSISTENT_RESERVE_OUT)
        status = write_out(&helper, &arguments);
    else
        status = read_in_print(&helper, arguments.command,
                               device_open(arguments.device, O_RDONLY));
    finish(status);
}
