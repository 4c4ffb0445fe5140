/* SPDX-License-Identifier: MIT */
/*
 * Simulated disks with persistent reservations (SPC-4, 5.12 and 6.15-6.16)
 * for tests of the whole helper by an ordinary user without SCSI.  It is
 * linked into the helper with -Wl,--wrap for every function that has a
 * __wrap_ here: a regular file whose size is SIM_DEVICE plus a device number
 * looks like that device to fstat, and SG_IO on it is served here.  The
 * process stays dumpable, so that its user may count what is in its /proc.
 *
 * With $SIM_ROOT set, /sys, /dev and multipathd's socket are looked for below
 * that directory, and multipathd runs as $SIM_PEER_UID, by default root.
 *
 * With $SIM_TIME set, that is the time of day in seconds, and 7 us. With
 * $SIM_SPEED, the monotonic clock runs so many times as fast; with 0, it jumps
 * forward instead of anybody waiting for it. What shall happen while a command
 * is carried out, before a step of it or at a time, is a script in the state;
 * a step is SG_IO on a path of a map, or a command to multipathd.
 *
 * Its state is one shared page range: the file that $SIM_STATE names, through
 * which sim.py injects results, delays and hangs and sees what reached
 * the disks, or an anonymous mapping that forked sessions share.
 *
 * It must never be part of an installed helper; never touch a descriptor or
 * an ioctl that is not the simulated disks'; and, once main has begun, make
 * no system call but the one that was asked for and fstat, fcntl(F_GETFL),
 * clock_gettime and ppoll: the helper may have been sandboxed by then.
 */
#define _GNU_SOURCE 1
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <scsi/sg.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* st_size of a simulated device: these bits, then major << 20 | minor. */
#define SIM_DEVICE 0x40000000u
#define SIM_CHARACTER 0x20000000u

#define IN_SENSE INT64_MIN
#define NEXUSES 256
#define ATTENTIONS 4
#define LUNS 3
#define DATA_SIZE (24 + 48 * NEXUSES + 8 * 2000)
#define EVENTS 4096
#define PATH_SIZE 4096
#define ACTIONS 64
#define NEVER UINT64_MAX
#define HIT 0x10000u /* steps from that on count from the one that was hit */
/* A time from that on counts from the end of the line before. */
#define AFTERWARDS (UINT64_C(1) << 62)

/* What a nexus's commands meet instead of, or besides, the disk itself. */
enum {
    INJECT_ERRNO = 1,  /* the ioctl fails with this errno */
    INJECT_RESULT = 2, /* host, driver and SCSI status and sense are these */
    INJECT_RESID = 4,  /* resid is this; the buffer is filled to its end */
    INJECT_AFTER = 8   /* the disk does as it is told, and then that */
};

/* The layout of all structures is repeated in sim.py. */
/* In place of a system call's number. */
enum { CALL_ABORT = 0x7ab00001, CALL_SMASHED = 0x7ab00002 };

struct nexus {
    uint64_t key;                   /* 0: not registered */
    uint32_t commands;              /* SG_IO calls ever */
    uint32_t in_flight;             /* SG_IO calls now */
    uint32_t attention[ATTENTIONS]; /* ASC << 8 | ASCQ, oldest first */
    uint8_t cdb[16];                /* of the last SG_IO, as all to timeout */
    uint32_t cmd_len;
    int32_t direction;
    uint32_t dxfer_len;
    uint32_t mx_sb_len;
    uint32_t timeout;
    uint32_t inject;       /* INJECT_* */
    uint32_t inject_count; /* for how many commands */
    int32_t error;
    uint32_t host_status;
    uint32_t driver_status;
    uint32_t status;
    int32_t resid;
    uint32_t sense_len;
    uint32_t delay_ms; /* of every command of this nexus */
    uint32_t hold;     /* commands hang while this is set */
    uint8_t sense[256];
    uint32_t call;       /* a system call to make with the next command */
    int32_t call_errno;  /* what it said, 0: it worked; -1: not made yet */
    uint32_t unused;     /* so that all machines align the next alike */
    int64_t argument[6]; /* of it; IN_SENSE: the address of .sense */
    uint32_t lun;
    uint32_t initiator; /* that it is of; 0: it has no other nexus */
    /* 0, or 0x10000 | operation << 8 | service action, or 0x20000 | operation
     */
    uint32_t inject_only;
    uint32_t inject_skip; /* so many commands before */
    uint32_t hold_from;   /* commands before this one do not hang */
    uint32_t state;       /* of its disk; 0: as the file in SIM_ROOT says */
    uint32_t open_errno;  /* its node cannot be opened, or */
    uint32_t open_other;  /* is that of this nexus's disk, but for 0 */
    uint32_t dm_failed;   /* as multipathd has it; for the test to know */
    uint32_t unused_too;
    uint64_t looked;       /* when its state was read or a command came */
    uint32_t hang_after;   /* what outlasts the timeout has been done */
    uint32_t inject_ready; /* what INJECT sets inject_count to */
    uint8_t reserved[32];
};

struct lun {
    uint32_t generation;
    uint32_t type;   /* of the reservation; 0: none */
    uint32_t holder; /* its nexus, unless all registrants */
    uint16_t aptpl;
    uint16_t crowd; /* so many more are registered, up to 2,000 */
};

/* A command that has ended. */
struct event {
    uint64_t key, service_action_key; /* PERSISTENT RESERVE OUT's */
    uint32_t nexus, lun;
    uint32_t timeout;
    int32_t error; /* errno, or 0 */
    uint32_t host_status;
    uint8_t cdb[10];
    uint8_t flags; /* byte 20 of the parameter list */
    uint8_t status;
};

/* What a script does; below 8 it is a service action of the nexus's. */
enum {
    LOOK = 8,   /* at the keys, as all the above do first */
    STATE = 16, /* becomes argument */
    INJECT,     /* begins if argument, or ends */
    DM,         /* has failed the path if argument, or takes it back */
    OPEN,       /* open_errno becomes argument */
    KILL,       /* whose step it is waits to be killed */
    DELAY,      /* delay_ms becomes argument */
    ACTION_REGISTER = 0,
    ACTION_PREEMPT = 4,
    ACTION_PREEMPT_AND_ABORT = 5,
    ACTION_IGNORE = 6
};

enum {
    SEEN_OTHERS = 1, /* a key is there that is neither own nor 0 */
    SEEN_HIT = 2     /* a path of a map has lost its key by it */
};

