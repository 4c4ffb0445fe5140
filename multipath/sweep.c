/* SPDX-License-Identifier: MIT */
/*
 * sweep.c - a command on any path of a map, or on all of them: when that is
 * enough, and what is undone if it is not; and what the disk says of its
 * registrations.
 *
 * It must never repeat a registration whose answer was lost where a rival may
 * have removed it since, nor end well while a path that the kernel may use
 * has not taken the command.
 */
#include "multipath.h"

/* Does it register a key, rather than take one off? */
static bool is_registration(const struct request *request)
{
    return is_register(request) && be64_get(request->data + 8) != 0;
}

void all_due(struct map *map)
{
    struct path *path;

    for (path = map->paths; path < map->paths + map->count; path++)
        path->verdict = path->is_reported || path->seen.is_failed ? ASIDE : DUE;
}

unsigned count_of(const struct map *map, enum verdict verdict)
{
    unsigned i, count = 0;

    for (i = 0; i < map->count; i++)
        count += map->paths[i].verdict == verdict;
    return count;
}

bool answer_undone(struct map *map)
{
    if (count_of(map, CONFLICT) == 0)
        return map_fail(map,
                        "no path is usable: %s %s: bring one back, see "
                        "'multipathd show paths'",
                        map->count > 0 ? map->paths->name : "there is",
                        map->count == 0 ? "none"
                        : map->paths->seen.is_failed
                            ? "was failed by multipathd"
                            : map->paths->why);
    map_answer(map, RESERVATION_CONFLICT);
    return false;
}

void key_conflict(struct map *map, uint64_t key, uint64_t registered)
{
    map_fail(map,
             "a conflict: the command has key 0x%llx, and this host 0x%llx: "
             "register anew, by REGISTER AND IGNORE",
             (unsigned long long)key, (unsigned long long)registered);
    map_answer(map, RESERVATION_CONFLICT);
}

bool paths_visit(struct map *map, visit *how, struct request *request)
{
    bool is_settling = request->cdb[0] == TEST_UNIT_READY, is_last = false;
    bool is_out = request->cdb[0] == PERSISTENT_RESERVE_OUT;
    int64_t deadline = map->deadline - (is_settling ? CHANGE_WITHIN : 0);
    /* What dm has failed may hang: it has a part of the time that is left. */
    int64_t tried_by = clock_us() + (map->deadline - clock_us()) / 4;
    struct path *path, *waits;

    map->pause = PAUSE_LEAST;
    do {
        waits = NULL;
        if (!map_list(map))
            return false;
        for (path = map->paths; path < map->paths + map->count; path++) {
            if (is_last && path->verdict == ASIDE && !is_settling
                && (!is_registration(request) || map->witness != NULL)
                && !(is_out && (path->is_reported || clock_us() > tried_by)
                     && path_is_left_out(map, path)))
                path->verdict = DUE;
            if (path->verdict < ASIDE && !how(map, path, request))
                return false;
        }
        for (path = map->paths; path < map->paths + map->count; path++) {
            if (path->verdict < ASIDE && path_is_left_out(map, path))
                path->verdict = ASIDE;
            if (path->verdict <= LOST)
                waits = path;
        }
        if (waits == NULL && is_last)
            return true;
        is_last = waits == NULL;
    } while (waits == NULL || map_wait(map, deadline));
    return map_fail(map,
                    is_settling ? "nothing was done, as %s %s, and multipathd "
                                  "has not failed it"
                                : "%s does not take the command in time: it %s",
                    waits->name, waits->why);
}

/* ---- Any path --------------------------------------------------------- */

/*
 * If a path may have done it, another cannot tell that from what somebody else
 * has done; but RESERVE may be repeated. What was released somebody may have
 * reserved since.
 */
static bool path_try(struct map *map, struct path *path,
                     struct request *request)
{
    bool is_out = request->cdb[0] == PERSISTENT_RESERVE_OUT;

    path->verdict = path_send(map, path, request);
    if (path->verdict == UNREADY)
        map->unready = map->answer;
    if (path->verdict >= DONE && (path->verdict != CONFLICT || !is_out)) {
        map->answered = path;
        return false;
    }
    return map->lost == NULL || !is_out || request->cdb[1] == RESERVE
           || (request->cdb[1] != RELEASE
               && count_of(map, CONFLICT) + count_of(map, UNREADY) == 0);
}

struct path *any_send(struct map *map, struct request *request)
{
    const int64_t deadline = map->deadline;

