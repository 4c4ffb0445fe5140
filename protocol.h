/* SPDX-License-Identifier: MIT */
/*
 * protocol.h - the wire format between QEMU's pr-manager-helper and us, and
 * one client's conversation as a state machine over bytes and descriptors.
 *
 * It must never make a system call, know what a device is, or include
 * another of this program's headers: what moves the bytes is client.c, what
 * runs the command is sg_io.c. What stands above struct conversation is for
 * the helper's other end, too: admin/qemu-pr-client.c.
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

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

enum {
    PROTOCOL_FEATURES = 1, /* bit 0: the CLEANUP command */
    PROTOCOL_HELLO_SIZE = 4,
    PROTOCOL_CDB_SIZE = 16, /* a 10-byte CDB, zero-padded by the client */
    PROTOCOL_SENSE_SIZE = 96,
    PROTOCOL_DATA_MAX = 8192, /* parameter list or payload */
    PROTOCOL_STATUS_SIZE = 4 + 4 + PROTOCOL_SENSE_SIZE
};

enum { /* operation codes, SPC-4 6.15 and 6.16 */
       PERSISTENT_RESERVE_IN = 0x5e,
       PERSISTENT_RESERVE_OUT = 0x5f,
       /*
        * Not SCSI's: this host shall forget its registration on a multipath
        * map, as the virtual machine goes on elsewhere. Without data. A
        * client of a little-endian machine that means feature bit 0 takes
        * our 1 for another bit, and sends it without having asked.
        */
       PROTOCOL_CLEANUP = 0xff
};

enum { /* status codes, SAM-5 5.3.1 */
       GOOD = 0x00,
       CHECK_CONDITION = 0x02,
       BUSY = 0x08,
       RESERVATION_CONFLICT = 0x18,
       TASK_SET_FULL = 0x28
};

enum { /* sense keys, SPC-4 4.5.6 */
       RECOVERED_ERROR = 0x1,
       NOT_READY = 0x2,
       MEDIUM_ERROR = 0x3,
       HARDWARE_ERROR = 0x4,
       ILLEGAL_REQUEST = 0x5,
       UNIT_ATTENTION = 0x6,
       DATA_PROTECT = 0x7,
       ABORTED_COMMAND = 0xb
};

static inline void be16_put(uint8_t *bytes, uint16_t value)
{
    bytes[0] = (uint8_t)(value >> 8);
    bytes[1] = (uint8_t)value;
}

static inline void be32_put(uint8_t *bytes, uint32_t value)
{
    be16_put(bytes, (uint16_t)(value >> 16));
    be16_put(bytes + 2, (uint16_t)value);
}

static inline void be64_put(uint8_t *bytes, uint64_t value)
{
    be32_put(bytes, (uint32_t)(value >> 32));
    be32_put(bytes + 4, (uint32_t)value);
}

static inline uint16_t be16_get(const uint8_t *bytes)
{
    return (uint16_t)(bytes[0] << 8 | bytes[1]);
}

static inline uint32_t be32_get(const uint8_t *bytes)
{
    return (uint32_t)be16_get(bytes) << 16 | be16_get(bytes + 2);
}

static inline uint64_t be64_get(const uint8_t *bytes)
{
    return (uint64_t)be32_get(bytes) << 32 | be32_get(bytes + 4);
}

/* Where a helper listens that was not told otherwise. */
#define PROTOCOL_SOCKET LOCALSTATEDIR "/run/qemu-pr-helper.sock"
socklen_t protocol_address(struct sockaddr_un *, const char *name);

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

void protocol_begin(struct conversation *);
bool protocol_is_idle(const struct conversation *);
bool protocol_is_sending(const struct conversation *);
uint8_t *protocol_rest(struct conversation *, size_t *size);
const char *protocol_received(struct conversation *, size_t bytes, int fd);
void protocol_sent(struct conversation *, size_t bytes);
size_t protocol_data_length(const uint8_t *cdb);
void protocol_reply(struct conversation *, uint8_t status, size_t payload);

/* The parameter list, or the room for the payload: PROTOCOL_DATA_MAX bytes. */
static inline uint8_t *protocol_data(struct conversation *c)
{
    return c->frame + PROTOCOL_STATUS_SIZE;
}

#endif