struct action {
    uint64_t at;      /* us, see AFTERWARDS, or: */
    uint64_t key;     /* service action key; 0 to preempt: another's */
    uint64_t done_at; /* us; 0: not yet */
    uint32_t step;    /* before this one; 0: at a time */
    uint32_t what;
    uint32_t nexus;
    uint32_t argument; /* type, or as above */
    uint32_t status;   /* of PERSISTENT RESERVE OUT */
    uint32_t done_step;
    uint64_t own;  /* key, that it did that with */
    uint64_t seen; /* SEEN_... */
};

struct script {
    uint64_t skipped;         /* us that nobody has waited for */
    uint64_t multipathd_wait; /* it says nothing before; NEVER: at all */
    uint64_t multipathd_key;  /* that it registers, or 0 */
    uint32_t steps;
    uint32_t killed;
    uint32_t stuck; /* waits that would never have ended */
    uint32_t actions;
    uint64_t excused; /* us in a queue that had just been stopped */
    uint32_t hit;     /* the step that first went wrong */
    uint8_t reserved[12];
    struct action action[ACTIONS];
};

struct target {
    uint32_t lock;
    struct lun lun[LUNS];
    uint32_t strays; /* SG_IO calls on what is no SCSI device */
    uint32_t events; /* ever; the last EVENTS are here */
    uint32_t is_lio; /* Linux' target: CONFLICT for a RELEASE of another type */
    struct nexus nexus[NEXUSES];
    struct event event[EVENTS];
    struct script script;
};

/* As sim.py has it. */
typedef char layout_is_as_in_sim_py
    [sizeof(struct nexus) == 512 && offsetof(struct target, nexus) == 64
             && sizeof(struct event) == 48 && sizeof(struct action) == 64
             && offsetof(struct script, action) == 64
         ? 1
         : -1];

static struct target *target;
static time_t time_of_day = -1; /* of $SIM_TIME */
static uint64_t speed = 1;      /* $SIM_SPEED */
static const char *root;        /* $SIM_ROOT */
static uid_t multipathd_uid;
static int multipathd = -1;   /* the descriptor that was connected to it */
static int conversation = -1; /* likewise, and until there is another */

/* Of the command that is being executed, under the lock. */
static struct lun *lun;

int __real_clock_gettime(clockid_t id, struct timespec *now);
int __wrap_clock_gettime(clockid_t id, struct timespec *now);
int __real_connect(int fd, const struct sockaddr *a, socklen_t size);
int __real_getsockopt(int fd, int level, int option, void *value,
                      socklen_t *size);
int __real_ioctl(int fd, unsigned long request, ...);
int __real_nanosleep(const struct timespec *time, struct timespec *rest);
int __real_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *time,
                 const sigset_t *mask);
ssize_t __real_readlink(const char *path, char *to, size_t size);
int __wrap_connect(int fd, const struct sockaddr *a, socklen_t size);
int __wrap_fstat(int fd, struct stat *st);
int __wrap_fstat64(int fd, struct stat *st);
int __wrap_getsockopt(int fd, int level, int option, void *value,
                      socklen_t *size);
int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __wrap_nanosleep(const struct timespec *time, struct timespec *rest);
int __wrap_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *time,
                 const sigset_t *mask);
int __wrap_prctl(int option, ...);
ssize_t __wrap_readlink(const char *path, char *to, size_t size);
int __wrap_stat(const char *path, struct stat *st);
int __wrap_stat64(const char *path, struct stat *st);

__attribute__((constructor)) static void sim_start(void)
{
    const char *path = getenv("SIM_STATE"), *uid = getenv("SIM_PEER_UID");
    const char *when = getenv("SIM_TIME"), *fast = getenv("SIM_SPEED");
    int fd = -1;
    void *map;

    root = getenv("SIM_ROOT");
    if (when)
        time_of_day = (time_t)strtoll(when, NULL, 10);
    if (fast)
        speed = strtoull(fast, NULL, 10);
    multipathd_uid = uid ? (uid_t)strtoul(uid, NULL, 10) : 0;
    if (path) {
        fd = openat(AT_FDCWD, path, O_RDWR | O_CLOEXEC);
        if (fd < 0 || ftruncate(fd, sizeof(*target)))
            abort();
    }
    map = mmap(NULL, sizeof(*target), PROT_READ | PROT_WRITE,
               MAP_SHARED | (path ? 0 : MAP_ANONYMOUS), fd, 0);
    if (map == MAP_FAILED)
        abort();
    if (fd >= 0)
        close(fd);
    target = map;
}

/* ---- Bytes ------------------------------------------------------------ */

static void put_be(uint8_t *p, uint64_t value, int bytes)
{
    while (bytes--) {
        p[bytes] = (uint8_t)value;
        value >>= 8;
    }
}

static uint64_t get_be(const uint8_t *p, int bytes)
{
    uint64_t value = 0;

    while (bytes--)
        value = value << 8 | *p++;
    return value;
}

/* ---- Time and concurrency --------------------------------------------- */

static struct timespec time_of(uint64_t us)
{
    return (struct timespec){ .tv_sec = (time_t)(us / 1000000),
                              .tv_nsec = (long)(us % 1000000) * 1000 };
}

static uint64_t us_of(const struct timespec *time)
{
    return (uint64_t)time->tv_sec * 1000000 + (uint64_t)time->tv_nsec / 1000;
}

int __wrap_clock_gettime(clockid_t id, struct timespec *now)
{
    int rc = 0;

    if (id == CLOCK_REALTIME && time_of_day >= 0) {
        now->tv_sec = time_of_day;
        now->tv_nsec = 7000;
        return 0;
    }
    rc = __real_clock_gettime(id, now);
    if (id == CLOCK_MONOTONIC && speed != 1)
        *now = time_of(us_of(now) * (speed ? speed : 1)
                       + target->script.skipped);
    return rc;
}

static void sleep_ms(unsigned int ms)
{
    struct timespec time = time_of((uint64_t)ms * 1000);

    __real_ppoll(NULL, 0, &time, NULL);
}

static uint64_t now_us(void)
{
    struct timespec now;

    __wrap_clock_gettime(CLOCK_MONOTONIC, &now);
    return us_of(&now);
}

static void lock(void)
{
    unsigned int spins = 0;

    while (__atomic_exchange_n(&target->lock, 1, __ATOMIC_ACQUIRE))
        if (++spins % 256 == 0)
            sleep_ms(1);
}

static void unlock(void)
{
    __atomic_store_n(&target->lock, 0, __ATOMIC_RELEASE);
}