    /* While it is suspended there is little time for that. */
    if (map->suspension->alias[0] != '\0')
        map->deadline = sooner(deadline, clock_us() + SECOND);
    if (request->cdb[0] == PERSISTENT_RESERVE_OUT)
        map_see(map);
    map->deadline = deadline;
    map->lost = NULL;
    map->answered = NULL;
    all_due(map);
    if (!paths_visit(map, path_try, request)
        && (map->answered != NULL || map->lost == NULL))
        return map->answered;
    if (map->lost != NULL)
        map_fail(map,
                 "%s has lost its answer, and the others have not done it: "
                 "repeat it",
                 map->lost->name);
    else if (count_of(map, UNREADY) > 0)
        map->answer = map->unready;
    else
        answer_undone(map);
    return NULL;
}

/*
 * What is shorter than its ADDITIONAL LENGTH says (SPC-4 6.15.2, 6.15.3) does
 * not tell what is not there.
 */
bool in_read(struct map *map, struct path *path, uint8_t action, uint8_t *data,
             size_t length)
{
    struct request request = { .cdb = { PERSISTENT_RESERVE_IN, action },
                               .length = length };

    request.data = data;
    be16_put(request.cdb + 7, (uint16_t)length);
    if (path != NULL
            ? path_send(map, path, &request) != DONE
            : any_send(map, &request) == NULL || map->answer.status != GOOD)
        return false;
    path = path != NULL ? path : map->answered;
    return 8 + (uint64_t)be32_get(data + 4) <= map->answer.payload
           || map_fail(map,
                       "%s has not read all reservations or registrations: "
                       "has it more than %zu bytes of them?",
                       path->name, length);
}

bool reservation_read(struct map *map)
{
    uint8_t data[LIST_SIZE] = { 0 };

    map_see(map); /* what dm has failed may hang: the others first */
    if (!in_read(map, NULL, READ_RESERVATION, data, sizeof(data)))
        return false;
    map->reservation.is_held = be32_get(data + 4) != 0;
    map->reservation.key = be64_get(data + 8);
    map->reservation.scope_type = data[21];
    map->reservation.generation = be32_get(data);
    return true;
}

int keys_read(struct map *map, struct path *path, uint64_t key)
{
    uint8_t data[STATUS_SIZE];
    size_t at, end;
    int count = 0;

    if (!in_read(map, path, READ_KEYS, data, sizeof(data)))
        return -1;
    map->generation = be32_get(data);
    end = 8 + (size_t)be32_get(data + 4);
    for (at = 8; at + 8 <= end; at += 8)
        count += be64_get(data + at) == key;
    return count;
}

/* ---- All paths -------------------------------------------------------- */

static bool path_settle(struct map *map, struct path *path,
                        struct request *request)
{
    path->verdict = path_send(map, path, request);
    if (path->verdict == UNREADY || path->verdict == ASIDE)
        path->verdict = NOT_TAKEN;
    else if (path->verdict == STANDBY || path->verdict > ASIDE)
        path->verdict = DONE; /* the command that matters will tell */
    return true;
}

bool settle(struct map *map)
{
    struct request test = { .cdb = { TEST_UNIT_READY } };

    map_see(map); /* what dm has failed may hang: it is not waited for */
    do {
        all_due(map);
        if (!paths_visit(map, path_settle, &test))
            return false;
    } while (map->pause != PAUSE_LEAST); /* it was waited for one */
    return true;
}

/* The initiators that SPEC_I_PT names are registered now: once is enough. */
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
 * Finds out about a registration whose answer was lost, when no other path has
 * the key yet that could be the witness. It was done if the path has it now and
 * had it not before; it was not if nothing has happened at all (PRGENERATION,
 * SPC-4 6.15.2), and then it is sent once more. In between a rival may have
 * removed the key, which must not come back.
 */
static bool path_is_clear(struct map *map, struct path *path,
                          struct request *request)
{
    bool is_first = be64_get(request->data) == 0
                    || request->cdb[1] == REGISTER_AND_IGNORE;
    uint32_t generation = map->generation;

    do {
        path->verdict = path_prove(map, path);
        if (path->verdict == DONE)
            return !path->had_key || request->cdb[1] == REGISTER_AND_IGNORE;
        if (path->verdict == CONFLICT) {
            if (is_first
                && (keys_read(map, path, map->key.value) < 0
                    || map->generation != generation))
                return false;
            path->verdict = path_send(map, path, request);
            if (path->verdict == CONFLICT)
                return is_first
                       || (keys_read(map, path, map->key.value) >= 0
                           && map->generation == generation);
        }
        if (path->verdict >= ASIDE)
            return true;
    } while (!path_is_left_out(map, path) && map_wait(map, map->deadline));
    return false;
}

static bool path_sweep(struct map *map, struct path *path,
                       struct request *request)
{
    bool registers = is_registration(request), is_lost;
    struct answer answer;
    struct path refused;
    uint32_t generation = map->generation;
    bool is_wide = registers && map->witness != NULL
                   && (request->data[LIST_FLAGS] & ALL_TG_PT) != 0;

