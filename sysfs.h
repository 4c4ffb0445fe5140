/* SPDX-License-Identifier: MIT */
/*
 * sysfs.h - what the kernel says of a block device.
 *
 * It must never take a device's name for the device.
 */
#ifndef SYSFS_H
#define SYSFS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Does sysfs have this block device (""), or this file of it ("/name")? */
bool sysfs_has(dev_t, const char *file);
/* Is this file of it ("/slaves/sda") the device that has the other number? */
bool sysfs_is(dev_t, const char *file, dev_t other);
/* Reads a line, without its end. False if it is missing or does not fit. */
bool sysfs_read(dev_t, const char *file, char *line, size_t size);
bool sysfs_line(const char *path, char *line, size_t size); /* of any file */
/*
 * Calls found() with each name in a directory, until it returns false. Returns
 * false then, and if the names cannot be read. (opendir() would allocate
 * memory, for which the sandbox has no calls.)
 */
bool sysfs_list(const char *directory,
                bool (*found)(void *context, const char *name), void *context);
/* Does the same with the name of each device that this one is made of. */
bool sysfs_slaves(dev_t, bool (*found)(void *context, const char *name),
                  void *context);

#endif
