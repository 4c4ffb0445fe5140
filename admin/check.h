/* SPDX-License-Identifier: MIT */
/*
 * check.h - what `qemu-pr-client check` has found out so far.
 */
#ifndef CHECK_H
#define CHECK_H

#include "client.h"
#include "decode.h"
#include "identity.h"

enum { CURE_SIZE = 1024 };
enum { FINDINGS_MOST = 300 }; /* one for each path, and some */

struct finding {
    int exit_status;
    char text[320], cure[CURE_SIZE];
};

struct check {
    struct helper *helper;
    const struct arguments *arguments;
    struct output output;
    struct identity identity;
    struct reply full; /* what READ FULL STATUS answered; size 0: it did not */
    bool is_whole;     /* it has all that are registered */
    bool is_reserved;
    struct reservation reservation;
    enum whose registered, holder; /* this host, through this device? */
    uint64_t key;                  /* if it is registered: with this one */
    unsigned count;
    struct finding findings[FINDINGS_MOST];
};

/* findings.c: something is wrong, and cure says what to do about it. */
__attribute__((format(printf, 4, 5))) void finding(struct check *,
                                                   int exit_status,
                                                   const char *cure,
                                                   const char *format, ...);

void findings_show(struct check *, int exit_status);

/* check_map.c: of a multipath map; who holds the reservation of it. */
void check_map(struct check *);

#endif
