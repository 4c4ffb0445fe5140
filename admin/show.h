/* SPDX-License-Identifier: MIT */
/*
 * show.h - the parameter data of PERSISTENT RESERVE IN for whoever reads it.
 */
#ifndef SHOW_H
#define SHOW_H

#include "decode.h"
#include "output.h"

/* Adds to what is shown of a registration, within its line or its object. */
typedef void show_more(struct output *, const struct registration *,
                       void *context);
/*
 * The parameter data of a PERSISTENT RESERVE IN with an allocation length of
 * PROTOCOL_DATA_MAX, which is the most that size may be; in JSON as members of
 * an object that the caller has begun. more may be NULL. Returns false if it
 * made no sense, after having shown what did.
 */
bool show_payload(struct output *, unsigned action, const uint8_t *payload,
                  size_t size, show_more *more, void *context);
/* "write-exclusive (type 1)"; in JSON members of an object. */
void show_reservation(struct output *, const struct reservation *);

#endif
