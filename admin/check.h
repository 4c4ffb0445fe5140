/* SPDX-License-Identifier: MIT */
/*
 * check.h - what qemu-pr-client says of a multipath map, beyond what it says
 * of every disk.
 */
#ifndef CHECK_H
#define CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * fd is the device; socket_path the helper's socket; the others are what READ
 * FULL STATUS and READ RESERVATION answered. Prints what it finds out, and
 * nothing if the device is no map. False: something is wrong.
 */
bool check_map(int fd, const char *socket_path, const uint8_t *status,
               size_t status_size, const uint8_t *reservation,
               size_t reservation_size);

#endif
