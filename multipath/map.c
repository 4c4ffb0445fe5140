/* SPDX-License-Identifier: MIT */
/*
 * map.c - a multipath map, its paths as the kernel and multipathd see them,
 * what a path has made of a command, and which of them one may leave out.
 *
 * It must never let a path be left out only because a command has failed on
 * it or we cannot open it: what the kernel may send I/O to counts. A path
 * is known by its name in the map; the device node of that name can belong
 * to another disk by the time we open it, so the open device is asked. After
 * map.deadline nothing more is sent.
 */
#include "multipath.h"

#include "../sockets.h"
#include "../sysfs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define PAUSE_MOST (SECOND / 2)

void map_check(struct map *map, uint8_t key, uint8_t asc)
{
    struct pr_command command = { .sense = map->answer.sense };

    map_answer(map, CHECK_CONDITION);
    sense_set(&command, key, asc, 0x00);
}

bool map_fail(struct map *map, const char *format, ...)
{
    char reason[256];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(reason, sizeof(reason), format, arguments);
    va_end(arguments);
    log_warning("%s (%s): %s", map->name, map->alias, reason);
    /* LOGICAL UNIT COMMUNICATION FAILURE has a guest try again. */
    map_check(map, ABORTED_COMMAND, 0x08);
    return false;
}

void map_answer(struct map *map, uint8_t status)
{
    memset(&map->answer, 0, sizeof(map->answer));
    map->answer.status = status;
}

bool map_wait(struct map *map, int64_t deadline)
{
    if (clock_us() >= deadline)
        return false;
    nanosleep(&(struct timespec){ .tv_nsec = (long)map->pause * 1000 }, NULL);
    map->pause = map->pause < PAUSE_MOST / 2 ? map->pause * 2 : PAUSE_MOST;
    return true;
}

bool map_lock(int lock, dev_t device, int64_t deadline)
{
    struct flock byte = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };

    byte.l_start = minor(device);
    while (lock >= 0 && fcntl(lock, F_SETLK, &byte) < 0)
        if ((errno != EAGAIN && errno != EACCES) || !is_in_time(deadline))
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
    if (map->count == PATHS_MOST || strlen(name) >= sizeof(path->name))
        return false;
    memcpy(path->name, name, strlen(name) + 1);
    strcpy(path->why, "was not asked in time");
    map->count++;
    return true;
}

bool map_list(struct map *map)
{
    if (sysfs_slaves(map->device, path_found, map))
        return true;
    return map_fail(map,
                    "cannot list its paths: more than %d, an odd name, or "
                    "/sys is not to be read",
                    PATHS_MOST);
}

/*
 * Opens the path's node, and so keeps the device from becoming another one.
 * -1: it is not what has that name in the map, and path->why says so.
 */
static int path_open(const struct map *map, struct path *path)
{
    char node[sizeof("/dev/") + sizeof(path->name)];
    char slave[sizeof("/slaves/") + sizeof(path->name)];
    char holder[sizeof("/holders/") + sizeof(map->name)];
    struct stat st;
    int fd;

    snprintf(slave, sizeof(slave), "/slaves/%s", path->name);
    snprintf(holder, sizeof(holder), "/holders/%s", map->name);
    snprintf(node, sizeof(node), "/dev/%s", path->name);
    fd = open(node, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0 && fstat(fd, &st) == 0 && sg_io_is_disk(&st)
        && sysfs_is(map->device, slave, st.st_rdev)
        && sysfs_has(st.st_rdev, holder))
        return fd;
    snprintf(path->why, sizeof(path->why), "has %s, which %s%s", node,
             fd < 0 ? "cannot be opened: "
                    : "is not the disk that has this name in the map",
             fd < 0 ? strerror(errno) : "");
    if (fd >= 0)
        close(fd);
    return -1;
}

/*
 * May a command be sent to this path now (DUE), or why not? In a queue that
 * is blocked it would wait without a limit: its transport has not decided yet
 * whether the path is gone. (State names: drivers/scsi/scsi_sysfs.c in the
 * kernel.)
 */
static enum verdict path_look(const struct map *map, struct path *path)
{
    char name[sizeof("/slaves//device/state") + sizeof(path->name)], state[32];
    int end = snprintf(name, sizeof(name), "/slaves/%s", path->name);
    enum verdict verdict = NOT_TAKEN;

    if (!sysfs_has(map->device, name)) {
        snprintf(path->why, sizeof(path->why), "is no path any more");
        return ASIDE;
    }
    snprintf(name + end, sizeof(name) - (size_t)end, "/device/state");
    if (!sysfs_read(map->device, name, state, sizeof(state)))
        snprintf(state, sizeof(state), "in no known state");
    else if (strcmp(state, "running") == 0)
        return DUE;
    else if (strcmp(state, "blocked") != 0
             && strcmp(state, "created-blocked") != 0
             && strcmp(state, "quiesce") != 0)
        verdict = DOWN;
    snprintf(path->why, sizeof(path->why), "is %s", state);
    return verdict;
}

