/* SPDX-License-Identifier: MIT */
/*
 * identity.h - which disk a device is, and which initiator and port of the
 * target each path of this host to it has.
 */
#ifndef IDENTITY_H
#define IDENTITY_H

#include "../multipath/multipathd.h"
#include "decode.h"
#include "output.h"

#include <sys/types.h>

enum { PATHS_MOST = 256 };

struct path {
    char name[32];
    dev_t number;        /* of its block device; 0: not known */
    char state[32];      /* the kernel's */
    char initiator[256]; /* as decode_transport_id() has it; "": not known */
    uint16_t port;       /* relative target port; 0: not known */
    bool is_ours;        /* the device itself, or a path of the map */
    bool is_used;        /* the kernel would send I/O to it */
};

/* What is not known is "". */
struct identity {
    dev_t number;
    bool is_map;
    char name[32];          /* the kernel's: sda, dm-0; sg0 if no disk has it */
    char alias[ALIAS_SIZE]; /* of a map */
    char vendor[32], model[32], serial[128];
    unsigned count;
    struct path paths[PATHS_MOST]; /* those that are ours come first */
};

/* Which registration of a list is whose. */
enum whose { NOT_OURS, PERHAPS_OURS, OURS };

bool identity_is_map(dev_t); /* Is this block device a multipath map? */
/* False, and all unknown, if sysfs knows no SCSI device or map by that. */
bool identity_find(struct identity *, int fd);
/* Vendor, model and serial number, in a line or as an object. */
void identity_show(struct output *, const struct identity *);
/* The whole of which this block device is a partition, "": of none. */
enum { WHOLE_SIZE = ALIAS_SIZE + 16 };
void identity_whole(int fd, char whole[WHOLE_SIZE]);
/* Does the registration come from this path? */
enum whose path_whose(const struct path *, const struct registration *);
/* Is the initiator that of the path, through whatever port? */
bool path_is_initiator(const struct path *, const struct registration *);

#endif
