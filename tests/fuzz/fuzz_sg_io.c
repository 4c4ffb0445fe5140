/* SPDX-License-Identifier: MIT */
/*
 * fuzz_sg_io.c - fuzzes what a command on a descriptor comes to: which ones are
 * served, and status, sense data and payload for whatever the system says.
 * The input is, in this order: access mode, kind, major and minor number of
 * the descriptor; what sysfs has of it; the CDB; errno, or host, driver and
 * SCSI status, bytes of sense, resid and bytes of data of SG_IO.
 *
 * What is expected is written here from the standards and from QEMU's
 * document. It must never be satisfied with GOOD when the device did not
 * say so, nor let the helper send a command to what is no whole LUN.
 */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <scsi/sg.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

int fuzz_fcntl(int fd, int command, ...);
int fuzz_fstat(int fd, struct stat *st);
int fuzz_ioctl(int fd, unsigned long request, ...);

enum { FD = 1000, DATA = 8192, OVERSHOOT = 64, SENSE = 96, TIMEOUT = 5000 };
enum { ATTENTIONS = 5 };

static const struct {
    int flags, error;
} modes[] = { { O_RDWR, 0 },      { O_RDONLY, 0 }, { O_WRONLY, 0 },
              { O_PATH, 0 },      { 3, 0 },        { O_RDWR | O_NONBLOCK, 0 },
              { O_RDONLY, EBADF } };

static const mode_t kinds[] = { S_IFBLK, S_IFCHR, S_IFREG,  S_IFDIR,
                                S_IFIFO, S_IFLNK, S_IFSOCK, 0 };

static struct {
    struct pr_command *command;
    unsigned mode, kind, major, minor;
    bool is_dm, is_partition, is_in_sysfs;
    uint8_t cdb[16];
    int error; /* errno of fstat or of SG_IO, 0: none */
    uint32_t host, driver, status, sense;
    int32_t resid;
    size_t data, length;
    unsigned commands;
} system_;

static bool is_out(void)
{
    return system_.cdb[0] == 0x5f;
}

static bool is_writable(void)
{
    int access = modes[system_.mode].flags & 3;

    return modes[system_.mode].error == 0
           && (access == O_WRONLY || access == O_RDWR);
}

static bool is_disk_major(void)
{
    static const unsigned majors[] = { 8,   65,  66,  67,  68,  69,  70,  71,
                                       128, 129, 130, 131, 132, 133, 134, 135 };

    for (size_t i = 0; i < sizeof(majors) / sizeof(majors[0]); i++)
        if (majors[i] == system_.major)
            return true;
    return false;
}

static void input_read(void)
{
    system_.mode = input_number(1) % (sizeof(modes) / sizeof(modes[0]));
    system_.kind = input_number(1) % (sizeof(kinds) / sizeof(kinds[0]));
    system_.major = input_number(2) & 0xfff;
    system_.minor = input_number(3) & 0xfffff;
    system_.is_dm = input_number(1) & 1;
    system_.is_partition = input_number(1) & 1;
    system_.is_in_sysfs = input_number(1) & 1;
    input_take(system_.cdb, sizeof(system_.cdb));
    if (system_.cdb[0] != 0xff)
        system_.cdb[0] = system_.cdb[0] % 2 == 0 ? 0x5e : 0x5f;
    system_.error = (int)input_number(1);
    system_.host = input_number(2);
    system_.driver = input_number(2);
    system_.status = input_number(1);
    system_.sense = input_number(1);
    system_.resid = (int32_t)input_number(4);
    system_.data = input_number(2);
    system_.length = (size_t)system_.cdb[7] * 256 + system_.cdb[8];
    if (system_.data > system_.length + OVERSHOOT)
        system_.data = system_.length + OVERSHOOT;
}

int fuzz_fcntl(int fd, int command, ...)
{
    MUST(fd == FD && command == F_GETFL);
    errno = modes[system_.mode].error;
    return errno != 0 ? -1 : modes[system_.mode].flags;
}

int fuzz_fstat(int fd, struct stat *st)
{
    MUST(fd == FD);
    memset(st, 0, sizeof(*st));
    st->st_mode = kinds[system_.kind] | 0600;
    st->st_rdev = makedev(system_.major, system_.minor);
    errno = system_.error;
    return kinds[system_.kind] == 0 && system_.error != 0 ? -1 : 0;
}

