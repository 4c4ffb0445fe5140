/* SPDX-License-Identifier: MIT */
/*
 * outcome.c - how a command ended: the exit status, and in plain words what it
 * means here.
 *
 * It must never call anything a success but GOOD, or guess at a reason where
 * there could be another.
 */
#include "../sg_io.h"
#include "client.h"
#include "decode.h"
#include "identity.h"

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
 * is of a multipath map.
 */
static bool is_map(int fd, const uint8_t *cdb, const char **refusal)
{
    uint8_t sense[PROTOCOL_SENSE_SIZE];
    struct pr_command vetted = { .fd = fd, .cdb = cdb, .sense = sense };
    bool is_mapped = sg_io_vet(&vetted) == VET_MAPPED;

    if (is_mapped && !identity_is_map(vetted.device))
        vetted.refusal = NO_MULTIPATH;
    *refusal = sg_io_refusals[vetted.refusal];
    return is_mapped && *refusal == NULL;
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
        is_map(fd, cdb, &refusal);
        return refusal != NULL ? refusal
                               : "the disk has no persistent reservations";
    case SENSE_CODE(ABORTED_COMMAND, 0x00, 0x06):
        is_map(fd, cdb, &refusal);
        return refusal != NULL ? refusal
                               : "the kernel did not let the helper send it, "
                                 "perhaps for want of CAP_SYS_RAWIO: see the "
                                 "helper's log";
    case SENSE_CODE(ABORTED_COMMAND, 0x08, 0x00):
        if (is_map(fd, cdb, &refusal))
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

int outcome_print(const struct command *command, int fd, const uint8_t *cdb,
                  const struct reply *reply)
{
    const char *why = reason(command, fd, cdb, reply);
    char text[128], whole[WHOLE_SIZE];

    if (reply->status == GOOD)
        return EXIT_GOOD;
    decode_status(text, sizeof(text), reply->status, reply->sense);
    say("%s: %s", command->name, text);
    if (why != NULL)
        say("%s", why);
    identity_whole(fd, whole);
    if (whole[0] != '\0')
        say("name %s instead", whole);
    return exit_status(reply);
}