static void script_run(void);

/* When a line that has no step is due. */
static uint64_t due_at(const struct action *a)
{
    if (a->at < AFTERWARDS)
        return a->at;
    return a > target->script.action && a[-1].done_at
               ? a[-1].done_at + a->at - AFTERWARDS
               : NEVER;
}

/* When the script goes on by itself, or NEVER. */
static uint64_t script_next(void)
{
    const struct script *script = &target->script;
    uint64_t next = NEVER;
    uint32_t i;

    for (i = 0; i < script->actions % (ACTIONS + 1); i++)
        if (!script->action[i].step && !script->action[i].done_at
            && due_at(&script->action[i]) < next)
            next = due_at(&script->action[i]);
    return next;
}

/* The clock goes on to that time, and what is to happen until then does. */
static void pass_until(uint64_t end)
{
    uint64_t next, now;

    do {
        next = script_next();
        now = now_us();
        if (next > end)
            next = end;
        if (next > now && !speed)
            target->script.skipped += next - now;
        else if (next > now)
            sleep_ms((unsigned int)((next - now) / speed / 1000 + 1));
        script_run();
    } while (now_us() < end);
}

int __wrap_nanosleep(const struct timespec *time, struct timespec *rest)
{
    if (speed == 1)
        return __real_nanosleep(time, rest);
    if (!speed) /* whom it waits for may be a process that is real */
        sleep_ms(1);
    pass_until(now_us() + us_of(time));
    return 0;
}

/* For multipathd to say something, which it may do only much later. */
static int wait_for_multipathd(struct pollfd *fd, uint64_t end,
                               const sigset_t *mask)
{
    const struct timespec slice = { 0, 1000000 };
    volatile uint64_t *wait = &target->script.multipathd_wait;
    uint64_t until;
    int rc;

    while ((rc = __real_ppoll(fd, 1, &slice, mask)) == 0) {
        until = *wait; /* not every machine has 64-bit atomics */
        if (until || now_us() >= end) {
            pass_until(until && until < end ? until : end);
            *wait = 0;
            if (!until || until >= end)
                return 0;
        }
    }
    return rc;
}

int __wrap_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *time,
                 const sigset_t *mask)
{
    struct timespec less;

    if (speed == 1 || !time)
        return __real_ppoll(fds, n, time, mask);
    if (!speed && n == 1 && fds->fd == conversation)
        return wait_for_multipathd(fds, now_us() + us_of(time), mask);
    less = time_of(us_of(time) / (speed ? speed : 1));
    return __real_ppoll(fds, n, &less, mask);
}

/*
 * A device that takes its time, but what the kernel has for it, and one that
 * hangs until it is released. Returns whether it has been too slow.
 */
static int wait_for_device(const struct nexus *n, uint32_t number,
                           uint32_t timeout)
{
    uint32_t ms = n->delay_ms < timeout ? n->delay_ms : timeout;
    int is_late = n->delay_ms > timeout;

    if (ms)
        pass_until(now_us() + (uint64_t)ms * 1000);
    while (number >= n->hold_from
           && __atomic_load_n(&n->hold, __ATOMIC_ACQUIRE))
        sleep_ms(10);
    return is_late;
}

/* ---- Reservations ----------------------------------------------------- */

/* The outcome of one command: a bare status, or sense with 02. */
struct result {
    uint8_t status, key, asc, ascq;
};

static const struct result good = { 0x00, 0, 0, 0 };
static const struct result conflict = { 0x18, 0, 0, 0 };
static const struct result invalid_opcode = { 0x02, 5, 0x20, 0x00 };
static const struct result invalid_cdb = { 0x02, 5, 0x24, 0x00 };
static const struct result invalid_list = { 0x02, 5, 0x26, 0x00 };
static const struct result invalid_release = { 0x02, 5, 0x26, 0x04 };
static const struct result wrong_length = { 0x02, 5, 0x1a, 0x00 };

enum {
    PREEMPTED = 0x2a03,
    RELEASED = 0x2a04,
    REGISTRATIONS_PREEMPTED = 0x2a05
};

static int type_valid(unsigned int type)
{
    return type == 1 || type == 3 || (type >= 5 && type <= 8);
}

static int all_registrants(void)
{
    return lun->type >= 7;
}

static int is_registered(unsigned int n)
{
    return target->nexus[n].key && target->lun + target->nexus[n].lun == lun;
}

/* With an all-registrants type every registered nexus is a holder. */
static int is_holder(unsigned int n)
{
    return lun->type && is_registered(n)
           && (all_registrants() || lun->holder == n);
}

static void attention(unsigned int n, uint32_t code)
{
    uint32_t *queue = target->nexus[n].attention;
    int i;

    for (i = 0; i < ATTENTIONS; i++) {
        if (queue[i] == code)
            return;
        if (!queue[i]) {
            queue[i] = code;
            return;
        }
    }
}

static void attention_others(unsigned int self, uint32_t code)
{
    unsigned int n;

    for (n = 0; n < NEXUSES; n++)
        if (n != self && is_registered(n))
            attention(n, code);
}

/* SPC-4 5.12.11.2: others hear of it unless the type was exclusive to one. */
static void reservation_release(unsigned int self)
{
    if (lun->type >= 5)
        attention_others(self, RELEASED);
    lun->type = 0;
}

static void reservation_make(unsigned int self, unsigned int type)
{
    lun->type = type;
    lun->holder = self;
}

static unsigned int registrations(void)
{
    unsigned int n, count = 0;

    for (n = 0; n < NEXUSES; n++)
        count += is_registered(n) != 0;
    return count;
}

static void unregister(unsigned int n)
{
    int last_holder = is_holder(n)
                      && (!all_registrants() || registrations() == 1);

    target->nexus[n].key = 0;
    if (last_holder)
        reservation_release(n);
}

/* A SAS TransportID whose address ends in the number of the nexus. */
static void transport_id(uint8_t *p, unsigned int n)
{
    memset(p, 0, 24);
    p[0] = 0x06;
    put_be(p + 4, 0x5001405000000000u + n, 8);
}

/* The nexus that is meant, NEXUSES: none. */
static unsigned int transport_id_find(const uint8_t *p)
{
    uint8_t id[24];
    unsigned int n;

    for (n = 0; n < NEXUSES; n++) {
        transport_id(id, n);
        if (!memcmp(id, p, sizeof(id)))
            break;
    }
    return n;
}

