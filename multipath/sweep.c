/* SPDX-License-Identifier: MIT */
/*
 * sweep.c - a command on all paths of a map: how often it is repeated, when
 * that is enough, and what is undone if it is not.
 *
 * It must never repeat a registration whose answer was lost where a rival may
 * have removed it since, nor end well while a path that the kernel may use
 * has not taken the command.
 */
#include "multipath.h"

void all_due(struct map *map)
{
    unsigned i;

    for (i = 0; i < map->count; i++)
        map->paths[i].verdict = map->paths[i].is_reported
                                        || map->paths[i].seen.is_failed
                                    ? ASIDE
                                    : DUE;
}

unsigned count_of(const struct map *map, enum verdict verdict)
{
    unsigned i, count = 0;

    for (i = 0; i < map->count; i++)
        count += map->paths[i].verdict == verdict;
    return count;
}

void answer_undone(struct map *map)
{
    if (count_of(map, CONFLICT) > 0)
        map_answer(map, RESERVATION_CONFLICT);
    else
        map_fail(map, "no path is usable");
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
           || (verdict == NOT_TAKEN && path->is_answered
               && map->answer.status == CHECK_CONDITION && key == NOT_READY
               && (code == 0x040b || code == 0x040c))
           || path_is_left_out(map, path);
}

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
    bool is_wide = key != NULL && map->witness != NULL
                   && (request->data[LIST_FLAGS] & ALL_TG_PT) != 0;
    uint16_t code;
    uint8_t sense;

    path->verdict = CONFLICT;
    if ((path->is_lost || is_wide) && key != NULL)
        path->verdict = path_prove(map, path, key);
    /*
     * The witness would get its key back with that of a path of the same
     * initiator; but then this has had it as long as the witness.
     */
    if (path->verdict == CONFLICT && is_wide && witness_ask(map, key) != DONE) {
        map->is_doubtful = true;
        return false;
    }
    if (path->verdict == CONFLICT) {
        path->verdict = path_register(map, path, request);
        path->is_new =
            path->is_new
            || (key != NULL
                && (path->verdict == DONE || path->verdict == REFUSED));
    }
    path->is_lost = path->verdict == LOST && is_register(request);
    /* Who says that it is not ready, and is not used, has not taken it. */
    if (path->is_lost && key != NULL && map->witness == NULL
        && !(path->is_answered && path_is_left_out(map, path))
        && !path_is_clear(map, path, request, key)) {
        map->is_doubtful = true;
        map_fail(map,
                 "%s has lost its answer, and what has come of it cannot "
                 "be told",
                 path->name);
        return false;
    }
    if (path->verdict == DONE || path->verdict == LOST)
        request_cut(request);
    if (path->verdict == CONFLICT && map->witness != NULL && key != NULL
        && path_prove(map, path, key) == DONE)
        path->verdict = DONE;
    if (path->verdict == DONE && key != NULL && map->witness == NULL)
        map->witness = path;
    sense_get(map->answer.sense, &sense, &code);
    return path->verdict != REFUSED
           || (request->cdb[1] == RELEASE && sense == ILLEGAL_REQUEST);
}

bool sweep(struct map *map, struct request *request,
           const struct multipathd_key *key, int64_t deadline)
{
    struct path *path, *waits;
    bool is_last = false;

    map->pause = PAUSE_LEAST;
    do {
        if (!map_list(map))
            return false;
        waits = NULL;
        for (path = map->paths; path < map->paths + map->count; path++) {
            /* It may have come back, which multipathd need not notice. */
            if (is_last && path->verdict == ASIDE
                && (key == NULL || map->witness != NULL))
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

void keys_take_off(struct map *map, uint64_t key, uint8_t flags)
{
    const struct answer answer = map->answer;
    struct request request;
    unsigned i, refused;

    map_extend(map);
    request_set(&request, REGISTER, 0, key, 0, flags & ALL_TG_PT);
    all_due(map);
    do /* that one path refuses is no reason to leave it on the others */
        refused = count_of(map, REFUSED);
    while (!sweep(map, &request, NULL, map->deadline)
           && count_of(map, REFUSED) > refused);
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
    enum multipathd_flag hold = multipathd_flag_get(&map->multipathd,
                                                    "getprhold");
    unsigned count, paths = map->count;

    if (hold == FLAG_UNSET)
        return HOLDER_OTHER;
    if (hold == FLAG_SET && keys_read(map, key, &count) && count <= paths)
        return HOLDER_GONE;
    map_fail(map,
             "the path that may hold the reservation is gone, and %s: "
             "bring the path back",
             hold == FLAG_SET ? "another host has the same key"
                              : "multipathd does not know (before version "
                                "0.13 none does)");
    return HOLDER_UNKNOWN;
}

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
