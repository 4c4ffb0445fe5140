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
 *
 *	arguments.c     the command line, and what commands there are
 *	transport.c     the helper's socket
 *	outcome.c       how a command ended
 *	commands.c      one command, as it was asked for
 *	state.c         who is registered and what is reserved, in a line
 *	status.c        who is who
 *	check.c         is all well? check_map.c: with a multipath map?
 *	watch.c         what changes
 *	identity.c      what sysfs says of the disk and of this host
 *	surroundings.c  what /proc says of the helper
 *	show.c          what a disk answers, in words or JSON
 *	decode.c        the bytes of it
 *	output.c        words, JSON, messages
 */
#include "client.h"

int main(int argc, char **argv)
{
    static int (*const verbs[])(struct helper *, const struct arguments *) = {
        [VERB_READ] = read_in_print,  [VERB_WRITE] = write_out,
        [VERB_STATUS] = status_print, [VERB_CHECK] = check,
        [VERB_WATCH] = watch,
    };
    struct arguments arguments;
    struct helper helper = { 0 };

    streams_open();
    arguments_parse(&arguments, argc, argv);
    helper.timeout = arguments.timeout;
    helper_open(&helper, arguments.socket_path);
    finish(verbs[arguments.command->verb](&helper, &arguments));
}
