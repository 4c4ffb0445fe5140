/* SPDX-License-Identifier: MIT */
/*
 * state.h - who is registered and what is reserved, in one line: what a
 * command has left behind, and what has changed since.
 */
#ifndef STATE_H
#define STATE_H

#include "client.h"
#include "decode.h"

enum { KEYS_MOST = PROTOCOL_DATA_MAX / 8 };

struct state {
    uint32_t generation;
    unsigned count;
    uint64_t keys[KEYS_MOST]; /* in order, and as often as registered */
    bool is_whole;            /* these are all */
    bool is_reserved;
    struct reservation reservation;
};

/* Returns the exit status; state is nothing unless that is EXIT_GOOD. */
int state_read(struct helper *, int fd, struct state *);
/* "2 registered: 0xa, 0xb; reserved by key 0xa, ...": without a line's end. */
void state_print(const struct state *);
/* "key 0xa, write-exclusive (type 1)" */
enum { RESERVED_SIZE = 128 };
const char *state_reserved(const struct state *, char text[RESERVED_SIZE]);
bool state_has(const struct state *, uint64_t key);

#endif