/* sysfs.c's, which is not linked. */
bool sysfs_has(dev_t device, const char *file)
{
    MUST(kinds[system_.kind] == S_IFBLK && !is_disk_major());
    MUST(device == makedev(system_.major, system_.minor));
    if (strcmp(file, "/dm") == 0)
        return system_.is_dm;
    if (strcmp(file, "/partition") == 0)
        return system_.is_partition;
    MUST(*file == '\0');
    return system_.is_in_sysfs || system_.is_dm || system_.is_partition;
}

/* That all sense data consist of: ILLEGAL REQUEST, or UNIT ATTENTION. */
static uint8_t sense_byte(void)
{
    return system_.resid % 2 == 0 ? 0x55 : 0x56;
}

static bool is_attention(void)
{
    return system_.error == 0 && system_.host == 0
           && (system_.driver == 0 || system_.driver == 8)
           && system_.status == 2 && system_.sense > 2 && sense_byte() == 0x56;
}

static void header_check(const struct sg_io_hdr *hdr)
{
    int direction = is_out() ? SG_DXFER_TO_DEV : SG_DXFER_FROM_DEV;

    MUST(hdr->interface_id == 'S' && hdr->cmd_len == 10);
    MUST(memcmp(hdr->cmdp, system_.cdb, 10) == 0);
    MUST(hdr->sbp == system_.command->sense && hdr->mx_sb_len <= SENSE);
    MUST(hdr->timeout == TIMEOUT && hdr->iovec_count == 0 && hdr->flags == 0);
    MUST(hdr->dxfer_len == system_.length);
    if (system_.length == 0)
        MUST(hdr->dxfer_direction == SG_DXFER_NONE);
    else
        MUST(hdr->dxfer_direction == direction
             && hdr->dxferp == system_.command->data);
}

int fuzz_ioctl(int fd, unsigned long request, ...)
{
    struct sg_io_hdr *hdr;
    va_list arguments;

    va_start(arguments, request);
    hdr = va_arg(arguments, struct sg_io_hdr *);
    va_end(arguments);
    MUST(fd == FD && request == SG_IO);
    system_.commands++;
    header_check(hdr);
    if (!is_out())
        memset(system_.command->data, 0xdd, system_.data);
    memset(hdr->sbp, sense_byte(),
           system_.sense < SENSE ? system_.sense : SENSE);
    hdr->sb_len_wr = (unsigned char)system_.sense;
    hdr->host_status = (unsigned short)system_.host;
    hdr->driver_status = (unsigned short)system_.driver;
    hdr->status = (unsigned char)system_.status;
    hdr->resid = system_.resid;
    errno = system_.error;
    return errno != 0 ? -1 : 0;
}

static bool zero_from(const uint8_t *bytes, size_t from, size_t size)
{
    for (; from < size; from++)
        if (bytes[from] != 0)
            return false;
    return true;
}

/* Sense data that the helper made up, as key << 16 | ASC << 8 | ASCQ. */
static uint32_t made_up(void)
{
    const uint8_t *sense = system_.command->sense;

    MUST(system_.command->status == 0x02 && system_.command->payload == 0);
    MUST(sense[0] == 0x70 && sense[7] == 10 && zero_from(sense, 14, SENSE));
    MUST(sense[2] > 0 && sense[2] <= 0xb);
    return (uint32_t)sense[2] << 16 | (uint32_t)sense[12] << 8 | sense[13];
}

/* A failure that is not the device's: a status alone, or sense data. */
static void failure_check(bool is_conflict, bool is_full, bool is_busy)
{
    uint8_t status = system_.command->status;

    MUST(system_.command->payload == 0);
    MUST((status == 0x18) == is_conflict);
    MUST((status == 0x28) == is_full);
    MUST((status == 0x08) == is_busy);
    if (is_conflict || is_full || is_busy)
        MUST(zero_from(system_.command->sense, 0, SENSE));
    else
        made_up();
}

static bool is_open(void)
{
    return modes[system_.mode].error == 0
           && (modes[system_.mode].flags & O_PATH) == 0;
}

