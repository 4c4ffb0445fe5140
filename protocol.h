/* SPDX-License-Identifier: MIT */
/*
 * protocol.h - the wire format between QEMU's pr-manager-helper and us, and
 * one client's conversation as a state machine over bytes and descriptors.
 *
 * It must never make a system call, know what a device is, or include
 * another of this program's headers but scsi.h: what moves the bytes is
 * client.c, what runs the command is sg_io.c. What stands above struct
 * conversation is for the helper's other end, too: admin/qemu-pr-client.c.
 *
 * Source: QEMU, docs/interop/pr-helper.rst. All integers are big-endian.
 *
 *	helper -> client   4  supported features
 *	client -> helper   4  requested features
 *	then, as often as the client likes, one command at a time:
 *	client -> helper  16  CDB, with exactly one descriptor (SCM_RIGHTS)
 *	client -> helper   n  parameter list (PERSISTENT RESERVE OUT only)
 *	helper -> client 104  SCSI status, payload size, sense data
 *	helper -> client   n  payload (PERSISTENT RESERVE IN, GOOD only)
 */
#ifndef PROTOCOL_H
#define PROTOCOL_H

#include "scsi.h"

#include <stdbool.h>
#include <stddef.h>

enum {
    PROTOCOL_FEATURES = 1, /* bit 0: the CLEANUP command */
    PROTOCOL_HELLO_SIZE = 4,
    PROTOCOL_CDB_SIZE = 16, /* a 10-byte CDB, zero-padded by the client */
    PROTOCOL_SENSE_SIZE = 96,
    PROTOCOL_DATA_MAX = 8192, /* parameter list or payload */
    PROTOCOL_STATUS_SIZE = 4 + 4 + PROTOCOL_SENSE_SIZE
};

/*
 * A command that is not SCSI's: this host shall forget its registration on a
 * multipath map, as the virtual machine goes on elsewhere. Without data. A
 * client of a little-endian machine that means feature bit 0 takes our 1 for
 * another bit, and sends it without having asked.
 */
enum { PROTOCOL_CLEANUP = 0xff };

/* Where a helper listens that was not told otherwise. */
#define PROTOCOL_SOCKET LOCALSTATEDIR "/run/qemu-pr-helper.sock"

enum protocol_state {
    PROTOCOL_HELLO_OUT,
    PROTOCOL_HELLO_IN,
    PROTOCOL_CDB,        /* with no byte of it read: idle */
    PROTOCOL_PARAMETERS, /* reading the parameter list */
    PROTOCOL_EXECUTE,    /* a whole request waits for protocol_reply() */
    PROTOCOL_REPLY
};

struct conversation {
    enum protocol_state state;
    int fd;      /* the request's descriptor, -1: none. The caller closes it. */
    size_t done; /* bytes of the current frame that have been moved */
    size_t size; /* bytes of the current frame */
    uint8_t cdb[PROTOCOL_CDB_SIZE];
    /*
     * What precedes the data is the head of the reply. What follows is for
     * targets that write more than they were asked for: Linux' own does, up
     * to 32 bytes (READ FULL STATUS, drivers/target/target_core_pr.c).
     */
    uint8_t frame[PROTOCOL_STATUS_SIZE + PROTOCOL_DATA_MAX + 64];
};

void protocol_begin(struct conversation *); /* with the hello */
/* Between two requests: the client may stay silent for as long as it likes. */
bool protocol_is_idle(const struct conversation *);
bool protocol_is_sending(const struct conversation *); /* or does it read? */
/* Where the rest of the current frame is to be read to or written from. */
uint8_t *protocol_rest(struct conversation *, size_t *size);
/*
 * So many bytes have been read to, or written from, where protocol_rest() said,
 * and fd came with them (-1: none). Returns NULL, or what rule the client
 * broke: the connection is then to be closed. The caller closes what is in
 * .fd, and fd itself if it has not become that.
 */
const char *protocol_moved(struct conversation *, size_t bytes, int fd);
/*
 * The allocation length, or the length of the parameter list: CDB bytes 7-8.
 * (For PERSISTENT RESERVE OUT the field is bytes 5-8 in SPC-4 6.16.1, but
 * both ends of QEMU frame by bytes 7-8.)
 */
size_t protocol_data_length(const uint8_t *cdb);
/*
 * Sense data and payload are in place and the reply may go out. A payload
 * that is longer than the client asked for, or that comes with another
 * command or status, makes QEMU abort, so what does not fit is cut here.
 */
void protocol_reply(struct conversation *, uint8_t status, size_t payload);

/* The parameter list, or the room for the payload: PROTOCOL_DATA_MAX bytes. */
static inline uint8_t *protocol_data(struct conversation *c)
{
    return c->frame + PROTOCOL_STATUS_SIZE;
}

#endif
