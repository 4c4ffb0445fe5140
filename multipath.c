/* SPDX-License-Identifier: MIT */
/*
 * multipath.c - a persistent reservation command on a dm-multipath map: what
 * to send to which path, in what order, what multipathd is to know of it,
 * and what the answer is.
 *
 * A registration belongs to one path (I_T nexus), so a map is registered if
 * all its paths are; a reservation is held through one of them. The guest
 * sees one disk: its answer is the one of the path that decides, unchanged.
 * multipathd registers paths that appear later, if it has been told the key:
 * it is told before the disk is.
 *
 * It must never send a command to a disk that is not, at that moment, a path
 * of the map; answer GOOD for a registration that multipathd does not know
 * of, or that a usable path lacks; or leave a map suspended. It knows no
 * clients, and runs in a process of its own (worker.c).
 */
#include "prhelper.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum {
    PATHS_MOST = 256,
    REPEATS = 5,               /* of a command that met a unit attention */
    SHORT_TIMEOUT = 5000,      /* ms, for a path that has failed */
    SUSPENDED_TIMEOUT = 20000, /* while all I/O waits for us */
    RESUMES_MOST = 60          /* tries, a second apart */
};

enum { /* service actions of PERSISTENT RESERVE OUT, SPC-4 6.16.2 */
       REGISTER,
       RESERVE,
       RELEASE,
       CLEAR,
       PREEMPT,
       PREEMPT_AND_ABORT,
       REGISTER_AND_IGNORE
};

enum {
    READ_KEYS,
    READ_RESERVATION
}; /* of PERSISTENT RESERVE IN, SPC-4 6.15.1 */

enum { /* the parameter list of PERSISTENT RESERVE OUT, SPC-4 6.16.3 */
       LIST_SIZE = 24,
       LIST_FLAGS = 20, /* offset of: */
       SPEC_I_PT = 0x08,
       ALL_TG_PT = 0x04,
       APTPL = 0x01
};

enum { WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7 }; /* and 8: exclusive access */

/* What a path made of the command in hand. */
enum outcome {
    UNTRIED,
    UNUSABLE, /* nothing was done, as far as we know */
    COVERED,  /* not needed: done through another path of the same host */
    DONE,
    CONFLICT,
    FAILED /* with another status, which is the disk's word */
};

struct path {
    char name[32]; /* sdX */
    int fd;        /* -1: not open. It keeps device from becoming another */
    dev_t device;
    bool is_suspect;      /* it has failed us before */
    enum outcome outcome; /* of REGISTER */
    bool is_lost;         /* an answer to it: it may have been done */
    bool was_other;       /* it had another key than the client said */
};

struct map {
    struct pr_command *command; /* the client's */
    dev_t device;
    char name[16]; /* dm-N */
    char alias[ALIAS_SIZE];
    struct suspension *suspension;
    struct multipathd multipathd;
    struct path paths[PATHS_MOST];
    unsigned count;
    /* Of the last command that went to any path: */
    bool is_lost;     /* one has lost its answer, and may have done it */
    bool is_conflict; /* one has said so */
};

/* A PERSISTENT RESERVE OUT on its way to paths. */
struct out {
    uint8_t cdb[10];
    uint8_t *list;
    size_t length;
    uint8_t own_list[LIST_SIZE]; /* for those that are not the client's */
};

/* What the guest is going to be told, kept while other commands are sent. */
struct answer {
    uint8_t status;
    uint8_t sense[PROTOCOL_SENSE_SIZE];
};

struct reservation {
    bool is_held;
    uint64_t key; /* 0 if all registrants hold it */
    uint8_t scope_type;
};

/* LOGICAL UNIT COMMUNICATION FAILURE, which a guest tries again. */
static void fail(struct map *map, const char *reason)
{
    sense_set(map->command, ABORTED_COMMAND, 0x08, 0x00);
    log_warning("%s (%s): %s", map->name, map->alias, reason);
}

static void conflict(struct map *map)
{
    sg_io_good(map->command);
    map->command->status = RESERVATION_CONFLICT;
}

static void answer_keep(struct answer *answer, const struct map *map)
{
    answer->status = map->command->status;
    memcpy(answer->sense, map->command->sense, sizeof(answer->sense));
}

static void answer_give(struct map *map, const struct answer *answer)
{
    map->command->status = answer->status;
    memcpy(map->command->sense, answer->sense, sizeof(answer->sense));
}

/* ---- The map and its paths -------------------------------------------- */

/* Names become words of commands to multipathd. */
static bool is_word(const char *text)
{
    for (; *text != '\0'; text++)
        if (!isgraph((unsigned char)*text) || strchr("\"'\\/", *text) != NULL)
            return false;
    return true;
}

