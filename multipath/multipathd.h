/* SPDX-License-Identifier: MIT */
/*
 * multipathd.h - what multipathd is told, and asked, about one map; the only
 * part of this folder that the administrator's client has, too.
 *
 * It must never take silence for an answer.
 */
#ifndef MULTIPATHD_H
#define MULTIPATHD_H

#include "../log.h"

enum { ALIAS_SIZE = 129 }; /* DM_NAME_LEN (linux/dm-ioctl.h), a line's end */
struct multipathd {
    const char *map;         /* dm-N */
    const char *alias;       /* what else it is called */
    const char *socket_path; /* our own socket's, or NULL */
    const int64_t *deadline; /* clock_us(); NULL: each command's own */
};
struct multipathd_path {
    bool is_failed; /* the kernel sends it no I/O */
    bool is_ready;  /* its checker has not seen it fail */
};
struct multipathd_key {
    uint64_t value; /* 0: none */
    bool aptpl;
};
/*
 * What is SILENT has not said yes or no, and may have done it, or not. SET and
 * UNSET are answers to getprstatus and getprhold; OTHER are those that mean
 * nothing to us, such as how a version is used that has no such command.
 */
enum multipathd_said {
    MULTIPATHD_SILENT,
    MULTIPATHD_UNSET,
    MULTIPATHD_REFUSED,
    MULTIPATHD_DONE,
    MULTIPATHD_SET,
    MULTIPATHD_OTHER
};
/* The key that multipathd registers on new paths; value 0 if there is none. */
bool multipathd_key_get(const struct multipathd *, struct multipathd_key *);
/* Sets the key, or with value 0 forgets it. */
enum multipathd_said multipathd_key_set(const struct multipathd *,
                                        const struct multipathd_key *);
/*
 * Sends a command that takes but the map. getprstatus: does it register new
 * paths with the key? getprhold: does this host hold the reservation, through
 * whatever path? That older versions do not know, nor need to be told.
 */
enum multipathd_said multipathd_tell(const struct multipathd *,
                                     const char *command);
enum { MULTIPATHD_TEXT = 1 << 18 }; /* a table of some 13,000 paths */
#define MULTIPATHD_PATHS "show paths raw format \"/%d %t %T\""
/* Gets its answer to a command that takes no map; empty: it is silent. */
void multipathd_show(const struct multipathd *, const char *command,
                     char text[MULTIPATHD_TEXT]);
/*
 * Finds what multipathd thinks of a path, a line of MULTIPATHD_PATHS. One that
 * it does not know it cannot have seen fail.
 */
struct multipathd_path multipathd_path(const char *table, const char *name);

#endif