void map_see(struct map *map)
{
    char table[MULTIPATHD_TEXT];
    unsigned i;

    table[0] = '\0';
    if (clock_us() < map->deadline)
        multipathd_show(&map->multipathd, MULTIPATHD_PATHS, table);
    /* Without a table who had failed is still asked last, but not left out. */
    for (i = 0; i < map->count; i++)
        if (table[0] == '/')
            map->paths[i].seen = multipathd_path(table, map->paths[i].name);
        else
            map->paths[i].seen.is_ready = true;
}

bool path_is_left_out(struct map *map, struct path *path)
{
    enum verdict verdict = path_look(map, path);

    if (verdict != ASIDE)
        map_see(map);
    if (verdict != ASIDE
        && (path->seen.is_ready || !(path->seen.is_failed || verdict == DOWN)))
        return false;
    if (!path->is_reported)
        log_warning("%s (%s): %s is left out: it %s%s", map->name, map->alias,
                    path->name, path->why,
                    verdict != ASIDE ? ", and multipathd has failed it" : "");
    path->is_reported = true;
    return true;
}

enum refusal map_begin(struct map *map, dev_t device, const char *socket_path,
                       struct suspension *suspension)
{
    char uuid[ALIAS_SIZE + 8];

    memset(map, 0, sizeof(*map));
    map_check(map, ABORTED_COMMAND, 0x08); /* until there is another one */
    map->suspension = suspension;
    map->device = device;
    map->deadline = clock_us() + COMMAND_WITHIN;
    map->end = map->deadline + AFTERWARDS_WITHIN;
    map->pause = PAUSE_LEAST;
    map->multipathd = (struct multipathd){
        .map = map->name,
        .alias = map->alias,
        .socket_path = socket_path,
        .deadline = &map->deadline,
    };
    if (!sysfs_read(device, "/dm/uuid", uuid, sizeof(uuid)))
        return NO_UUID;
    if (strncmp(uuid, "mpath-", 6) != 0)
        return NO_MULTIPATH;
    snprintf(map->name, sizeof(map->name), "dm-%u", minor(device));
    if (!sysfs_read(device, "/dm/name", map->alias, sizeof(map->alias)))
        map->alias[0] = '\0';
    return NOT_REFUSED;
}

/* ---- A command on a path ---------------------------------------------- */

/* In milliseconds, of which a block device has 7000 (BLK_MIN_SG_TIMEOUT). */
enum { TIMEOUT_LEAST = 7000, SUSPENDED_LEAST = 1000 };

void request_set(struct request *request, unsigned action, uint8_t scope_type,
                 uint64_t key, uint64_t action_key, uint8_t flags)
{
    memset(request, 0, sizeof(*request));
    request->cdb[0] = PERSISTENT_RESERVE_OUT;
    request->cdb[1] = (uint8_t)action;
    request->cdb[2] = scope_type;
    request->data = request->own_list;
    request->length = LIST_SIZE;
    request->cdb[8] = LIST_SIZE;
    be64_put(request->data, key);
    be64_put(request->data + 8, action_key);
    request->data[LIST_FLAGS] = flags;
}

bool is_register(const struct request *request)
{
    return request->cdb[0] == PERSISTENT_RESERVE_OUT
           && (request->cdb[1] == REGISTER
               || request->cdb[1] == REGISTER_AND_IGNORE);
}

/*
 * In transition, asymmetric access (SPC-4 table 56, ASC 04h) and LOGICAL UNIT
 * NOT SUPPORTED say nothing of the command: it was not looked at.
 */
static const struct {
    uint8_t status;
    uint8_t key;
    uint16_t code; /* 0: any other */
    enum verdict verdict;
} verdicts[] = {
    { GOOD, 0, 0, DONE },
    { RESERVATION_CONFLICT, 0, 0, CONFLICT },
    { BUSY, 0, 0, NOT_TAKEN },
    { TASK_SET_FULL, 0, 0, NOT_TAKEN },
    { CHECK_CONDITION, NOT_READY, 0x0401, NOT_TAKEN }, /* becoming ready */
    { CHECK_CONDITION, NOT_READY, 0x0407, NOT_TAKEN }, /* in progress */
    { CHECK_CONDITION, NOT_READY, 0x040a, NOT_TAKEN }, /* transition */
    { CHECK_CONDITION, NOT_READY, 0x040b, STANDBY },
    { CHECK_CONDITION, NOT_READY, 0x040c, STANDBY }, /* unavailable */
    { CHECK_CONDITION, NOT_READY, 0, UNREADY },
    { CHECK_CONDITION, ILLEGAL_REQUEST, 0x2500, NOT_TAKEN }, /* no such unit */
    { CHECK_CONDITION, ILLEGAL_REQUEST, 0x9401, NOT_TAKEN }, /* RDAC arrays' */
    { CHECK_CONDITION, UNIT_ATTENTION, 0, NOT_TAKEN },
    { CHECK_CONDITION, RECOVERED_ERROR, 0, DONE },
    { CHECK_CONDITION, ABORTED_COMMAND, 0, LOST },
};

