/* SPDX-License-Identifier: MIT */
/*
 * status.h - who is registered, and which of them is this host.
 */
#ifndef STATUS_H
#define STATUS_H

#include "client.h"
#include "identity.h"

/* What READ FULL STATUS answered. Returns the exit status. */
int registrations_show(struct output *, const struct identity *,
                       const struct reply *);

#endif
