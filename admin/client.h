/* SPDX-License-Identifier: MIT */
/*
 * client.h - what the rooms of the administrator's client have in common: its
 * exit statuses, a command as it was asked for, the helper, and a reply.
 *
 * It must never be included by what only reads bytes: see decode.h.
 */
#ifndef CLIENT_H
#define CLIENT_H

#include "../log.h"
#include "../protocol.h"
#include "output.h"

#include <sys/socket.h>

/* The exit status; most of those above 2 and below 41 are sg_persist's. */
enum {
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
    EXIT_FINDING = 36, /* what check finds */
    EXIT_RESERVED = 41,
    EXIT_PARTITION = 42,
    EXIT_NO_RESERVATION_KEY = 43,
    EXIT_NOT_VISIBLE = 44,
    EXIT_NO_RAWIO = 45,
    EXIT_MALFORMED = 97,
    EXIT_OTHER = 98
};

/* arguments.c */
/* A bit for each option that a command needs, or may be given. */
enum {
    KEY = 1,
    NEW_KEY = 2,
    VICTIM = 4,
    TYPE = 8,
    POWER_LOSS = 16,
    INITIATOR = 32,
    PORT = 64,
    UNREGISTER = 128,
    JSON = 256
};

enum verb { VERB_READ, VERB_WRITE, VERB_STATUS, VERB_CHECK, VERB_WATCH };

struct command {
    const char *name;
    enum verb verb;
    uint8_t action; /* the service action */
    unsigned needs, takes;
    const char *arguments;
    const char *summary;
    const char *conflict; /* what a RESERVATION CONFLICT says */
};

enum { TRANSPORT_ID_MOST = 256 }; /* more than an iSCSI name may need */

struct arguments {
    const struct command *command;
    const char *socket_path;
    const char *device;
    unsigned given;
    uint64_t key;
    uint64_t action_key; /* --new-key or --victim */
    uint8_t type;
    uint16_t port;
    uint8_t initiator[TRANSPORT_ID_MOST]; /* a TransportID, of this size */
    size_t initiator_size;
    int64_t timeout;
};

void arguments_parse(struct arguments *, int argc, char **argv);
const struct command *command_find(const char *name);

/* transport.c */
struct helper {
    int socket;
    struct ucred maker;  /* of the socket: perhaps a service manager */
    struct ucred sender; /* of what was read last */
    int64_t timeout;     /* for a command */
    int64_t took;        /* until it said hello, in microseconds */
};

struct reply {
    uint8_t status;
    uint8_t sense[PROTOCOL_SENSE_SIZE];
    uint8_t payload[PROTOCOL_DATA_MAX];
    size_t size;  /* of the payload */
    int64_t took; /* the helper and the disk, in microseconds */
};

/* Connects, and says hello: no feature is requested. Or ends the program. */
void helper_open(struct helper *, const char *path);
/*
 * Sends the CDB with the descriptor, and list unless NULL; takes the reply.
 * Returns EXIT_GOOD if there is one; or an exit status, having said why, after
 * which the helper can be asked no more.
 */
int helper_ask(struct helper *, int fd, const uint8_t *cdb, const uint8_t *list,
               size_t list_size, struct reply *);
/*
 * Sends a PERSISTENT RESERVE IN. A unit attention tells of something that
 * happened before, and the command was not carried out: it is reported, and the
 * command sent again. Returns the exit status.
 */
int read_in(struct helper *, const struct command *, int fd, struct reply *);

/* outcome.c */
/* Says how a command ended, unless well. Returns the exit status. */
int outcome_print(const struct command *, int fd, const uint8_t *cdb,
                  const struct reply *);

/* commands.c */
int device_open(const char *path, int mode);
/* Returns the exit status: EXIT_MALFORMED if it makes no sense. */
int payload_print(struct output *, const struct command *,
                  const struct reply *);
int read_in_print(struct helper *, const struct arguments *);
int write_out(struct helper *, const struct arguments *);

/* status.c, check.c, watch.c: the commands of these names. */
int status_print(struct helper *, const struct arguments *);
int check(struct helper *, const struct arguments *);
int watch(struct helper *, const struct arguments *);

#endif
