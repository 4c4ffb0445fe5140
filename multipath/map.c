/* SPDX-License-Identifier: MIT */
/*
 * map.c - a multipath map, its paths as the kernel and multipathd see them,
 * and which of them a command may leave out.
 *
 * It must never let a path be left out only because a command has failed on
 * it or we cannot open it: what the kernel may send I/O to counts. A path
 * is known by its name in the map; the device node of that name can belong
 * to another disk by the time we open it, so the open device is asked.
 */
#include "multipath.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define PAUSE_MOST (SECOND / 2)

/* LOGICAL UNIT COMMUNICATION FAILURE, which a guest tries again. */
static void answer_fail(struct answer *answer)
{
    struct pr_command command = { .sense = answer->sense };

    sense_set(&command, ABORTED_COMMAND, 0x08, 0x00);
    answer->status = command.status;
    answer->payload = 0;
}

void map_fail(struct map *map, const char *format, ...)
{
    char reason[256];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(reason, sizeof(reason), format, arguments);
    va_end(arguments);
    answer_fail(&map->answer);
    log_warning("%s (%s): %s", map->name, map->alias, reason);
}

void map_answer(struct map *map, uint8_t status)
{
    memset(&map->answer, 0, sizeof(map->answer));
    map->answer.status = status;
}

bool map_wait(struct map *map, int64_t deadline)
{
    int64_t left = deadline - clock_us();

    if (left <= 0)
        return false;
    if (map->pause > left)
        map->pause = left;
    nanosleep(&(struct timespec){ .tv_nsec = (long)map->pause * 1000 }, NULL);
    map->pause = map->pause < PAUSE_MOST / 2 ? map->pause * 2 : PAUSE_MOST;
    return true;
}

void map_extend(struct map *map)
{
    bool is_suspended = map->suspension->alias[0] != '\0';
    int64_t least = clock_us() + AFTERWARDS_WITHIN / (is_suspended ? 4 : 1);

    if (least > map->end)
        least = map->end;
    if (map->deadline < least)
        map->deadline = least;
}

bool is_word(const char *text)
{
    for (; *text != '\0'; text++)
        if (!isgraph((unsigned char)*text) || strchr("\"'\\/", *text) != NULL)
            return false;
    return true;
}

/* A callback of sysfs_slaves(): one more path, unless it is known. */
static bool path_found(void *context, const char *name)
{
    struct map *map = context;
    struct path *path = &map->paths[map->count];
    unsigned i;

    for (i = 0; i < map->count; i++)
        if (strcmp(map->paths[i].name, name) == 0)
            return true;
    if (map->count == PATHS_MOST || strlen(name) >= sizeof(path->name)
        || !is_word(name))
        return false;
    memset(path, 0, sizeof(*path));
    memcpy(path->name, name, strlen(name) + 1);
    path->fd = -1;
    map->count++;
    return true;
}

bool map_list(struct map *map)
{
    if (sysfs_slaves(map->device, path_found, map))
        return true;
    map_fail(map,
             "cannot list its paths: more than %d, an odd name, or "
             "/sys is not to be read",
             PATHS_MOST);
    return false;
}

void map_close(struct map *map)
{
    unsigned i;

    for (i = 0; i < map->count; i++)
        if (map->paths[i].fd >= 0)
            close(map->paths[i].fd);
}

/* Is the device what has that name in the map? Others may be paths, too. */
static bool is_path(const struct map *map, const struct path *path,
                    dev_t device)
{
    char slave[sizeof("/slaves/") + sizeof(path->name)];
    char holder[sizeof("/holders/") + sizeof(map->name)];

    snprintf(slave, sizeof(slave), "/slaves/%s", path->name);
    snprintf(holder, sizeof(holder), "/holders/%s", map->name);
    return sysfs_is(map->device, slave, device) && sysfs_has(device, holder);
}

/*
 * Opens the path's node, unless it is open. False: it is not the path's, and
 * path->why says so. NVMe disks and the like end here, too.
 */
