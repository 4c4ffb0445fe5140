/* SPDX-License-Identifier: MIT */
/*
 * check.c - what `qemu-pr-client check` says of a multipath map, beyond what
 * it says of every disk: is multipathd there, does it know a key, which paths
 * are registered with it, and who holds the reservation.
 *
 * It only looks: at sysfs, at what the helper has read from the disk, and at
 * multipathd, which tells the keys to root alone. It must never change
 * anything, and say what it cannot know in so many words.
 */
#include "check.h"
#include "../multipath/multipathd.h"
#include "../sg_io.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum {
    PATHS_MOST = 256,
    VPD_SIZE = 1024,
    REGISTRATION = 24, /* before its TransportID, SPC-4 6.15.5 */
    ALL_PORTS = 0x02   /* the flag ALL_TG_PT */
};

struct path {
    char name[32];
    char state[32]; /* the kernel's */
    uint16_t port;  /* relative target port; 0: not known */
    bool is_used;   /* the kernel would send I/O to it */
};

struct paths {
    unsigned count;
    struct path of[PATHS_MOST];
};

/* multipathd.c's words, for whoever asked. */
void log_at(int level, const char *format, ...)
{
    va_list arguments;

    (void)level;
    va_start(arguments, format);
    fflush(stdout);
    fputs("qemu-pr-client: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

void trace(enum trace_event event, const char *format, ...)
{
    (void)event;
    (void)format;
}

static bool path_found(void *context, const char *name)
{
    struct paths *paths = context;
    struct path *path = &paths->of[paths->count];

    if (paths->count == PATHS_MOST || strlen(name) >= sizeof(path->name))
        return false;
    memset(path, 0, sizeof(*path));
    memcpy(path->name, name, strlen(name) + 1);
    paths->count++;
    return true;
}

/* A file of a path's SCSI device, as far as it fits; returns its size. */
static size_t device_read(const struct path *path, const char *file, void *data,
                          size_t size)
{
    char name[128];
    ssize_t length;
    int fd;

    snprintf(name, sizeof(name), "/sys/block/%s/device/%s", path->name, file);
    fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    length = read(fd, data, size);
    close(fd);
    return length > 0 ? (size_t)length : 0;
}

/* VPD page 83h, SPC-4 7.8.6: designator 4 of association 1. */
static uint16_t port_find(const struct path *path)
{
    uint8_t page[VPD_SIZE];
    size_t at, size = device_read(path, "vpd_pg83", page, sizeof(page));

    for (at = 4; at + 8 <= size; at += 4 + (size_t)page[at + 3])
        if ((page[at + 1] & 0x3f) == 0x14 && page[at + 3] == 4)
            return be16_get(page + at + 6);
    return 0;
}

/*
 * How many registrations have this key, at this target port (0: at any). The
 * disk has listed them; a registration for all ports counts at each.
 */
static unsigned registrations_count(const uint8_t *list, size_t size,
                                    uint64_t key, uint16_t port)
{
    unsigned count = 0;
    size_t at;

    for (at = 8; at + REGISTRATION <= size;
         at += REGISTRATION + (size_t)be32_get(list + at + 20))
        if (be64_get(list + at) == key
            && (port == 0 || (list[at + 12] & ALL_PORTS) != 0
                || be16_get(list + at + 18) == port))
            count++;
    return count;
}

/* Does each registration name its port? LIO of Linux 6.12 does not. */
static bool ports_are_named(const uint8_t *list, size_t size)
{
    size_t at;

    for (at = 8; at + REGISTRATION <= size;
         at += REGISTRATION + (size_t)be32_get(list + at + 20))
        if (be16_get(list + at + 18) == 0)
            return false;
    return true;
}

/*
 * A registration names the port of the target that it is for, and the
 * initiator in a manner of its own: so paths by one port are counted.
 */
static bool registrations_print(const struct paths *paths, uint64_t key,
                                const uint8_t *list, size_t size)
{
    bool is_whole = true;
    unsigned i, j;

    for (i = 0; i < paths->count; i++) {
        const struct path *path = &paths->of[i];
        unsigned there = registrations_count(list, size, key, path->port);
        unsigned same = 0;

        for (j = 0; j < paths->count; j++)
            same += paths->of[j].port == path->port && paths->of[j].is_used;
        if (!path->is_used)
            printf("  %s is %s: the kernel does not use it\n", path->name,
                   path->state);
        else if (there >= same)
            printf("  %s is registered\n", path->name);
        else if (there == 0)
            printf("  %s is not registered\n", path->name);
        else
            printf("  %s is one of %u paths to the same port, of which %u %s "
                   "registered\n",
                   path->name, same, there, there == 1 ? "is" : "are");
        is_whole = is_whole && (!path->is_used || there >= same);
    }
    return is_whole;
}

static void holder_print(const struct multipathd *multipathd, uint64_t key,
                         const uint8_t *reservation, size_t size)
{
    uint64_t holder;

    if (size < 24 || be32_get(reservation + 4) == 0)
        return;
    holder = be64_get(reservation + 8);
    if (holder == 0)
        puts("All that are registered hold the reservation.");
    else if (holder != key)
        puts("Another host holds the reservation: its key is another.");
    else
        switch (multipathd_flag_get(multipathd, "getprhold")) {
        case FLAG_SET:
            puts("This host holds the reservation, says multipathd.");
            break;
        case FLAG_UNSET:
            puts("Another host with the same key holds the reservation, says "
                 "multipathd.");
            break;
        default:
            puts("This host holds the reservation, or another one with the "
                 "same key: multipathd does not know (before version 0.13 it "
                 "never does).");
        }
}

/*
 * Which key multipathd has for the map; value 0: none, as nobody is registered.
 * False: no virtual machine could register.
 */
static bool key_check(const struct multipathd *multipathd,
                      struct multipathd_key *key)
{
    if (!multipathd_key_get(multipathd, key)) {
        log_warning("multipathd does not say which key %s has: without it no "
                    "reservation of a map can be changed; is it running, and "
                    "is its socket where the helper looks for it?",
                    multipathd->map);
        return false;
    }
    if (key->value == 0) {
        if (multipathd_config_has(multipathd, "reservation_key")) {
            puts("multipathd knows no key: no virtual machine of this host is "
                 "registered.");
            return true;
        }
        log_warning("there is no reservation_key in multipath.conf, so that "
                    "nobody can register: put 'reservation_key file' into its "
                    "defaults section, then multipathd reconfigure");
        return false;
    }
    return true;
}

/* What the kernel and multipathd think of each path. */
static void paths_look(struct paths *paths, const struct multipathd *multipathd,
                       bool is_named)
{
    char table[MULTIPATHD_TABLE];
    unsigned i;

    multipathd_paths_get(multipathd, table);
    for (i = 0; i < paths->count; i++) {
        struct path *path = &paths->of[i];
        size_t size = device_read(path, "state", path->state,
                                  sizeof(path->state) - 1);

        path->state[size > 0 ? size - 1 : 0] = '\0';
        if (is_named)
            path->port = port_find(path);
        path->is_used = strcmp(path->state, "running") == 0
                        || strcmp(path->state, "blocked") == 0;
        if (path->is_used && multipathd_path(table, path->name).is_failed) {
            path->is_used = false;
            strcpy(path->state, "failed");
        }
    }
}

bool check_map(int fd, const char *socket_path, const uint8_t *status,
               size_t status_size, const uint8_t *reservation,
               size_t reservation_size)
{
    char uuid[ALIAS_SIZE], alias[ALIAS_SIZE], name[16];
    static struct paths paths;
    struct multipathd multipathd = { name, alias, socket_path, NULL };
    struct multipathd_key key;
    struct stat st;
    bool is_well;

    if (fstat(fd, &st) < 0 || !S_ISBLK(st.st_mode)
        || !sysfs_read(st.st_rdev, "/dm/uuid", uuid, sizeof(uuid))
        || strncmp(uuid, "mpath-", 6) != 0)
        return true;
    if (!sysfs_read(st.st_rdev, "/dm/name", alias, sizeof(alias)))
        alias[0] = '\0';
    snprintf(name, sizeof(name), "dm-%u", minor(st.st_rdev));
    if (!sysfs_slaves(st.st_rdev, path_found, &paths))
        log_warning("cannot list all paths of %s", name);
    printf("It is the multipath map %s (%s) of %u paths.\n", alias, name,
           paths.count);
    if (geteuid() != 0) {
        puts("multipathd tells only root more.");
        return true;
    }
    if (!key_check(&multipathd, &key))
        return false;
    if (key.value == 0)
        return true;
    printf("multipathd registers key %#" PRIx64 " on paths that come%s:\n",
           key.value,
           multipathd_flag_get(&multipathd, "getprstatus") == FLAG_SET
               ? ""
               : ", when it is told to");
    paths_look(&paths, &multipathd, ports_are_named(status, status_size));
    if (status_size == 0) /* the disk does not list who is registered */
        return true;
    is_well = registrations_print(&paths, key.value, status, status_size)
              || registrations_count(status, status_size, key.value, 0) == 0;
    if (!is_well)
        log_warning("writes by a path that is not registered may fail: let the "
                    "virtual machine register again");
    holder_print(&multipathd, key.value, reservation, reservation_size);
    return is_well;
}
