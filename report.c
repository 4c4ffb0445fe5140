/* SPDX-License-Identifier: MIT */
/*
 * report.c - what an administrator is told: of commands (-v and -T), and upon
 * SIGUSR1 who is connected and what has been done.
 *
 * It must never print what a client sent but as numbers, nor take anything
 * else from a record, which a session can write to: an index is brought
 * within its bounds where it is used, as it may change meanwhile.
 */
#include "protocol.h"
#include "roster.h"
#include "sg_io.h"
#include "sysfs.h"

#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

/* ---- Commands --------------------------------------------------------- */

enum { DEVICE_SIZE = 48, COMMAND_SIZE = 128 };

/* Writes name and number. Linux names disks sda to sdz, sdaa and so on. */
static const char *device_name(char text[DEVICE_SIZE], int fd)
{
    char name[16] = "device", letters[8] = "", *letter = &letters[7];
    unsigned family, number, index;
    bool is_block;
    struct stat st;
    int row;

    if (fstat(fd, &st) < 0 || (!S_ISBLK(st.st_mode) && !S_ISCHR(st.st_mode)))
        return "no device";
    is_block = S_ISBLK(st.st_mode);
    family = major(st.st_rdev);
    number = minor(st.st_rdev);
    row = is_block ? sg_io_disk_row(family) : -1;
    if (row >= 0) {
        index = (number & 0xfff00) | (unsigned)row << 4 | (number >> 4 & 0xf);
        for (index++; index > 0; index = (index - 1) / 26)
            *--letter = (char)('a' + (index - 1) % 26);
        snprintf(name, sizeof(name), "sd%s%.0u", letter,
                 number % SCSI_DISK_MINORS);
    } else if (is_block ? sysfs_has(st.st_rdev, "/dm")
                        : family == SCSI_GENERIC_MAJOR) {
        snprintf(name, sizeof(name), "%s%u", is_block ? "dm-" : "sg", number);
    }
    snprintf(text, DEVICE_SIZE, "%s (%u:%u)", name, family, number);
    return text;
}

void report_request(const struct record *record,
                    const struct pr_command *command)
{
    char device[DEVICE_SIZE];

    if (trace_is_on(TRACE_REQUEST))
        trace(TRACE_REQUEST, "client pid %d uid %u: %016llx%04x to %s",
              record->peer.pid, record->peer.uid,
              (unsigned long long)be64_get(command->cdb),
              be16_get(command->cdb + 8), device_name(device, command->fd));
}

/* Says what the command is; text is room for that. */
static const char *command_name(const struct pr_command *command,
                                char text[COMMAND_SIZE])
{
    static const char *const actions[] = { "REGISTER",
                                           "RESERVE",
                                           "RELEASE",
                                           "CLEAR",
                                           "PREEMPT",
                                           "PREEMPT AND ABORT",
                                           "REGISTER AND IGNORE EXISTING KEY",
                                           "REGISTER AND MOVE" };
    static const uint8_t none[16];
    const uint8_t *keys = command->length < sizeof(none) ? none : command->data;
    unsigned action = command->cdb[1] & 0x1f;

    if (command->cdb[0] == PROTOCOL_CLEANUP)
        return "CLEANUP";
    snprintf(text, COMMAND_SIZE,
             command->cdb[0] == PERSISTENT_RESERVE_IN
                 ? "service action %02Xh"
                 : "service action %02Xh (%s), type %u, key %llx, service "
                   "action key %llx",
             action, action < COUNT(actions) ? actions[action] : "?",
             command->cdb[2] & 0xfU, (unsigned long long)be64_get(keys),
             (unsigned long long)be64_get(keys + 8));
    return text;
}

void report_reply(const struct record *record, const struct pr_command *command,
                  size_t payload)
{
    enum trace_event event = command->cdb[0] == PERSISTENT_RESERVE_IN
                                 ? TRACE_PR_IN
                                 : TRACE_PR_OUT;
    char device[DEVICE_SIZE], name[COMMAND_SIZE], result[RESULT_SIZE];

    if (trace_is_on(event))
        trace(event, "client pid %d uid %u: %s: %s: %s, %zu bytes in %lld us",
              record->peer.pid, record->peer.uid,
              device_name(device, command->fd), command_name(command, name),
              result_name(command, result), payload,
              (long long)(clock_us() - record->since));
}

/* ---- Clients ---------------------------------------------------------- */

/* What a client waits for, or is waited for, by enum protocol_state. */
static const char states[6][10] = { "greeting", "greeting",  "idle",
                                    "sending",  "executing", "receiving" };

static bool is_client(const struct roster *roster, unsigned i)
{
    return roster->places[i].pid != 0 && i != roster->pending;
}

static void totals_report(const struct roster *roster, unsigned workers)
{
    unsigned long long commands = roster->commands, errors = roster->errors;
    unsigned i, clients = 0;

    for (i = 0; i < roster->used; i++) {
        if (!is_client(roster, i))
            continue;
        clients++;
        commands += roster->records[i].commands;
        errors += roster->records[i].errors;
    }
    log_asked("clients: %u now, %llu ever; commands: %llu, errors: %llu; "
              "multipath workers: %u",
              clients, roster->clients, commands, errors, workers);
}

int64_t report_status(struct roster *roster, bool is_asked, unsigned workers,
                      int64_t now)
{
    unsigned i, lines = 0;

    if (is_asked) {
        totals_report(roster, workers);
        roster->status_slot = 0;
    } else if (now < roster->status_by) {
        return roster->status_by;
    }
    for (i = roster->status_slot; i < roster->used && lines < 8; i++) {
        const struct record *record = &roster->records[i];
        int64_t silent = (int64_t)((uint64_t)now - (uint64_t)record->since);

        if (!is_client(roster, i))
            continue;
        lines++;
        log_asked("client pid %d uid %u: %s, commands: %llu, errors: %llu, "
                  "the last %lld s ago",
                  record->peer.pid, record->peer.uid,
                  roster->places[i].leave_by != NEVER
                      ? "told to leave"
                      : states[record->state % COUNT(states)],
                  record->commands, record->errors,
                  (long long)(silent > 0 ? silent / SECOND : 0));
    }
    roster->status_slot = i;
    roster->status_by = i < roster->used ? now + SECOND / 100 : NEVER;
    return roster->status_by;
}
