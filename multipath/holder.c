/* SPDX-License-Identifier: MIT */
/*
 * holder.c - who holds the reservation that has our key: a path of ours, one of
 * ours that is gone, or another host, to which, or from which, the virtual
 * machine has migrated.
 *
 * It must never take another host's for ours because of the key, nor change
 * who holds, or any key.
 */
#include "../sysfs.h"
#include "multipath.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

/* ---- The path --------------------------------------------------------- */

/*
 * RELEASE of another type does nothing but for the holder, who is told so
 * (SPC-4 5.12.11.2.2): INVALID RELEASE OF PERSISTENT RESERVATION. LIO says
 * CONFLICT, as to one who is not registered: which of them it is the path has
 * to tell. Another refusal is no answer to that (SPDK says INVALID FIELD IN
 * CDB through each path).
 */
static bool path_probe(struct map *map, struct path *path,
                       struct request *request)
{
    uint8_t key;
    uint16_t code;

    path->verdict = path_send(map, path, request);
    sense_get(map->answer.sense, &key, &code);
    if (path->verdict == CONFLICT) {
        path->verdict = path_prove(map, path);
        /* Or it has its key only since, and does not hold. */
        if (path->verdict == DONE
            && (path->verdict = path_send(map, path, request)) == CONFLICT)
            map->holder = path;
    } else if (path->verdict == REFUSED && code == 0x2604) {
        map->holder = path;
    }
    if (path->verdict == UNREADY)
        path->verdict = LOST;
    if (path->verdict == REFUSED && map->holder == NULL)
        return map_fail(map,
                        "%s does not tell if it holds the reservation, but %s: "
                        "release that first",
                        path->name, path->why);
    return map->holder == NULL;
}

/* ---- The host --------------------------------------------------------- */

/*
 * Where a TransportID has the name of an initiator port (SPC-4 7.6.4), and
 * where sysfs has those of this host: in a file of each entry of a directory.
 */
enum { FIBRE_CHANNEL = 0, ISCSI = 5, SAS = 6 };
static const struct {
    uint8_t protocol;
    uint8_t at;
    char directory[21];
    char file[18];
} adapters[] = {
    { FIBRE_CHANNEL, 8, "/sys/class/fc_host", "port_name" },
    { SAS, 4, "/sys/class/scsi_host", "host_sas_address" },
    { SAS, 4, "/sys/class/sas_phy", "sas_address" },
};

struct search {
    const char *directory, *file;
    char name[256];
    enum holder found; /* HOLDER_UNKNOWN: sysfs has no name of that kind */
};

/* A callback of sysfs_list(). */
static bool name_compare(void *context, const char *entry)
{
    struct search *search = context;
    char path[512], line[256];

    snprintf(path, sizeof(path), "%s/%s/%s", search->directory, entry,
             search->file);
    /* The phys of expanders (phy-H:E:N) may be named after another host. */
    if (search->found != HOLDER_GONE
        && strchr(entry, ':') == strrchr(entry, ':')
        && sysfs_line(path, line, sizeof(line))
        && strlen(line) >= sizeof("(null)")) /* which some drivers have */
        /* iSCSI's may be in lower case there, which is the same: RFC 3722. */
        search->found = strcasecmp(line, search->name) == 0 ? HOLDER_GONE
                                                            : HOLDER_OTHER;
    return search->found != HOLDER_GONE;
}

/*
 * Is the initiator this host? iSCSI's name is text, perhaps with a comma and an
 * ISID behind it, and that of sessions: the map's paths have them. A 0 follows,
 * at the latest behind all of them.
 */
static enum holder initiator_find(const struct map *map, const uint8_t *id)
{
    const char *text = (const char *)id + 4;
    struct search search = { .found = HOLDER_UNKNOWN };
    char directory[96];
    unsigned i;

    for (i = 0; (id[0] & 0x0f) == ISCSI && i < map->count; i++) {
        snprintf(directory, sizeof(directory),
                 "/sys/block/%s/device/../../iscsi_session",
                 map->paths[i].name);
        search.directory = directory;
        search.file = "initiatorname";
        snprintf(search.name, sizeof(search.name), "%.*s",
                 (int)strcspn(text, ","), text);
        sysfs_list(directory, name_compare, &search);
    }
    for (i = 0; i < COUNT(adapters); i++) {
        if ((id[0] & 0x0f) != adapters[i].protocol)
            continue;
        search.directory = adapters[i].directory;
        search.file = adapters[i].file;
        snprintf(search.name, sizeof(search.name), "0x%016llx",
                 (unsigned long long)be64_get(id + adapters[i].at));
        sysfs_list(adapters[i].directory, name_compare, &search);
    }
    return search.found;
}

