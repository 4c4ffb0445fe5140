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

#include <string.h>

/* What a REGISTER is about, besides the client's parameter list. */
struct registration {
    struct multipathd_key old;      /* multipathd's so far */
    struct multipathd_key new;      /* value 0: unregisters */
    struct multipathd_key previous; /* what the paths have so far */
    struct path *last;              /* is changed last, or NULL */
    bool holds;                     /* the reservation, that is */
    bool is_ignored;                /* what that is */
    bool is_told;                   /* multipathd has been, of new */
    bool is_status_told;            /* likewise, that it is registered */
    bool is_whole;                  /* all paths have the new key */
    bool is_fenced;                 /* somebody has removed the key */
    uint8_t flags;
};

/* ---- What multipathd is told ------------------------------------------ */

/* Before the first path is changed, so that none comes and is left out. */
static bool key_announce(struct map *map, struct registration *r)
{
    struct multipathd_key now = { 0, false };
    enum multipathd_said said = MULTIPATHD_DONE;

    if (r->new.value != r->old.value || r->new.aptpl != r->old.aptpl)
        said = multipathd_key_set(&map->multipathd, &r->new);
    r->is_told = said != MULTIPATHD_REFUSED;
    if (said == MULTIPATHD_DONE && !r->new.aptpl)
        return true;
    if (said != MULTIPATHD_SILENT
        && multipathd_key_get(&map->multipathd, &now)) {
        if (said == MULTIPATHD_DONE && now.value == r->new.value &&now.aptpl)
            return true;
        /* It cannot forget a key of its configuration; need not, either. */
        if (r->new.value == 0 && now.value == r->old.value)
            return true;
        map_fail(
            map,
            "multipathd does not take the key 0x%llx%s, but has 0x%llx%s: put "
            "'reservation_key file' into the defaults of "
            "/etc/multipath.conf, in place of any key, then 'multipathd "
            "reconfigure'",
            (unsigned long long)r->new.value, r->new.aptpl ? ":aptpl" : "",
            (unsigned long long)now.value, now.aptpl ? ":aptpl" : "");
    } else {
        map_fail(map, "multipathd does not say if it takes the key");
    }
    return false;
}

/* That the map is registered with the key now, or is not any more. */
static bool status_tell(struct map *map, struct registration *r)
{
    const char *command = r->new.value != 0 ? "setprstatus" : "unsetprstatus";

    r->is_status_told = true;
    if (multipathd_tell(&map->multipathd, command) == MULTIPATHD_DONE
        || (r->new.value != 0 && r->previous.value != 0
            && multipathd_flag_get(&map->multipathd, "getprstatus")
                   == FLAG_SET))
        return true;
    map_fail(map, "multipathd does not take note of the registration");
    return false;
}

/*
 * Makes multipathd forget the key, or, if that is of its configuration, do
 * without. False if it may go on registering it.
 */
static bool key_forget(struct map *map)
{
    struct multipathd_key none = { 0, false }, now;
    enum multipathd_said said = multipathd_key_set(&map->multipathd, &none);

    if (said == MULTIPATHD_SILENT
        || (said == MULTIPATHD_REFUSED
            && (!multipathd_key_get(&map->multipathd, &now) || now.value == 0)))
        return false;
    return multipathd_tell(&map->multipathd, "unsetprstatus")
           == MULTIPATHD_DONE;
}

/* ---- All paths -------------------------------------------------------- */

static void conflicts_due(struct map *map)
{
    unsigned i;

    for (i = 0; i < map->count; i++)
        if (map->paths[i].verdict == CONFLICT || map->paths[i].verdict == ASIDE)
            map->paths[i].verdict = DUE;
}

/*
 * With the last path after all others have taken it. If it is gone then with
 * the reservation, or could have told whether others have been fenced, the
 * sweep has failed.
 */
