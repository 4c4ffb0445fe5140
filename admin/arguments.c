/* SPDX-License-Identifier: MIT */
/*
 * arguments.c - the command line of the administrator's client: its commands
 * in one table, its options, what it says of both.
 *
 * It must never let a command line pass that could mean two things, or begin
 * anything before all of it is understood.
 */
#include "client.h"
#include "decode.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#define OLD_RESERVE                                                            \
    "another initiator has reserved the disk with the command RESERVE"
#define NOT_WITH_THIS_KEY                                                      \
    "this host is not registered with the key that --key says"
#define NOBODY_TO_PREEMPT                                                      \
    NOT_WITH_THIS_KEY ", or nobody with the one that --victim says"

static const struct command commands[] = {
    { "check", VERB_CHECK, READ_KEYS, 0, JSON, "[--json]",
      "say if virtual machines can use reservations here", OLD_RESERVE },
    { "keys", VERB_READ, READ_KEYS, 0, JSON, "[--json]",
      "list the registered keys", OLD_RESERVE },
    { "reservation", VERB_READ, READ_RESERVATION, 0, JSON, "[--json]",
      "show the reservation", OLD_RESERVE },
    { "status", VERB_STATUS, READ_FULL_STATUS, 0, JSON, "[--json]",
      "list who is registered, and who holds what", OLD_RESERVE },
    { "capabilities", VERB_READ, REPORT_CAPABILITIES, 0, JSON, "[--json]",
      "show what the disk can do", OLD_RESERVE },
    { "watch", VERB_WATCH, READ_KEYS, 0, 0, "",
      "print a line whenever one of these changes", OLD_RESERVE },
    { "register", VERB_WRITE, REGISTER, NEW_KEY, KEY | NEW_KEY | POWER_LOSS,
      "--new-key=KEY [--key=KEY] [--aptpl]",
      "register this host, in place of --key; with --new-key=0 no more",
      "this host is registered with another key than --key says, or is not; "
      "register-ignore does not ask" },
    { "register-ignore", VERB_WRITE, REGISTER_AND_IGNORE, NEW_KEY,
      NEW_KEY | POWER_LOSS, "--new-key=KEY [--aptpl]",
      "register this host, whatever key it has", OLD_RESERVE },
    { "register-move", VERB_WRITE, REGISTER_AND_MOVE,
      KEY | NEW_KEY | INITIATOR | PORT,
      KEY | NEW_KEY | INITIATOR | PORT | POWER_LOSS | UNREGISTER,
      "--key=KEY --new-key=KEY --initiator=INITIATOR --port=NUMBER\n"
      "                  [--unregister] [--aptpl]",
      "register another initiator, and give it the reservation",
      NOT_WITH_THIS_KEY ", or does not hold the reservation alone" },
    { "reserve", VERB_WRITE, RESERVE, KEY | TYPE, KEY | TYPE,
      "--key=KEY --type=TYPE", "reserve the disk for this host",
      NOT_WITH_THIS_KEY ", or there is another reservation" },
    { "release", VERB_WRITE, RELEASE, KEY | TYPE, KEY | TYPE,
      "--key=KEY --type=TYPE", "release the reservation that this host holds",
      NOT_WITH_THIS_KEY },
    { "clear", VERB_WRITE, CLEAR, KEY, KEY, "--key=KEY",
      "remove the reservation and all registrations", NOT_WITH_THIS_KEY },
    { "preempt", VERB_WRITE, PREEMPT, KEY | VICTIM | TYPE, KEY | VICTIM | TYPE,
      "--key=KEY --victim=KEY --type=TYPE",
      "remove the registrations of others, and take their reservation over",
      NOBODY_TO_PREEMPT },
    { "preempt-abort", VERB_WRITE, PREEMPT_AND_ABORT, KEY | VICTIM | TYPE,
      KEY | VICTIM | TYPE, "--key=KEY --victim=KEY --type=TYPE",
      "the same, and abort their commands", NOBODY_TO_PREEMPT },
};

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
    { "initiator", required_argument, NULL, INITIATOR },
    { "port", required_argument, NULL, PORT },
    { "unregister", no_argument, NULL, UNREGISTER },
    { "json", no_argument, NULL, JSON },
    { NULL, 0, NULL, 0 },
};

/* How help writes the options that a command needs or takes, and its words. */
static const struct {
    unsigned option;
    const char *name, *text;
} described[] = {
    { KEY, "--key=KEY", "this host's registered key, in hexadecimal" },
    { NEW_KEY, "--new-key=KEY", "the key to register, 0 for none any more" },
    { VICTIM, "--victim=KEY", "whose registration to remove (or --new-key)" },
    { TYPE, "--type=TYPE", "by name, the beginning of one, or number:" },
    { POWER_LOSS, "--aptpl", "registrations are to survive a loss of power" },
    { INITIATOR, "--initiator=INITIATOR",
      "who is to get it, as status shows it" },
    { PORT, "--port=NUMBER", "at which port of the target, likewise" },
    { UNREGISTER, "--unregister", "this host is registered no more" },
    { JSON, "--json", "one JSON document; see the manual" },
};

static void options_print(unsigned which)
{
    unsigned type;
    size_t i;

    for (i = 0; i < COUNT(described); i++) {
        if (!(described[i].option & which))
            continue;
        printf("      %-21s  %s\n", described[i].name, described[i].text);
        for (type = 0; described[i].option == TYPE && type <= TYPE_MOST; type++)
            if (decode_type(type) != NULL)
                printf("%31u %s\n", type, decode_type(type));
    }
}

