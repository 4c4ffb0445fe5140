/* SPDX-License-Identifier: MIT */
/*
 * prhelper.h - the interfaces of what everything stands on, grouped by file.
 *
 * It must never grow a global variable: what is shared stands in a structure
 * that is passed down.
 */
#ifndef PRHELPER_H
#define PRHELPER_H

#include "protocol.h"

#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>

#define PROGRAM "qemu-pr-helper"

/* Time is in microseconds of the monotonic clock; some points never come. */
#define SECOND INT64_C(1000000)
#define NEVER INT64_MAX

static inline int64_t clock_us(void)
{
    struct timespec now = { 0 };

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * SECOND + now.tv_nsec / 1000;
}

static inline int64_t sooner(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* For whoever has been told to leave and has no command at a device. */
#define LEAVE_WITHIN SECOND

/*
 * log.c: one line per call to stderr or syslogd. Never blocks or fails. What
 * somebody has asked for is logged whatever the level. Warnings are limited
 * for each peer that they are about, which *log_about() says; {0}: none.
 */
enum { LOG_ASKED = -2, LOG_ERRORS = -1, LOG_NORMAL = 0, LOG_VERBOSE = 1 };
void log_open(void);
int log_syslog_open(void);
void log_syslog_use(int fd);
void log_syslog_renew(void);
void log_level_set(int level);
struct log_peer {
    pid_t pid;
    uid_t uid;
};
enum { LOG_WINDOWS = 32 };
struct log_shared {   /* in memory that all processes share */
    unsigned lost[2]; /* messages, lines of the trace file */
    struct log_window {
        struct log_peer peer;
        int64_t since;
        unsigned warnings;
    } windows[LOG_WINDOWS];
};
void log_share(struct log_shared *);
struct log_peer *log_about(void);
int64_t log_check(int64_t now);
void log_at(int level, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
#define log_asked(...) log_at(LOG_ASKED, __VA_ARGS__)
#define log_error(...) log_at(LOG_ERRORS, __VA_ARGS__)
#define log_warning(...) log_at(LOG_NORMAL, __VA_ARGS__)
#define log_verbose(...) log_at(LOG_VERBOSE, __VA_ARGS__)
void log_line(int file, int level, const char *prefix, const char *format,
              va_list arguments);
/* For start-up only: says why and exits with status 1. */
void fatal(const char *format, ...)
    __attribute__((format(printf, 1, 2), noreturn));

/*
 * trace.c: events that -T chooses; to a file, or where messages go. Some are
 * on with -v, too.
 */
enum trace_event {
    TRACE_CLIENT_CONNECT,
    TRACE_CLIENT_END,
    TRACE_REQUEST,
    TRACE_PR_IN,
    TRACE_PR_OUT,
    TRACE_PATH,
    TRACE_MULTIPATHD,
    TRACE_EVENTS
};
void trace_list(void);
void trace_enable(const char *pattern);
void trace_file_set(int fd);
int trace_file(void); /* -1: none */
void trace_begin(bool is_verbose);
bool trace_is_on(enum trace_event);
void trace(enum trace_event, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* options.c */
struct options {
    const char *socket_path;
    const char *pid_file;
    bool socket_path_given;
    bool pid_file_given;
    bool background;
    bool single_process;
    bool sandbox;
    uid_t uid; /* (uid_t)-1: as started */
    gid_t gid; /* (gid_t)-1: as started */
    unsigned max_clients;
    int64_t client_timeout;
    int64_t stop_timeout;
};
void options_parse(struct options *, int argc, char **argv);

/* listen.c: the listening socket, and the messages to a service manager. */
struct listener {
    int fd;
    const char *path; /* the name that we made, NULL: none */
    struct stat made; /* of that name; all 0: it was gone at once */
};
bool listen_is_activated(const struct options *);
void listen_open(struct listener *, const char *path);
void listen_activated(struct listener *);
void listen_remove(const struct listener *);
int notify_open(void);
void notify_send(int fd, const char *state);

/* daemon.c */
void daemon_open_standard_fds(void);
int daemon_background(void);
void daemon_background_ready(int report, int syslog);
void daemon_pid_file(const char *path);

/* privdrop.c */
void privdrop(uid_t uid, gid_t gid);

/* sysfs.c */
bool sysfs_has(dev_t, const char *file);
bool sysfs_is(dev_t, const char *file, dev_t other);
bool sysfs_read(dev_t, const char *file, char *line, size_t size);
bool sysfs_slaves(dev_t, bool (*found)(void *context, const char *name),
                  void *context);

/*
 * sg_io.c: one command on one descriptor. Why it is not sent: the words are in
 * sg_io_refusals[].
 */
enum refusal {
    NOT_REFUSED,
    LIST_TOO_LONG,
    NOT_FOR_WRITING,
    NOT_OPEN,
    NO_STATUS,
    OF_PARTITION,
    NOT_IN_SYSFS,
    NOT_SCSI,
    NOT_PERMITTED,
    NOT_MAPPED,
    NO_MULTIPATH,
    NO_UUID,
    NOT_SCSI_PATHS
};
struct pr_command {
    int fd;
    const uint8_t *cdb;
    size_t length;        /* of data, as the CDB says */
    uint8_t *data;        /* the parameter list, or room for the payload */
    uint8_t *sense;       /* PROTOCOL_SENSE_SIZE bytes, always written */
    uint8_t status;       /* result: SCSI status */
    bool unreached;       /* result: this path to the device does not work */
    bool is_lost;         /* result: the device may have done it even so */
    size_t payload;       /* result: bytes of data that the device returned */
    enum refusal refusal; /* result */
};

/*
 * Milliseconds that a device may take. A reservation may wait for a target
 * that fails over; sg_persist allows the same minute. The guest gives up by
 * itself after 30 (Linux) or 60 seconds (Windows).
 */
enum { SG_IO_TIMEOUT = 60000 };

enum { SG_IO_ATTENTIONS = 5 }; /* that a command is sent again for */

enum vet { VET_SEND, VET_MAPPED, VET_ANSWERED };
enum vet sg_io_vet(struct pr_command *);
void sg_io_execute(struct pr_command *, unsigned timeout, unsigned attentions);
bool sg_io_is_disk(const struct stat *);
int sg_io_disk_row(unsigned number);
enum vet sg_io_refuse(struct pr_command *, enum refusal);
extern const char *const sg_io_refusals[];
void status_set(struct pr_command *, uint8_t status);
void sense_set(struct pr_command *, uint8_t key, uint8_t asc, uint8_t ascq);
void sense_get(const uint8_t *sense, uint8_t *key, uint16_t *code);

/* report.c, for multipath/send.c: what came of a command, in words. */
enum { RESULT_SIZE = 32 };
const char *report_result(const struct pr_command *, char text[RESULT_SIZE]);

/* multipath/multipathd.c: what it is told, and asked, about one map. */
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
enum multipathd_said { MULTIPATHD_DONE, MULTIPATHD_REFUSED, MULTIPATHD_SILENT };
enum multipathd_flag { FLAG_UNKNOWN, FLAG_UNSET, FLAG_SET };
bool multipathd_key_get(const struct multipathd *, struct multipathd_key *);
enum { MULTIPATHD_TABLE = 1 << 16 }; /* of some 3,000 paths */
void multipathd_paths_get(const struct multipathd *,
                          char table[MULTIPATHD_TABLE]);
struct multipathd_path multipathd_path(const char *table, const char *name);
bool multipathd_config_has(const struct multipathd *, const char *word);
enum multipathd_flag multipathd_flag_get(const struct multipathd *,
                                         const char *command);
enum multipathd_said multipathd_key_set(const struct multipathd *,
                                        const struct multipathd_key *);
enum multipathd_said multipathd_registered(const struct multipathd *,
                                           const char *paths);
enum multipathd_said multipathd_tell(const struct multipathd *,
                                     const char *command);
enum multipathd_said multipathd_queue(const struct multipathd *,
                                      const char *command);

/* Of a multipath map, as long as somebody must resume it. */
struct suspension {
    dev_t device;
    char alias[ALIAS_SIZE]; /* empty: there is none */
    char witness[32];       /* the path that has kept its key; likewise */
    int64_t resume_by;      /* or another worker does it */
};
void multipath_execute(struct pr_command *, dev_t, const char *socket_path,
                       struct suspension *);
void multipath_recover(const char *socket_path, struct suspension *,
                       bool is_alone);
/*
 * With --single-process: the other clients wait. The map that a command has
 * left suspended is for the caller to recover first, from resume_by on.
 */
void multipath_execute_here(struct pr_command *, const char *socket_path,
                            struct suspension *);

/*
 * multipath/ask.c: has a worker carry out a command. Returns the descriptor at
 * which worker_answer(), which closes it, will find the result once it is
 * readable; or -1 and errno. What has not come within WORKER_WITHIN does not.
 */
#define WORKER_WITHIN (65 * SECOND)
int worker_ask(int queue, const struct pr_command *);
void worker_answer(int answer, struct pr_command *);

#endif
