/* SPDX-License-Identifier: MIT */
/*
 * sg_io.c - one persistent reservation command on one descriptor: may it be
 * sent there, SG_IO, and what the result means in SCSI's terms.
 *
 * It must never send an ioctl to anything but a SCSI device, never act on a
 * LUN through a descriptor of a part of it, and never answer GOOD unless the
 * device did (or, to PROTOCOL_CLEANUP, there is nothing to clean up). It knows
 * no sockets.
 *
 * The tables that turn an errno, a host status or a driver status into sense
 * data say what QEMU's own SCSI code would tell its guest.
 */
#include "sg_io.h"
#include "protocol.h"
#include "sysfs.h"

#include <errno.h>
#include <fcntl.h>
#include <scsi/sg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

/*
 * PERSISTENT RESERVE IN and OUT are 10 bytes long (SPC-4 6.15, 6.16), and
 * some host adapters put exactly as many on the bus as they are told.
 */
enum { CDB_LENGTH = 10 };

/* Whether the device has got the command: the last says that it may have. */
enum reached { REACHED, UNREACHED, LOST };

/* How a failure is answered: with a status, or with sense data. */
struct outcome {
    uint8_t code; /* errno, or host status */
    uint8_t status;
    uint8_t key, asc, ascq;
    enum reached reached;
};

#define SENSE(key, asc, ascq) CHECK_CONDITION, (key), (asc), (ascq)
#define STATUS(status) (status), 0, 0, 0

static const struct outcome errno_outcomes[] = {
    { EDOM, STATUS(TASK_SET_FULL), REACHED },
    { EBADE, STATUS(RESERVATION_CONFLICT), REACHED },
    { EREMOTEIO, SENSE(HARDWARE_ERROR, 0x44, 0x00), REACHED },
    { ENOMEM, SENSE(HARDWARE_ERROR, 0x44, 0x00), REACHED },
    { ENODEV, SENSE(HARDWARE_ERROR, 0x44, 0x00), UNREACHED },
    { ENODATA, SENSE(MEDIUM_ERROR, 0x11, 0x00), REACHED },
    { ENOMEDIUM, SENSE(NOT_READY, 0x3a, 0x00), REACHED },
    { EINVAL, SENSE(ILLEGAL_REQUEST, 0x24, 0x00), REACHED },
    { ENOSPC, SENSE(DATA_PROTECT, 0x27, 0x07), REACHED },
    { ENXIO, SENSE(ABORTED_COMMAND, 0x00, 0x06), UNREACHED },
    /* I/O process terminated */
    { 0, SENSE(ABORTED_COMMAND, 0x00, 0x06), REACHED },
};

/* DID_... and DID_TRANSPORT_..., include/scsi/scsi_status.h in the kernel. */
static const struct outcome host_outcomes[] = {
    { 0x01, SENSE(ABORTED_COMMAND, 0x05, 0x00), UNREACHED }, /* NO_CONNECT */
    { 0x02, STATUS(BUSY), UNREACHED },                       /* BUS_BUSY */
    { 0x03, SENSE(ABORTED_COMMAND, 0x2e, 0x02), LOST },      /* TIME_OUT */
    { 0x04, SENSE(ABORTED_COMMAND, 0x08, 0x00), UNREACHED }, /* BAD_TARGET */
    { 0x05, SENSE(ABORTED_COMMAND, 0x2f, 0x02), LOST },      /* ABORT */
    { 0x08, SENSE(UNIT_ATTENTION, 0x29, 0x00), LOST },       /* RESET */
    { 0x0c, SENSE(ABORTED_COMMAND, 0x08, 0x00), UNREACHED }, /* IMM_RETRY */
    { 0x0d, SENSE(ABORTED_COMMAND, 0x08, 0x00), UNREACHED }, /* REQUEUE */
    { 0x0e, SENSE(ABORTED_COMMAND, 0x29, 0x07), LOST },      /* ..._DISRUPTED */
    { 0x0f, SENSE(ABORTED_COMMAND, 0x08, 0x00), UNREACHED }, /* ..._FAILFAST */
    /* From here on, what the kernel makes of the device's own answer. */
    { 0x10, SENSE(HARDWARE_ERROR, 0x44, 0x00), REACHED }, /* TARGET_FAILURE */
    { 0x11, STATUS(RESERVATION_CONFLICT), REACHED },      /* NEXUS_FAILURE */
    { 0x12, SENSE(DATA_PROTECT, 0x27, 0x07), REACHED },   /* ALLOC_FAILURE */
    { 0x13, SENSE(MEDIUM_ERROR, 0x11, 0x00), REACHED },   /* MEDIUM_ERROR */
    /* logical unit communication failure */
    { 0, SENSE(ABORTED_COMMAND, 0x08, 0x00), LOST },
};