static enum verdict verdict_of(const struct pr_command *command)
{
    uint16_t code;
    uint8_t key;
    size_t i;

    if (command->refusal != NOT_REFUSED)
        return UNREADY;
    if (command->is_lost)
        return LOST;
    /* It may be a deferred error, of something earlier: SPC-4 4.5.7. */
    if (command->unreached || (command->sense[0] & 1) != 0)
        return NOT_TAKEN;
    sense_get(command->sense, &key, &code);
    for (i = 0; i < sizeof(verdicts) / sizeof(verdicts[0]); i++)
        if (verdicts[i].status == command->status && verdicts[i].key == key
            && (verdicts[i].code == code || verdicts[i].code == 0))
            return verdicts[i].verdict;
    return REFUSED;
}

/*
 * Returns half of the time that is left, in milliseconds: if this path hangs,
 * there is some for the next. The least is enough for what changes nothing, and
 * for a path that dm has failed.
 */
static unsigned timeout_of(const struct map *map, const struct path *path,
                           const struct request *request)
{
    int64_t half = (map->deadline - clock_us()) / 2000;
    int64_t least = map->suspension->alias[0] != '\0' ? SUSPENDED_LEAST
                                                      : TIMEOUT_LEAST;

    return (unsigned)(half < least || path->seen.is_failed
                              || request->cdb[0] != PERSISTENT_RESERVE_OUT
                          ? least
                          : half);
}

static enum verdict path_execute(struct map *map, struct path *path, int fd,
                                 struct request *request)
{
    struct answer *answer = &map->answer;
    struct pr_command command = {
        .fd = fd,
        .cdb = request->cdb,
        .length = request->length,
        .data = request->data,
        .sense = answer->sense,
    };
    uint8_t *flags = &request->own_list[LIST_FLAGS], key;
    enum verdict verdict;
    char result[RESULT_SIZE];
    uint16_t code;

    sg_io_execute(&command, timeout_of(map, path, request), SG_IO_ATTENTIONS);
    verdict = verdict_of(&command);
    sense_get(answer->sense, &key, &code);
    /* Only to change a key: one that a rival has removed would come back. */
    if (verdict == REFUSED && request->data == request->own_list
        && is_register(request) && key == ILLEGAL_REQUEST
        && (request->cdb[1] == REGISTER || be64_get(request->data + 8) == 0)
        && (*flags & ALL_TG_PT) == 0) {
        *flags |= ALL_TG_PT;
        verdict = path_execute(map, path, fd, request);
        *flags &= (uint8_t)~ALL_TG_PT;
        return verdict;
    }
    if (verdict == DONE)
        map_answer(map, GOOD);
    else
        answer->status = command.status;
    map->generation += verdict == DONE && is_register(request);
    answer->payload = command.payload;
    answer->refusal = command.refusal;
    snprintf(path->why, sizeof(path->why), "answers %s%s",
             result_name(&command, result),
             command.unreached ? ", which is its transport's" : "");
    return verdict;
}

enum verdict path_send(struct map *map, struct path *path,
                       struct request *request)
{
    enum verdict verdict = path_look(map, path);
    int fd = -1;

    if (verdict == ASIDE)
        path_is_left_out(map, path); /* which says so */
    if (verdict == DUE) {
        verdict = NOT_TAKEN;
        snprintf(path->why, sizeof(path->why), "was not asked in time");
        if (clock_us() < map->deadline)
            fd = path_open(map, path);
    }
    if (fd >= 0) {
        verdict = path_execute(map, path, fd, request);
        close(fd);
    }
    if (verdict == LOST && map->lost == NULL)
        map->lost = path;
    trace(TRACE_PATH, "%s (%s), %s: %04x: %s", map->name, map->alias,
          path->name, be16_get(request->cdb), path->why);
    return verdict;
}

enum verdict path_prove(struct map *map, struct path *path)
{
    const struct answer answer = map->answer;
    struct request proof;
    enum verdict verdict;

    request_set(&proof, REGISTER, 0, map->key.value, map->key.value,
                flags_of(map));
    verdict = path_send(map, path, &proof);
    if (verdict != REFUSED)
        map->answer = answer;
    return verdict;
}