/* SPEC_I_PT: others as well, all of them or none. */
static struct result register_others(const uint8_t *list, size_t length,
                                     uint64_t key)
{
    const uint8_t *p;
    unsigned int n;

    if (length < 28 || length != 28 + get_be(list + 24, 4))
        return wrong_length;
    for (p = list + 28; p < list + length; p += 24) {
        if (list + length - p < 24)
            return invalid_list;
        n = transport_id_find(p);
        if (n == NEXUSES || target->nexus[n].key)
            return invalid_list;
    }
    for (p = list + 28; p < list + length; p += 24) {
        n = transport_id_find(p);
        target->nexus[n].key = key;
        target->nexus[n].lun = (uint32_t)(lun - target->lun);
    }
    return good;
}

/* ALL_TG_PT: what the initiator does at one port it does at all. */
static struct result pr_register(unsigned int self, const uint8_t *list,
                                 size_t length, int ignore)
{
    struct nexus *nexus = &target->nexus[self];
    uint64_t key = get_be(list + 8, 8);
    int others = list[20] & 8, all = list[20] & 4;
    struct result r = good;
    unsigned int n;

    if (others ? ignore || !key || length == 24 : length != 24)
        return others ? invalid_list : wrong_length;
    if (all && !nexus->initiator)
        return invalid_list;
    if (!ignore && get_be(list, 8) != nexus->key)
        return conflict;
    if (others && nexus->key)
        return invalid_cdb;
    if (others)
        r = register_others(list, length, key);
    if (r.status || (!nexus->key && !key && !all))
        return r;
    for (n = 0; n < NEXUSES; n++) {
        if (n != self
            && (!all || target->nexus[n].initiator != nexus->initiator
                || target->nexus[n].lun != nexus->lun))
            continue;
        if (key)
            target->nexus[n].key = key;
        else
            unregister(n);
    }
    lun->aptpl = list[20] & 1;
    lun->generation++;
    return good;
}

static struct result pr_reserve(unsigned int self, unsigned int type)
{
    if (!type_valid(type))
        return invalid_cdb;
    if (lun->type && (!is_holder(self) || lun->type != type))
        return conflict;
    if (!lun->type)
        reservation_make(self, type);
    return good;
}

static struct result pr_release(unsigned int self, unsigned int type)
{
    if (!is_holder(self))
        return good;
    if (lun->type != type)
        return target->is_lio ? conflict : invalid_release;
    reservation_release(self);
    return good;
}

static struct result pr_clear(unsigned int self)
{
    unsigned int n;

    attention_others(self, PREEMPTED);
    for (n = 0; n < NEXUSES; n++)
        if (is_registered(n))
            target->nexus[n].key = 0;
    lun->type = 0;
    lun->generation++;
    return good;
}

/* Key 0 stands for everybody else, which only all registrants allows. */
static struct result pr_preempt(unsigned int self, unsigned int type,
                                uint64_t key)
{
    unsigned int old = lun->type;
    int take, found = 0;
    unsigned int n;

    if (!type_valid(type))
        return invalid_cdb;
    if (!key && !all_registrants())
        return invalid_list;
    take = old
           && (all_registrants() ? !key
                                 : target->nexus[lun->holder].key == key);
    for (n = 0; n < NEXUSES; n++)
        found |= is_registered(n) && (!key || target->nexus[n].key == key);
    if (!found)
        return conflict;
    for (n = 0; n < NEXUSES; n++) {
        if (!is_registered(n) || (key && target->nexus[n].key != key))
            continue;
        if (n == self && (take || !key))
            continue;
        if (n != self)
            attention(n, REGISTRATIONS_PREEMPTED);
        if (take)
            target->nexus[n].key = 0;
        else
            unregister(n);
    }
    if (take) {
        reservation_make(self, type);
        if (old != type)
            attention_others(self, RELEASED);
    }
    lun->generation++;
    return good;
}

static struct result pr_move(unsigned int self, const uint8_t *list,
                             size_t length)
{
    uint64_t key = get_be(list + 8, 8);
    unsigned int n;

    if (length < 24 + get_be(list + 20, 4))
        return wrong_length;
    if (!lun->type)
        return invalid_cdb;
    if (!is_holder(self) || all_registrants())
        return conflict;
    if (!key || get_be(list + 20, 4) != 24)
        return invalid_list;
    n = transport_id_find(list + 24);
    if (n == NEXUSES || n == self)
        return invalid_list;
    target->nexus[n].key = key;
    lun->holder = n;
    if (list[17] & 2) /* UNREG */
        target->nexus[self].key = 0;
    lun->aptpl = list[17] & 1;
    lun->generation++;
    return good;
}

static struct result pr_out(unsigned int self, const uint8_t *cdb,
                            const uint8_t *list, size_t length)
{
    unsigned int action = cdb[1] & 0x1f;
    unsigned int type = cdb[2] & 0x0f;
    uint64_t key = target->nexus[self].key;

    if (action > 7)
        return invalid_cdb;
    if (length < 24 || (length != 24 && action % 6 && action != 7))
        return wrong_length;
    if (action == 0 || action == 6)
        return pr_register(self, list, length, action == 6);
    if (!key || get_be(list, 8) != key)
        return conflict;
    if (cdb[2] >> 4) /* scope: LU_SCOPE only */
        return invalid_cdb;
    switch (action) {
    case 1:
        return pr_reserve(self, type);
    case 2:
        return pr_release(self, type);
    case 3:
        return pr_clear(self);
    case 7:
        return pr_move(self, list, length);
    default: /* nothing queues here to be aborted */
        return pr_preempt(self, type, get_be(list + 8, 8));
    }
}

/* Writes the parameter data to out, DATA_SIZE bytes at most. */
static struct result pr_in(const uint8_t *cdb, uint8_t *out, size_t *length)
{
    static const uint8_t capabilities[8] = {
        0, 8, 0x11, 0x80, 0xea, 0x01, 0, 0
    };
    uint8_t *p = out + 8;
    unsigned int n;

