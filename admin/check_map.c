/* SPDX-License-Identifier: MIT */
/*
 * check_map.c - what `qemu-pr-client check` says of a multipath map, beyond
 * what it says of every disk: is multipathd there, does it know a key, which
 * paths are registered with it, and who holds the reservation.
 *
 * It only looks: at sysfs, at what the helper has read from the disk, and at
 * multipathd, which tells the keys to root alone. It must never change
 * anything, and say what it cannot know in so many words.
 */
#include "../multipath/multipathd.h"
#include "check.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

/*
 * How many registrations have this key, and may come from this path (NULL: from
 * anywhere). One for all ports counts at each.
 */
static unsigned registrations_count(const struct reply *full, uint64_t key,
                                    const struct path *path)
{
    struct registration registration;
    unsigned count = 0;
    struct list list;

    decode_list(&list, full->payload, full->size);
    while (decode_registration(&list, &registration))
        count += registration.key == key
                 && (path == NULL
                     || path_whose(path, &registration) != NOT_OURS);
    return count;
}

/* Does each registration name its port? LIO of Linux 6.12 does not. */
static bool ports_are_named(const struct reply *full)
{
    struct registration registration;
    struct list list;

    decode_list(&list, full->payload, full->size);
    while (decode_registration(&list, &registration))
        if (registration.port == 0)
            return false;
    return true;
}

/*
 * Counts those that are used of the paths that their registrations do not tell
 * apart: by one initiator, to one port; and how many registrations they have.
 */
static bool path_show(struct check *check, const struct path *path,
                      uint64_t key)
{
    const struct identity *identity = &check->identity;
    struct output *output = &check->output;
    unsigned there = registrations_count(&check->full, key, path), i, same = 0;
    bool is_named = ports_are_named(&check->full);

    for (i = 0; i < identity->count; i++)
        same += (!is_named || identity->paths[i].port == path->port)
                && strcmp(identity->paths[i].initiator, path->initiator) == 0
                && identity->paths[i].is_used && identity->paths[i].is_ours;
    if (!path->is_used)
        words(output, "  %s is %s: the kernel does not use it\n", path->name,
              path->state);
    else if (there >= same)
        words(output, "  %s is registered\n", path->name);
    else if (there == 0)
        words(output, "  %s is not registered\n", path->name);
    else
        words(output,
              "  %s is one of %u paths that the disk does not tell apart, of "
              "which %u %s registered\n",
              path->name, same, there, there == 1 ? "is" : "are");
    json_begin(output, NULL, '{');
    json_text(output, "name", path->name);
    json_text(output, "state", path->state);
    json_bool(output, "used", path->is_used);
    json_number(output, "paths_to_this_port", same);
    json_number(output, "registered_at_this_port", there);
    json_end(output, '}');
    return !path->is_used || there >= same;
}

/* Returns whether all paths that are used are registered. */
static bool paths_show(struct check *check, uint64_t key)
{
    const struct identity *identity = &check->identity;
    bool is_whole = true;
    unsigned i;

    json_begin(&check->output, "paths", '[');
    for (i = 0; i < identity->count; i++)
        if (identity->paths[i].is_ours
            && !path_show(check, &identity->paths[i], key))
            is_whole = false;
    json_end(&check->output, ']');
    return is_whole;
}

/* Is the reservation this host's? If sysfs does not know, multipathd may. */
static enum whose holder_show(struct check *check,
                              const struct multipathd *multipathd, uint64_t key)
{
    struct output *output = &check->output;

    if (!check->is_reserved)
        return NOT_OURS;
    if (check->reservation.key == 0) {
        words(output, "All that are registered hold the reservation.\n");
        return OURS;
    }
    if (check->holder == OURS) {
        words(output, "This host holds the reservation.\n");
        return OURS;
    }
    if (check->reservation.key != key) {
        words(output,
              "Another host holds the reservation: its key is another.\n");
        return NOT_OURS;
    }
    /* This host may do so by an adapter that no path of the map has any more.
     */
    switch (multipathd_tell(multipathd, "getprhold")) {
    case MULTIPATHD_SET:
        words(output, "This host holds the reservation, says multipathd.\n");
        return OURS;
    case MULTIPATHD_UNSET:
        words(output, "Another host with the same key holds the reservation, "
                      "says multipathd.\n");
        return NOT_OURS;
    default:
        words(output,
              "This host holds the reservation, or another one with the same "
              "key: multipathd does not know (before version 0.13 it never "
              "does).\n");
        return PERHAPS_OURS;
    }
}