/* Driver status, same file; the latter says that there is sense data. */
enum { DRIVER_TIMEOUT = 0x06, DRIVER_SENSE = 0x08 };

#define WORDS(name, words) words,
const char *const sg_io_refusals[] = { NULL, EACH_REFUSAL(WORDS) };

void status_set(struct pr_command *command, uint8_t status)
{
    command->status = status;
    command->payload = 0;
    memset(command->sense, 0, PROTOCOL_SENSE_SIZE);
}

void sense_set(struct pr_command *command, uint8_t key, uint8_t asc,
               uint8_t ascq)
{
    status_set(command, CHECK_CONDITION);
    command->sense[0] = 0x70;
    command->sense[2] = key;
    command->sense[7] = 10; /* additional length */
    command->sense[12] = asc;
    command->sense[13] = ascq;
}

void sense_get(const uint8_t *sense, uint8_t *key, uint16_t *code)
{
    bool is_fixed = (sense[0] & 0x7f) < 0x72;
    const uint8_t *at = is_fixed ? sense + 12 : sense + 2;

    *key = sense[is_fixed ? 2 : 1] & 0x0f;
    *code = (uint16_t)(at[0] << 8 | at[1]);
}

const char *result_name(const struct pr_command *command,
                        char text[RESULT_SIZE])
{
    uint16_t code;
    uint8_t key;

    if (command->status == GOOD)
        return "GOOD";
    if (command->status == RESERVATION_CONFLICT)
        return "RESERVATION CONFLICT";
    sense_get(command->sense, &key, &code);
    snprintf(text, RESULT_SIZE,
             command->status == CHECK_CONDITION ? "CHECK CONDITION %X/%02X/%02X"
                                                : "status %02Xh",
             command->status == CHECK_CONDITION ? key : command->status,
             code >> 8, code & 0xffU);
    return text;
}

/* The row for code, or the last one, whose code is 0. */
static void outcome_set(struct pr_command *command,
                        const struct outcome *outcome, int code)
{
    while (outcome->code != 0 && outcome->code != code)
        outcome++;
    if (outcome->status == CHECK_CONDITION)
        sense_set(command, outcome->key, outcome->asc, outcome->ascq);
    else
        status_set(command, outcome->status);
    command->unreached = outcome->reached != REACHED;
    command->is_lost = outcome->reached == LOST;
}

enum vet sg_io_refuse(struct pr_command *command, enum refusal refusal)
{
    sense_set(command, ILLEGAL_REQUEST, 0x20, 0x00);
    command->refusal = refusal;
    return VET_ANSWERED;
}

/* Answers as if SG_IO had failed with that errno. */
static enum vet refuse_as(struct pr_command *command, int error,
                          enum refusal refusal)
{
    outcome_set(command, errno_outcomes, error);
    command->refusal = refusal;
    return VET_ANSWERED;
}

int sg_io_disk_row(unsigned number)
{
    if (number == 8)
        return 0;
    if (number >= 65 && number <= 71)
        return (int)number - 64;
    return number >= 128 && number <= 135 ? (int)number - 120 : -1;
}

bool sg_io_is_disk(const struct stat *st)
{
    return S_ISBLK(st->st_mode) && sg_io_disk_row(major(st->st_rdev)) >= 0
           && minor(st->st_rdev) % SCSI_DISK_MINORS == 0;
}

/* O_PATH descriptors of a device can be had without the right to open it. */
static bool is_open(int fd, bool for_writing)
{
    int flags = fcntl(fd, F_GETFL);
    int mode = flags & O_ACCMODE;

    return flags >= 0 && (flags & O_PATH) == 0
           && (!for_writing || mode == O_WRONLY || mode == O_RDWR);
}

enum vet sg_io_vet(struct pr_command *command)
{
    bool is_in = command->cdb[0] == PERSISTENT_RESERVE_IN;
    bool is_out = command->cdb[0] == PERSISTENT_RESERVE_OUT;
    bool is_block, is_disk;
    struct stat st;

