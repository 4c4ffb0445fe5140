/* SPDX-License-Identifier: MIT */
/*
 * sg_io.h - one command for one device, what came of it, and what the kernel
 * says of a device.
 *
 * It must never know who sends the command.
 */
#ifndef SG_IO_H
#define SG_IO_H

#include "scsi.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

/* sysfs.c */
/* Does sysfs have this block device (""), or this file of it ("/name")? */
bool sysfs_has(dev_t, const char *file);
/* Is this file of it ("/slaves/sda") the device that has the other number? */
bool sysfs_is(dev_t, const char *file, dev_t other);
/* One line, without its end. False if it is missing or does not fit. */
bool sysfs_read(dev_t, const char *file, char *line, size_t size);
/*
 * Calls found() with each name in a directory, until it returns false. Returns
 * false then, and if the names cannot be read. (opendir() would allocate
 * memory, for which the sandbox has no calls.)
 */
bool sysfs_list(const char *directory,
                bool (*found)(void *context, const char *name), void *context);
/* The same with the name of each device that this one is made of. */
bool sysfs_slaves(dev_t, bool (*found)(void *context, const char *name),
                  void *context);

/*
 * sg_io.c: one command on one descriptor. Why it is not sent: the words are in
 * sg_io_refusals[].
 */
enum refusal {
    NOT_REFUSED,
    LIST_TOO_LONG,
    NOT_FOR_WRITING,
    NOT_OPEN,
    NO_STATUS,
    OF_PARTITION,
    NOT_IN_SYSFS,
    NOT_SCSI,
    NOT_PERMITTED,
    NOT_MAPPED,
    NO_MULTIPATH,
    NO_UUID,
    NOT_SCSI_PATHS
};
struct pr_command {
    int fd;
    const uint8_t *cdb;
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

enum { SG_IO_ATTENTIONS = 5 }; /* that a command is sent again for */

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
/* Which of the sixteen block majors of SCSI disks this is; -1: none. */
int sg_io_disk_row(unsigned number);
/* INVALID COMMAND OPERATION CODE: this descriptor cannot do that. */
enum vet sg_io_refuse(struct pr_command *, enum refusal);
extern const char *const sg_io_refusals[];
void status_set(struct pr_command *, uint8_t status);
/* Fixed format sense data, SPC-4 4.5.3, 18 bytes; the others are zero. */
void sense_set(struct pr_command *, uint8_t key, uint8_t asc, uint8_t ascq);
/* Fixed (SPC-4 4.5.3) or descriptor format (4.5.2). */
void sense_get(const uint8_t *sense, uint8_t *key, uint16_t *code);

/* report.c, for multipath/send.c: what came of a command, in words. */
enum { RESULT_SIZE = 32 };
/* What came of it; text is room for that. */
const char *report_result(const struct pr_command *, char text[RESULT_SIZE]);

#endif