    /*
     * To register this path would give a witness of the same initiator a key
     * back that it has lost; but such a path has had it as long as the witness.
     */
    path->verdict = is_wide ? path_prove(map, path) : CONFLICT;
    if (path->verdict == CONFLICT && is_wide && witness_ask(map) != DONE)
        return false;
    if (path->verdict == CONFLICT)
        path->verdict = path_send(map, path, request);
    is_lost = path->verdict == LOST || path->verdict == UNREADY;
    path->is_changed |= is_lost || path->verdict == DONE
                        || (registers && path->verdict == REFUSED);
    /* Who says that it is not ready, and is not used, has not taken it. */
    if (is_lost && registers && map->witness == NULL
        && !(path->verdict == UNREADY && path_is_left_out(map, path))
        && !path_is_clear(map, path, request)) {
        /* It counts one itself, if it was done; then nobody else was there. */
        map->deadline = map->end - AFTERWARDS_WITHIN / 2;
        map->is_doubtful = map->last == NULL || map->last == path
                           || keys_read(map, map->last, map->key.value) < 0
                           || map->generation - generation > 1;
        return map_fail(
            map,
            "%s has lost its answer, and what has come of it cannot "
            "be told: repeat it",
            path->name);
    }
    /* It may have the new key already, also if an answer was lost. */
    if (path->verdict == CONFLICT && map->witness != NULL && registers) {
        path->verdict = path_prove(map, path);
        /* It had the older one: so that was done, and counted. */
        map->generation += path == map->last && path->verdict == DONE;
        /* Or it has lost its older one since, if anybody else was there. */
        if (path->verdict == CONFLICT && path->is_late && !is_wide
            && !path_is_left_out(map, path))
            path->had_older |= keys_read(map, path, 0) < 0
                               || map->generation != generation;
    }
    /* Or by ALL_TG_PT, and is refused without that; or that is the answer. */
    if (path->verdict == REFUSED && map->witness != NULL && registers) {
        answer = map->answer;
        refused = *path;
        path->verdict = path_prove(map, path);
        if (path->verdict != DONE) {
            map->answer = answer;
            *path = refused;
        }
    }
    if (path->verdict == DONE || path->verdict == LOST)
        request_cut(request);
    if (path->verdict == UNREADY)
        path->verdict = LOST;
    /* It ends the command, whose answer may be another one. */
    if (path->verdict == REFUSED)
        log_warning("%s (%s): %s refuses a registration: it %s", map->name,
                    map->alias, path->name, path->why);
    if (path->verdict == DONE && registers && map->witness == NULL)
        map->witness = path;
    return path->verdict != REFUSED;
}

bool sweep(struct map *map, struct request *request)
{
    return paths_visit(map, path_sweep, request);
}

enum verdict witness_ask(struct map *map)
{
    struct path *witness = map->witness;
    enum verdict verdict;

    map->pause = PAUSE_LEAST;
    do
        verdict = witness->verdict = path_prove(map, witness);
    while (verdict < ASIDE && map_wait(map, map->deadline));
    if (verdict == DONE)
        return DONE;
    map->is_doubtful = true;
    map_fail(map,
             verdict == CONFLICT ? "%s has lost our key, which somebody has "
                                   "removed: it is taken off all paths"
                                 : "%s %s, so that nobody knows if our key is "
                                   "still there: repeat it",
             witness->name, witness->why);
    return verdict;
}

bool keys_take_off(struct map *map, uint64_t key, uint8_t flags)
{
    const struct answer answer = map->answer;
    const int64_t least = clock_us() + SECOND;
    struct request request;
    unsigned i, refused;

    if (map->suspension->alias[0] == '\0')
        map->deadline = map->end > least ? map->end : least;
    request_set(&request, REGISTER, 0, key, 0, flags & (ALL_TG_PT | APTPL));
    /* Who has not answered may hang: the others have their turn before. */
    for (i = 0; i < map->count; i++)
        map->paths[i].seen.is_failed |= map->paths[i].verdict < ASIDE;
    all_due(map);
    do /* that one path refuses is no reason to leave it on the others */
        refused = count_of(map, REFUSED);
    while (!sweep(map, &request) && count_of(map, REFUSED) > refused);
    for (i = 0; i < map->count; i++)
        if (map->paths[i].verdict != DONE && map->paths[i].verdict != CONFLICT)
            log_warning("%s (%s): %s may have kept key %llx, which was not "
                        "registered everywhere: it %s",
                        map->name, map->alias, map->paths[i].name,
                        (unsigned long long)key, map->paths[i].why);
    map->answer = answer;
    return count_of(map, DONE) + count_of(map, CONFLICT) == map->count;
}
