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

/*
 * To one path; but a conflict there is not the answer yet, as another one
 * may be the holder, who may repeat RESERVE; and that may be gone.
 */
static void map_reserve(struct map *map, const struct multipathd_key *key,
                        const struct request *request)
{
    struct reservation reservation;
    enum multipathd_flag was;
    struct answer answer;
    enum holder holder;
    struct path *path;
    bool is_lost;

    if (!hold_announce(map, &was))
        return;
    path = any_send(map, request);
    is_lost = map->is_lost;
    answer = map->answer;
    if (!is_lost && answer.status != GOOD)
        hold_settle(map, was, false, key);
    if (path == NULL && map->left_out > 0 && was != FLAG_UNSET) {
        if (!reservation_read(map, &reservation))
            return;
        if (reservation.is_held && reservation.key == key->value
            && reservation.scope_type == request->cdb[2]) {
            holder = holder_find(map, key, &reservation, &path);
            if (holder == HOLDER_UNKNOWN)
                return;
            if (holder != HOLDER_OTHER) {
                map_answer(map, GOOD);
                answer = map->answer;
            }
        }
    }
    if (answer.status == GOOD)
        hold_settle(map, was, true, key);
    map->answer = answer;
}

/*
 * What our key holds only the path that holds it releases, and the others say
 * GOOD to that: so it goes to all, and if that is not the end of it, for one
 * was blocked or is gone, it is looked who holds. What all registrants hold
 * any path releases: so it goes to one, as another one could release what
 * somebody has reserved since.
 */
static void map_release(struct map *map, const struct multipathd_key *key,
                        struct request *request)
{
    struct reservation reservation;
    enum holder holder;
    struct path *path;
    bool is_lost;

    if (!reservation_read(map, &reservation))
        return;
    if (reservation.is_held && reservation.key == key->value
        && (request->cdb[2] & 0x0f) < WRITE_EXCLUSIVE_ALL_REGISTRANTS) {
        all_due(map);
        sweep(map, request, NULL, 0);
        map_answer(map, GOOD);
        if (count_of(map, CONFLICT) == map->count)
            map_answer(map, RESERVATION_CONFLICT);
    } else {
        any_send(map, request);
        is_lost = map->is_lost;
        if (is_lost && !reservation_read(map, &reservation))
            return;
        if (is_lost && reservation.is_held && reservation.key == 0)
            map_fail(map, "a path has lost its answer, and whose the "
                          "reservation is now cannot be told");
    }
    if (map->answer.status != GOOD)
        return;
    holder = holder_find(map, key, &reservation, &path);
    if (holder == HOLDER_UNKNOWN)
        return;
    if (holder == HOLDER_GONE && reservation.scope_type != request->cdb[2]) {
        map_answer(map, RESERVATION_CONFLICT);
        return;
    }
    if (holder == HOLDER_GONE)
        path = take_over(map, key, reservation.scope_type);
    if (holder == HOLDER_OTHER)
        map_answer(map, GOOD);
    else if (path != NULL && path_send(map, path, request) <= LOST)
        map_fail(map, "it is not released: %s %s", path->name, path->why);
    if (map->answer.status == GOOD)
        multipathd_tell(&map->multipathd, "unsetprhold");
}

/*
 * It is told afterwards, too, who holds, if that was not so before: somebody
 * may have reserved in between, whose reservation was taken over.
 */
static void map_preempt(struct map *map, const struct multipathd_key *key,
                        const struct request *request)
{
    uint64_t preempted = be64_get(request->data + 8);
    enum multipathd_flag was = FLAG_SET;
    struct reservation reservation;
    bool takes_over, is_own, was_held;
    struct answer answer;
    struct path *path;

    if (!reservation_read(map, &reservation))
        return;
    takes_over = reservation.is_held && reservation.key == preempted;
    was_held = reservation.is_held && reservation.key == key->value;
    /* 0: all others, if all registrants hold it when the command comes. */
    is_own = preempted == key->value || preempted == 0;
    if (takes_over && !hold_announce(map, &was))
        return;
    if (is_own)
        preempt_own(map, request, key);
    else
        any_send(map, request);
    answer = map->answer;
    if (takes_over && (answer.status == GOOD || (!is_own && !map->is_lost)))
        hold_settle(map, was, answer.status == GOOD, key);
    else if (answer.status == GOOD && !takes_over && !was_held
             && holder_find(map, key, &reservation, &path) == HOLDER_PATH)
        hold_settle(map, FLAG_UNKNOWN, true, key);
    map->answer = answer;
}

