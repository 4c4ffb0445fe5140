/* SPDX-License-Identifier: MIT */
/*
 * sg_io.h - one command for one device, and what came of it.
 *
 * It must never know who sends the command.
 */
#ifndef SG_IO_H
#define SG_IO_H

#include "scsi.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

/* Why a command is not sent. */
#define EACH_REFUSAL(ITEM)                                                     \
    ITEM(LIST_TOO_LONG, "the parameter list is longer than 8192 bytes")        \
    ITEM(NOT_FOR_WRITING, "the descriptor is not open for writing")            \
    ITEM(NOT_OPEN, "the descriptor is not open")                               \
    ITEM(NO_STATUS, "the descriptor has no status")                            \
    ITEM(OF_PARTITION, "the descriptor is of a partition")                     \
    ITEM(NOT_IN_SYSFS, "cannot tell what block device this is: it is not in "  \
                       "/sys/dev/block")                                       \
    ITEM(NOT_SCSI, "the descriptor is not of a SCSI device")                   \
    ITEM(NOT_PERMITTED, "the kernel does not let the helper send it: "         \
                        "CAP_SYS_RAWIO is missing, or is that of a user "      \
                        "namespace, or a security module forbids it")          \
    ITEM(NOT_MAPPED, "the descriptor is of no multipath map")                  \
    ITEM(NO_MULTIPATH, "the descriptor is of a device-mapper device that is "  \
                       "no multipath map")                                     \
    ITEM(NO_UUID, "cannot tell what device-mapper device this is")             \
    ITEM(NOT_SCSI_PATHS, "the paths of the multipath map are no SCSI disks")
#define REFUSAL(name, words) name,
enum refusal { NOT_REFUSED, EACH_REFUSAL(REFUSAL) REFUSALS };
extern const char *const sg_io_refusals[]; /* indexed by them */

struct pr_command {
    int fd;
    const uint8_t *cdb;
    dev_t device;         /* result of sg_io_vet(): what VET_MAPPED is about */
    size_t length;        /* of data, as the CDB says */
    uint8_t *data;        /* the parameter list, or room for the payload */
    uint8_t *sense;       /* PROTOCOL_SENSE_SIZE bytes, always written */
    uint8_t status;       /* result: SCSI status */
    bool unreached;       /* result: this path to the device does not work */
    bool is_lost;         /* result: the device may have done it even so */
    size_t payload;       /* result: bytes of data that the device returned */
    enum refusal refusal; /* result */
};

/*
 * Milliseconds that a device may take. A reservation may wait for a target
 * that fails over; sg_persist allows the same minute. The guest gives up by
 * itself after 30 (Linux) or 60 seconds (Windows).
 */
enum { SG_IO_TIMEOUT = 60000 };

enum { SG_IO_ATTENTIONS = 5 }; /* for so many a command is sent again */

enum vet { VET_SEND, VET_MAPPED, VET_ANSWERED };
/*
 * May this command go to this descriptor? VET_MAPPED: that is up to who can
 * look into sysfs, see multipath/. VET_ANSWERED: no, and status, sense and
 * refusal say why; or there is nothing to be done.
 *
 * A block device must be a whole SCSI disk. The kernel would pass SG_IO on a
 * device-mapper device or a partition (their majors are dynamic) to the LUN
 * beneath it, only because we have CAP_SYS_RAWIO: whoever has a part of a
 * LUN would reserve all of it.
 */
enum vet sg_io_vet(struct pr_command *);
/*
 * Sends a command that sg_io_vet() let pass, and waits for its end, up to
 * timeout milliseconds. A signal would end the wait on /dev/sgN early: the
 * caller must have blocked them. Sends it again while the answer is a unit
 * attention (it was not carried out, because of something that the nexus is
 * told of first), as often as attentions says. Sets refusal if the kernel does
 * not send it.
 */
void sg_io_execute(struct pr_command *, unsigned timeout, unsigned attentions);
/* Is this the block device of a whole SCSI disk? */
bool sg_io_is_disk(const struct stat *);
/* A character major; how many minors a disk has, its partitions' included. */
enum { SCSI_GENERIC_MAJOR = 21, SCSI_DISK_MINORS = 16 };
/*
 * Which of the sixteen block majors of SCSI disks this is; -1: none. (Source:
 * Documentation/admin-guide/devices.txt in the kernel.)
 */
int sg_io_disk_row(unsigned number);
/* Answers INVALID COMMAND OPERATION CODE: the descriptor cannot do that. */
enum vet sg_io_refuse(struct pr_command *, enum refusal);
void status_set(struct pr_command *, uint8_t status); /* without sense data */
/* Sets fixed format sense data, SPC-4 4.5.3: 18 bytes; the others are 0. */
void sense_set(struct pr_command *, uint8_t key, uint8_t asc, uint8_t ascq);
/* Reads sense data of fixed (SPC-4 4.5.3) or descriptor format (4.5.2). */
void sense_get(const uint8_t *sense, uint8_t *key, uint16_t *code);
/* Returns what came of it, in words, or text, which is room for them. */
enum { RESULT_SIZE = 32 };
const char *result_name(const struct pr_command *, char text[RESULT_SIZE]);

#endif
