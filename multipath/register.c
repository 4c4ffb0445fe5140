/* SPDX-License-Identifier: MIT */
/*
 * register.c - REGISTER, REGISTER AND IGNORE EXISTING KEY and what makes
 * them undone, CLEAR and CLEANUP: all paths and multipathd, which registers
 * those that come later, get a key, or lose it.
 *
 * It must never answer GOOD while a path that the kernel may use has another
 * key, or multipathd does not know this one; undo an unregistration; or
 * replace a key that a rival may have removed.
 */
#include "multipath.h"

#define MAY_REGISTER                                                           \
    "multipathd may register key %llx even so: 'multipathd unsetprstatus map " \
    "%s'"

/* ---- What multipathd is told ------------------------------------------ */

/* Tells it the key; 0 has it forget that, but for a configured one. */
static bool key_tell(struct map *map)
{
    const struct multipathd_key *key = &map->key;
    enum multipathd_said said = multipathd_key_set(&map->multipathd, key);
    struct multipathd_key now;

    if (said == MULTIPATHD_SILENT
        || !multipathd_key_get(&map->multipathd, &now))
        return map_fail(map, "multipathd does not say if it takes the key: see "
                             "its log, and repeat it");
    if (now.value == key->value && (now.aptpl || !key->aptpl))
        return true;
    if (key->value == 0 && said == MULTIPATHD_REFUSED) {
        map_fail(map,
                 "multipathd keeps key 0x%llx, which is configured, or see "
                 "its log",
                 (unsigned long long)now.value);
        return true;
    }
    return map_fail(
        map,
        "multipathd does not take the key 0x%llx%s, but has 0x%llx%s: put "
        "'reservation_key file' into the defaults of "
        "/etc/multipath.conf, in place of any key, then 'multipathd "
        "reconfigure'",
        (unsigned long long)key->value, key->aptpl ? ":aptpl" : "",
        (unsigned long long)now.value, now.aptpl ? ":aptpl" : "");
}

/* Tells it that the map is registered with the key, or is not any more. */
static bool status_tell(struct map *map)
{
    const struct multipathd *multipathd = &map->multipathd;
    const char *command = map->key.value != 0 ? "setprstatus" : "unsetprstatus";

    map->is_status_told = true;
    if (multipathd_tell(multipathd, command) == MULTIPATHD_DONE
        || (map->key.value != 0
            && multipathd_tell(multipathd, "getprstatus") == MULTIPATHD_SET))
        return true;
    return map_fail(map, NOT_NOTED, "registration");
}

/*
 * Tells it that another host holds; but what has another key than ours may be a
 * path's that was left with an older one.
 */
static void other_tell(struct map *map)
{
    if (!map->reservation.is_held || map->reservation.key == map->key.value)
        multipathd_tell(&map->multipathd, "unsetprhold");
}

/* ---- All paths -------------------------------------------------------- */

/* Goes by no old key: a path that says CONFLICT even so has not taken it. */
static bool sweep_anyway(struct map *map, struct request *request)
{
    request->cdb[1] = REGISTER_AND_IGNORE;
    return sweep(map, request)
           && (count_of(map, CONFLICT) == 0 || answer_undone(map));
}

/*
 * Changes the key on all paths to map->key, or takes it away (0); first where
 * it is the one that the command says. Once one path has the new key, others
 * need not have had the same before: unless the last one, which shows if
 * anybody has preempted the older key, has lost that; or one that was not used
 * at its turn has lost it since.
 */
static bool paths_change(struct map *map, struct request *request)
{
    bool is_new = map->key.value != 0, is_done;
    unsigned taken = 0;
    struct path *path;

    all_due(map);
    if (map->last != NULL) {
        map->last->verdict = CONFLICT; /* it is not its turn */
        if (!sweep(map, request))
            return false;
        for (path = map->paths; path < map->paths + map->count; path++)
            path->is_late = is_new && path->verdict == ASIDE;
        /* If anybody acts before its turn, the last one shows that. */
        if (is_new && count_of(map, ASIDE) > 0)
            keys_read(map, map->last, 0);
        map->last->verdict = DUE;
    }
    if (!sweep(map, request))
        return false;
    if (map->last != NULL && map->last->verdict == ASIDE
        && (map->last == map->holder
            || (is_new && count_of(map, CONFLICT) > 0))) {
        map->last->verdict = LOST;
        return map_fail(map,
                        "%s has gone before its key was changed: repeat it",
                        map->last->name);
    }
    for (path = map->paths; path < map->paths + map->count; path++) {
        map->is_doubtful |= is_new && path->verdict == CONFLICT
                            && (path == map->last || path->had_older);
        taken += path->verdict == DONE /* or perhaps, and is gone */
                 || (!is_new && path->verdict == ASIDE && path->is_changed);
    }
    if (map->is_doubtful || taken == 0)
        return answer_undone(map);
    for (path = map->paths; path < map->paths + map->count; path++)
        if (path->verdict == CONFLICT)
            path->verdict = DUE;
    if (is_new && !sweep_anyway(map, request))
        return false;
    is_done = status_tell(map);
    /* The witness can be asked, also if multipathd has taken all the time. */
    map->deadline = map->end - AFTERWARDS_WITHIN / 4 * 3;
    /* multipathd may have registered one meanwhile, with the key it had. */
    if (!is_new)
        all_due(map);
    /* A new one goes to those, too, that were left out or came before that. */
    is_done = is_done && sweep_anyway(map, request);
    return (!is_new || witness_ask(map) == DONE) && is_done;
}

