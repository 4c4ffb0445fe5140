/* SPDX-License-Identifier: MIT */
/*
 * preempt.c - to preempt one's own key: the other paths lose their
 * registration with it, so that the map is suspended until they have it
 * again. A virtual machine that has migrated does it, and whoever takes a
 * reservation over from a path of his that is gone.
 *
 * It must never leave a map suspended, nor register a path again if a rival
 * may have removed the key meanwhile: the path that sent the command keeps
 * it all the time, and is the witness. Without one the keys stay off.
 */
#include "multipath.h"

#include <string.h>

enum restored { RESTORED, RESTORED_PARTLY, NOT_RESTORED };

/* ---- Suspended -------------------------------------------------------- */

/*
 * Until it works. Returns whether it did within AFTERWARDS_WITHIN. If nothing
 * is left to do then (is_last), nobody has to recover the map.
 */
static bool map_resume(struct map *map, bool is_last)
{
    map_extend(map);
    while (multipathd_tell(&map->multipathd, "resume") != MULTIPATHD_DONE) {
        if (!map_wait(map, map->deadline)) {
            map_fail(map,
                     "it is suspended and multipathd does not resume it, "
                     "trying again; by hand: dmsetup resume %s",
                     map->alias);
            return false;
        }
        alias_renew(map->device, map->alias); /* it may have been renamed */
    }
    if (is_last)
        map->suspension->alias[0] = '\0';
    return true;
}

static bool map_suspend(struct map *map)
{
    enum multipathd_said said;

    if (map->alias[0] == '\0' || !is_word(map->alias)) {
        map_fail(map, "it must be suspended, but multipathd cannot be told its "
                      "name: give it an alias of letters and digits");
        return false;
    }
    map->suspension->device = map->device;
    map->suspension->witness[0] = '\0';
    map->suspension->resume_by = clock_us() + RESUME_WITHIN;
    memcpy(map->suspension->alias, map->alias, sizeof(map->alias));
    said = multipathd_tell(&map->multipathd, "suspend");
    if (said == MULTIPATHD_DONE)
        return true;
    if (said == MULTIPATHD_REFUSED)
        map->suspension->alias[0] = '\0';
    else
        map_resume(map, true);
    map_fail(map, "nothing was done: multipathd does not suspend it");
    return false;
}

/* ---- Registered again ------------------------------------------------- */

/* A path that has the key now, the one that sent the command first. */
static struct path *witness_find(struct map *map, struct path *sender,
                                 const struct multipathd_key *key)
{
    unsigned i;

    if (sender != NULL && path_prove(map, sender, key) == DONE)
        return sender;
    for (i = 0; i < map->count; i++)
        if (&map->paths[i] != sender
            && path_prove(map, &map->paths[i], key) == DONE)
            return &map->paths[i];
    return NULL;
}

/*
 * Who preempts his own key and holds nothing has unregistered the sender as
 * well. It may be registered again if nobody else has done anything since
 * map.generation was read: two commands of ours count one each (SPC-4
 * 6.15.2).
 */
static struct path *witness_make(struct map *map, struct path *sender,
                                 const struct multipathd_key *key)
{
    uint32_t generation = map->generation;
    struct request request;
    unsigned count;

    request_set(&request, REGISTER, 0, 0, key->value, key->aptpl ? APTPL : 0);
    if (path_send(map, sender, &request) == DONE
        && keys_read(map, key->value, &count)
        && map->generation == generation + 2)
        return sender;
    keys_take_off(map, key->value, 0);
    return NULL;
}

/*
 * All paths but the witness get their key again. While the map is suspended
 * what takes too long is left for the last turn; then the witness must be
 * true, or the keys go.
 */
static enum restored paths_restore(struct map *map,
                                   const struct multipathd_key *key,
                                   bool is_last)
{
    enum verdict truth = NOT_TAKEN;
    struct request request;
    bool is_whole;

    if (map->witness == NULL) {
        map_fail(map, "no path is known to have kept its key, so none gets it "
                      "back: register again");
        return NOT_RESTORED;
    }
    memcpy(map->suspension->witness, map->witness->name,
           sizeof(map->witness->name));
    request_set(&request, REGISTER_AND_IGNORE, 0, 0, key->value,
                key->aptpl ? APTPL : 0);
    all_due(map);
    map->witness->verdict = DONE;
    is_whole = sweep(map, &request, key, map->deadline);
    if (is_last)
        map_extend(map);
    if (is_whole || is_last)
        truth = witness_ask(map, key);
    if (truth == CONFLICT || (truth != DONE && is_last)) {
        keys_take_off(map, key->value, 0);
        return NOT_RESTORED;
    }
    return is_whole && truth == DONE ? RESTORED : RESTORED_PARTLY;
}