    put_be(out, lun->generation, 4);
    switch (cdb[1] & 0x1f) {
    case 0:
        for (n = 0; n < NEXUSES; n++) {
            if (is_registered(n)) {
                put_be(p, target->nexus[n].key, 8);
                p += 8;
            }
        }
        for (n = 0; n < lun->crowd; n++, p += 8)
            put_be(p, ~UINT64_C(0), 8);
        break;
    case 1:
        if (lun->type) {
            memset(p, 0, 16);
            if (!all_registrants())
                put_be(p, target->nexus[lun->holder].key, 8);
            p[13] = (uint8_t)lun->type;
            p += 16;
        }
        break;
    case 2:
        memcpy(out, capabilities, 8);
        out[3] |= (uint8_t)lun->aptpl;
        *length = 8;
        return good;
    case 3:
        for (n = 0; n < NEXUSES; n++) {
            if (!is_registered(n))
                continue;
            memset(p, 0, 24);
            put_be(p, target->nexus[n].key, 8);
            if (is_holder(n)) {
                p[12] = 1;
                p[13] = (uint8_t)lun->type;
            }
            p[19] = 1; /* the relative target port */
            p[23] = 24;
            transport_id(p + 24, n);
            p += 48;
        }
        break;
    default:
        return invalid_cdb;
    }
    put_be(out + 4, (uint64_t)(p - out - 8), 4);
    *length = (size_t)(p - out);
    return good;
}

/* ---- SG_IO ------------------------------------------------------------ */

static struct result take_attention(struct nexus *n)
{
    struct result r = { 0x02, 6, (uint8_t)(n->attention[0] >> 8),
                        (uint8_t)n->attention[0] };

    memmove(n->attention, n->attention + 1,
            sizeof(n->attention) - sizeof(n->attention[0]));
    n->attention[ATTENTIONS - 1] = 0;
    return r;
}

/* One command on the disk; *moved is how many bytes it transferred. */
static struct result execute(unsigned int self, struct sg_io_hdr *hdr,
                             size_t *moved)
{
    static uint8_t data[DATA_SIZE];
    struct result r;
    size_t length;

    *moved = 0;
    lun = &target->lun[target->nexus[self].lun % LUNS];
    if (target->nexus[self].attention[0])
        return take_attention(&target->nexus[self]);
    if (hdr->cmdp[0] == 0x5f) {
        *moved = hdr->dxfer_len;
        return pr_out(self, hdr->cmdp, hdr->dxferp, hdr->dxfer_len);
    }
    if (hdr->cmdp[0] == 0) /* TEST UNIT READY */
        return good;
    if (hdr->cmdp[0] != 0x5e)
        return invalid_opcode;
    r = pr_in(hdr->cmdp, data, &length);
    if (r.status)
        return r;
    *moved = length < hdr->dxfer_len ? length : hdr->dxfer_len;
    if (*moved)
        memcpy(hdr->dxferp, data, *moved);
    return r;
}

static void set_sense(struct sg_io_hdr *hdr, const uint8_t *sense, size_t len)
{
    if (len > hdr->mx_sb_len)
        len = hdr->mx_sb_len;
    if (len)
        memcpy(hdr->sbp, sense, len);
    hdr->sb_len_wr = (unsigned char)len;
}

static void complete(struct sg_io_hdr *hdr, struct result r, size_t moved)
{
    uint8_t sense[18] = { 0x70 };

    hdr->status = r.status;
    hdr->resid = (int)(hdr->dxfer_len - moved);
    if (r.status != 0x02)
        return;
    sense[2] = r.key;
    sense[7] = 10;
    sense[12] = r.asc;
    sense[13] = r.ascq;
    hdr->driver_status = 0x08;
    set_sense(hdr, sense, sizeof(sense));
}

/* What has been read stays, if it was. */
static void inject_result(struct sg_io_hdr *hdr, const struct nexus *n)
{
    hdr->host_status = (unsigned short)n->host_status;
    hdr->driver_status = (unsigned short)n->driver_status;
    hdr->status = (unsigned char)n->status;
    set_sense(hdr, n->sense, n->sense_len);
    if (!(n->inject & INJECT_AFTER) && hdr->dxfer_len
        && hdr->dxfer_direction == SG_DXFER_FROM_DEV)
        memset(hdr->dxferp, 0xee, hdr->dxfer_len);
}

static void inject_resid(struct sg_io_hdr *hdr, const struct nexus *n,
                         size_t moved)
{
    hdr->resid = n->resid;
    if (hdr->dxfer_direction == SG_DXFER_FROM_DEV && hdr->dxfer_len > moved)
        memset((uint8_t *)hdr->dxferp + moved, 0xdd, hdr->dxfer_len - moved);
}

static int header_valid(const struct sg_io_hdr *hdr)
{
    return hdr->interface_id == 'S' && hdr->cmdp && hdr->cmd_len >= 6
           && hdr->cmd_len <= 16 && !hdr->iovec_count
           && (!hdr->dxfer_len
               || hdr->dxfer_direction
                      == (hdr->cmdp[0] == 0x5f ? SG_DXFER_TO_DEV
                                               : SG_DXFER_FROM_DEV));
}

/* Returns the number of the command. */
static uint32_t record(struct nexus *n, const struct sg_io_hdr *hdr)
{
    n->commands++;
    memset(n->cdb, 0, sizeof(n->cdb));
    if (hdr->cmd_len <= sizeof(n->cdb))
        memcpy(n->cdb, hdr->cmdp, hdr->cmd_len);
    n->cmd_len = hdr->cmd_len;
    n->direction = hdr->dxfer_direction;
    n->dxfer_len = hdr->dxfer_len;
    n->mx_sb_len = hdr->mx_sb_len;
    n->timeout = hdr->timeout;
    return n->commands;
}

static void record_end(unsigned int self, const struct sg_io_hdr *hdr,
                       int error)
{
    struct event *e = &target->event[target->events % EVENTS];

    memset(e, 0, sizeof(*e));
    e->nexus = self;
    e->lun = target->nexus[self].lun;
    e->timeout = hdr->timeout;
    e->error = error;
    e->host_status = hdr->host_status;
    e->status = hdr->status;
    memcpy(e->cdb, hdr->cmdp,
           hdr->cmd_len < sizeof(e->cdb) ? hdr->cmd_len : sizeof(e->cdb));
    if (hdr->cmdp[0] == 0x5f && hdr->dxfer_len >= 24) {
        e->key = get_be(hdr->dxferp, 8);
        e->service_action_key = get_be((uint8_t *)hdr->dxferp + 8, 8);
        e->flags = ((uint8_t *)hdr->dxferp)[20];
    }
    target->events++;
}

/* What to inject with this command. */
static uint32_t injection(struct nexus *n, const uint8_t *cdb)
{
    uint32_t only = 0x10000u | (uint32_t)cdb[0] << 8 | (cdb[1] & 0x1f);

    if (!n->inject_count
        || (n->inject_only && n->inject_only != only
            && n->inject_only != (0x20000u | cdb[0])))
        return 0;
    if (n->inject_skip) {
        n->inject_skip--;
        return 0;
    }
    n->inject_count--;
    if (!target->script.hit)
        target->script.hit = target->script.steps;
    return n->inject;
}