/*
 * Which key multipathd has for the map; value 0: none, as nobody is registered.
 * False: no virtual machine could register.
 */
static bool key_check(struct check *check, const struct multipathd *multipathd,
                      struct multipathd_key *key)
{
    static char config[MULTIPATHD_TEXT]; /* a stack may be small */

    if (!multipathd_key_get(multipathd, key)) {
        finding(check, EXIT_FINDING,
                "is it running, and is its socket where the helper looks for "
                "it?",
                "multipathd does not say which key %s has: without it no "
                "reservation of a map can be changed",
                multipathd->map);
        return false;
    }
    if (key->value != 0)
        return true;
    multipathd_show(multipathd, "show config local", config);
    if (strstr(config, "reservation_key") == NULL) {
        finding(check, EXIT_NO_RESERVATION_KEY,
                "put 'reservation_key file' into its defaults section, then "
                "multipathd reconfigure",
                "there is no reservation_key in multipath.conf, so that nobody "
                "can register through %s",
                multipathd->alias);
        return false;
    }
    if (check->registered == OURS)
        finding(check, EXIT_FINDING, "let the virtual machine register again",
                "this host is registered, with key %#" PRIx64
                ", but multipathd knows no key: it registers no path that "
                "comes",
                check->key);
    else
        words(&check->output, "multipathd knows no key: no virtual machine of "
                              "this host is registered.\n");
    return true;
}

/* A path that multipathd has failed is none that the kernel uses. */
static void paths_look(struct identity *identity,
                       const struct multipathd *multipathd)
{
    static char table[MULTIPATHD_TEXT];
    unsigned i;

    multipathd_show(multipathd, MULTIPATHD_PATHS, table);
    for (i = 0; i < identity->count; i++) {
        struct path *path = &identity->paths[i];

        if (path->is_used && multipathd_path(table, path->name).is_failed) {
            path->is_used = false;
            strcpy(path->state, "failed");
        }
    }
}

/* What is registered with multipathd's key, on which paths. */
static void registered_check(struct check *check,
                             const struct multipathd *multipathd, uint64_t key)
{
    bool is_told = multipathd_tell(multipathd, "getprstatus") == MULTIPATHD_SET;

    words(&check->output,
          "multipathd registers key %#" PRIx64 " on paths that come%s:\n", key,
          is_told ? "" : ", when it is told to");
    json_key(&check->output, "key", key);
    paths_look(&check->identity, multipathd);
    if (check->full.size == 0) /* the disk does not list who is registered */
        return;
    if (registrations_count(&check->full, key, NULL) > 0) {
        check->registered = OURS;
        check->key = key; /* the only one that the helper takes */
    } else if (check->registered == PERHAPS_OURS && check->is_whole) {
        check->registered = NOT_OURS;
    }
    if (check->is_whole && !paths_show(check, key) && check->registered == OURS)
        finding(check, EXIT_FINDING, "let the virtual machine register again",
                "writes by a path that is not registered may fail");
    check->holder = holder_show(check, multipathd, key);
}

void check_map(struct check *check)
{
    const struct identity *identity = &check->identity;
    struct multipathd multipathd = { identity->name, identity->alias,
                                     check->arguments->socket_path, NULL };
    struct multipathd_key key;
    unsigned i, ours = 0;

    for (i = 0; i < identity->count; i++)
        ours += identity->paths[i].is_ours;
    words(&check->output, "It is the multipath map %s (%s) of %u paths.\n",
          identity->alias, identity->name, ours);
    json_begin(&check->output, "map", '{');
    json_text(&check->output, "name", identity->alias);
    json_text(&check->output, "device", identity->name);
    if (geteuid() != 0) {
        words(&check->output, "multipathd tells only root more.\n");
    } else if (key_check(check, &multipathd, &key)) {
        if (key.value != 0)
            registered_check(check, &multipathd, key.value);
        else if (check->registered == PERHAPS_OURS)
            check->registered = check->holder = NOT_OURS;
    }
    json_end(&check->output, '}');
}