struct path *preempt_own(struct map *map, const struct request *request,
                         const struct multipathd_key *key)
{
    const int64_t deadline = map->deadline;
    enum restored restored = RESTORED;
    struct answer answer;
    struct path *path;
    bool is_resumed;
    unsigned count;

    if (!settle(map) || !keys_read(map, key->value, &count)
        || !map_suspend(map))
        return NULL;
    if (map->deadline > clock_us() + SUSPENDED_WITHIN)
        map->deadline = clock_us() + SUSPENDED_WITHIN;
    path = any_send(map, request);
    answer = map->answer;
    if (path != NULL ? answer.status == GOOD : map->is_lost) {
        map->witness = witness_find(map, path, key);
        if (map->witness == NULL && path != NULL)
            map->witness = witness_make(map, path, key);
        restored = paths_restore(map, key, false);
    }
    is_resumed = map_resume(map, true);
    if (map->deadline < deadline)
        map->deadline = deadline;
    if (restored == RESTORED_PARTLY)
        restored = paths_restore(map, key, true);
    if (restored == RESTORED_PARTLY || !is_resumed)
        map_fail(map, "a path did not get its key back, or the map is still "
                      "suspended: repeat it");
    if (restored != RESTORED || !is_resumed)
        return NULL;
    map->answer = answer;
    return answer.status == GOOD ? path : NULL;
}

struct path *take_over(struct map *map, const struct multipathd_key *key,
                       uint8_t scope_type)
{
    struct request preempt;

    request_set(&preempt, PREEMPT, scope_type, key->value, key->value, 0);
    return preempt_own(map, &preempt, key);
}

void multipath_recover(const char *socket_path, struct suspension *suspension,
                       bool is_alone)
{
    struct multipathd_key key;
    struct map map;
    unsigned i;

    if (map_begin(&map, suspension->device, socket_path, suspension)
        != NOT_REFUSED) {
        suspension->alias[0] = '\0'; /* the map is not there any more */
        return;
    }
    map.deadline = clock_us() + SUSPENDED_WITHIN;
    if (is_alone && map_list(&map) && multipathd_key_get(&map.multipathd, &key)
        && key.value != 0) {
        for (i = 0; i < map.count; i++)
            if (map.witness == NULL
                && (suspension->witness[0] == '\0'
                    || strncmp(map.paths[i].name, suspension->witness,
                               sizeof(map.paths[i].name))
                           == 0)
                && path_prove(&map, &map.paths[i], &key) == DONE)
                map.witness = &map.paths[i];
        paths_restore(&map, &key, true);
    }
    map_resume(&map, is_alone);
    map_close(&map);
}

/* ---- What multipathd is to think of the reservation ------------------- */

bool hold_announce(struct map *map, enum multipathd_flag *was)
{
    *was = multipathd_flag_get(&map->multipathd, "getprhold");
    if (*was != FLAG_UNSET
        || multipathd_tell(&map->multipathd, "setprhold") == MULTIPATHD_DONE)
        return true;
    multipathd_tell(&map->multipathd, "unsetprhold");
    map_fail(map, "multipathd does not take note of the reservation");
    return false;
}

void hold_settle(struct map *map, enum multipathd_flag was, bool holds,
                 const struct multipathd_key *key)
{
    const struct answer answer = map->answer;
    struct reservation reservation;

    if (holds || answer.status == RESERVATION_CONFLICT
        || !reservation_read(map, &reservation) || !reservation.is_held
        || (reservation.key != key->value && reservation.key != 0))
        if (was == (holds ? FLAG_UNKNOWN : FLAG_UNSET))
            multipathd_tell(&map->multipathd,
                            holds ? "setprhold" : "unsetprhold");
    map->answer = answer;
}
