/* SPDX-License-Identifier: MIT */
/*
 * surroundings.c - asks /proc what the helper's process may do, and what it
 * sees: often it is in a container, or libvirt's, with a /dev of its own.
 *
 * It must never enter a namespace, or conclude anything from what it may not
 * read: much of it is for root alone.
 */
#include "surroundings.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SYS_RAWIO = 17, NAME_SIZE = 128 };

/* Reads a file of the process; the text is empty if it cannot be read. */
static void proc_read(pid_t pid, const char *file, char *text, size_t size)
{
    char name[NAME_SIZE];
    ssize_t length = -1;
    int fd;

    snprintf(name, sizeof(name), "/proc/%ld/%s", (long)pid, file);
    fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        length = read(fd, text, size - 1);
        close(fd);
    }
    text[length > 0 ? length : 0] = '\0';
}

static bool namespace_read(const char *name, char link[NAME_SIZE])
{
    ssize_t length = readlink(name, link, NAME_SIZE - 1);

    link[length > 0 ? length : 0] = '\0';
    return length > 0;
}

/* The initial one maps all ids to themselves, and has a number of its own. */
static bool is_in_user_namespace(pid_t pid)
{
    char name[NAME_SIZE], link[NAME_SIZE], map[NAME_SIZE];
    uint32_t inside, outside, count;

    snprintf(name, sizeof(name), "/proc/%ld/ns/user", (long)pid);
    if (namespace_read(name, link))
        return strcmp(link, "user:[4026531837]") != 0;
    proc_read(pid, "uid_map", map, sizeof(map));
    return sscanf(map, "%" SCNu32 " %" SCNu32 " %" SCNu32, &inside, &outside,
                  &count)
               == 3
           && !(inside == 0 && outside == 0 && count == UINT32_MAX);
}

const char *surroundings_no_rawio(pid_t pid)
{
    static const char field[] = "\nCapEff:";
    char status[4096];
    const char *at;
    uint64_t effective;

    proc_read(pid, "status", status, sizeof(status));
    at = strstr(status, field);
    if (pid <= 0 || at == NULL
        || sscanf(at + sizeof(field) - 1, "%" SCNx64, &effective) != 1)
        return NULL;
    if (!(effective >> SYS_RAWIO & 1))
        return "has no CAP_SYS_RAWIO: start it as root, or give its unit or "
               "its container that capability";
    return is_in_user_namespace(pid)
               ? "has CAP_SYS_RAWIO in a user namespace of its own only, and "
                 "the kernel wants that of the initial one: run it in a "
                 "container without user namespaces (not rootless)"
               : NULL;
}

enum sees surroundings_sees(pid_t pid, const char *name, dev_t number)
{
    char path[NAME_SIZE];
    struct stat st;

    snprintf(path, sizeof(path), "/proc/%ld/root/dev/.", (long)pid);
    if (pid <= 0 || stat(path, &st) < 0)
        return SEES_UNKNOWN; /* not for us */
    snprintf(path, sizeof(path), "/proc/%ld/root/dev/%s", (long)pid, name);
    if (stat(path, &st) < 0)
        return errno == ENOENT ? SEES_NOT : SEES_UNKNOWN;
    return S_ISBLK(st.st_mode) && st.st_rdev == number ? SEES : SEES_OTHER;
}

bool surroundings_is_elsewhere(pid_t pid)
{
    char name[NAME_SIZE], its[NAME_SIZE], ours[NAME_SIZE];

    snprintf(name, sizeof(name), "/proc/%ld/ns/mnt", (long)pid);
    return namespace_read(name, its)
           && namespace_read("/proc/self/ns/mnt", ours)
           && strcmp(its, ours) != 0;
}
