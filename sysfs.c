/* SPDX-License-Identifier: MIT */
/*
 * sysfs.c - what the kernel says of a block device, by its number: files
 * below /sys/dev/block/MAJOR:MINOR.
 *
 * It must never look a device up by a name that could have come to mean
 * another one, nor take more than the caller has room for. stat() is all
 * that a session may do here (see sandbox.c); to open is for workers.
 */
#include "sysfs.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { PATH_SIZE = 128 }; /* longest: .../holders/dm-1048575 */

static const char *path_set(char path[PATH_SIZE], dev_t device,
                            const char *file)
{
    snprintf(path, PATH_SIZE, "/sys/dev/block/%u:%u%s", major(device),
             minor(device), file);
    return path;
}

bool sysfs_has(dev_t device, const char *file)
{
    char path[PATH_SIZE];
    struct stat st;

    return stat(path_set(path, device, file), &st) == 0;
}

bool sysfs_is(dev_t device, const char *file, dev_t other)
{
    char path[PATH_SIZE];
    struct stat st, named;

    return stat(path_set(path, other, ""), &st) == 0
           && stat(path_set(path, device, file), &named) == 0
           && st.st_dev == named.st_dev && st.st_ino == named.st_ino;
}

bool sysfs_line(const char *path, char *line, size_t size)
{
    ssize_t length;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return false;
    length = read(fd, line, size);
    close(fd);
    if (length < 1 || (size_t)length >= size || line[length - 1] != '\n')
        return false;
    line[length - 1] = '\0';
    return strlen(line) == (size_t)length - 1;
}

bool sysfs_read(dev_t device, const char *file, char *line, size_t size)
{
    char path[PATH_SIZE];

    return sysfs_line(path_set(path, device, file), line, size);
}

bool sysfs_list(const char *directory,
                bool (*found)(void *context, const char *name), void *context)
{
    char entries[2048] __attribute__((aligned(8)));
    const struct dirent *entry; /* that of 64 bits is the kernel's, too */
    long length = -1, at;
    bool more = true;
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        return false;
    while (more
           && (length = syscall(SYS_getdents64, fd, entries, sizeof(entries)))
                  > 0)
        for (at = 0; more && at < length; at += entry->d_reclen) {
            entry = (const void *)(entries + at);
            more = strcmp(entry->d_name, ".") == 0
                   || strcmp(entry->d_name, "..") == 0
                   || found(context, entry->d_name);
        }
    close(fd);
    return more && length == 0;
}

bool sysfs_slaves(dev_t device, bool (*found)(void *context, const char *name),
                  void *context)
{
    char path[PATH_SIZE];

    return sysfs_list(path_set(path, device, "/slaves"), found, context);
}
