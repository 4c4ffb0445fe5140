/* SPDX-License-Identifier: MIT */
/*
 * preempt.c - to preempt one's own key: the other paths lose their
 * registration with it, so that the map is suspended until they have it again.
 * A virtual machine that has migrated does it, and whoever takes a reservation
 * over from a path of his that is gone.
 *
 * It must never leave a map suspended, nor register a path again if a rival
 * may have removed the key meanwhile: the path that sent the command keeps
 * it all the time, and is the witness. Without one the keys stay off.
 */
#include "../sysfs.h"
#include "multipath.h"

#include <ctype.h>
#include <string.h>

/* ---- Suspended -------------------------------------------------------- */

/*
 * Has it resumed, until that works. Returns whether it did, in time. If nothing
 * is left to do then (is_last), nobody has to recover the map.
 */
static bool map_resume(struct map *map, bool is_last)
{
    if (map->deadline < clock_us() + RESUMED_WITHIN)
        map->deadline = clock_us() + RESUMED_WITHIN;
    while (multipathd_tell(&map->multipathd, "resume") != MULTIPATHD_DONE) {
        /* Somebody may have renamed the map. */
        sysfs_read(map->device, "/dm/name", map->alias, sizeof(map->alias));
        if (!map_wait(map, map->deadline))
            return map_fail(
                map,
                "it is suspended and multipathd does not resume it, "
                "trying again; by hand: dmsetup resume %s",
                map->alias);
    }
    if (is_last)
        map->suspension->alias[0] = '\0';
    return true;
}

/* Names become words of commands to multipathd. */
static bool is_word(const char *text)
{
    for (; *text != '\0'; text++)
        if (!isgraph((unsigned char)*text) || strchr("\"'\\/", *text) != NULL)
            return false;
    return true;
}

static bool map_suspend(struct map *map)
{
    /* I/O waits for us from then on, however late it says that it has. */
    const int64_t began = clock_us();
    enum multipathd_said said;

    if (map->alias[0] == '\0' || !is_word(map->alias))
        return map_fail(
            map, "it must be suspended, but multipathd cannot be told its "
                 "name: give it an alias of letters and digits");
    map->suspension->device = map->device;
    map->suspension->witness[0] = '\0';
    map->suspension->resume_by = began + RESUME_WITHIN;
    memcpy(map->suspension->alias, map->alias, sizeof(map->alias));
    said = multipathd_tell(&map->multipathd, "suspend");
    if (said == MULTIPATHD_DONE) {
        map->deadline = sooner(map->deadline, began + SUSPENDED_WITHIN);
        if (map->deadline < clock_us() + RESUMED_WITHIN / 2)
            map->deadline = clock_us() + RESUMED_WITHIN / 2;
        return true;
    }
    if (said == MULTIPATHD_REFUSED)
        map->suspension->alias[0] = '\0';
    else
        map_resume(map, true);
    return map_fail(map,
                    "nothing was done: multipathd does not suspend it: see its "
                    "log, and repeat it");
}

/* ---- Registered again ------------------------------------------------- */

/*
 * Takes the path of that name, or any (""), if it has our key. Returns CONFLICT
 * if it has not.
 */
static enum verdict witness_find(struct map *map, const char *name)
{
    enum verdict verdict = ASIDE;
    unsigned i;

    map->witness = NULL;
    for (i = 0; i < map->count && map->witness == NULL; i++) {
        struct path *path = &map->paths[i];

        if (name[0] != '\0'
            && strncmp(path->name, name, sizeof(path->name)) != 0)
            continue;
        map->pause = PAUSE_LEAST;
        do
            verdict = path_prove(map, path);
        while (verdict < ASIDE && name[0] != '\0'
               && !path_is_left_out(map, path) && map_wait(map, map->deadline));
        if (verdict == DONE)
            map->witness = path;
    }
    return verdict;
}

/*
 * To preempt our own key while we hold nothing has unregistered the sender as
 * well. That may be registered again if nobody else has done anything since
 * map.generation was read: two commands of ours count one each (SPC-4
 * 6.15.2). Else the key is taken off again, perhaps after the map is resumed.
 */
static void witness_make(struct map *map, struct path *sender)
{
    uint32_t generation = map->generation;
    struct request request;

    request_set(&request, REGISTER, 0, 0, map->key.value, flags_of(map));
    strcpy(map->suspension->witness, "?"); /* it is not known to be one yet */
    if (path_send(map, sender, &request) == DONE
        && keys_read(map, NULL, map->key.value) >= 0
        && map->generation == generation + 2)
        map->witness = sender;
    else
        map->is_doubtful = !keys_take_off(map, map->key.value, flags_of(map));
}

/*
 * All paths but the witness get their key again. While the map is suspended
 * what takes too long is left for the last turn. The witness must be true
 * before that, which it has a few seconds to say, as the others may use the key
 * meanwhile, and in the end; or the keys go, and so does the witness.
 */
static bool paths_restore(struct map *map, bool is_last)
{
    enum verdict truth = map->is_doubtful ? LOST : DONE;
    struct request request;
    bool is_whole = false;

    if (truth == DONE) {
        if (!is_last) /* or the place may be another map's by now */
            memcpy(map->suspension->witness, map->witness->name,
                   sizeof(map->witness->name));
        request_set(&request, REGISTER_AND_IGNORE, 0, 0, map->key.value,
                    flags_of(map));
        all_due(map);
        map->witness->verdict = DONE;
        is_whole = sweep(map, &request);
        map->deadline = is_last ? map->end : clock_us() + RESUMED_WITHIN / 2;
        truth = witness_ask(map);
    }
    if ((truth == CONFLICT || (truth != DONE && is_last))
        && (keys_take_off(map, map->key.value, flags_of(map)) || is_last))
        map->witness = NULL;
    return is_whole && truth == DONE;
}