/* Under the lock; returns 0 or the errno of the ioctl. */
static int perform(unsigned int self, struct sg_io_hdr *hdr, int is_late)
{
    struct nexus *n = &target->nexus[self];
    uint32_t inject = is_late ? 0 : injection(n, hdr->cmdp);
    struct result r;
    size_t moved = 0;

    if (is_late) {
        if (n->hang_after)
            execute(self, hdr, &moved);
        hdr->host_status = 3; /* TIME_OUT */
        return 0;
    }

    if (!(inject & (INJECT_ERRNO | INJECT_RESULT)) || inject & INJECT_AFTER) {
        r = execute(self, hdr, &moved);
        complete(hdr, r, moved);
    }
    /* Who has been refused does not say that it recovered. */
    if (inject & INJECT_AFTER && hdr->status && !n->host_status)
        return 0;
    if (inject & INJECT_ERRNO)
        return n->error;
    if (inject & INJECT_RESULT)
        inject_result(hdr, n);
    if (inject & INJECT_RESID)
        inject_resid(hdr, n, moved);
    hdr->masked_status = hdr->status >> 1 & 0x1f;
    hdr->info = hdr->status || hdr->host_status || hdr->driver_status;
    return 0;
}

/* As code would that an attacker has put here. May be this process's end. */
/* What the stack protector calls. */
extern void __stack_chk_fail(void) __attribute__((noreturn));

static void make_call(struct nexus *n)
{
    uint32_t call = n->call;
    long argument[6];
    int i;

    for (i = 0; i < 6; i++)
        argument[i] = n->argument[i] == IN_SENSE ? (long)(intptr_t)n->sense
                                                 : (long)n->argument[i];
    n->call = 0;
    if (call == CALL_ABORT)
        abort();
    if (call == CALL_SMASHED)
        __stack_chk_fail();
    errno = 0;
    syscall((long)call, argument[0], argument[1], argument[2], argument[3],
            argument[4], argument[5]);
    n->call_errno = errno;
}

/* ---- The script ------------------------------------------------------- */

enum { RUNNING, BLOCKED, TRANSPORT_OFFLINE, OFFLINE, QUIESCE, STATES };
static const char *const states[] = { "running", "blocked", "transport-offline",
                                      "offline", "quiesce" };

/* The key of somebody else, as READ KEYS shows them; 0: there is none. */
static uint64_t key_of_others(uint64_t own)
{
    unsigned int n;

    for (n = 0; n < NEXUSES; n++)
        if (is_registered(n) && target->nexus[n].key != own)
            return target->nexus[n].key;
    return 0;
}

static int is_key(uint64_t key)
{
    unsigned int n;

    for (n = 0; n < NEXUSES; n++)
        if (key && is_registered(n) && target->nexus[n].key == key)
            return 1;
    return 0;
}

static unsigned int paths_registered(void)
{
    unsigned int n, count = 0;

    for (n = 0; n < NEXUSES; n++)
        count += target->nexus[n].initiator && is_registered(n);
    return count;
}

/* A service action by which a rival goes its way. */
static void act_out(struct action *a)
{
    uint64_t own = target->nexus[a->nexus].key;
    uint8_t cdb[10] = { 0x5f, (uint8_t)a->what, (uint8_t)a->argument };
    uint8_t list[24] = { 0 };
    unsigned int before;

    if (!a->key
        && (a->what == ACTION_PREEMPT || a->what == ACTION_PREEMPT_AND_ABORT))
        a->key = key_of_others(own);
    a->own = own;
    put_be(list, own, 8);
    put_be(list + 8, a->key, 8);
    before = paths_registered();
    a->status = pr_out(a->nexus, cdb, list, sizeof(list)).status;
    if (paths_registered() < before)
        a->seen |= SEEN_HIT;
}

/* multipathd registers a path that comes back, if its key is there. */
static void act_dm(struct action *a, struct nexus *n)
{
    uint64_t key = target->script.multipathd_key;

    n->dm_failed = a->argument;
    if (!n->dm_failed && is_key(key)) {
        a->key = n->key = key;
        a->status = 1;
    }
}

static void act(struct action *a)
{
    struct nexus *n = &target->nexus[a->nexus % NEXUSES];

    lun = &target->lun[n->lun % LUNS];
    a->done_at = now_us();
    a->done_step = target->script.steps;
    a->seen = key_of_others(n->key) ? SEEN_OTHERS : 0;
    if (a->what < LOOK)
        act_out(a);
    else if (a->what == STATE)
        n->state = a->argument;
    else if (a->what == INJECT)
        n->inject_count = a->argument ? n->inject_ready : 0;
    else if (a->what == DM)
        act_dm(a, n);
    else if (a->what == OPEN)
        n->open_errno = a->argument;
    else if (a->what == DELAY)
        n->delay_ms = a->argument;
    else if (a->what == KILL && !target->script.hit)
        target->script.hit = target->script.steps;
}

static int is_due(const struct action *a)
{
    const struct script *script = &target->script;

    if (!a->step)
        return now_us() >= due_at(a);
    if (a->step < HIT)
        return script->steps >= a->step;
    return script->hit && script->steps - script->hit > a->step - HIT;
}

/* What is due, in order. Who is to be killed waits for it, without the lock. */
static void script_run(void)
{
    struct script *script = &target->script;
    uint32_t i, is_killed = 0;

    lock();
    for (i = 0; i < script->actions % (ACTIONS + 1); i++) {
        struct action *a = &script->action[i];

        if (!a->done_at && is_due(a)) {
            act(a);
            is_killed |= a->what == KILL;
        }
    }
    unlock();
    if (is_killed)
        __atomic_store_n(&script->killed, 1, __ATOMIC_RELEASE);
    while (__atomic_load_n(&script->killed, __ATOMIC_ACQUIRE))
        sleep_ms(1);
}

static void script_step(void)
{
    __atomic_add_fetch(&target->script.steps, 1, __ATOMIC_ACQ_REL);
    script_run();
}

