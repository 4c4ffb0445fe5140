/* SPDX-License-Identifier: MIT */
/*
 * actions.c - a persistent reservation command on a dm-multipath map: which
 * service action it is, and RESERVE, RELEASE and PREEMPT.
 *
 * It must never say GOOD for a reservation that another host holds, with
 * whatever key, nor take that away.
 */
#include "multipath.h"

#include <string.h>

/* ---- What multipathd is to think of the reservation ------------------- */

/*
 * Tells multipathd that this host holds before the disk makes it so, if it
 * can: it knows then, if the path that holds dies at once. One that was started
 * anew, and has no idea, is told afterwards only, as nobody could make it
 * forget again.
 */
static bool hold_announce(struct map *map, bool can_hold)
{
    map->hold = multipathd_tell(&map->multipathd, "getprhold");
    if (map->hold != MULTIPATHD_UNSET || !can_hold)
        return true;
    map->hold = multipathd_tell(&map->multipathd, "setprhold");
    if (map->hold == MULTIPATHD_DONE)
        return true;
    multipathd_tell(&map->multipathd, "unsetprhold");
    return map_fail(map, NOT_NOTED, "reservation");
}

/*
 * Tells it whether this host holds. False: it has not taken note of that, or
 * may not have, as it says the opposite, or nothing. One that has no such
 * command need not be told.
 */
static bool hold_tell(struct map *map, const char *command,
                      enum multipathd_said opposite)
{
    enum multipathd_said said;

    if (multipathd_tell(&map->multipathd, command) == MULTIPATHD_DONE)
        return true;
    said = multipathd_tell(&map->multipathd, "getprhold");
    return said != MULTIPATHD_SILENT && said != opposite;
}

/*
 * Tells it what came of it; but for GOOD and CONFLICT, the disk is asked. What
 * it does not note would be taken for another host's as soon as the path that
 * holds is gone.
 */
static void hold_settle(struct map *map)
{
    const struct answer answer = map->answer;

    /* Again, as it may have been started anew since it was told. */
    if (answer.status == GOOD
        && !hold_tell(map, "setprhold", MULTIPATHD_UNSET)) {
        map_fail(map, NOT_NOTED, "reservation");
        return;
    }
    if (answer.status != GOOD && map->hold == MULTIPATHD_DONE
        && map->lost == NULL
        && (answer.status == RESERVATION_CONFLICT
            || (reservation_read(map)
                && (!map->reservation.is_held
                    || (map->reservation.key != map->key.value
                        && map->reservation.key != 0)))))
        multipathd_tell(&map->multipathd, "unsetprhold");
    map->answer = answer;
}

/* ---- The service actions ---------------------------------------------- */

/*
 * RESERVE goes to one path; but a conflict there is not the answer yet, as
 * another one may be the holder, who may repeat it, and may be gone.
 */
static void map_reserve(struct map *map, struct request *request)
{
    enum holder holder = HOLDER_OTHER;
    struct answer answer;
    bool is_gone;

    /* If a twin holds, it stays his: multipathd hears of ours afterwards. */
    if (!reservation_read(map)
        || !hold_announce(map, !map->reservation.is_held))
        return;
    if (any_send(map, request) == NULL && map->hold != MULTIPATHD_DONE) {
        is_gone = count_of(map, ASIDE) > 0;
        answer = map->answer;
        if (!reservation_read(map))
            return;
        if (map->reservation.scope_type == request->cdb[2])
            holder = holder_find(map);
        if (holder == HOLDER_UNKNOWN && is_gone)
            return;
        map->answer = answer;
        if (holder > HOLDER_OTHER
            && map->reservation.scope_type == request->cdb[2])
            map_answer(map, GOOD);
    }
    hold_settle(map);
}

/*
 * A worker that was killed as it changed the key may have left it on the path
 * that holds. Returns one that has it, or does not say; NULL: none has.
 */
static struct path *key_find(struct map *map, uint64_t key)
{
    const struct multipathd_key own = map->key;
    struct path *path = map->paths, *end = path + map->count;

    map->key.value = key;
    while (path < end && path_prove(map, path) == CONFLICT)
        path++;
    map->key = own;
    return path < end ? path : NULL;
}

/*
 * What our key holds only the path that holds it releases, and the others say
 * GOOD to that: so it goes to all, and if that is not the end of it, for one
 * was blocked or is gone, it is looked who holds. What all registrants hold
 * any path releases: so it goes to one, as another one could release what
 * somebody has reserved since.
 */