static bool sweep_in_turn(struct map *map, const struct registration *r,
                          struct request *request,
                          const struct multipathd_key *key)
{
    all_due(map);
    if (r->last != NULL)
        r->last->verdict = REFUSED; /* its turn comes */
    if (!sweep(map, request, key, map->deadline))
        return false;
    if (r->last == NULL)
        return true;
    r->last->verdict = DUE;
    if (!sweep(map, request, key, map->deadline))
        return false;
    if (r->last->verdict != ASIDE
        || !(r->holds || (key != NULL && count_of(map, CONFLICT) > 0)))
        return true;
    map_fail(map, "%s has gone before its key was changed", r->last->name);
    return false;
}

/*
 * The older key is changed on one path after all others: as long as it has
 * that, nobody has preempted it, so that another path without it has not been
 * fenced but left out some time. Later it has the new one.
 */
static bool paths_change(struct map *map, struct registration *r,
                         struct request *request)
{
    if (!sweep_in_turn(map, r, request, &r->new))
        return false;
    r->is_fenced = r->last != NULL && r->last->verdict == CONFLICT;
    if (!r->is_fenced && count_of(map, DONE) > 0)
        return true;
    answer_undone(map);
    return false;
}

/* Once one has taken it, the others need not have had the same one before. */
static bool paths_register(struct map *map, struct registration *r,
                           struct request *request)
{
    if (!paths_change(map, r, request))
        return false;
    request->cdb[1] = REGISTER_AND_IGNORE;
    conflicts_due(map);
    r->is_whole = sweep(map, request, &r->new, map->deadline);
    if (!r->is_whole)
        return false;
    if (!status_tell(map, r)) {
        r->is_fenced = witness_ask(map, &r->new) == CONFLICT;
        return false;
    }
    /* Paths that were left out, or have come, before multipathd knew. */
    conflicts_due(map);
    r->is_whole = sweep(map, request, &r->new, map->deadline);
    if (!r->is_whole)
        return false;
    r->is_fenced = witness_ask(map, &r->new) != DONE;
    return !r->is_fenced;
}

/* A path that does not have the key need not lose it. */
static bool paths_unregister(struct map *map, struct registration *r,
                             struct request *request)
{
    unsigned i, lost = 0;

    if (!sweep_in_turn(map, r, request, NULL))
        return false;
    for (i = 0; i < map->count; i++) /* the last one may be the holder */
        lost += map->paths[i].is_lost && &map->paths[i] != r->last;
    if (count_of(map, DONE) + lost == 0) {
        answer_undone(map);
        return false;
    }
    if (!status_tell(map, r))
        return false;
    /* multipathd may have registered one meanwhile, with the key it had. */
    request->cdb[1] = REGISTER_AND_IGNORE;
    all_due(map);
    if (!sweep(map, request, NULL, map->deadline))
        return false;
    for (i = 0; i < map->count; i++)
        if (map->paths[i].verdict == ASIDE)
            log_warning("%s (%s): %s comes back with the key if multipathd is "
                        "older than 0.13: then unregister once more",
                        map->name, map->alias, map->paths[i].name);
    return true;
}

/* ---- REGISTER --------------------------------------------------------- */

/*
 * Whose key changes keeps what he holds, and who unregisters gives it up:
 * also through a path that is gone, which a live one takes over from first.
 * Then finds the path that is to be the last. False: that is the answer.
 */
static bool last_find(struct map *map, struct registration *r)
{
    struct reservation reservation;
    struct request request;

    switch (holder_find(map, &r->previous, &reservation, &r->last)) {
    case HOLDER_UNKNOWN:
        return false;
    case HOLDER_GONE:
        r->last = take_over(map, &r->previous, reservation.scope_type);
        r->holds = true;
        return r->last != NULL;
    case HOLDER_PATH:
        r->holds = true;
        return true;
    default: /* but all registrants hold what has no key */
        if (r->previous.value == r->old.value
            && (!reservation.is_held || reservation.key != 0))
            multipathd_tell(&map->multipathd, "unsetprhold");
    }
    request_set(&request, REGISTER, 0, r->previous.value, r->previous.value,
                r->previous.aptpl ? APTPL : 0);
    r->last = any_send(map, &request);
    if (r->is_ignored && map->answer.status == RESERVATION_CONFLICT)
        r->previous.value = 0; /* which another host has */
    return map->answer.status == GOOD || r->previous.value == 0;
}

