/* SPDX-License-Identifier: MIT */
/*
 * sweep.c - a command on one path of a map, on any of them, and on all: what
 * a path made of it, how often it is repeated, and when that is enough.
 *
 * It must never take a path's failure for an answer of the disk, nor repeat a
 * registration whose answer was lost where a rival may have removed it since.
 * After map.deadline it must send nothing more.
 */
#include "multipath.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

enum {
    TIMEOUT_LEAST = 1000, /* ms */
    TEST_UNIT_READY = 0x00
};

enum {
    READ_KEYS,
    READ_RESERVATION
}; /* of PERSISTENT RESERVE IN, SPC-4 6.15.1 */

#define PAUSE_LEAST (SECOND / 100)

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

static bool is_register(const struct request *request)
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
    if (key == RECOVERED_ERROR)
        return DONE;
    if (is_not_taken(key, code))
        return NOT_TAKEN;
    return key == NOT_READY || key == ABORTED_COMMAND ? LOST : REFUSED;
}

/*
 * Half of the time that is left: if this path hangs, there is some for the
 * next. In milliseconds.
 */
static unsigned timeout_of(const struct map *map)
{
    int64_t half = (map->deadline - clock_us()) / 2000;

    return half < TIMEOUT_LEAST ? TIMEOUT_LEAST : (unsigned)half;
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

    sg_io_execute(&command, timeout_of(map), SG_IO_ATTENTIONS);
    verdict = verdict_of(&command);
    path->is_answered = !command.unreached && !command.is_lost;
    if (command.refusal != NULL)
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

/* Once, but for unit attentions; the answer is in the map. */
enum verdict path_send(struct map *map, struct path *path,
                       const struct request *request)
{
    enum verdict verdict = path_look(map, path);
    bool is_sent = verdict == DUE && clock_us() < map->deadline;

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

/*
 * A target may want a registration for ALL_TG_PT to be changed in that way
 * only (LIO does). Of the client's own commands that is for it to know.
 */
static enum verdict path_register(struct map *map, struct path *path,
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

/*
 * Is the path registered with this key (DONE) or not (CONFLICT)? The answer
 * stays.
 */
enum verdict path_prove(struct map *map, struct path *path,
                        const struct multipathd_key *key)
{
    const struct answer answer = map->answer;
    struct request proof;
    enum verdict verdict;

    request_set(&proof, REGISTER, 0, key->value, key->value,
                key->aptpl ? APTPL : 0);
    verdict = path_register(map, path, &proof);
    map->answer = answer;
    return verdict;
}

/* ---- Any path --------------------------------------------------------- */

/*
 * The path that has answered; or NULL, and the answer is CONFLICT, of all
 * paths that are not left out, or that it has failed. A conflict is not the
 * answer to PERSISTENT RESERVE OUT unless it is everybody's: nothing was done,
 * and the path may have come back without having been registered yet. Nor is
 * NOT READY, for which others may be (LIO says it for some conflicts).
 */
struct path *any_send(struct map *map, const struct request *request)
{
    bool is_out = request->cdb[0] == PERSISTENT_RESERVE_OUT, is_again = false;
    struct path *path, *waits, *last;
    struct answer answer;
    bool conflicts;

    map->is_lost = false;
    map->pause = PAUSE_LEAST;
    for (path = map->paths; path < map->paths + map->count; path++)
        path->said = DUE;
    for (;; is_again = true) {
        waits = last = NULL;
        conflicts = false;
        map->left_out = 0;
        for (path = map->paths; path < map->paths + map->count; path++) {
            if (path->said <= LOST)
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
        if (waits == NULL
            || (map->is_lost && (conflicts || last != NULL)
                && request->cdb[1] != RESERVE))
            break;
        if (!map_wait(map, map->deadline)) {
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
    struct request request = { .data = data, .length = length };

    request.cdb[0] = PERSISTENT_RESERVE_IN;
    request.cdb[1] = action;
    be16_put(request.cdb + 7, (uint16_t)length);
    return any_send(map, &request) != NULL && map->answer.status == GOOD;
}

/* False: nobody answered, or with an error, which is now the answer. */
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

/* How many registrations have the key; and map.generation. False: as above. */
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

/* ---- All paths -------------------------------------------------------- */

/* But those that are left out so far have their turn when the others have. */
void all_due(struct map *map)
{
    unsigned i;

    for (i = 0; i < map->count; i++)
        map->paths[i].verdict = map->paths[i].is_reported ? ASIDE : DUE;
}

unsigned count_of(const struct map *map, enum verdict verdict)
{
    unsigned i, count = 0;

    for (i = 0; i < map->count; i++)
        count += map->paths[i].verdict == verdict;
    return count;
}

/* Standby and the like: up to the command that matters. */
static bool is_settled(struct map *map, struct path *path,
                       const struct request *test)
{
    enum verdict verdict = path_send(map, path, test);
    uint16_t code;
    uint8_t key;

    sense_get(map->answer.sense, &key, &code);
    return verdict >= DONE
           || (verdict == NOT_TAKEN && path->fd >= 0
               && map->answer.status == CHECK_CONDITION && key == NOT_READY
               && (code == 0x040b || code == 0x040c))
           || path_is_left_out(map, path);
}

/*
 * Before anything is changed: waits until no path is blocked or in
 * transition, or is one that multipathd has yet to notice the end of. A key
 * that is changed on one path and, for seconds, not on the other lets a rival
 * preempt the one and miss the other.
 */
bool settle(struct map *map)
{
    const struct request test = { .cdb = { TEST_UNIT_READY } };
    int64_t deadline = clock_us() + SETTLE_WITHIN;
    const struct path *unsettled;
    unsigned i;

    map->pause = PAUSE_LEAST;
    do {
        if (!map_list(map))
            return false;
        unsettled = NULL;
        for (i = 0; i < map->count; i++)
            if (!is_settled(map, &map->paths[i], &test))
                unsettled = &map->paths[i];
        if (unsettled == NULL)
            return true;
    } while (map_wait(map, deadline));
    map_fail(map,
             "nothing was done, as %s %s, and multipathd has not failed "
             "it",
             unsettled->name, unsettled->why);
    return false;
}

/* The initiators that SPEC_I_PT names are registered: not twice. */
static void request_cut(struct request *request)
{
    if (!is_register(request) || (request->data[LIST_FLAGS] & SPEC_I_PT) == 0)
        return;
    request->data[LIST_FLAGS] &= (uint8_t)~SPEC_I_PT;
    request->length = LIST_SIZE;
    request->cdb[7] = 0;
    request->cdb[8] = LIST_SIZE;
}

/*
 * A registration whose answer was lost, when no other path has the key yet
 * that could be the witness. It was done if the path has the key now, and had
 * it not before; it was not done if nothing has happened at all (PRGENERATION,
 * SPC-4 6.15.2), and then it is sent once more. In between a rival may have
 * removed the key, which must not come back.
 */
static bool path_is_clear(struct map *map, struct path *path,
                          struct request *request,
                          const struct multipathd_key *key)
{
    bool is_first = be64_get(request->data) == 0
                    || request->cdb[1] == REGISTER_AND_IGNORE;
    uint32_t generation = map->generation;
    unsigned count;

    do {
        path->verdict = path_prove(map, path, key);
        if (path->verdict == DONE)
            return !path->had_key;
        if (path->verdict == CONFLICT) {
            if (is_first
                && (!keys_read(map, key->value, &count)
                    || map->generation != generation))
                return false;
            path->verdict = path_register(map, path, request);
            if (path->verdict == CONFLICT)
                return is_first;
        }
        if (path->verdict > LOST)
            return true;
    } while (!path_is_left_out(map, path) && map_wait(map, map->deadline));
    return false;
}

/* False: the sweep is at its end, and has failed. */
static bool path_sweep(struct map *map, struct path *path,
                       struct request *request,
                       const struct multipathd_key *key)
{
    path->verdict = CONFLICT;
    if (path->is_lost && key != NULL)
        path->verdict = path_prove(map, path, key);
    if (path->verdict == CONFLICT) {
        path->verdict = path_register(map, path, request);
        path->is_new = path->is_new || (key != NULL && path->verdict == DONE);
    }
    if (path->verdict == DONE || path->verdict == LOST)
        request_cut(request);
    path->is_lost = path->verdict == LOST && is_register(request);
    if (path->is_lost && key != NULL && map->witness == NULL
        && !path_is_clear(map, path, request, key)) {
        map->is_doubtful = true;
        map_fail(map,
                 "%s has lost its answer, and what has come of it cannot "
                 "be told",
                 path->name);
        return false;
    }
    if (path->verdict == CONFLICT && map->witness != NULL && key != NULL
        && path_prove(map, path, key) == DONE)
        path->verdict = DONE;
    if (path->verdict == DONE && key != NULL && map->witness == NULL)
        map->witness = path;
    return path->verdict != REFUSED || request->cdb[1] == RELEASE;
}

/*
 * Sends the command to every path that is DUE, also those that come
 * meanwhile, until each has taken it, says CONFLICT or is left out. With a
 * key, that is what it registers: a path that has it already is done. False:
 * one refuses, or time is up, which is the answer; but with deadline 0 there
 * is one turn only, and no answer.
 */
bool sweep(struct map *map, struct request *request,
           const struct multipathd_key *key, int64_t deadline)
{
    const struct path *waits;
    bool is_last = false;
    unsigned i;

    map->pause = PAUSE_LEAST;
    do {
        if (!map_list(map))
            return false;
        waits = NULL;
        for (i = 0; i < map->count; i++) {
            struct path *path = &map->paths[i];

            /* It may have come back, which multipathd need not notice. */
            if (is_last && path->verdict == ASIDE)
                path->verdict = DUE;
            if (path->verdict > LOST)
                continue;
            if (!path_sweep(map, path, request, key))
                return false;
            if (path->verdict <= LOST && path_is_left_out(map, path))
                path->verdict = ASIDE;
            if (path->verdict <= LOST)
                waits = path;
        }
        if (waits == NULL && is_last)
            return true;
        is_last = waits == NULL;
    } while (deadline != 0 && (waits == NULL || map_wait(map, deadline)));
    if (deadline != 0)
        map_fail(map, "%s does not take the command in time: it %s",
                 waits->name, waits->why);
    return false;
}

/*
 * Has the witness had the key all the time (DONE), or has somebody removed it
 * (CONFLICT)? Anything else: cannot tell. But for DONE the answer says so.
 */
enum verdict witness_ask(struct map *map, const struct multipathd_key *key)
{
    enum verdict verdict = ASIDE;

    map->pause = PAUSE_LEAST;
    while (map->witness != NULL) {
        verdict = path_prove(map, map->witness, key);
        if ((verdict != NOT_TAKEN && verdict != LOST)
            || !map_wait(map, map->deadline))
            break;
    }
    if (verdict != DONE)
        map_fail(map, verdict == CONFLICT
                          ? "somebody has removed our key meanwhile: it is "
                            "taken off all paths"
                          : "cannot tell if our key is still there");
    return verdict;
}

/*
 * Takes a key away that could not be put everywhere, or that somebody has
 * removed elsewhere: only where it is, and nothing comes back in its place.
 * The answer stays.
 */
void keys_take_off(struct map *map, uint64_t key, uint8_t flags)
{
    const struct answer answer = map->answer;
    struct request request;
    unsigned i;

    map_extend(map);
    request_set(&request, REGISTER, 0, key, 0, flags & ALL_TG_PT);
    for (i = 0; i < map->count; i++)
        map->paths[i].verdict = DUE;
    sweep(map, &request, NULL, map->deadline);
    for (i = 0; i < map->count; i++)
        if (map->paths[i].verdict != DONE && map->paths[i].verdict != CONFLICT)
            log_warning("%s (%s): %s may have kept key %llx, which was not "
                        "registered everywhere: it %s",
                        map->name, map->alias, map->paths[i].name,
                        (unsigned long long)key, map->paths[i].why);
    map->answer = answer;
}

/* ---- Who holds -------------------------------------------------------- */

/*
 * multipathd's word, for when a path of ours is gone. That it is us it may
 * have guessed from the key, when it was started anew: so it counts only if
 * there are no more registrations with that key than paths.
 */
static enum holder holder_guess(struct map *map, uint64_t key)
{
    enum multipathd_hold hold = multipathd_hold_get(&map->multipathd);
    unsigned count, paths = map->count;

    if (hold == HOLD_UNSET)
        return HOLDER_OTHER;
    if (hold == HOLD_SET && keys_read(map, key, &count) && count <= paths)
        return HOLDER_GONE;
    map_fail(map,
             "the path that may hold the reservation is gone, and %s: "
             "bring the path back",
             hold == HOLD_SET ? "another host has the same key"
                              : "multipathd does not know (before version "
                                "0.13 none does)");
    return HOLDER_UNKNOWN;
}

/*
 * The holder of the reservation, if it was made with our key. RELEASE of
 * another type does nothing but for the holder, who is told so (SPC-4
 * 5.12.11.2.2; LIO says CONFLICT).
 */
enum holder holder_find(struct map *map, const struct multipathd_key *key,
                        struct reservation *reservation, struct path **path)
{
    struct request probe;
    uint8_t type;
    unsigned i;

    if (!reservation_read(map, reservation))
        return HOLDER_UNKNOWN;
    if (!reservation->is_held || reservation->key == 0
        || reservation->key != key->value)
        return HOLDER_OTHER;
    type = (reservation->scope_type & 0x0f) == WRITE_EXCLUSIVE
               ? EXCLUSIVE_ACCESS
               : WRITE_EXCLUSIVE;
    request_set(&probe, RELEASE, type, key->value, 0, 0);
    all_due(map);
    if (!sweep(map, &probe, NULL, map->deadline))
        return HOLDER_UNKNOWN;
    for (i = 0; i < map->count; i++) {
        *path = &map->paths[i];
        if ((*path)->verdict == REFUSED
            || ((*path)->verdict == CONFLICT
                && path_prove(map, *path, key) == DONE))
            return HOLDER_PATH;
    }
    return count_of(map, ASIDE) == 0 ? HOLDER_OTHER
                                     : holder_guess(map, key->value);
}
