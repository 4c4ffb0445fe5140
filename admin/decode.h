/* SPDX-License-Identifier: MIT */
/*
 * decode.h - what a disk answers to a persistent reservation command, in
 * words. It must never do more than read bytes and write text.
 */
#ifndef DECODE_H
#define DECODE_H

#include "../scsi.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

enum {
    TYPE_MOST = 15, /* four bits; those without a name are reserved */
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5
};

/* Sense key, ASC and ASCQ as one number: what the document calls 5/24/00. */
#define SENSE_CODE(key, asc, ascq)                                             \
    ((uint32_t)(key) << 16 | (uint32_t)(asc) << 8 | (uint32_t)(ascq))
#define SENSE_KEY(code) ((code) >> 16)

const char *decode_type(unsigned type);
bool decode_sense(uint32_t *code, const uint8_t *sense);
void decode_status(char *text, size_t size, uint8_t status,
                   const uint8_t *sense);
unsigned decode_types_supported(const uint8_t *payload, size_t size);
bool decode_payload(FILE *, unsigned action, const uint8_t *payload,
                    size_t size);

#endif