/* Back to what was, as far as nothing can come back with it. */
static void map_undo(struct map *map, const struct registration *r)
{
    const struct answer answer = map->answer;
    const struct multipathd *multipathd = &map->multipathd;
    unsigned i, changed = 0;

    for (i = 0; i < map->count; i++)
        changed += map->paths[i].is_lost
                   || (r->new.value != 0 ? map->paths[i].is_new
                                         : map->paths[i].verdict == DONE);
    /* It was done, but for what multipathd has to know: to be repeated. */
    if (changed > 0 && !r->is_fenced
        && (r->new.value == 0 || (r->is_whole && r->previous.value != 0))) {
        map_fail(map, "some paths have lost the key or got it: repeat it");
        return;
    }
    map_extend(map);
    if (r->is_fenced
        || (r->new.value != 0
            && r->new.value != r->previous.value &&changed > 0))
        keys_take_off(map, r->new.value, r->flags);
    if (map->is_doubtful && r->previous.value != 0)
        keys_take_off(map, r->previous.value, r->flags);
    if (r->is_fenced || map->is_doubtful
            ? !key_forget(map)
            : (multipathd_key_set(multipathd, &r->old) == MULTIPATHD_SILENT
               || (r->previous.value == 0 && r->is_status_told
                   && multipathd_tell(multipathd, "unsetprstatus")
                          != MULTIPATHD_DONE)))
        log_warning("%s (%s): multipathd may register key %llx even so: "
                    "'multipathd unsetprstatus map %s'",
                    map->name, map->alias, (unsigned long long)r->new.value,
                    map->name);
    map->answer = answer;
}

void map_register(struct map *map, const struct multipathd_key *old,
                  struct request *request)
{
    struct registration r = { .old = *old };
    struct path *path;
    unsigned count;

    r.flags = request->data[LIST_FLAGS];
    r.new.value = be64_get(request->data + 8);
    r.new.aptpl = r.new.value != 0 && (r.flags & APTPL) != 0;
    r.previous = *old;
    if (request->cdb[1] == REGISTER)
        r.previous.value = be64_get(request->data);
    r.is_ignored = request->cdb[1] == REGISTER_AND_IGNORE;
    if (!settle(map)
        || !keys_read(map, (r.is_ignored ? r.previous : r.new).value, &count))
        return;
    /* It may be one that multipathd is only configured to have. */
    if (r.is_ignored && count == 0)
        r.previous.value = 0;
    if (r.previous.value != 0 && !last_find(map, &r))
        return;
    all_due(map); /* what they have said so far is not of this command, */
    map->witness = NULL; /* nor had that the new key */
    for (path = map->paths; path < map->paths + map->count; path++) {
        path->is_new = path->is_lost = false;
        path->had_key = !r.is_ignored && r.previous.value == 0 && count > 0
                        && path_prove(map, path, &r.new) == DONE;
    }
    if (!key_announce(map, &r)) {
        if (r.is_told)
            map_undo(map, &r);
        return;
    }
    if (!(r.new.value != 0 ? paths_register(map, &r, request)
                           : paths_unregister(map, &r, request))) {
        map_undo(map, &r);
        return;
    }
    if (r.previous.value == 0)
        multipathd_tell(&map->multipathd, "unsetprhold");
    map_answer(map, GOOD);
}

/* ---- CLEAR ------------------------------------------------------------ */

void map_clear(struct map *map, const struct multipathd_key *key,
               const struct request *request)
{
    struct answer answer;
    struct request none;
    unsigned count;

    any_send(map, request);
    answer = map->answer;
    map_extend(map);
    if (answer.status == GOOD
        || (map->is_lost && keys_read(map, key->value, &count) && count == 0)) {
        all_due(map);
        request_set(&none, REGISTER, 0, key->value, 0, 0);
        if (!key_forget(map)) {
            map_fail(map,
                     "cleared, but multipathd may still register the key: "
                     "'multipathd unsetprstatus map %s'",
                     map->name);
            return;
        }
        if (!sweep(map, &none, NULL, map->deadline))
            return;
    }
    map->answer = answer;
}
