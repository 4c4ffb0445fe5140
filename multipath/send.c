/* SPDX-License-Identifier: MIT */
/*
 * send.c - a command on one path of a map, or on any of them: what a path has
 * made of it, and what the disk says of its registrations.
 *
 * It must never take a path's failure for an answer of the disk. After
 * map.deadline it must send nothing more.
 */
#include "multipath.h"

#include <stdio.h>
#include <string.h>

/* In milliseconds. A block device has no less (BLK_MIN_SG_TIMEOUT). */
enum { TIMEOUT_LEAST = 7000, SUSPENDED_LEAST = 1000 };

/* ---- One path --------------------------------------------------------- */

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
    return request->cdb[1] == REGISTER
           || request->cdb[1] == REGISTER_AND_IGNORE;
}

/*
 * In transition, asymmetric access (SPC-4 table 56, ASC 04h) and LOGICAL UNIT
 * NOT SUPPORTED say nothing of the command: it was not looked at.
 */
static bool is_not_taken(uint8_t key, uint16_t code)
{
    switch (code) {
    case 0x0401: /* becoming ready */
    case 0x0407: /* an operation is in progress */
    case 0x040a: /* asymmetric access state transition */
    case 0x040b: /* standby */
    case 0x040c: /* unavailable */
        return key == NOT_READY;
    case 0x2500: /* logical unit not supported */
    case 0x9401: /* the same, of RDAC arrays */
        return key == ILLEGAL_REQUEST;
    default:
        return key == UNIT_ATTENTION;
    }
}

static enum verdict verdict_of(const struct pr_command *command)
{
    uint16_t code;
    uint8_t key;

    if (command->is_lost)
        return LOST;
    if (command->unreached)
        return NOT_TAKEN;
    switch (command->status) {
    case GOOD:
        return DONE;
    case RESERVATION_CONFLICT:
        return CONFLICT;
    case BUSY:
    case TASK_SET_FULL:
        return NOT_TAKEN;
    case CHECK_CONDITION:
        break;
    default:
        return REFUSED;
    }
    sense_get(command->sense, &key, &code);
    /* A deferred error, of something earlier: SPC-4 4.5.7. */
    if (is_not_taken(key, code) || (command->sense[0] & 1) != 0)
        return NOT_TAKEN;
    if (key == RECOVERED_ERROR)
        return DONE;
    return key == NOT_READY || key == ABORTED_COMMAND ? LOST : REFUSED;
}

/*
 * Half of the time that is left: if this path hangs, there is some for the
 * next. The least is enough for what changes nothing, and for a path that dm
 * has failed. In milliseconds.
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

static enum verdict path_execute(struct map *map, struct path *path,
                                 const struct request *request)
{
    struct answer *answer = &map->answer;
    struct pr_command command = {
        .fd = path->fd,
        .cdb = request->cdb,
        .length = request->length,
        .data = request->data,
        .sense = answer->sense,
    };
    enum verdict verdict;
    char result[RESULT_SIZE];
    uint16_t code;
    uint8_t key;

    sg_io_execute(&command, timeout_of(map, path, request), SG_IO_ATTENTIONS);
    verdict = verdict_of(&command);
    sense_get(answer->sense, &key, &code);
    path->is_answered = !command.unreached && !command.is_lost
                        && (verdict != LOST || key != ABORTED_COMMAND
                            || command.refusal != NOT_REFUSED);
    if (command.refusal != NOT_REFUSED)
        map->refusal = command.refusal;
    if (verdict == DONE)
        map_answer(map, GOOD);
    answer->status = verdict == DONE ? GOOD : command.status;
    answer->payload = command.payload;
    snprintf(path->why, sizeof(path->why), "answers %s%s",
             report_result(&command, result),
             command.unreached ? ", which is its transport's" : "");
    return verdict;
}

enum verdict path_send(struct map *map, struct path *path,
                       const struct request *request)
{
    enum verdict verdict = path_look(map, path);
    bool is_sent = verdict == DUE && clock_us() < map->deadline;

    path->is_answered = false;
    if (is_sent) {
        verdict = path_execute(map, path, request);
    } else if (verdict == DUE) {
        verdict = NOT_TAKEN;
        snprintf(path->why, sizeof(path->why), "was not asked in time");
    }
    if (verdict == LOST && !path->is_answered)
        map->is_lost = true;
    trace(TRACE_PATH, "%s (%s), %s: %04x: %s", map->name, map->alias,
          path->name, be16_get(request->cdb), path->why);
    return verdict;
}

enum verdict path_register(struct map *map, struct path *path,
                           const struct request *request)
{
    enum verdict verdict = path_send(map, path, request);
    struct request all;
    uint16_t code;
    uint8_t key;

    sense_get(map->answer.sense, &key, &code);
    if (verdict != REFUSED || request->data != request->own_list
        || !is_register(request) || key != ILLEGAL_REQUEST
        || (request->data[LIST_FLAGS] & ALL_TG_PT) != 0)
        return verdict;
    all = *request;
    all.data = all.own_list;
    all.data[LIST_FLAGS] |= ALL_TG_PT;
    return path_send(map, path, &all);
}

enum verdict path_prove(struct map *map, struct path *path,
                        const struct multipathd_key *key)
{
    const struct answer answer = map->answer;
    struct request proof;
    enum verdict verdict;

    request_set(&proof, REGISTER, 0, key->value, key->value,
                key->aptpl ? APTPL : 0);
    verdict = path_register(map, path, &proof);
    if (verdict != REFUSED)
        map->answer = answer;
    return verdict;
}

/* ---- Any path --------------------------------------------------------- */