/* Its queue is stopped, without a timer. Returns whether it is gone. */
static int wait_for_transport(struct nexus *n)
{
    uint64_t next;

    while (n->state == BLOCKED || n->state == QUIESCE) {
        next = script_next();
        if (speed) {
            sleep_ms(10);
            script_run();
        } else if (next != NEVER) {
            pass_until(next);
        } else {
            target->script.stuck++;
            target->script.skipped += 600 * UINT64_C(1000000);
            n->state = TRANSPORT_OFFLINE;
        }
    }
    return n->state != RUNNING;
}

static int sim_sg_io(unsigned int self, struct sg_io_hdr *hdr)
{
    struct nexus *n = &target->nexus[self];
    int error, is_gone, is_late;
    uint64_t begin = now_us();
    uint32_t number, was;

    if (n->call)
        make_call(n);
    lock();
    number = record(n, hdr);
    unlock();
    n->looked = now_us();
    was = n->state;
    if (n->initiator)
        script_step();
    /* From here on, who hangs may be killed. */
    __atomic_add_fetch(&n->in_flight, 1, __ATOMIC_ACQ_REL);
    is_gone = wait_for_transport(n);
    if (was == RUNNING)
        target->script.excused += now_us() - begin;
    is_late = !is_gone && wait_for_device(n, number, hdr->timeout);
    if (!header_valid(hdr)) {
        error = EINVAL;
    } else if (is_gone) {
        error = ENODEV;
        lock();
        record_end(self, hdr, error);
        unlock();
    } else {
        hdr->status = hdr->masked_status = hdr->msg_status = 0;
        hdr->sb_len_wr = 0;
        hdr->host_status = hdr->driver_status = 0;
        hdr->resid = 0;
        lock();
        error = perform(self, hdr, is_late);
        record_end(self, hdr, error);
        unlock();
    }
    __atomic_sub_fetch(&n->in_flight, 1, __ATOMIC_ACQ_REL);
    if (!error)
        return 0;
    errno = error;
    return -1;
}

/* ---- The wrapped calls ------------------------------------------------ */

/*
 * The disks' majors, 16 disks of 16 minors each, in the order of sda, sdb...
 * NEXUSES: it is no SCSI device.
 */
static unsigned int nexus_of_number(unsigned int major_, unsigned int minor_)
{
    unsigned int row;

    if (major_ == 8)
        row = 0;
    else if (major_ >= 65 && major_ <= 71)
        row = major_ - 64;
    else if (major_ >= 128 && major_ <= 135)
        row = major_ - 120;
    else
        return NEXUSES;
    return row * 16 + minor_ / 16 % 16;
}

static unsigned int sim_nexus(const struct stat *st)
{
    if (S_ISCHR(st->st_mode))
        return major(st->st_rdev) == 21 ? minor(st->st_rdev) % NEXUSES
                                        : NEXUSES;
    return nexus_of_number(major(st->st_rdev), minor(st->st_rdev));
}

/* Makes the device that a regular file's size names of it; 0 if none. */
static int sim_device(struct stat *st)
{
    uint64_t size = (uint64_t)st->st_size;

    if (!S_ISREG(st->st_mode) || size >> 30 != 1)
        return 0;
    st->st_mode &= ~(mode_t)S_IFMT;
    st->st_mode |= size & SIM_CHARACTER ? S_IFCHR : S_IFBLK;
    st->st_rdev = makedev(size >> 20 & 0x1ff, size & 0xfffff);
    st->st_size = 0;
    return 1;
}

/* As fstat(), by neither of the names that would come back here. */
static int status_of(int fd, struct stat *st)
{
    return fstatat(fd, "", st, AT_EMPTY_PATH);
}

int __wrap_fstat(int fd, struct stat *st)
{
    int rc = status_of(fd, st);

    if (rc == 0)
        sim_device(st);
    return rc;
}

/* Its name in glibc with _FILE_OFFSET_BITS=64. */
int __wrap_fstat64(int fd, struct stat *st)
{
    return __wrap_fstat(fd, st);
}

int __wrap_ioctl(int fd, unsigned long request, ...)
{
    int saved = errno;
    unsigned int nexus;
    struct stat st;
    va_list ap;
    void *arg;

    va_start(ap, request);
    arg = va_arg(ap, void *);
    va_end(ap);
    if ((unsigned int)request == SG_IO && status_of(fd, &st) == 0
        && sim_device(&st)) {
        if (fcntl(fd, F_GETFL) & O_PATH) {
            errno = EBADF;
            return -1;
        }
        nexus = sim_nexus(&st);
        if (nexus == NEXUSES) {
            __atomic_add_fetch(&target->strays, 1, __ATOMIC_ACQ_REL);
            errno = ENOTTY;
            return -1;
        }
        errno = saved;
        return sim_sg_io(nexus, arg);
    }
    return __real_ioctl(fd, request, arg);
}

int __wrap_prctl(int option, ...)
{
    unsigned long arg[4];
    va_list ap;
    int i;

    va_start(ap, option);
    for (i = 0; i < 4; i++)
        arg[i] = va_arg(ap, unsigned long);
    va_end(ap);
    if (option == PR_SET_DUMPABLE)
        return 0;
    return (int)syscall(SYS_prctl, (long)option, arg[0], arg[1], arg[2],
                        arg[3]);
}

/* ---- What is below SIM_ROOT ------------------------------------------- */

static int begins_with(const char *path, const char *with)
{
    return strncmp(path, with, strlen(with)) == 0;
}

/* Also other devices than disks, that no test may open those of its host. */
static int is_below_root(const char *path)
{
    if (!root || strcmp(path, "/dev/null") == 0)
        return 0;
    return strcmp(path, "/sys") == 0 || strcmp(path, "/dev") == 0
           || begins_with(path, "/sys/") || begins_with(path, "/dev/");
}

/* The nexus of the disk that is called sda...; NEXUSES: of none. */
static unsigned int nexus_of_name(const char *name, size_t length)
{
    unsigned int n = 0;

    if (length < 3 || !begins_with(name, "sd"))
        return NEXUSES;
    for (name += 2, length -= 2; length && n < NEXUSES; name++, length--) {
        if (*name < 'a' || *name > 'z')
            return NEXUSES;
        n = n * 26 + (unsigned int)(*name - 'a') + 1;
    }
    return n > NEXUSES ? NEXUSES : n - 1;
}

/* Of the disk whose node this is. */
static unsigned int nexus_of_node(const char *path)
{
    return begins_with(path, "/dev/")
               ? nexus_of_name(path + 5, strlen(path + 5))
               : NEXUSES;
}

