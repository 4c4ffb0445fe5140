/* SPDX-License-Identifier: MIT */
/*
 * scsi.h - SCSI's words, as far as they are about persistent reservations, and
 * how integers stand in them.
 *
 * It must never have a word that the standards have not.
 */
#ifndef SCSI_H
#define SCSI_H

#include <stddef.h>
#include <stdint.h>

/* Operation codes, SPC-4 6.15 and 6.16. */
enum { TEST_UNIT_READY = 0x00 };
enum { PERSISTENT_RESERVE_IN = 0x5e, PERSISTENT_RESERVE_OUT = 0x5f };

/* Service actions of PERSISTENT RESERVE IN, SPC-4 6.15.1. */
enum { READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES, READ_FULL_STATUS };

/* Service actions of PERSISTENT RESERVE OUT, SPC-4 6.16.2. */
enum { REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT };
enum { REGISTER_AND_IGNORE = 6, REGISTER_AND_MOVE };

/* The length of its parameter list, where flags stand there, and these. */
enum { LIST_SIZE = 24, LIST_FLAGS = 20 }; /* SPC-4 6.16.3 */
enum { SPEC_I_PT = 0x08, ALL_TG_PT = 0x04, APTPL = 0x01 };
/* The same of REGISTER AND MOVE, 6.16.4, which has a TransportID behind it. */
enum { MOVE_FLAGS = 17, MOVE_PORT = 18, MOVE_LENGTH = 20 };
enum { UNREG = 0x02 };

/* Types of reservations, SPC-4 6.15.3.3. For all registrants 7 is the first. */
enum { WRITE_EXCLUSIVE = 1, EXCLUSIVE_ACCESS = 3 };
enum { WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7 };

/* Status codes, SAM-5 5.3.1. */
enum { GOOD = 0x00, CHECK_CONDITION = 0x02, BUSY = 0x08 };
enum { RESERVATION_CONFLICT = 0x18, TASK_SET_FULL = 0x28 };

/* Sense keys, SPC-4 4.5.6. */
enum { RECOVERED_ERROR = 1, NOT_READY, MEDIUM_ERROR, HARDWARE_ERROR };
enum { ILLEGAL_REQUEST = 5, UNIT_ATTENTION, DATA_PROTECT };
enum { ABORTED_COMMAND = 11 };

/* An integer of so many bytes, the first of which is the highest. */
static inline void be_put(uint8_t *bytes, size_t size, uint64_t value)
{
    for (; size > 0; value >>= 8)
        bytes[--size] = (uint8_t)value;
}

static inline uint64_t be_get(const uint8_t *bytes, size_t size)
{
    uint64_t value = 0;

    for (; size > 0; size--)
        value = value << 8 | *bytes++;
    return value;
}

#define be16_put(bytes, value) be_put((bytes), 2, (value))
#define be32_put(bytes, value) be_put((bytes), 4, (value))
#define be64_put(bytes, value) be_put((bytes), 8, (value))
#define be16_get(bytes) ((uint16_t)be_get((bytes), 2))
#define be32_get(bytes) ((uint32_t)be_get((bytes), 4))
#define be64_get(bytes) be_get((bytes), 8)

#endif