/* A callback of sysfs_slaves(): one more path, unless it is known. */
static bool path_found(void *context, const char *name)
{
    struct map *map = context;
    struct path *path = &map->paths[map->count];
    unsigned i;

    for (i = 0; i < map->count; i++)
        if (strcmp(map->paths[i].name, name) == 0)
            return true;
    if (map->count == PATHS_MOST || strlen(name) >= sizeof(path->name)
        || !is_word(name))
        return false;
    memset(path, 0, sizeof(*path));
    memcpy(path->name, name, strlen(name) + 1);
    path->fd = -1;
    map->count++;
    return true;
}

static void paths_close(struct map *map)
{
    unsigned i;

    for (i = 0; i < map->count; i++)
        if (map->paths[i].fd >= 0)
            close(map->paths[i].fd);
}

/*
 * Is this a path of the map, now, by which commands may be tried? The name
 * in sysfs and the device node of that name can belong to different disks by
 * the time we open it, so the open device is asked.
 */
static bool path_is_ready(const struct map *map, struct path *path)
{
    char holder[32], state[32];
    struct stat st;

    if (path->fd < 0) {
        char node[sizeof("/dev/") + sizeof(path->name)];

        snprintf(node, sizeof(node), "/dev/%s", path->name);
        path->fd = open(node, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        if (path->fd < 0)
            return false;
        if (fstat(path->fd, &st) < 0 || !sg_io_is_disk(&st)) {
            close(path->fd);
            path->fd = -1;
            return false;
        }
        path->device = st.st_rdev;
    }
    snprintf(holder, sizeof(holder), "/holders/%s", map->name);
    return sysfs_has(path->device, holder)
           && sysfs_read(path->device, "/device/state", state, sizeof(state))
           && strcmp(state, "running") == 0;
}

/*
 * Has the path execute a command, whose result is then in it. A unit
 * attention tells a path of something that is not the guest's business.
 */
static enum outcome path_try(struct map *map, struct path *path,
                             struct pr_command *command)
{
    unsigned repeats = 0;
    uint16_t code;
    uint8_t key;

    for (;; repeats++) {
        if (!path_is_ready(map, path))
            break;
        command->fd = path->fd;
        sg_io_execute(command,
                      path->is_suspect                    ? SHORT_TIMEOUT
                      : map->suspension->alias[0] != '\0' ? SUSPENDED_TIMEOUT
                                                          : SG_IO_TIMEOUT,
                      0);
        if (command->unreached) {
            map->is_lost = map->is_lost || command->is_lost;
            break;
        }
        if (command->status == GOOD)
            return DONE;
        if (command->status == RESERVATION_CONFLICT)
            return CONFLICT;
        sense_get(command->sense, &key, &code);
        if (command->status != CHECK_CONDITION
            || (key != UNIT_ATTENTION && key != NOT_READY))
            return FAILED;
        if (key == UNIT_ATTENTION && repeats == REPEATS)
            return FAILED;
        /* NOT READY 04/07: in progress. Any other is for another path. */
        if (key == NOT_READY && (code != 0x0407 || repeats == REPEATS))
            break;
        if (key == NOT_READY)
            nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
    }
    path->is_suspect = true;
    return UNUSABLE;
}

/* The same, and traced. */
static enum outcome path_send(struct map *map, struct path *path,
                              struct pr_command *command)
{
    enum outcome outcome = path_try(map, path, command);
    char result[RESULT_SIZE];

    if (trace_is_on(TRACE_PATH))
        trace(TRACE_PATH, "%s (%s), %s: %04x: %s", map->name, map->alias,
              path->name, be16_get(command->cdb),
              outcome == UNUSABLE ? "unusable"
                                  : report_result(command, result));
    return outcome;
}

/*
 * The first path that answers the command, or NULL: the command has failed.
 * Those that have failed before come last. With is_out, a conflict is not the
 * answer unless it is everybody's: nothing was done, and the path may have
 * come back without having been registered yet. Nor is it where a path has
 * lost its answer and may have done it: tried again, it is.
 */
static struct path *any_send(struct map *map, struct pr_command *command,
                             bool is_out)
{
    bool is_last[PATHS_MOST] = { false }, conflicts = false;
    unsigned i, turn;

    for (i = 0; i < map->count; i++)
        is_last[i] = map->paths[i].is_suspect;
    for (turn = 0; turn < 2; turn++) {
        for (i = 0; i < map->count; i++) {
            enum outcome outcome;

            if (is_last[i] != (turn == 1))
                continue;
            outcome = path_send(map, &map->paths[i], command);
            if (outcome == CONFLICT && is_out)
                conflicts = true;
            else if (outcome != UNUSABLE)
                return &map->paths[i];
        }
    }
    map->is_conflict = conflicts;
    if (!conflicts)
        fail(map, "no path is usable");
    else if (map->is_lost)
        fail(map, "a path's answer was lost");
    else
        conflict(map);
    return NULL;
}

/* ---- PERSISTENT RESERVE OUT, on a path and on any --------------------- */

static void out_set(struct out *out, unsigned action, uint8_t scope_type,
                    uint64_t key, uint64_t action_key, uint8_t flags)
{
    memset(out, 0, sizeof(*out));
    out->cdb[0] = PERSISTENT_RESERVE_OUT;
    out->cdb[1] = (uint8_t)action;
    out->cdb[2] = scope_type;
    out->list = out->own_list;
    out->length = LIST_SIZE;
    out->cdb[8] = LIST_SIZE;
    be64_put(out->list, key);
    be64_put(out->list + 8, action_key);
    out->list[LIST_FLAGS] = flags;
}

/* The client's command, as it came. */
static void out_set_client(struct out *out, const struct pr_command *command)
{
    memset(out, 0, sizeof(*out));
    memcpy(out->cdb, command->cdb, sizeof(out->cdb));
    out->list = command->data;
    out->length = command->length;
}

/* The answer goes where the client's does. */
static void out_aim(struct map *map, const struct out *out)
{
    map->command->cdb = out->cdb;
    map->command->data = out->list;
    map->command->length = out->length;
}

/*
 * A target may want a registration for ALL_TG_PT to be changed in that way
 * only (LIO does). Of the client's own commands that is for it to know.
 */
static enum outcome path_out(struct map *map, struct path *path,
                             const struct out *out)
{
    enum outcome outcome;
    struct out all;
    uint16_t code;
    uint8_t key;

    out_aim(map, out);
    outcome = path_send(map, path, map->command);
    if (outcome != FAILED || out->list != out->own_list
        || out->cdb[1] != REGISTER_AND_IGNORE
        || (out->list[LIST_FLAGS] & ALL_TG_PT) != 0)
        return outcome;
    sense_get(map->command->sense, &key, &code);
    if (key != ILLEGAL_REQUEST)
        return outcome;
    all = *out;
    all.list = all.own_list;
    all.list[LIST_FLAGS] |= ALL_TG_PT;
    out_aim(map, &all);
    return path_send(map, path, map->command);
}

static struct path *any_out(struct map *map, const struct out *out)
{
    map->is_lost = false;
    out_aim(map, out);
    return any_send(map, map->command, true);
}

/* False: nobody answered, or with an error, which is now the answer. */
static bool reservation_read(struct map *map, struct reservation *reservation)
{
    static const uint8_t cdb[10] = { PERSISTENT_RESERVE_IN,
                                     READ_RESERVATION, [8] = LIST_SIZE };
    uint8_t data[LIST_SIZE] = { 0 };

    map->command->cdb = cdb;
    map->command->data = data;
    map->command->length = sizeof(data);
    if (any_send(map, map->command, false) == NULL
        || map->command->status != GOOD)
        return false;
    /* SPC-4 6.15.3: ADDITIONAL LENGTH is 0 or 16. */
    reservation->is_held = map->command->payload >= 22 && data[7] >= 14;
    reservation->key = be64_get(data + 8);
    reservation->scope_type = data[21];
    return true;
}

/* Is the key registered, through whatever path? False: as above. */
static bool keys_have(struct map *map, uint64_t key, bool *has)
{
    static const uint8_t cdb[10] = { PERSISTENT_RESERVE_IN,
                                     READ_KEYS, [7] = PROTOCOL_DATA_MAX >> 8 };
    uint8_t data[PROTOCOL_DATA_MAX];
    size_t at, end;

    *has = false;
    map->command->cdb = cdb;
    map->command->data = data;
    map->command->length = sizeof(data);
    if (any_send(map, map->command, false) == NULL
        || map->command->status != GOOD)
        return false;
    end = 8 + (size_t)be32_get(data + 4); /* SPC-4 6.15.2 */
    if (end > map->command->payload)
        end = map->command->payload;
    for (at = 8; at + 8 <= end; at += 8)
        if (be64_get(data + at) == key)
            *has = true;
    return true;
}

/* ---- The suspended preemption of ourselves ---------------------------- */

enum restored { RESTORED, NOT_RESTORED, FENCED };

/*
 * Registers the other paths again. What fails gets a second chance: the path
 * may have come back. If a path that got its key, or the witness, which has
 * kept it all the time, has lost it when all is done, somebody has preempted
 * us meanwhile, and our keys must not come back. (NULL: there is no witness.)
 */
static enum restored paths_restore(struct map *map, struct path *witness,
                                   const struct multipathd_key *key)
{
    const uint8_t flags = key->aptpl ? APTPL : 0;
    enum outcome outcomes[PATHS_MOST] = { UNTRIED };
    enum restored restored = RESTORED;
    struct out out, proof;
    unsigned i, turn;

    /* multipathd may have registered one that came before the preemption. */
    if (!sysfs_slaves(map->device, path_found, map))
        restored = NOT_RESTORED;
    out_set(&out, REGISTER_AND_IGNORE, 0, 0, key->value, flags);
    out_set(&proof, REGISTER, 0, key->value, key->value, flags);
    for (turn = 0; turn < 2; turn++)
        for (i = 0; i < map->count; i++)
            if (&map->paths[i] != witness && outcomes[i] != DONE)
                outcomes[i] = path_out(map, &map->paths[i], &out);
    for (i = 0; i < map->count; i++)
        if (outcomes[i] >= CONFLICT)
            restored = NOT_RESTORED;
    for (i = 0; i < map->count; i++)
        if ((outcomes[i] == DONE || &map->paths[i] == witness)
            && path_out(map, &map->paths[i], &proof) == CONFLICT)
            restored = FENCED;
    out_set(&out, REGISTER_AND_IGNORE, 0, 0, 0, 0);
    for (i = 0; i < map->count && restored == FENCED; i++)
        if (outcomes[i] == DONE)
            path_out(map, &map->paths[i], &out);
    return restored;
}

/* Until it works, or for a minute. Returns whether it did. */
static bool map_resume(const struct multipathd *multipathd,
                       struct suspension *suspension)
{
    struct multipathd now = *multipathd;
    char alias[ALIAS_SIZE];
    bool is_resumed = false;
    int tries;

    now.alias = suspension->alias;
    for (tries = 0; tries < RESUMES_MOST; tries++) {
        is_resumed = multipathd_resume(&now) == MULTIPATHD_DONE;
        if (is_resumed)
            break;
        if (tries == 0)
            log_error("map %s is suspended and multipathd does not resume it, "
                      "trying again; by hand: dmsetup resume %s",
                      suspension->alias, suspension->alias);
        nanosleep(&(struct timespec){ .tv_sec = 1 }, NULL);
        /* It may have been renamed. */
        if (sysfs_read(suspension->device, "/dm/name", alias, sizeof(alias))
            && alias[0] != '\0' && is_word(alias))
            memcpy(suspension->alias, alias, sizeof(alias));
    }
    if (!is_resumed)
        log_error("map %s stays suspended: dmsetup resume %s",
                  suspension->alias, suspension->alias);
    suspension->alias[0] = '\0';
    return is_resumed;
}

/*
 * Preempts from one path, where that takes our other paths' registrations
 * along: so that no I/O meets them in that state, the map is suspended until
 * they are registered again with key. If that path takes over a reservation,
 * it has a key all the time. With release, it then gives up the reservation.
 */
static void preempt_suspended(struct map *map, const struct out *preempt,
                              const struct multipathd_key *key, bool takes_over,
                              bool release)
{
    enum multipathd_said said;
    struct path *path = NULL;
    bool has, is_released = true;
    struct out out;

    map->suspension->device = map->device;
    memcpy(map->suspension->alias, map->alias, sizeof(map->alias));
    said = multipathd_suspend(&map->multipathd);
    if (said == MULTIPATHD_REFUSED) {
        map->suspension->alias[0] = '\0';
        fail(map, "multipathd refuses to suspend it");
        return;
    }
    if (said == MULTIPATHD_SILENT)
        fail(map, "multipathd does not say if it is suspended");
    else
        path = any_out(map, preempt);
    if (path != NULL && map->command->status == GOOD) {
        out_set(&out, RELEASE, preempt->cdb[2], key->value, 0, 0);
        if (release)
            is_released = path_out(map, path, &out) == DONE;
        switch (paths_restore(map, takes_over ? path : NULL, key)) {
        case FENCED:
            conflict(map);
            break;
        case NOT_RESTORED:
            map->is_lost = true; /* but what was taken over is held */
            fail(map, "a path did not get its key back");
            break;
        default:
            sg_io_good(map->command);
            if (!is_released)
                fail(map, "the reservation is not released");
        }
    } else if (said == MULTIPATHD_DONE && map->is_lost) {
        if (keys_have(map, key->value, &has) && has)
            paths_restore(map, NULL, key);
        fail(map, "a path's answer was lost");
    }
    if (!map_resume(&map->multipathd, map->suspension)) {
        map->is_lost = true; /* likewise */
        fail(map, "it is still suspended");
    }
}

/* ---- The service actions ---------------------------------------------- */

/*
 * RELEASE to every path, as only the one that holds the reservation releases
 * it, and the others say GOOD to that. If it is still there, and multipathd
 * says that it is ours, the path that holds it is gone.
 */
static void map_release(struct map *map, const struct multipathd_key *key,
                        const struct out *out)
{
    unsigned i, done = 0, failed = 0, conflicts = 0;
    struct reservation reservation;
    struct answer failure = { 0 };
    struct out preempt;

    for (i = 0; i < map->count; i++) {
        enum outcome outcome = path_out(map, &map->paths[i], out);

        if (outcome == FAILED && failed++ == 0)
            answer_keep(&failure, map);
        done += outcome == DONE;
        conflicts += outcome == CONFLICT;
    }
    if (done == 0 && failed + conflicts == 0) {
        fail(map, "no path is usable");
        return;
    }
    if (done > 0) {
        if (!reservation_read(map, &reservation))
            return;
        if (!reservation.is_held
            || (reservation.key != key->value && failed == 0)) {
            sg_io_good(map->command);
            multipathd_hold_set(&map->multipathd, false);
            return;
        }
    }
    if (failed > 0) { /* by the holder: of another type, for example */
        answer_give(map, &failure);
        return;
    }
    if (done == 0 || reservation.scope_type != out->cdb[2]) {
        conflict(map);
        return;
    }
    switch (multipathd_hold_get(&map->multipathd)) {
    case HOLD_UNSET: /* another host with the same key */
        sg_io_good(map->command);
        break;
    case HOLD_SET:
        out_set(&preempt, PREEMPT, out->cdb[2], key->value, key->value, 0);
        preempt_suspended(map, &preempt, key, true, true);
        if (map->command->status == GOOD)
            multipathd_hold_set(&map->multipathd, false);
        break;
    default:
        fail(map, "the path that may hold the reservation is gone, and "
                  "multipathd does not know if one does");
    }
}

/*
 * Tells multipathd that this host holds the reservation before the disk makes
 * it so: if a path dies with it, it is known. *was is what it thought before;
 * if that is nothing, because it was started anew, it is told afterwards only,
 * as nobody could make it forget again.
 */
static bool hold_announce(struct map *map, enum multipathd_hold *was)
{
    *was = multipathd_hold_get(&map->multipathd);
    if (*was != HOLD_UNSET
        || multipathd_hold_set(&map->multipathd, true) == MULTIPATHD_DONE)
        return true;
    multipathd_hold_set(&map->multipathd, false);
    fail(map, "multipathd does not take note of the reservation");
    return false;
}

/* The disk has made it so; or has not, for sure. */
static void hold_settle(struct map *map, enum multipathd_hold was, bool holds)
{
    if (was == (holds ? HOLD_UNKNOWN : HOLD_UNSET))
        multipathd_hold_set(&map->multipathd, holds);
}

/*
 * To one path; but a conflict there is not the answer yet, as another one
 * may be the holder, who may repeat RESERVE; and that may be gone.
 */
static void map_reserve(struct map *map, const struct multipathd_key *key,
                        const struct out *out)
{
    bool is_lost, is_conflict, is_known, is_ours;
    struct reservation reservation;
    enum multipathd_hold was;
    struct answer answer;

    if (!hold_announce(map, &was))
        return;
    if (any_out(map, out) != NULL) {
        if (map->command->status == GOOD || !map->is_lost)
            hold_settle(map, was, map->command->status == GOOD);
        return;
    }
    answer_keep(&answer, map);
    is_lost = map->is_lost;
    is_conflict = map->is_conflict;
    is_known = reservation_read(map, &reservation);
    is_ours = is_known && reservation.is_held && reservation.key == key->value
              && reservation.scope_type == out->cdb[2];
    if (is_ours && was == HOLD_SET) {
        sg_io_good(map->command);
        return;
    }
    if (is_known && !is_ours && is_conflict)
        conflict(map);
    else
        answer_give(map, &answer);
    if (!is_lost || (is_known && !is_ours))
        hold_settle(map, was, false);
}

static void map_preempt(struct map *map, const struct multipathd_key *key,
                        const struct out *out)
{
    uint64_t preempted = be64_get(out->list + 8);
    enum multipathd_hold was = HOLD_SET;
    struct reservation reservation;
    bool takes_over, is_own;

    if (!reservation_read(map, &reservation))
        return;
    takes_over = reservation.is_held && reservation.key == preempted;
    is_own = preempted == key->value
             || (preempted == 0 && takes_over
                 && (reservation.scope_type & 0x0f)
                        >= WRITE_EXCLUSIVE_ALL_REGISTRANTS);
    if (takes_over && !hold_announce(map, &was))
        return;
    if (is_own)
        preempt_suspended(map, out, key, takes_over, false);
    else
        any_out(map, out);
    if (takes_over && (map->command->status == GOOD || !map->is_lost))
        hold_settle(map, was, map->command->status == GOOD);
}

/*
 * Makes multipathd forget the key, or, if that is of its configuration, do
 * without. False if it may go on registering it.
 */
static bool key_forget(struct map *map)
{
    struct multipathd_key none = { 0, false }, now;
    enum multipathd_said said = multipathd_key_set(&map->multipathd, &none);

    if (said == MULTIPATHD_SILENT
        || (said == MULTIPATHD_REFUSED
            && (!multipathd_key_get(&map->multipathd, &now) || now.value == 0)))
        return false;
    return multipathd_unregistered(&map->multipathd) == MULTIPATHD_DONE;
}

static void map_clear(struct map *map, const struct out *out)
{
    any_out(map, out);
    if (map->command->status == GOOD && !key_forget(map))
        fail(map, "cleared, but multipathd may still register the key");
}

/* ---- REGISTER, REGISTER AND IGNORE EXISTING KEY ----------------------- */

/* What a REGISTER is about, besides the client's parameter list. */
struct registration {
    struct multipathd_key old; /* multipathd's so far */
    struct multipathd_key new;
    uint64_t previous; /* what the paths are registered with so far */
    bool is_given_up;  /* what we held, of this: */
    uint8_t scope_type;
};

/* The other initiators that it names are registered: not twice. */
static void out_cut(struct out *out)
{
    if ((out->list[LIST_FLAGS] & SPEC_I_PT) == 0)
        return;
    out->list[LIST_FLAGS] &= (uint8_t)~SPEC_I_PT;
    out->length = LIST_SIZE;
    out->cdb[7] = 0;
    out->cdb[8] = LIST_SIZE;
}

/* With ALL_TG_PT a path stands for all of its host. */
static bool is_covered(const struct map *map, struct path *path,
                       const struct out *out)
{
    unsigned i;
    int host;

    if ((out->list[LIST_FLAGS] & ALL_TG_PT) == 0 || !path_is_ready(map, path))
        return false;
    host = sysfs_scsi_host(path->device);
    for (i = 0; i < map->count; i++)
        if (map->paths[i].outcome == DONE && host >= 0
            && sysfs_scsi_host(map->paths[i].device) == host)
            return true;
    return false;
}

/* To one path that it has not been done through. False: it cannot be done. */
static bool path_register(struct map *map, struct path *path, struct out *out)
{
    if (is_covered(map, path, out)) {
        path->outcome = COVERED;
        return true;
    }
    map->is_lost = false;
    path->outcome = path_out(map, path, out);
    path->is_lost = path->is_lost || map->is_lost;
    if (path->outcome == DONE || path->is_lost)
        out_cut(out);
    return path->outcome != FAILED;
}

/*
 * To every path. Once one has accepted the client's key, the others need not
 * have had the same one before. False: that is the answer.
 */
static bool paths_register(struct map *map, struct out *out)
{
    unsigned i, done = 0, conflicts = 0;

    for (i = 0; i < map->count; i++) {
        if (!path_register(map, &map->paths[i], out))
            return false;
        done += map->paths[i].outcome == DONE;
        conflicts += map->paths[i].outcome == CONFLICT;
    }
    if (done == 0) {
        if (conflicts > 0)
            conflict(map);
        else
            fail(map, "no path is usable");
        return false;
    }
    out->cdb[1] = REGISTER_AND_IGNORE;
    for (i = 0; i < map->count; i++) {
        struct path *path = &map->paths[i];

        path->was_other = path->outcome == CONFLICT;
        if (path->was_other
            && (!path_register(map, path, out) || path->outcome == CONFLICT))
            return false;
    }
    return true;
}

/*
 * After all else: paths that failed and may have come back, or that the map
 * has got meanwhile. One that works must not be left out.
 */
static bool paths_recheck(struct map *map, struct out *out)
{
    unsigned i;

    if (!sysfs_slaves(map->device, path_found, map)) {
        fail(map, "cannot list its paths");
        return false;
    }
    for (i = 0; i < map->count; i++) {
        struct path *path = &map->paths[i];

        if (path->outcome <= UNUSABLE
            && (!path_register(map, path, out) || path->outcome == CONFLICT))
            return false;
    }
    return true;
}

/*
 * Back to what was, as far as possible: by REGISTER, so only where the new key
 * is still there, or somebody has preempted us meanwhile. A path that has lost
 * its answer may have had the new key before, if that is multipathd's; or none,
 * unless another path shows that we were registered. Keeps the answer.
 */
static void paths_unregister(struct map *map, const struct registration *r,
                             uint8_t flags)
{
    bool can_tell = r->new.value != 0;
    struct answer answer;
    struct out out;
    unsigned i;

    for (i = 0; i < map->count; i++)
        can_tell = can_tell || map->paths[i].outcome == DONE;
    can_tell = can_tell && r->new.value != r->old.value;
    flags &= ALL_TG_PT;
    if (r->old.aptpl)
        flags |= APTPL;
    answer_keep(&answer, map);
    for (i = 0; i < map->count; i++) {
        struct path *path = &map->paths[i];

        if (path->outcome != DONE && !(path->is_lost && can_tell))
            continue;
        out_set(&out, REGISTER, 0, r->new.value,
                path->was_other ? r->old.value : r->previous, flags);
        if (path_out(map, path, &out) != DONE)
            log_warning("%s (%s): %s may have kept a key that the others do "
                        "not have",
                        map->name, map->alias, path->name);
    }
    if (r->is_given_up) {
        const struct multipathd_key key = { r->previous, false };

        out_set(&out, RESERVE, r->scope_type, r->previous, 0, 0);
        map_reserve(map, &key, &out);
    }
    answer_give(map, &answer);
}

/* Before the disk is: so that no path appears and is not registered. */
static bool key_announce(struct map *map, const struct registration *r)
{
    struct multipathd_key now;

    if (r->new.value == r->old.value && r->new.aptpl == r->old.aptpl)
        return true;
    switch (multipathd_key_set(&map->multipathd, &r->new)) {
    case MULTIPATHD_DONE:
        return true;
    case MULTIPATHD_REFUSED:
        /* It cannot forget a key of its configuration; need not, either. */
        if (r->new.value == 0 && multipathd_key_get(&map->multipathd, &now)
            && now.value == r->old.value)
            return true;
        break;
    default:;
    }
    fail(map, "multipathd does not take the key");
    return false;
}

/* That the map is registered with the key now, or is not any more. */
static bool status_tell(struct map *map, const struct registration *r)
{
    char names[PATHS_MOST * sizeof(((struct path *)0)->name)];
    size_t length = 0;
    unsigned i;

    names[0] = '\0';
    for (i = 0; i < map->count; i++)
        if (map->paths[i].outcome == DONE)
            length += (size_t)snprintf(names + length, sizeof(names) - length,
                                       "%s%u:%u", length > 0 ? " " : "",
                                       major(map->paths[i].device),
                                       minor(map->paths[i].device));
    if (r->new.value != 0
            ? multipathd_registered(&map->multipathd, names) == MULTIPATHD_DONE
            : multipathd_unregistered(&map->multipathd) == MULTIPATHD_DONE)
        return true;
    fail(map, "multipathd does not take note of the registration");
    return false;
}

/* Who unregisters gives up what it holds, also through a path that is gone. */
static bool reservation_give_up(struct map *map, struct registration *r)
{
    const struct multipathd_key key = { r->previous, r->old.aptpl };
    struct reservation reservation;
    struct out release;

    if (r->new.value != 0 || r->previous == 0)
        return true;
    if (!reservation_read(map, &reservation))
        return false;
    if (!reservation.is_held || reservation.key != r->previous)
        return true;
    out_set(&release, RELEASE, reservation.scope_type, r->previous, 0, 0);
    map_release(map, &key, &release);
    r->is_given_up = map->command->status == GOOD;
    r->scope_type = reservation.scope_type;
    return r->is_given_up;
}

/*
 * All paths have a new key. If the old one still holds the reservation, then
 * through a path that is gone: have a live one take it over.
 */
static bool reservation_follow(struct map *map, const struct registration *r)
{
    struct reservation reservation;
    struct out preempt;

    if (r->new.value == 0 || r->new.value == r->previous)
        return true;
    if (!reservation_read(map, &reservation))
        return false;
    if (reservation.is_held && reservation.key == r->new.value)
        return true;
    if (!reservation.is_held || r->previous == 0
        || reservation.key != r->previous) {
        multipathd_hold_set(&map->multipathd, false);
        return true;
    }
    switch (multipathd_hold_get(&map->multipathd)) {
    case HOLD_UNSET: /* another host with the same key */
        return true;
    case HOLD_SET:
        break;
    default:
        fail(map, "the path that may hold the reservation is gone, and "
                  "multipathd does not know if one does");
        return false;
    }
    out_set(&preempt, PREEMPT, reservation.scope_type, r->new.value,
            r->previous, 0);
    any_out(map, &preempt);
    if (map->command->status == GOOD)
        return true;
    fail(map, "the reservation stays with the old key, on a path that is "
              "gone");
    return false;
}

static void map_register(struct map *map, const struct multipathd_key *old,
                         struct out *out)
{
    const uint8_t flags = out->list[LIST_FLAGS];
    struct registration r = {
        .old = *old,
        .new = { be64_get(out->list + 8), (flags & APTPL) != 0 },
    };
    bool is_told = false, has = false;

    if (out->cdb[1] == REGISTER) {
        r.previous = be64_get(out->list);
    } else if (old->value != 0) {
        /* It may be one that multipathd is only configured to have. */
        if (!keys_have(map, old->value, &has))
            return;
        r.previous = has ? old->value : 0;
    }
    if (reservation_give_up(map, &r) && key_announce(map, &r)
        && paths_register(map, out) && reservation_follow(map, &r)) {
        is_told = true;
        if (status_tell(map, &r) && paths_recheck(map, out)) {
            sg_io_good(map->command);
            return;
        }
    }
    paths_unregister(map, &r, flags);
    if (r.new.value != old->value || r.new.aptpl != old->aptpl)
        multipathd_key_set(&map->multipathd, old);
    if (is_told && r.previous == 0)
        multipathd_unregistered(&map->multipathd);
    else if (is_told && r.new.value == 0)
        multipathd_registered(&map->multipathd, "");
}

/* This host shall know nothing of the map's registration any more. */
static void map_cleanup(struct map *map)
{
    struct out out;

    out_set(&out, REGISTER_AND_IGNORE, 0, 0, 0, 0);
    if (!key_forget(map))
        fail(map, "multipathd does not forget the key");
    else if (paths_register(map, &out) && paths_recheck(map, &out))
        sg_io_good(map->command);
}

/* ---- A command on a map ----------------------------------------------- */

static void map_out(struct map *map)
{
    struct multipathd_key key;
    unsigned action;
    struct out out;

    out_set_client(&out, map->command);
    action = out.cdb[1] &= 0x1f;
    if (action > REGISTER_AND_IGNORE) {
        sense_set(map->command, ILLEGAL_REQUEST, 0x24, 0x00);
        return;
    }
    if (out.length < LIST_SIZE) {
        sense_set(map->command, ILLEGAL_REQUEST, 0x1a, 0x00);
        return;
    }
    if (!multipathd_key_get(&map->multipathd, &key)) {
        fail(map, "multipathd does not say which key it has");
        return;
    }
    if (action == REGISTER || action == REGISTER_AND_IGNORE) {
        map_register(map, &key, &out);
        return;
    }
    /* Who is not registered, or with another key, is told so by any disk. */
    if (key.value == 0 || key.value != be64_get(out.list)) {
        conflict(map);
        return;
    }
    if (action == RESERVE)
        map_reserve(map, &key, &out);
    else if (action == RELEASE)
        map_release(map, &key, &out);
    else if (action == CLEAR)
        map_clear(map, &out);
    else
        map_preempt(map, &key, &out);
}

static const char not_a_map[] = "the descriptor is of a device-mapper device "
                                "that is no multipath map";

/* Returns NULL, or why the device is refused. Its paths are not listed yet. */
static const char *map_begin(struct map *map, struct pr_command *command,
                             dev_t device, const char *socket_path,
                             struct suspension *suspension)
{
    char uuid[ALIAS_SIZE + 8];

    memset(map, 0, sizeof(*map));
    map->command = command;
    map->suspension = suspension;
    map->device = device;
    map->multipathd.map = map->name;
    map->multipathd.alias = map->alias;
    map->multipathd.socket_path = socket_path;
    if (!sysfs_read(device, "/dm/uuid", uuid, sizeof(uuid)))
        return "cannot tell what device-mapper device this is";
    if (strncmp(uuid, "mpath-", 6) != 0)
        return not_a_map;
    snprintf(map->name, sizeof(map->name), "dm-%u", minor(device));
    if (!sysfs_read(device, "/dm/name", map->alias, sizeof(map->alias))
        || map->alias[0] == '\0' || !is_word(map->alias))
        return "the name of the multipath map cannot be told to multipathd";
    return NULL;
}

/* Of a device-mapper device that sg_io_vet() has let pass. */
void multipath_execute(struct pr_command *command, dev_t device,
                       const char *socket_path, struct suspension *suspension)
{
    struct map map;
    const char *refusal = map_begin(&map, command, device, socket_path,
                                    suspension);

    command->payload = 0;
    if (refusal == not_a_map && command->cdb[0] == PROTOCOL_CLEANUP)
        sg_io_good(command);
    else if (refusal != NULL)
        sg_io_refuse(command, refusal);
    else if (!sysfs_slaves(device, path_found, &map))
        fail(&map, "cannot list its paths");
    else if (command->cdb[0] == PERSISTENT_RESERVE_IN)
        any_send(&map, command, false);
    else if (command->cdb[0] == PERSISTENT_RESERVE_OUT)
        map_out(&map);
    else
        map_cleanup(&map);
    paths_close(&map);
}

/*
 * Somebody has died who had suspended the map to preempt its own key: does
 * what is left to do. If the key is not there any more, it has been
 * preempted by others, and must not come back.
 */
void multipath_recover(const char *socket_path, struct suspension *suspension)
{
    uint8_t sense[PROTOCOL_SENSE_SIZE];
    struct pr_command command = { .sense = sense };
    struct multipathd_key key;
    struct map map;
    bool has;

    if (map_begin(&map, &command, suspension->device, socket_path, suspension)
            == NULL
        && strcmp(map.alias, suspension->alias) == 0
        && sysfs_slaves(map.device, path_found, &map)
        && multipathd_key_get(&map.multipathd, &key) && key.value != 0
        && keys_have(&map, key.value, &has) && has)
        paths_restore(&map, NULL, &key);
    memcpy(map.alias, suspension->alias, sizeof(map.alias));
    map_resume(&map.multipathd, suspension);
    paths_close(&map);
}