/* Returns whether the command has to be served. */
static bool vet_check(enum vet vet)
{
    const struct pr_command *command = system_.command;
    bool is_block = kinds[system_.kind] == S_IFBLK;
    bool is_refused = vet == VET_ANSWERED && command->refusal != NOT_REFUSED;

    if (is_out() && (system_.cdb[5] | system_.cdb[6]) != 0) {
        MUST(is_refused && made_up() == 0x52400);
    } else if (system_.cdb[0] != 0x5e && !is_writable()) {
        MUST(is_refused && made_up() == 0x52000);
    } else if (kinds[system_.kind] == 0 && system_.error != 0) {
        MUST(is_refused);
        failure_check(system_.error == EBADE, system_.error == EDOM, false);
    } else if (is_block && !is_disk_major() && system_.is_dm && !is_open()) {
        MUST(is_refused && made_up() == 0xb0006);
    } else if (is_block && !is_disk_major() && system_.is_dm) {
        MUST(vet == VET_MAPPED && command->refusal == NOT_REFUSED);
    } else if (system_.cdb[0] == 0xff) {
        MUST(vet == VET_ANSWERED && command->refusal == NOT_REFUSED);
        MUST(command->status == 0 && command->payload == 0);
        MUST(zero_from(command->sense, 0, SENSE));
    } else if (is_block
                   ? is_disk_major() && system_.minor % 16 == 0
                   : kinds[system_.kind] == S_IFCHR && system_.major == 21) {
        MUST(vet == VET_SEND && command->refusal == NOT_REFUSED);
        return true;
    } else if (is_block
               && (is_disk_major() || system_.is_partition
                   || !system_.is_in_sysfs)) {
        MUST(is_refused && made_up() == 0x52000);
    } else {
        MUST(is_refused && made_up() == 0xb0006);
    }
    return false;
}

/* Another path may try: the device has not said anything of its own. */
static void unreached_check(void)
{
    const struct pr_command *command = system_.command;
    bool is_answer = system_.host >= 0x10 && system_.host <= 0x13;

    if (system_.error != 0)
        MUST(command->unreached
             == (system_.error == ENODEV || system_.error == ENXIO));
    else
        MUST(command->unreached == (system_.host != 0 && !is_answer));
    if (system_.error != 0 || (system_.host < 3 && system_.host != 0)
        || system_.host == 4 || system_.host == 12 || system_.host == 13)
        MUST(!command->is_lost);
    else if (system_.host == 0)
        MUST(command->is_lost == (system_.driver == 6));
    else if (!is_answer && system_.host != 15)
        MUST(command->is_lost);
}

static void result_check(void)
{
    const struct pr_command *command = system_.command;
    size_t length = system_.length, expected = length;

    MUST(system_.commands
         == (!is_out() && is_attention() ? 1 + ATTENTIONS : 1));
    unreached_check();
    if (!is_out())
        MUST(zero_from(command->data, system_.data, length));
    if (system_.error != 0) {
        failure_check(system_.error == EBADE, system_.error == EDOM, false);
    } else if (system_.host != 0) {
        failure_check(system_.host == 0x11, false, system_.host == 2);
    } else if (system_.driver != 0 && system_.driver != 8) {
        failure_check(false, false, system_.driver == 6);
    } else if (system_.status == 2 && system_.sense == 0) {
        MUST(made_up() == 0xb0800);
    } else {
        if (system_.resid > 0)
            expected = (uint32_t)system_.resid < length
                           ? length - (uint32_t)system_.resid
                           : 0;
        MUST(command->status == system_.status);
        MUST(command->payload == expected);
        MUST(zero_from(command->sense, system_.status == 2 ? system_.sense : 0,
                       SENSE));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    uint8_t cdb[16], *data, *sense = malloc(SENSE);
    struct pr_command command = { .fd = FD, .cdb = cdb, .sense = sense };

    memset(&system_, 0, sizeof(system_));
    system_.command = &command;
    input_begin(bytes, size);
    input_read();
    data = malloc(system_.length + OVERSHOOT);
    if (system_.length > DATA || data == NULL || sense == NULL)
        goto end;
    memcpy(cdb, system_.cdb, sizeof(cdb));
    memset(data, 0xa5, system_.length + OVERSHOOT);
    memset(sense, 0xa5, SENSE);
    command.data = data;
    command.length = system_.length;

    if (vet_check(sg_io_vet(&command))) {
        sg_io_execute(&command, TIMEOUT, is_out() ? 0 : ATTENTIONS);
        result_check();
    }
end:
    free(data);
    free(sense);
    return 0;
}
