/* SPDX-License-Identifier: MIT */
/*
 * surroundings.h - what /proc says of the process that answers as the helper.
 */
#ifndef SURROUNDINGS_H
#define SURROUNDINGS_H

#include <stdbool.h>
#include <sys/types.h>

/* Why the kernel will not send its commands; NULL: not because of that. */
const char *surroundings_no_rawio(pid_t);
/* Is /dev/NAME there, for that process, the block device of this number? */
enum sees { SEES_NOT, SEES_OTHER, SEES, SEES_UNKNOWN };
enum sees surroundings_sees(pid_t, const char *name, dev_t number);
/* Has it another mount namespace than we have? */
bool surroundings_is_elsewhere(pid_t);

#endif