static void map_release(struct map *map, struct request *request)
{
    const struct reservation *reservation = &map->reservation;
    const struct path *lost;
    enum holder holder;
    struct path *path;

    if (!reservation_read(map))
        return;
    if (reservation->is_held && reservation->key == map->key.value
        && (request->cdb[2] & 0x0f) < WRITE_EXCLUSIVE_ALL_REGISTRANTS) {
        all_due(map);
        for (path = map->paths; path < map->paths + map->count; path++)
            if (path->verdict == DUE)
                path->verdict = path_send(map, path, request);
        map_answer(map, GOOD);
        if (count_of(map, CONFLICT) > 0
            && count_of(map, CONFLICT) + count_of(map, ASIDE) == map->count)
            map_answer(map, RESERVATION_CONFLICT);
    } else {
        any_send(map, request);
        lost = map->lost;
        if (lost != NULL
            && (!reservation_read(map)
                || (reservation->is_held && reservation->key == 0)))
            map_fail(map,
                     "%s has lost its answer, and whose the reservation is "
                     "now cannot be told: look who holds it",
                     lost->name);
    }
    if (map->answer.status != GOOD)
        return;
    holder = holder_find(map);
    if (holder == HOLDER_UNKNOWN)
        return;
    map_answer(map, GOOD);
    if (reservation->is_held && reservation->key != 0
        && reservation->key != map->key.value
        && multipathd_tell(&map->multipathd, "getprhold") == MULTIPATHD_SET
        && (path = key_find(map, reservation->key)) != NULL)
        map_fail(map,
                 "%s may hold, with another key, 0x%llx: bring it back, or "
                 "unregister and register anew",
                 path->name, (unsigned long long)reservation->key);
    if (holder == HOLDER_GONE && reservation->scope_type == request->cdb[2]) {
        map->holder = take_over(map);
    } else if (holder == HOLDER_GONE) {
        map_fail(map, "a conflict: a path that is gone holds, with type %u",
                 reservation->scope_type);
        map_answer(map, RESERVATION_CONFLICT);
    }
    path = map->holder;
    if (path != NULL && path_send(map, path, request) < DONE)
        map_fail(map, "it is not released: %s %s: repeat it", path->name,
                 path->why);
    /* It would take the next reservation with this key for ours. */
    if (map->answer.status == GOOD
        && !hold_tell(map, "unsetprhold", MULTIPATHD_SET))
        map_fail(map, NOT_NOTED, "release");
}

/* PREEMPT takes over what somebody has reserved since we looked, too. */
static void map_preempt(struct map *map, struct request *request)
{
    const struct reservation *reservation = &map->reservation;
    uint64_t preempted = be64_get(request->data + 8);
    /* 0 is all others, if all registrants hold it when the command comes. */
    bool is_own = preempted == map->key.value || preempted == 0;
    bool takes_over, was_held;
    uint32_t generation;
    struct answer answer;

    if (!reservation_read(map))
        return;
    takes_over = reservation->is_held && reservation->key == preempted;
    was_held = reservation->is_held && reservation->key == map->key.value;
    if (takes_over
        && ((is_own && keys_read(map, NULL, preempted) < 0)
            || !hold_announce(map, true)))
        return;
    generation = map->generation;
    if (is_own)
        preempt_own(map, request);
    else
        any_send(map, request);
    answer = map->answer;
    if (takes_over && (answer.status == GOOD || !is_own)) {
        hold_settle(map);
        return;
    }
    if (takes_over && map->hold == MULTIPATHD_DONE
        && keys_read(map, NULL, preempted) >= 0
        && map->generation == generation) /* nothing has happened */
        multipathd_tell(&map->multipathd, "unsetprhold");
    else if (answer.status != RESERVATION_CONFLICT && !was_held
             && holder_find(map) == HOLDER_PATH)
        multipathd_tell(&map->multipathd, "setprhold");
    map->answer = answer;
}

static void map_out(struct map *map, struct request *request)
{
    static void (*const actions[])(struct map *, struct request *) = {
        [REGISTER] = map_register,
        [RESERVE] = map_reserve,
        [RELEASE] = map_release,
        [CLEAR] = map_clear,
        [PREEMPT] = map_preempt,
        [PREEMPT_AND_ABORT] = map_preempt,
        [REGISTER_AND_IGNORE] = map_register,
    };
    unsigned action = request->cdb[1] &= 0x1f;

    if (action > REGISTER_AND_IGNORE) {
        map_check(map, ILLEGAL_REQUEST, 0x24);
    } else if (request->length < LIST_SIZE) {
        map_check(map, ILLEGAL_REQUEST, 0x1a);
    } else if (!multipathd_key_get(&map->multipathd, &map->key)) {
        map_fail(map, "multipathd does not say which key it has: is it "
                      "running, and are we root?");
    } else if (!is_register(request)
               && (map->key.value == 0
                   || map->key.value != be64_get(request->data))) {
        key_conflict(map, be64_get(request->data), map->key.value);
    } else {
        actions[action](map, request);
    }
}

void multipath_execute(struct pr_command *command, const char *socket_path,
                       struct suspension *suspension)
{
    struct request request = { .data = command->data,
                               .length = command->length };
    struct map map;
    enum refusal refusal = map_begin(&map, command->device, socket_path,
                                     suspension);
    bool is_listed = refusal == NOT_REFUSED && map_list(&map);
    unsigned i;

    for (i = 0; i < map.count; i++) /* NVMe disks have other names */
        if (strncmp(map.paths[i].name, "sd", 2) != 0)
            refusal = NOT_SCSI_PATHS;
    command->payload = 0;
    if (refusal == NO_MULTIPATH && command->cdb[0] == PROTOCOL_CLEANUP) {
        status_set(command, GOOD);
        return;
    }
    if (refusal != NOT_REFUSED) {
        sg_io_refuse(command, refusal);
        return;
    }
    memcpy(request.cdb, command->cdb, sizeof(request.cdb));
    /* This host shall know nothing of its registration any more. */
    if (command->cdb[0] == PROTOCOL_CLEANUP)
        request_set(&request, REGISTER_AND_IGNORE, 0, 0, 0, 0);
    if (is_listed && request.cdb[0] == PERSISTENT_RESERVE_IN)
        any_send(&map, &request);
    else if (is_listed)
        map_out(&map, &request);
    command->status = map.answer.status;
    command->payload = map.answer.payload;
    command->refusal = map.answer.refusal;
    memcpy(command->sense, map.answer.sense, sizeof(map.answer.sense));
}