/* ---- REGISTER --------------------------------------------------------- */

/*
 * Whose key changes keeps what he holds, and who unregisters gives it up:
 * also through a path that is gone, which a live one takes over from first.
 * Then finds the path that is to be the last: as long as that has the older
 * key, nobody has preempted it, so that another path without it has not been
 * fenced but left out some time. False: that is the answer.
 */
static bool last_find(struct map *map, uint64_t told, bool is_ignored)
{
    struct request request;
    enum holder holder;

    request_set(&request, REGISTER, 0, map->key.value, map->key.value,
                flags_of(map));
    map->last = any_send(map, &request);
    if (is_ignored && map->answer.status == RESERVATION_CONFLICT)
        map->key.value = 0; /* which another host has */
    if (map->last == NULL || map->answer.status != GOOD)
        return map->key.value == 0;
    holder = holder_find(map);
    if (holder == HOLDER_GONE)
        map->holder = take_over(map);
    if (holder != HOLDER_OTHER) {
        map->last = map->holder;
        return map->last != NULL;
    }
    if (map->key.value == told)
        other_tell(map);
    return true;
}

/*
 * Goes back to what was, as far as no key that a rival has removed can come
 * back. multipathd is told first, or it could register what is taken off.
 */
static void map_undo(struct map *map, const struct multipathd_key *told,
                     uint64_t previous, uint8_t flags)
{
    bool is_whole = count_of(map, DONE) + count_of(map, ASIDE) == map->count;
    const struct answer answer = map->answer;
    const uint64_t key = map->key.value;
    const struct path *changed = NULL;
    unsigned i;

    for (i = 0; i < map->count; i++)
        if (map->paths[i].is_changed)
            changed = &map->paths[i];
    /* It is done, but multipathd does not know: it has to be repeated. */
    if (changed != NULL && !map->is_doubtful
        && (key == 0 || (is_whole && previous != 0))) {
        map_fail(map,
                 "some paths have lost the key or got it, such as %s, which "
                 "%s: repeat it",
                 changed->name, changed->why);
        return;
    }
    map->deadline = map->end - AFTERWARDS_WITHIN / 2; /* and then the keys */
    /* The key may be on a path that had none, and be removed from this one. */
    if (changed != NULL && key == previous
        && path_prove(map, map->last) == CONFLICT) {
        map->is_doubtful = true;
        previous = 0;
    }
    map->key = *told;
    if (map->is_doubtful)
        map->key = (struct multipathd_key){ 0 };
    if ((!key_tell(map)
         || ((map->is_doubtful || (previous == 0 && map->is_status_told))
             && multipathd_tell(&map->multipathd, "unsetprstatus")
                    != MULTIPATHD_DONE))
        && key != 0)
        map_fail(map, MAY_REGISTER, (unsigned long long)key, map->name);
    if (map->is_doubtful || (changed != NULL && key != previous))
        keys_take_off(map, key, flags);
    if (map->is_doubtful && previous != 0)
        keys_take_off(map, previous, flags);
    map->answer = answer;
}

/* A visit: has it map->key? */
static bool path_ask(struct map *map, struct path *path,
                     struct request *request)
{
    (void)request;
    path->verdict = path_prove(map, path);
    if (path->verdict == UNREADY)
        path->verdict = LOST;
    return true;
}

/* A visit: likewise, and if it has, nobody else is asked. */
static bool path_is_known(struct map *map, struct path *path,
                          struct request *request)
{
    return path_ask(map, path, request) && path->verdict != DONE;
}

/*
 * Has a path the key that multipathd registers? Then this host is registered,
 * and a path that has come, and has no key yet, may not take the command of
 * one who says that he is not. Who gets a key waits for none that is left out.
 */
static bool is_registered(struct map *map, const struct multipathd_key *told,
                          struct request *request)
{
    map->key = *told;
    map->witness = NULL;
    all_due(map);
    paths_visit(map, path_is_known, request);
    map->key.value = 0;
    return count_of(map, DONE) > 0;
}

/*
 * Asks each path if it has map->key, until it says so or is left out. Those
 * that may be left out, and may hang, are asked last, for a part of the time:
 * as for any command that is no registration.
 */
static bool keys_prove(struct map *map)
{
    struct request request;

    request_set(&request, RELEASE, 0, 0, 0, 0); /* which is not sent */
    all_due(map);
    return paths_visit(map, path_ask, &request);
}