/*
 * Is it this host that holds, as far as the disk and sysfs know? That it is
 * another one they know only if they know this one, whose other paths are
 * registered, too.
 */
static enum holder host_find(struct map *map)
{
    uint8_t data[STATUS_SIZE + 1]; /* a 0 at the end of whatever is text */
    enum holder holder = HOLDER_UNKNOWN, who;
    unsigned ours = 0, others = 0;
    size_t at, end, size;
    bool is_read = false;
    struct path *path;

    /* Once each: not all targets answer that. */
    for (path = map->paths; !is_read && path < map->paths + map->count; path++)
        is_read = path->verdict >= DONE
                  && in_read(map, path, READ_FULL_STATUS, data, STATUS_SIZE);
    if (!is_read)
        return HOLDER_UNKNOWN;
    data[STATUS_SIZE] = 0;
    end = 8 + (size_t)be32_get(data + 4);
    for (at = 8; at + 48 <= end; at += 24 + size) { /* SPC-4 6.15.5 */
        size = be32_get(data + at + 20);
        if (size > end - at - 24)
            break;
        if (be64_get(data + at) != map->key.value)
            continue;
        who = initiator_find(map, data + at + 24);
        ours += who == HOLDER_GONE;
        others += who != HOLDER_GONE;
        if ((data[at + 12] & 1) != 0)
            holder = who;
    }
    map->has_twin = holder == HOLDER_GONE && others > 0;
    return ours > 0 ? holder : HOLDER_UNKNOWN;
}

/*
 * If the disk does not say whose a path that holds is, multipathd's word counts
 * for one that is gone. When it was started anew, it may have guessed from the
 * key that it is us, or it has not heard that a twin took it over: so it counts
 * only if there are no more registrations with that key than paths of ours that
 * have it, or are gone; and not if one has lost it, as a twin's PREEMPT takes
 * it off those, too, that are gone.
 */
enum holder holder_find(struct map *map)
{
    enum multipathd_said hold;
    enum holder host;
    struct request probe;
    unsigned ours = 0, gone;
    uint8_t type;
    int keys = -1;

    map->holder = NULL;
    map->has_twin = false;
    if (!reservation_read(map))
        return HOLDER_UNKNOWN;
    if (!map->reservation.is_held || map->reservation.key == 0
        || map->reservation.key != map->key.value)
        return HOLDER_OTHER;
    type = (map->reservation.scope_type & 0x0f) == WRITE_EXCLUSIVE
               ? EXCLUSIVE_ACCESS
               : WRITE_EXCLUSIVE;
    request_set(&probe, RELEASE, type, map->key.value, 0, 0);
    all_due(map);
    if (!paths_visit(map, path_probe, &probe))
        return map->holder != NULL ? HOLDER_PATH : HOLDER_UNKNOWN;
    gone = count_of(map, ASIDE);
    /* Who has taken the key off all paths that work took it off all others. */
    if (gone < map->count && count_of(map, DONE) == 0)
        return HOLDER_OTHER;
    if (count_of(map, CONFLICT) == 0)
        ours = count_of(map, DONE) + gone;
    host = host_find(map);
    if (host == HOLDER_UNKNOWN && gone == 0)
        host = HOLDER_OTHER;
    if (host != HOLDER_UNKNOWN)
        return host;
    hold = multipathd_tell(&map->multipathd, "getprhold");
    if (hold == MULTIPATHD_UNSET)
        return HOLDER_OTHER;
    if (hold == MULTIPATHD_SET
        && (keys = keys_read(map, NULL, map->key.value)) < 0)
        return HOLDER_UNKNOWN;
    /* Who held may have lost his key since, and we ours: it is asked again. */
    if (keys >= 0 && map->generation != map->reservation.generation) {
        map_wait(map, map->deadline); /* which ends it, or so many turns */
        return holder_find(map);
    }
    if (keys > 0 && (unsigned)keys <= ours)
        return HOLDER_GONE;
    map_fail(map,
             "the path that may hold the reservation is gone, and %s: "
             "bring the path back",
             hold == MULTIPATHD_SET
                 ? "another host may have the same key"
                 : "multipathd does not know (before version "
                   "0.13 none does)");
    return HOLDER_UNKNOWN;
}
