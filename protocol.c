/* SPDX-License-Identifier: MIT */
/*
 * protocol.c - one client's conversation: which bytes are expected next, what
 * they mean, and the bytes of the answer. See protocol.h for the format.
 *
 * It must never make a system call, read or ask for a byte beyond the frame
 * in progress (a read that spans two messages loses which of them a
 * descriptor came with), or put a byte on the wire that nobody wrote.
 */
#include "protocol.h"

static void frame_begin(struct conversation *c, enum protocol_state state,
                        size_t size)
{
    c->state = state;
    c->done = 0;
    c->size = size;
}

void protocol_begin(struct conversation *c)
{
    c->fd = -1;
    be32_put(c->frame, PROTOCOL_FEATURES);
    frame_begin(c, PROTOCOL_HELLO_OUT, PROTOCOL_HELLO_SIZE);
}

bool protocol_is_idle(const struct conversation *c)
{
    return c->state == PROTOCOL_CDB && c->done == 0;
}

bool protocol_is_sending(const struct conversation *c)
{
    return c->state == PROTOCOL_HELLO_OUT || c->state == PROTOCOL_REPLY;
}

uint8_t *protocol_rest(struct conversation *c, size_t *size)
{
    uint8_t *frame = c->frame;

    if (c->state == PROTOCOL_CDB)
        frame = c->cdb;
    else if (c->state == PROTOCOL_PARAMETERS)
        frame = protocol_data(c);
    *size = c->size - c->done;
    return frame + c->done;
}

size_t protocol_data_length(const uint8_t *cdb)
{
    return cdb[0] == PROTOCOL_CLEANUP ? 0 : be16_get(cdb + 7);
}

static const char *cdb_received(struct conversation *c)
{
    size_t length = protocol_data_length(c->cdb);

    if (c->fd < 0)
        return "request without a descriptor";
    if (c->cdb[0] != PERSISTENT_RESERVE_IN
        && c->cdb[0] != PERSISTENT_RESERVE_OUT && c->cdb[0] != PROTOCOL_CLEANUP)
        return "not a PERSISTENT RESERVE command";
    if (length > PROTOCOL_DATA_MAX)
        return "more than 8192 bytes of data";
    if (c->cdb[0] == PERSISTENT_RESERVE_OUT && length > 0)
        frame_begin(c, PROTOCOL_PARAMETERS, length);
    else
        frame_begin(c, PROTOCOL_EXECUTE, 0);
    return NULL;
}

const char *protocol_moved(struct conversation *c, size_t bytes, int fd)
{
    if (fd >= 0) {
        if (c->state != PROTOCOL_CDB)
            return "descriptor outside of a CDB";
        if (c->fd >= 0)
            return "more than one descriptor";
        c->fd = fd;
    }
    c->done += bytes;
    if (c->done < c->size)
        return NULL;

    switch (c->state) {
    case PROTOCOL_HELLO_OUT:
        frame_begin(c, PROTOCOL_HELLO_IN, PROTOCOL_HELLO_SIZE);
        break;
    case PROTOCOL_HELLO_IN:
        if (be32_get(c->frame) & ~(uint32_t)PROTOCOL_FEATURES)
            return "feature that was not offered";
        /* fall through */
    case PROTOCOL_REPLY:
        frame_begin(c, PROTOCOL_CDB, PROTOCOL_CDB_SIZE);
        break;
    case PROTOCOL_CDB:
        return cdb_received(c);
    default:
        frame_begin(c, PROTOCOL_EXECUTE, 0);
    }
    return NULL;
}

void protocol_reply(struct conversation *c, uint8_t status, size_t payload)
{
    if (c->cdb[0] != PERSISTENT_RESERVE_IN || status != 0)
        payload = 0;
    if (payload > protocol_data_length(c->cdb))
        payload = protocol_data_length(c->cdb);
    be32_put(c->frame, status);
    be32_put(c->frame + 4, (uint32_t)payload);
    frame_begin(c, PROTOCOL_REPLY, PROTOCOL_STATUS_SIZE + payload);
}