/* Of the disk whose state this is, by its number or as part of a map. */
static unsigned int nexus_of_state(const char *path)
{
    const char *end = strstr(path, "/device/state");
    const char *slave = strstr(path, "/slaves/");
    unsigned int numbers[2] = { 0 }, i;

    if (!begins_with(path, "/sys/dev/block/") || !end
        || strcmp(end, "/device/state") != 0)
        return NEXUSES;
    if (slave)
        return nexus_of_name(slave + 8, (size_t)(end - slave - 8));
    path += 15;
    for (i = 0; i < 2; i++) {
        for (; *path >= '0' && *path <= '9'; path++)
            numbers[i] = numbers[i] * 10 + (unsigned int)(*path - '0');
        path += !i && *path == ':';
    }
    return path == end ? nexus_of_number(numbers[0], numbers[1]) : NEXUSES;
}

/* What the script makes of a file's name; -1 and errno: there is none. */
static int replace(const char **path, char *buffer, size_t size)
{
    unsigned int n = nexus_of_node(*path), state = 0;

    if (n < NEXUSES && target->nexus[n].open_errno) {
        errno = (int)target->nexus[n].open_errno;
        return -1;
    }
    if (n < NEXUSES && target->nexus[n].open_other) {
        n = target->nexus[n].open_other;
        snprintf(buffer, size, "/dev/sd%.*s%c", n >= 26,
                 &"abcdefghi"[n / 26 - (n >= 26)], (char)('a' + n % 26));
        *path = buffer;
    }
    n = nexus_of_state(*path);
    if (n < NEXUSES) {
        target->nexus[n].looked = now_us();
        state = target->nexus[n].state;
    }
    if (state && state < STATES) {
        snprintf(buffer, size, "/sys/states/%s", states[state]);
        *path = buffer;
    }
    return 0;
}

/* Returns path itself, or below SIM_ROOT in buffer. */
static const char *below_root(const char *path, char *buffer, size_t size)
{
    if (!is_below_root(path))
        return path;
    if ((size_t)snprintf(buffer, size, "%s%s", root, path) >= size)
        abort();
    return buffer;
}

int __wrap_open(const char *path, int flags, ...)
{
    char buffer[PATH_SIZE], other[64];
    int mode = 0;
    va_list ap;

    if (flags & O_CREAT) {
        va_start(ap, flags);
        mode = va_arg(ap, int);
        va_end(ap);
    }
    if (root && replace(&path, other, sizeof(other)) < 0)
        return -1;
    return openat(AT_FDCWD, below_root(path, buffer, sizeof(buffer)), flags,
                  mode);
}

int __wrap_open64(const char *path, int flags, ...)
{
    int mode = 0;
    va_list ap;

    if (flags & O_CREAT) {
        va_start(ap, flags);
        mode = va_arg(ap, int);
        va_end(ap);
    }
    return __wrap_open(path, flags, mode);
}

int __wrap_stat(const char *path, struct stat *st)
{
    char buffer[PATH_SIZE];
    int rc = fstatat(AT_FDCWD, below_root(path, buffer, sizeof(buffer)), st, 0);

    if (rc == 0 && is_below_root(path))
        sim_device(st);
    return rc;
}

int __wrap_stat64(const char *path, struct stat *st)
{
    return __wrap_stat(path, st);
}

ssize_t __wrap_readlink(const char *path, char *to, size_t size)
{
    char buffer[PATH_SIZE];

    return __real_readlink(below_root(path, buffer, sizeof(buffer)), to, size);
}

/* ---- multipathd ------------------------------------------------------- */

#define SOCKET_NAME "/multipathd.socket"

/* An @ stands for the first byte of an abstract name, which is NUL. */
static int is_named(const char *name, size_t length, const char *wanted)
{
    if (wanted[0] != '@')
        return strcmp(name, wanted) == 0;
    return name[0] == '\0' && length == strlen(wanted)
           && memcmp(name + 1, wanted + 1, length - 1) == 0;
}

static int ends_with(const char *name, const char *with)
{
    size_t length = strlen(name), tail = strlen(with);

    return length >= tail && strcmp(name + length - tail, with) == 0;
}

/* Puts name at offset in the address. */
static void rename_to(struct sockaddr_un *a, size_t offset, const char *name)
{
    size_t length = strlen(name) + 1;

    if (offset + length > sizeof(a->sun_path))
        abort(); /* or a test would talk to the real one */
    memcpy(a->sun_path + offset, name, length);
}

/* Is that where multipathd listens? If its name is fixed, it is below root. */
static int is_multipathd(struct sockaddr_un *a, socklen_t *size)
{
    const char *given = getenv("MULTIPATH_SOCKET_NAME");
    const size_t begin = offsetof(struct sockaddr_un, sun_path);
    const char *fixed = "@/org/kernel/linux/storage/multipathd";
    size_t length = *size - begin;

    if (root && is_named(a->sun_path, length, fixed)) {
        rename_to(a, 1, root);
        *size = (socklen_t)(begin + 1 + strlen(root));
        return 1;
    }
    if (root && strcmp(a->sun_path, "/run" SOCKET_NAME) == 0) {
        rename_to(a, 0, root);
        rename_to(a, strlen(root), "/run" SOCKET_NAME);
        *size = sizeof(*a);
        return 1;
    }
    return ends_with(a->sun_path, SOCKET_NAME)
           || (given && is_named(a->sun_path, length, given));
}

int __wrap_connect(int fd, const struct sockaddr *a, socklen_t size)
{
    union {
        struct sockaddr any;
        struct sockaddr_un un;
        char bytes[sizeof(struct sockaddr_un) + 1]; /* the last is NUL */
    } address;

    if (a->sa_family != AF_UNIX || size > sizeof(address.un))
        return __real_connect(fd, a, size);
    memset(&address, 0, sizeof(address));
    memcpy(&address, a, size);
    if (is_multipathd(&address.un, &size)) {
        multipathd = conversation = fd;
        script_step();
    }
    return __real_connect(fd, &address.any, size);
}

/* Asked once for each connection; the descriptor's number comes again. */
int __wrap_getsockopt(int fd, int level, int option, void *value,
                      socklen_t *size)
{
    int rc = __real_getsockopt(fd, level, option, value, size);
    struct ucred peer;

    if (rc < 0 || fd != multipathd || level != SOL_SOCKET
        || option != SO_PEERCRED || *size != sizeof(peer))
        return rc;
    multipathd = -1;
    memcpy(&peer, value, sizeof(peer));
    peer.uid = multipathd_uid;
    memcpy(value, &peer, sizeof(peer));
    return 0;
}
