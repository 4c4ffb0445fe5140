/* SPDX-License-Identifier: MIT */
/*
 * scsi.h - SCSI's words, as far as they are about persistent reservations, and
 * how integers stand in them.
 *
 * It must never have a word that the standards have not.
 */
#ifndef SCSI_H
#define SCSI_H

#include <stdint.h>

enum { /* operation codes, SPC-4 6.15 and 6.16 */
       TEST_UNIT_READY = 0x00,
       PERSISTENT_RESERVE_IN = 0x5e,
       PERSISTENT_RESERVE_OUT = 0x5f
};

/* The parameter list, SPC-4 6.16.3: its length, the offset of its flags, these.
 */
enum { LIST_SIZE = 24, LIST_FLAGS = 20 };
enum { SPEC_I_PT = 0x08, ALL_TG_PT = 0x04, APTPL = 0x01 };
/* The same of REGISTER AND MOVE, 6.16.4, which has a TransportID behind it. */
enum { MOVE_FLAGS = 17, MOVE_PORT = 18, MOVE_LENGTH = 20 };
enum { UNREG = 0x02 };

enum { /* service actions of PERSISTENT RESERVE IN, SPC-4 6.15.1 */
       READ_KEYS,
       READ_RESERVATION,
       REPORT_CAPABILITIES,
       READ_FULL_STATUS
};

enum { /* service actions of PERSISTENT RESERVE OUT, SPC-4 6.16.2 */
       REGISTER,
       RESERVE,
       RELEASE,
       CLEAR,
       PREEMPT,
       PREEMPT_AND_ABORT,
       REGISTER_AND_IGNORE,
       REGISTER_AND_MOVE
};

enum { /* types of reservations, SPC-4 6.15.3.3 */
       WRITE_EXCLUSIVE = 1,
       EXCLUSIVE_ACCESS = 3,
       WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7 /* and 8: exclusive access */
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

#endif
