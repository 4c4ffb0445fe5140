/* SPDX-License-Identifier: MIT */
/*
 * worker.c - the process that carries out one command on a multipath map, or
 * resumes one: see ask.c.
 *
 * It must never trust what is on the queue, which a session has put there. It
 * lets no signal in, so that it ends what it has begun.
 */
#include "multipath.h"

#include "../process.h"
#include "../sockets.h"
#include "../supervisor.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define LOCK_WITHIN (15 * SECOND) /* or the session would give us up */

struct work {
    int fds[DESCRIPTORS];
    uint8_t cdb[PROTOCOL_CDB_SIZE];
    enum refusal refusal; /* from here on, the answer */
    uint8_t status;
    uint8_t sense[PROTOCOL_SENSE_SIZE];
    /* It is as in struct conversation: some targets write more than asked. */
    uint8_t data[PROTOCOL_DATA_MAX + 64];
};

/* Takes a command off the queue. Returns 0 or errno. */
static int work_take(int queue, struct work *work)
{
    size_t length = sizeof(struct ucred) + sizeof(work->cdb);
    struct iovec parts[3] = {
        { .iov_base = log_about(), .iov_len = sizeof(struct ucred) },
        { .iov_base = work->cdb, .iov_len = PROTOCOL_CDB_SIZE },
        { .iov_base = work->data, .iov_len = PROTOCOL_DATA_MAX },
    };
    struct message message;
    ssize_t bytes;

    /* What has no room would be closed in recvmsg(), while all others wait. */
    message_set(&message, parts, 3, NULL, MESSAGE_FDS * sizeof(int));
    bytes = recvmsg(queue, &message.head, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (bytes < 0)
        return errno;
    if (work->cdb[0] == PERSISTENT_RESERVE_OUT)
        length += protocol_data_length(work->cdb);
    if (message_take(&message, SCM_RIGHTS, work->fds, sizeof(work->fds))
            != sizeof(work->fds)
        || (size_t)bytes != length
        || protocol_data_length(work->cdb) > PROTOCOL_DATA_MAX
        || (work->cdb[0] != PERSISTENT_RESERVE_IN
            && work->cdb[0] != PERSISTENT_RESERVE_OUT
            && work->cdb[0] != PROTOCOL_CLEANUP))
        return EPROTO; /* too many descriptors are open, or a session errs */
    return 0;
}

/*
 * Lets nobody else change the map meanwhile. Who could before, and has not
 * resumed it, is dead: that comes first. False: the log says why not.
 */
static bool map_take(const struct supervisor *supervisor, dev_t device)
{
    const struct workers *workers = &supervisor->workers;
    const int64_t deadline = clock_us() + LOCK_WITHIN;
    const int lock = supervisor->report[1];
    bool is_locked = map_lock(lock, device, deadline);
    unsigned i;

    for (i = 0; is_locked && i < workers->used; i++) {
        struct suspension *left = &workers->suspensions[i];

        if (left->alias[0] != '\0' && left->device == device)
            multipath_recover(supervisor->server.listener.path, lock, left, 0);
        if (left->alias[0] != '\0' && left->device == device) {
            log_warning(MAP_SUSPENDED, left->alias);
            return false;
        }
    }
    if (is_locked && clock_us() < deadline)
        return true;
    log_warning("dm-%u: another command on it takes too long", minor(device));
    return false;
}

static void work_do(const struct supervisor *supervisor, struct work *work,
                    struct suspension *suspension)
{
    struct pr_command command = {
        .fd = work->fds[MAP],
        .cdb = work->cdb,
        .length = protocol_data_length(work->cdb),
        .data = work->data,
        .sense = work->sense,
    };
    /* The session has found this out already, but is not to be trusted. */
    enum vet vet = sg_io_vet(&command);
    bool is_in = work->cdb[0] == PERSISTENT_RESERVE_IN;
    size_t size = ANSWER_HEAD;

    if (vet == VET_SEND)
        sg_io_refuse(&command, NOT_MAPPED);
    else if (vet == VET_MAPPED && !is_in
             && !map_take(supervisor, command.device))
        sense_set(&command, ABORTED_COMMAND, 0x08, 0x00);
    else if (vet == VET_MAPPED)
        multipath_execute(&command, supervisor->server.listener.path,
                          suspension);
    work->refusal = command.refusal;
    work->status = command.status;
    if (is_in)
        size += command.payload;
    close(work->fds[MAP]);
    send(work->fds[ANSWER], &work->refusal, size, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void worker_run(const struct supervisor *supervisor,
                struct suspension *suspension, struct suspension *own)
{
    struct work work = { .fds = { -1, -1 } };
    int error;

    if (suspension == NULL) {
        error = work_take(supervisor->queue, &work);
        while (write(supervisor->report[1], "w", 1) < 0 && errno == EINTR)
            ;
        if (error != 0 && error != EAGAIN)
            log_warning("cannot take a command on a multipath map: %s",
                        strerror(error));
        if (error != 0) /* without closing: an exit does not linger */
            _exit(EXIT_FAILURE);
    }
    descriptors_close_except(supervisor->report[1], work.fds[MAP],
                             work.fds[ANSWER]);
    if (supervisor->is_filtered
        && sandbox_enter(WORKER, supervisor->server.service.queue) < 0) {
        log_error("no seccomp filter for a worker:");
        _exit(EXIT_FAILURE);
    }
    if (suspension != NULL)
        /* Whoever has the lock when one has died resumes the map, too. */
        multipath_recover(supervisor->server.listener.path,
                          supervisor->report[1], suspension,
                          suspension == own ? SUSPENDED_WITHIN : SECOND);
    else
        work_do(supervisor, &work, own);
    _exit(EXIT_SUCCESS);
}
