/* SPDX-License-Identifier: MIT */
/*
 * decode.h - what a disk answers to a persistent reservation command: codes in
 * words, lists as their entries. It must never do more than read bytes and
 * write text.
 */
#ifndef DECODE_H
#define DECODE_H

#include "../scsi.h"

#include <stdbool.h>
#include <stddef.h>

enum {
    TYPE_MOST = 15, /* four bits; those without a name are reserved */
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5
};

/* Sense key, ASC and ASCQ as one number: what the document calls 5/24/00. */
#define SENSE_CODE(key, asc, ascq)                                             \
    ((uint32_t)(key) << 16 | (uint32_t)(asc) << 8 | (uint32_t)(ascq))
#define SENSE_KEY(code) ((code) >> 16)

/* The name of a reservation type, NULL if there is no such type. */
const char *decode_type(unsigned type);
/* What it does to others. */
const char *decode_effect(unsigned type);
/*
 * Sense key, ASC and ASCQ of PROTOCOL_SENSE_SIZE bytes of sense data. False if
 * they are in neither format.
 */
bool decode_sense(uint32_t *code, const uint8_t *sense);
/* How a command ended, in one line. */
void decode_status(char *text, size_t size, uint8_t status,
                   const uint8_t *sense);
/* Bit N is set if type N can be had; 0 if the disk does not say. */
unsigned decode_types_supported(const uint8_t *payload, size_t size);

/* Who is registered, as text: no TransportID in a payload is longer. */
enum { INITIATOR_SIZE = 4 * 8192 + 16 };
void decode_transport_id(char text[INITIATOR_SIZE], const uint8_t *id,
                         size_t size);
/*
 * The other way round: "SAS 5001405000000001" (or "sas:5001...") and the like
 * becomes a TransportID. Returns its size, 0 if that is no such text.
 */
size_t decode_initiator(uint8_t *id, size_t most, const char *text);

/* A list of parameter data, and how far it has been read. */
struct list {
    uint32_t generation;
    uint32_t said; /* so many bytes of entries there are */
    size_t came;   /* and so many of them are here */
    size_t at;     /* whole entries that have been read */
    const uint8_t *entries;
};
struct reservation {
    uint64_t key;
    uint8_t scope, type;
};
struct registration {
    uint64_t key;
    bool is_holder, is_for_all_ports;
    struct reservation held; /* if it is a holder */
    uint16_t port;           /* relative target port; 0: not named */
    const uint8_t *id;       /* TransportID */
    size_t id_size;
};
/* Returns false if not even the head is there. */
bool decode_list(struct list *, const uint8_t *payload, size_t size);
/* The next entry, if one is there as a whole. */
bool decode_key(struct list *, uint64_t *key);
bool decode_reservation(struct list *, struct reservation *);
bool decode_registration(struct list *, struct registration *);
/* Are they of one initiator, in whatever iSCSI session? */
bool decode_is_same(const struct registration *, const struct registration *);

#endif