    command->refusal = NOT_REFUSED;
    /* The length is bytes 5-8, but the client has sent what bytes 7-8 say. */
    if (is_out && (command->cdb[5] != 0 || command->cdb[6] != 0))
        return refuse_as(command, EINVAL, LIST_TOO_LONG);
    if (!is_in && !is_open(command->fd, true))
        return sg_io_refuse(command, NOT_FOR_WRITING);
    if (fstat(command->fd, &st) < 0)
        return refuse_as(command, errno, NO_STATUS);
    command->device = st.st_rdev;
    is_block = S_ISBLK(st.st_mode);
    is_disk = is_block && sg_io_disk_row(major(st.st_rdev)) >= 0;
    if (is_block && !is_disk && sysfs_has(st.st_rdev, "/dm"))
        /* For a map it is us who must see that the client could open it. */
        return is_open(command->fd, false)
                   ? VET_MAPPED
                   : refuse_as(command, EBADF, NOT_OPEN);
    if (!is_in && !is_out) {
        status_set(command, GOOD); /* PROTOCOL_CLEANUP concerns maps only */
        return VET_ANSWERED;
    }
    if (sg_io_is_disk(&st)
        || (S_ISCHR(st.st_mode) && major(st.st_rdev) == SCSI_GENERIC_MAJOR))
        return VET_SEND;
    if (is_disk || (is_block && sysfs_has(st.st_rdev, "/partition")))
        return sg_io_refuse(command, OF_PARTITION);
    if (is_block && !sysfs_has(st.st_rdev, ""))
        return sg_io_refuse(command, NOT_IN_SYSFS);
    return refuse_as(command, ENOTTY, NOT_SCSI);
}

/* What SG_IO says, in this order: errno, host, driver, SCSI status. */
static void result_set(struct pr_command *command, const struct sg_io_hdr *hdr)
{
    if (hdr->host_status != 0) {
        outcome_set(command, host_outcomes, hdr->host_status);
    } else if (hdr->driver_status == DRIVER_TIMEOUT) {
        command->is_lost = true;
        status_set(command, BUSY);
    } else if ((hdr->driver_status != 0 && hdr->driver_status != DRIVER_SENSE)
               || (hdr->status == CHECK_CONDITION && hdr->sb_len_wr == 0)) {
        sense_set(command, ABORTED_COMMAND, 0x08, 0x00);
    } else {
        command->status = hdr->status;
        if (hdr->status != CHECK_CONDITION)
            memset(command->sense, 0, PROTOCOL_SENSE_SIZE);
        /* A resid below 0 says that the device had more than we asked for. */
        if (hdr->resid <= 0)
            command->payload = command->length;
        else if ((unsigned)hdr->resid < command->length)
            command->payload = command->length - (unsigned)hdr->resid;
    }
}

void sg_io_execute(struct pr_command *command, unsigned timeout,
                   unsigned attentions)
{
    bool is_out = command->cdb[0] == PERSISTENT_RESERVE_OUT;
    struct sg_io_hdr hdr = {
        .interface_id = 'S',
        /* Without data, /dev/sgN takes no direction but this one. */
        .dxfer_direction = command->length == 0 ? SG_DXFER_NONE
                           : is_out             ? SG_DXFER_TO_DEV
                                                : SG_DXFER_FROM_DEV,
        .cmd_len = command->cdb[0] == TEST_UNIT_READY ? 6 : CDB_LENGTH,
        .mx_sb_len = PROTOCOL_SENSE_SIZE,
        .dxfer_len = (unsigned)command->length,
        .dxferp = command->data,
        .cmdp = (uint8_t *)command->cdb, /* which it only reads */
        .sbp = command->sense,
        .timeout = timeout,
    };
    uint16_t code;
    uint8_t key;

    do {
        status_set(command, GOOD);
        command->unreached = false;
        command->is_lost = false;
        /* A device that sends less than it says must not leak what was here. */
        if (!is_out && command->length > 0)
            memset(command->data, 0, command->length);
        if (ioctl(command->fd, SG_IO, &hdr) == 0) {
            result_set(command, &hdr);
        } else {
            if (errno == EPERM || errno == EACCES)
                command->refusal = NOT_PERMITTED;
            outcome_set(command, errno_outcomes, errno);
        }
        sense_get(command->sense, &key, &code);
    } while (!command->unreached && command->status == CHECK_CONDITION
             && key == UNIT_ATTENTION && attentions-- > 0);
}