void map_register(struct map *map, struct request *request)
{
    const struct multipathd_key told = map->key;
    const uint8_t flags = request->data[LIST_FLAGS];
    bool is_ignored = request->cdb[1] == REGISTER_AND_IGNORE;
    uint64_t previous, key = be64_get(request->data + 8);
    enum holder holder;
    bool is_anew = true, is_whole = true, is_wide, is_asked;
    struct path *path;
    int count;

    /* CLEANUP: another host's reservation is to be remembered still. */
    if (request->data == request->own_list)
        request->data[LIST_FLAGS] = flags_of(map);
    if (!is_ignored)
        map->key.value = be64_get(request->data);
    if (!settle(map))
        return;
    if ((count = keys_read(map, NULL, told.value)) < 0)
        return;
    if (!is_ignored && map->key.value == 0 && count > 0 && told.value != key
        && is_registered(map, &told, request)) {
        key_conflict(map, 0, told.value);
        return;
    }
    /* It may be one that multipathd is only configured to have. */
    if (is_ignored && count == 0)
        map->key.value = 0;
    if (map->key.value != 0 && !last_find(map, told.value, is_ignored))
        return;
    /* ALL_TG_PT may change the last path early, and then that shows nothing. */
    is_wide = (flags & ALL_TG_PT) != 0 && (flags & SPEC_I_PT) == 0 && key != 0
              && map->key.value != 0 && map->key.value != key;
    if (is_wide && !keys_prove(map))
        return;
    for (path = map->paths; path < map->paths + map->count; path++)
        path->had_older = is_wide && path->verdict < CONFLICT;
    if ((count = keys_read(map, NULL, key)) < 0)
        return;
    /* From here on it is the new one, of which nobody has been told so far. */
    previous = map->key.value;
    if (is_wide) { /* also who ignores it would not hear who was faster */
        request->cdb[1] = REGISTER;
        be64_put(request->data, previous);
    }
    map->key.value = key;
    if (told.value != key) /* else multipathd knows if it is for APTPL */
        map->key.aptpl = key != 0 && (flags & APTPL) != 0;
    map->witness = NULL;
    map->is_doubtful = false;
    is_asked = previous == 0 && count > 0; /* or none can have it */
    if (is_asked && !keys_prove(map))
        return;
    for (path = map->paths; path < map->paths + map->count; path++) {
        if (!is_asked)
            path->verdict = CONFLICT;
        path->is_changed = false;
        path->had_key = path->verdict != CONFLICT;
        is_anew &= path->verdict == CONFLICT || path->verdict == ASIDE;
        is_whole &= path->verdict == DONE || path->verdict == ASIDE;
    }
    /* Any path would say so; but if one refused it, the key would come off. */
    if (!is_ignored && is_whole && !is_anew) {
        key_conflict(map, 0, key);
        return;
    }
    /* What we have just asked counts in PRGENERATION, too. */
    if (is_asked && keys_read(map, NULL, key) < 0)
        return;
    map->key.aptpl = key != 0 && (flags & APTPL) != 0;
    /* Before the first path is changed, so that none comes and is left out. */
    if (!key_tell(map) || !paths_change(map, request)) {
        if (is_wide && is_ignored && map->answer.status == RESERVATION_CONFLICT)
            map_fail(map,
                     "%s has lost our key, which somebody has removed there or "
                     "on another path: repeat it",
                     map->last->name);
        map_undo(map, &told, previous, flags);
        return;
    }
    for (path = map->paths; path < map->paths + map->count; path++)
        if (path->verdict == ASIDE && key != previous
            && (key == 0 || previous != 0))
            map_fail(map,
                     "%s comes back with the key it had if multipathd is "
                     "older than 0.13: then repeat this",
                     path->name);
    /*
     * If no path had the key any more, those that are gone have lost it, too,
     * and multipathd remembers what is over. One that had it may hold.
     */
    if (previous == 0 && is_anew && told.value != 0)
        multipathd_tell(&map->multipathd, "unsetprhold");
    holder = previous == 0 ? holder_find(map) : HOLDER_UNKNOWN;
    if (holder > HOLDER_OTHER)
        multipathd_tell(&map->multipathd, "setprhold");
    else if (holder == HOLDER_OTHER && count_of(map, ASIDE) > 0)
        other_tell(map);
    else if (holder == HOLDER_OTHER)
        multipathd_tell(&map->multipathd, "unsetprhold");
    map_answer(map, GOOD);
}

/* ---- CLEAR ------------------------------------------------------------ */

void map_clear(struct map *map, struct request *request)
{
    uint64_t key = map->key.value;
    struct answer answer;
    struct request unregister;

    any_send(map, request);
    answer = map->answer;
    map->deadline = map->end;
    if (answer.status == GOOD
        || (map->lost != NULL && keys_read(map, NULL, key) == 0)) {
        map->key = (struct multipathd_key){ 0 };
        all_due(map);
        if (!key_tell(map) || !status_tell(map)) {
            map_fail(map, MAY_REGISTER, (unsigned long long)key, map->name);
            return;
        }
        request_set(&unregister, REGISTER, 0, key, 0, 0);
        if (!sweep(map, &unregister))
            return;
    }
    map->answer = answer;
}