/*
 * Does the rest, on a map that is suspended. False: the answer says why. Who
 * recovers a map that could not be resumed has it all done again.
 */
static bool map_restore(struct map *map, bool is_preempted)
{
    bool is_whole = !is_preempted;

    if (is_preempted && map->witness == NULL)
        map_fail(map, "no path is known to have kept its key, so none gets it "
                      "back: register again");
    else if (is_preempted)
        is_whole = paths_restore(map, false);
    if (!map_resume(map, true))
        return false;
    map->deadline = clock_us() + RESUMED_WITHIN;
    if (!is_whole && map->witness != NULL)
        map->is_doubtful = witness_ask(map) != DONE;
    map->deadline = map->end - AFTERWARDS_WITHIN / 2;
    if (!is_whole && map->witness != NULL)
        is_whole = paths_restore(map, true);
    else if (!is_whole && map->is_doubtful)
        keys_take_off(map, map->key.value, flags_of(map));
    if (!is_whole && map->witness != NULL)
        map_fail(map, "a path did not get its key back: repeat it");
    return is_whole;
}

struct path *preempt_own(struct map *map, struct request *request)
{
    enum verdict truth = DONE;
    struct answer answer;
    struct path *path;
    bool is_preempted, is_good;
    uint32_t generation;

    if (!settle(map) || keys_read(map, NULL, map->key.value) < 0
        || !map_suspend(map))
        return NULL;
    /* It is ours if it takes over: a twin that has come since keeps his key. */
    if (request->data == request->own_list
        && (keys_read(map, NULL, map->key.value) < 0
            || map->generation != map->reservation.generation)) {
        map_resume(map, true);
        map_fail(map, "nothing was done, as somebody may have registered or "
                      "preempted meanwhile: repeat it");
        return NULL;
    }
    generation = map->generation;
    path = any_send(map, request);
    answer = map->answer;
    is_good = path != NULL && answer.status == GOOD;
    /* Or perhaps; but a refusal that has changed nothing is the answer. */
    is_preempted = map->lost != NULL || is_good
                   || (path != NULL
                       && (keys_read(map, path, map->key.value) < 0
                           || map->generation != generation));
    if (is_preempted)
        truth = witness_find(map, is_good ? path->name : "");
    if (truth == CONFLICT && is_good)
        witness_make(map, path);
    if (!map_restore(map, is_preempted))
        return NULL;
    map->answer = answer;
    return answer.status == GOOD ? path : NULL;
}

struct path *take_over(struct map *map)
{
    struct request preempt;
    struct path *path;

    if (map->has_twin) {
        map_fail(map,
                 "the path that may hold the reservation is gone, and %s: "
                 "bring the path back",
                 "another host may have the same key");
        return NULL;
    }
    request_set(&preempt, PREEMPT, map->reservation.scope_type, map->key.value,
                map->key.value, 0);
    path = preempt_own(map, &preempt);
    if (path != NULL) /* it may not have known that this host holds */
        multipathd_tell(&map->multipathd, "setprhold");
    return path;
}

void multipath_recover(const char *socket_path, int lock,
                       struct suspension *suspension, int64_t patience)
{
    const int64_t now = clock_us();
    const dev_t device = suspension->device;
    enum refusal refusal;
    struct map map;
    bool has_key;

    refusal = map_begin(&map, device, socket_path, suspension);
    if (refusal == NO_MULTIPATH || !sysfs_has(device, "/dm"))
        suspension->alias[0] = '\0'; /* the map is not there any more */
    if (refusal != NOT_REFUSED)
        return;
    if (!map_lock(lock, device, now + patience)) {
        /* Who has the lock has resumed it, and may have suspended it since. */
        if (suspension->alias[0] == '\0' || suspension->device != device)
            return;
        map.deadline = clock_us() + SUSPENDED_WITHIN;
        map_resume(&map, false);
        if (!map_lock(lock, device, now + COMMAND_WITHIN))
            return;
        map.end += clock_us() - now;
    }
    /* Who hung has ended, so that its place may be that of another map. */
    if (suspension->alias[0] == '\0' || suspension->device != device)
        return;
    map.deadline = clock_us() + SUSPENDED_WITHIN;
    has_key = map_list(&map) && multipathd_key_get(&map.multipathd, &map.key)
              && map.key.value != 0;
    if (has_key)
        witness_find(&map, suspension->witness);
    /* Who has died may have written keys after a rival had removed them. */
    if (has_key && map.witness == NULL && suspension->witness[0] != '\0')
        map.is_doubtful = !keys_take_off(&map, map.key.value, flags_of(&map));
    map_restore(&map, has_key);
}

int64_t multipath_check(const char *socket_path, struct suspension *suspension,
                        int64_t now, int64_t *wake)
{
    if (suspension->alias[0] != '\0' && now >= suspension->resume_by) {
        multipath_recover(socket_path, -1, suspension, 0);
        now = clock_us();
        suspension->resume_by = now + RESUME_AGAIN;
    }
    if (suspension->alias[0] != '\0')
        *wake = sooner(*wake, suspension->resume_by);
    return now;
}