static void map_out(struct map *map, struct request *request)
{
    unsigned action = request->cdb[1] &= 0x1f;
    struct pr_command command = { .sense = map->answer.sense };
    struct multipathd_key key;

    if (action > REGISTER_AND_IGNORE || request->length < LIST_SIZE) {
        sense_set(&command, ILLEGAL_REQUEST,
                  action > REGISTER_AND_IGNORE ? 0x24 : 0x1a, 0x00);
        map->answer.status = command.status;
        return;
    }
    if (!multipathd_key_get(&map->multipathd, &key)) {
        map_fail(map, "multipathd does not say which key it has: is it "
                      "running, and are we root?");
        return;
    }
    if (action == REGISTER || action == REGISTER_AND_IGNORE)
        map_register(map, &key, request);
    else if (key.value == 0 || key.value != be64_get(request->data))
        /* Who is not registered, or with another key, any disk tells so. */
        map_answer(map, RESERVATION_CONFLICT);
    else if (action == RESERVE)
        map_reserve(map, &key, request);
    else if (action == RELEASE)
        map_release(map, &key, request);
    else if (action == CLEAR)
        map_clear(map, &key, request);
    else
        map_preempt(map, &key, request);
}

/* Are all paths SCSI disks, by their names, which the kernel gives? */
static enum refusal paths_refuse(const struct map *map)
{
    unsigned i;

    for (i = 0; i < map->count; i++)
        if (strncmp(map->paths[i].name, "sd", 2) != 0)
            return NOT_SCSI_PATHS;
    return NOT_REFUSED;
}

void multipath_execute(struct pr_command *command, dev_t device,
                       const char *socket_path, struct suspension *suspension)
{
    struct request request = { .data = command->data,
                               .length = command->length };
    struct map map;
    enum refusal refusal = map_begin(&map, device, socket_path, suspension);

    command->payload = 0;
    if (refusal == NO_MULTIPATH && command->cdb[0] == PROTOCOL_CLEANUP) {
        status_set(command, GOOD);
        return;
    }
    if (refusal == NOT_REFUSED && map_list(&map)) {
        refusal = paths_refuse(&map);
        memcpy(request.cdb, command->cdb, sizeof(request.cdb));
        /* This host shall know nothing of its registration any more. */
        if (command->cdb[0] == PROTOCOL_CLEANUP)
            request_set(&request, REGISTER_AND_IGNORE, 0, 0, 0, 0);
        if (refusal == NOT_REFUSED && request.cdb[0] == PERSISTENT_RESERVE_IN)
            any_send(&map, &request);
        else if (refusal == NOT_REFUSED)
            map_out(&map, &request);
    }
    map_close(&map);
    command->status = map.answer.status;
    command->payload = map.answer.payload;
    memcpy(command->sense, map.answer.sense, sizeof(map.answer.sense));
    command->refusal = map.refusal;
    if (refusal != NOT_REFUSED)
        sg_io_refuse(command, refusal);
}

void multipath_execute_here(struct pr_command *command, const char *socket_path,
                            struct suspension *suspension)
{
    struct stat st;

    if (suspension->alias[0] != '\0') {
        log_warning("map %s is suspended: no command on a map before it is "
                    "resumed",
                    suspension->alias);
        sense_set(command, ABORTED_COMMAND, 0x08, 0x00);
        return;
    }
    if (fstat(command->fd, &st) < 0) {
        sg_io_refuse(command, NO_STATUS);
        return;
    }
    multipath_execute(command, st.st_rdev, socket_path, suspension);
    suspension->resume_by = 0; /* now, as nobody else does */
}