static bool path_open(const struct map *map, struct path *path)
{
    char node[sizeof("/dev/") + sizeof(path->name)];
    struct stat st;

    if (path->fd >= 0 && is_path(map, path, path->device))
        return true;
    if (path->fd >= 0)
        close(path->fd);
    snprintf(node, sizeof(node), "/dev/%s", path->name);
    path->fd = open(node, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (path->fd < 0) {
        snprintf(path->why, sizeof(path->why),
                 "has %s, which cannot be opened: %s", node, strerror(errno));
        return false;
    }
    if (fstat(path->fd, &st) == 0 && sg_io_is_disk(&st)
        && is_path(map, path, st.st_rdev)) {
        path->device = st.st_rdev;
        return true;
    }
    snprintf(path->why, sizeof(path->why),
             "has %s, which is not the disk that has "
             "this name in the map",
             node);
    close(path->fd);
    path->fd = -1;
    return false;
}

enum verdict path_look(const struct map *map, struct path *path)
{
    char name[sizeof("/slaves//device/state") + sizeof(path->name)], state[32];
    int end = snprintf(name, sizeof(name), "/slaves/%s", path->name);

    path->is_down = false;
    if (!sysfs_has(map->device, name)) {
        snprintf(path->why, sizeof(path->why), "is no path any more");
        return ASIDE;
    }
    snprintf(name + end, sizeof(name) - (size_t)end, "/device/state");
    if (!sysfs_read(map->device, name, state, sizeof(state)))
        snprintf(state, sizeof(state), "in no known state");
    else if (strcmp(state, "running") == 0)
        return path_open(map, path) ? DUE : NOT_TAKEN;
    else
        path->is_down = strcmp(state, "blocked") != 0
                        && strcmp(state, "created-blocked") != 0
                        && strcmp(state, "quiesce") != 0;
    snprintf(path->why, sizeof(path->why), "is %s", state);
    return NOT_TAKEN;
}

void map_see(struct map *map)
{
    char table[MULTIPATHD_TABLE] = "";
    unsigned i;

    if (clock_us() < map->deadline)
        multipathd_paths_get(&map->multipathd, table);
    for (i = 0; i < map->count; i++)
        map->paths[i].seen = multipathd_path(table, map->paths[i].name);
}

bool path_is_left_out(struct map *map, struct path *path)
{
    if (path_look(map, path) != ASIDE) {
        map_see(map);
        if (path->seen.is_ready || !(path->seen.is_failed || path->is_down))
            return false;
    }
    if (!path->is_reported)
        log_warning("%s (%s): %s is left out: it %s, and multipathd has "
                    "failed it",
                    map->name, map->alias, path->name, path->why);
    path->is_reported = true;
    return true;
}

void alias_renew(dev_t device, char alias[ALIAS_SIZE])
{
    char now[ALIAS_SIZE];

    if (sysfs_read(device, "/dm/name", now, sizeof(now)) && now[0] != '\0')
        memcpy(alias, now, sizeof(now));
}

enum refusal map_begin(struct map *map, dev_t device, const char *socket_path,
                       struct suspension *suspension)
{
    char uuid[ALIAS_SIZE + 8];

    memset(map, 0, sizeof(*map));
    answer_fail(&map->answer); /* until there is another one */
    map->suspension = suspension;
    map->device = device;
    map->deadline = clock_us() + COMMAND_WITHIN;
    map->end = map->deadline + AFTERWARDS_WITHIN;
    map->pause = PAUSE_LEAST;
    map->multipathd = (struct multipathd){
        .map = map->name,
        .alias = map->alias,
        .socket_path = socket_path,
        .deadline = &map->deadline,
    };
    if (!sysfs_read(device, "/dm/uuid", uuid, sizeof(uuid)))
        return NO_UUID;
    if (strncmp(uuid, "mpath-", 6) != 0)
        return NO_MULTIPATH;
    snprintf(map->name, sizeof(map->name), "dm-%u", minor(device));
    alias_renew(device, map->alias);
    return NOT_REFUSED;
}
