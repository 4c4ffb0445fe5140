/* SPDX-License-Identifier: MIT */
/*
 * report.h - what an administrator is told of commands and clients.
 *
 * It must never change what it is about.
 */
#ifndef REPORT_H
#define REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pr_command;
struct record;
struct roster;

/* A command has come, of the client with that record. */
void report_request(const struct record *, const struct pr_command *);
/* It is answered. The descriptor must still be open. */
void report_reply(const struct record *, const struct pr_command *,
                  size_t payload);
/* Returns what came of it, in words, or text, which is room for them. */
enum { RESULT_SIZE = 32 };
const char *report_result(const struct pr_command *, char text[RESULT_SIZE]);
/*
 * Logs the sums if an administrator has asked, then a line for each client, a
 * few at a time, so that whoever reads them keeps up. Returns when to go on.
 */
int64_t report_status(struct roster *, bool is_asked, unsigned workers,
                      int64_t now);

#endif