static void usage(void)
{
    size_t i;

    printf("Usage: " CLIENT " [OPTIONS] COMMAND DEVICE\n"
           "       " CLIENT " help [COMMAND]\n"
           "Persistent reservations through qemu-pr-helper, as QEMU makes "
           "them\n\n");
    for (i = 0; i < COUNT(commands); i++)
        printf("  %-15s %s\n", commands[i].name,
               commands[i].verb == VERB_WRITE ? commands[i].arguments
                                              : commands[i].summary);
    printf("\n"
           "  -h, --help                 display this help and exit\n"
           "  -V, --version              output version information and exit\n"
           "  -k, --socket=PATH          the helper's socket\n"
           "                             (default " PROTOCOL_SOCKET ")\n"
           "  -t, --timeout=SECONDS      how long the command may take "
           "(default 90)\n");
    options_print(~0U);
}

const struct command *command_find(const char *name)
{
    size_t i;

    for (i = 0; i < COUNT(commands); i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    die(EXIT_USAGE, "there is no command '%s'; see " CLIENT " --help", name);
}

static void command_help(const struct command *command)
{
    printf("Usage: " CLIENT " [OPTIONS] %s DEVICE\n", command->name);
    if (command->arguments[0] != '\0')
        printf("%18s%s\n", "", command->arguments);
    printf("%c%s.\n\n", toupper((unsigned char)command->summary[0]),
           command->summary + 1);
    printf("  -k, --socket=PATH          the helper's socket\n"
           "  -t, --timeout=SECONDS      how long the command may take\n");
    options_print(command->takes);
}

/* Returns the number that text is, from least to most; what is its kind. */
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

/* Takes its number, its name, or what only one name begins with. */
static uint8_t type_parse(const char *text)
{
    static const char what[] = "a type of reservation";
    unsigned type, found = 0, matches = 0;

    for (type = 0; type <= TYPE_MOST; type++) {
        if (decode_type(type) == NULL || text[0] == '\0'
            || strncmp(text, decode_type(type), strlen(text)) != 0)
            continue;
        if (strcmp(text, decode_type(type)) == 0)
            return (uint8_t)type;
        found = type;
        matches++;
    }
    if (matches > 1)
        die(EXIT_USAGE, "--type: %u types begin with '%s'", matches, text);
    if (matches == 0)
        found = (unsigned)number("--type", text, what, 10, 0, TYPE_MOST);
    if (decode_type(found) == NULL)
        die(EXIT_USAGE, "--type: '%u' is not %s", found, what);
    return (uint8_t)found;
}

static void initiator_parse(struct arguments *arguments, const char *text)
{
    arguments->initiator_size = decode_initiator(
        arguments->initiator, sizeof(arguments->initiator), text);
    if (arguments->initiator_size == 0)
        die(EXIT_USAGE,
            "--initiator: '%s' is not an initiator as status shows it, such "
            "as 'SAS 5001405000000001' or 'iSCSI iqn.1994-05.com.example:a'",
            text);
}

static void arguments_check(struct arguments *arguments)
{
    const struct command *command = arguments->command;
    size_t i;

    /* --new-key will do: both are the SERVICE ACTION RESERVATION KEY. */
    if ((command->needs & ~arguments->given & VICTIM) != 0
        && (arguments->given & NEW_KEY) != 0)
        arguments->given ^= NEW_KEY | VICTIM;
    for (i = 0; options[i].name != NULL; i++) {
        unsigned option = (unsigned)options[i].val;

        if (option == 'h' || option == 'V' || option == 'k' || option == 't')
            continue;
        if (command->needs & ~arguments->given & option)
            die(EXIT_USAGE, "%s needs --%s", command->name, options[i].name);
        if (arguments->given & ~command->takes & option)
            die(EXIT_USAGE, "%s has no use for --%s", command->name,
                options[i].name);
    }
}

/* Takes an option that only some commands have. */
static void option_take(struct arguments *arguments, int option)
{
    size_t i;

    switch (option) {
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
    case INITIATOR:
        initiator_parse(arguments, optarg);
        break;
    case PORT:
        arguments->port = (uint16_t)number(
            "--port", optarg, "a number up to 65535", 10, 0, UINT16_MAX);
        break;
    case POWER_LOSS:
    case UNREGISTER:
    case JSON:
        break;
    default:
        die(EXIT_USAGE, "see " CLIENT " --help");
    }
    for (i = 0; options[i].val != option; i++)
        ;
    if ((arguments->given & (unsigned)option) != 0)
        die(EXIT_USAGE, "--%s is there twice", options[i].name);
    arguments->given |= (unsigned)option;
}

/* Takes the words behind the options: help, or a command and a device. */
static void words_parse(struct arguments *arguments, int count, char **word)
{
    if (count >= 1 && count <= 2 && strcmp(word[0], "help") == 0) {
        if (count == 1)
            usage();
        else
            command_help(command_find(word[1]));
        finish(EXIT_GOOD);
    }
    if (count != 2)
        die(EXIT_USAGE,
            "a command and a device are needed; see " CLIENT " --help");
    arguments->command = command_find(word[0]);
    arguments->device = word[1];
    arguments_check(arguments);
}

void arguments_parse(struct arguments *arguments, int argc, char **argv)
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
        default:
            option_take(arguments, option);
        }
    }
    words_parse(arguments, argc - optind, argv + optind);
}