struct path *any_send(struct map *map, const struct request *request)
{
    bool is_out = request->cdb[0] == PERSISTENT_RESERVE_OUT, is_again = false;
    /* What was released somebody may have reserved since. */
    bool is_once = is_out && request->cdb[1] == RELEASE;
    struct path *path, *waits, *last;
    struct answer answer;
    bool conflicts;

    map->is_lost = false;
    map->pause = PAUSE_LEAST;
    if (is_out)
        map_see(map);
    for (path = map->paths; path < map->paths + map->count; path++)
        path->said = DUE;
    for (;; is_again = true) {
        waits = last = NULL;
        conflicts = false;
        map->left_out = 0;
        for (path = map->paths;
             path < map->paths + map->count && !(is_once && map->is_lost);
             path++) {
            /* What dm has failed may hang. */
            if (path->said <= LOST && (is_again || !path->seen.is_failed))
                path->said = path_register(map, path, request);
            if (path->said >= DONE && !(is_out && path->said == CONFLICT))
                return path;
            if (path->said <= LOST && is_again && path_is_left_out(map, path))
                path->said = ASIDE;
            map->left_out += path->said == ASIDE;
            conflicts = conflicts || path->said == CONFLICT;
            if (path->said == LOST && path->is_answered) {
                last = path;
                answer = map->answer;
            } else if (path->said <= LOST) {
                waits = path;
            }
        }
        /* Only RESERVE can be told from what it has done if it is repeated. */
        if ((waits == NULL && (last == NULL || is_again))
            || (map->is_lost && (is_once || conflicts || last != NULL)
                && request->cdb[1] != RESERVE))
            break;
        if (!map_wait(map, map->deadline)) {
            if (waits == NULL)
                waits = last;
            map_fail(map, "no path takes the command in time: %s %s",
                     waits->name, waits->why);
            return NULL;
        }
    }
    if (map->is_lost) {
        map_fail(map, "a path has lost its answer, and the others have not "
                      "done it");
    } else if (last != NULL) {
        map->answer = answer;
        return last;
    } else if (map->left_out == map->count) {
        map_fail(map, "no path is usable");
    } else {
        map_answer(map, RESERVATION_CONFLICT);
    }
    return NULL;
}

static bool in_read(struct map *map, uint8_t action, uint8_t *data,
                    size_t length)
{
    struct request request = { .length = length };

    request.data = data;
    request.cdb[0] = PERSISTENT_RESERVE_IN;
    request.cdb[1] = action;
    be16_put(request.cdb + 7, (uint16_t)length);
    return any_send(map, &request) != NULL && map->answer.status == GOOD;
}

bool reservation_read(struct map *map, struct reservation *reservation)
{
    uint8_t data[LIST_SIZE] = { 0 };

    if (!in_read(map, READ_RESERVATION, data, sizeof(data)))
        return false;
    /* SPC-4 6.15.3: ADDITIONAL LENGTH is 0 or 16. */
    reservation->is_held = map->answer.payload >= 22 && data[7] >= 14;
    reservation->key = be64_get(data + 8);
    reservation->scope_type = data[21];
    return true;
}

bool keys_read(struct map *map, uint64_t key, unsigned *count)
{
    uint8_t data[PROTOCOL_DATA_MAX] = { 0 };
    size_t at, end;

    *count = 0;
    if (!in_read(map, READ_KEYS, data, sizeof(data)))
        return false;
    map->generation = be32_get(data);
    end = 8 + (size_t)be32_get(data + 4); /* SPC-4 6.15.2 */
    if (end > map->answer.payload)
        end = map->answer.payload;
    for (at = 8; at + 8 <= end; at += 8)
        *count += be64_get(data + at) == key;
    return true;
}
