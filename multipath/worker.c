/* SPDX-License-Identifier: MIT */
/*
 * worker.c - the process that carries out one command on a multipath map, see
 * ask.c, or resumes the map that another one has left suspended.
 *
 * It must never trust what is on the queue, which a session has put there; or
 * work on a map at the same time as another, but to read. It lets no signal
 * in, so that it ends what it has begun.
 */
#include "multipath.h"

#include "../supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#define LOCK_PAUSE_NS 10000000
#define LOCK_WITHIN (15 * SECOND) /* or the session would give us up */

struct work {
    int map;
    int answer;
    uint8_t cdb[PROTOCOL_CDB_SIZE];
    enum refusal refusal; /* from here on, the answer */
    uint8_t status;
    uint8_t sense[PROTOCOL_SENSE_SIZE];
    /* As in struct conversation: some targets write more than asked for. */
    uint8_t data[PROTOCOL_DATA_MAX + 64];
};

/*
 * Takes a command off the queue. Returns 0 or errno. There is room for as many
 * descriptors as there can be (SCM_MAX_FD, include/net/scm.h in the kernel):
 * it would close what does not fit, while all others wait.
 */
static int work_take(int queue, struct work *work)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(253 * sizeof(int))];
    } control;
    struct iovec parts[3] = {
        { .iov_base = log_about(), .iov_len = sizeof(struct log_peer) },
        { .iov_base = work->cdb, .iov_len = sizeof(work->cdb) },
        { .iov_base = work->data, .iov_len = PROTOCOL_DATA_MAX },
    };
    struct msghdr message = { .msg_iov = parts,
                              .msg_iovlen = 3,
                              .msg_control = control.bytes,
                              .msg_controllen = sizeof(control.bytes) };
    size_t length = sizeof(struct log_peer) + sizeof(work->cdb);
    struct cmsghdr *header;
    ssize_t bytes = recvmsg(queue, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    int fds[2];

    if (bytes < 0)
        return errno;
    if (work->cdb[0] == PERSISTENT_RESERVE_OUT)
        length += protocol_data_length(work->cdb);
    header = CMSG_FIRSTHDR(&message);
    if (header == NULL || header->cmsg_level != SOL_SOCKET
        || header->cmsg_type != SCM_RIGHTS
        || header->cmsg_len != CMSG_LEN(sizeof(fds)) || (size_t)bytes != length
        || protocol_data_length(work->cdb) > PROTOCOL_DATA_MAX
        || (work->cdb[0] != PERSISTENT_RESERVE_IN
            && work->cdb[0] != PERSISTENT_RESERVE_OUT
            && work->cdb[0] != PROTOCOL_CLEANUP))
        return EPROTO; /* too many descriptors are open, or a session errs */
    memcpy(fds, CMSG_DATA(header), sizeof(fds));
    work->map = fds[0];
    work->answer = fds[1];
    return 0;
}

/*
 * One command that may change something on a map at a time: a lock on the
 * byte of the pipe to main that has the map's number. Who dies gives it back.
 * Returns whether it was to be had in time.
 */
static bool map_lock(int report, dev_t map, int64_t deadline)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1 };

    lock.l_start = minor(map);
    while (fcntl(report, F_SETLK, &lock) < 0) {
        if ((errno != EAGAIN && errno != EACCES) || clock_us() > deadline)
            return false;
        nanosleep(&(struct timespec){ .tv_nsec = LOCK_PAUSE_NS }, NULL);
    }
    return true;
}

static void work_do(const struct supervisor *supervisor, struct work *work,
                    struct suspension *suspension)
{
    struct pr_command command = {
        .fd = work->map,
        .cdb = work->cdb,
        .length = protocol_data_length(work->cdb),
        .data = work->data,
        .sense = work->sense,
    };
    /* What the session has found out already; but it is not to be trusted. */
    enum vet vet = sg_io_vet(&command);
    size_t size = ANSWER_HEAD;
    struct stat st;

    if (vet == VET_SEND) {
        sg_io_refuse(&command, NOT_MAPPED);
    } else if (vet == VET_MAPPED && fstat(work->map, &st) < 0) {
        sg_io_refuse(&command, NO_STATUS);
    } else if (vet == VET_MAPPED && command.cdb[0] != PERSISTENT_RESERVE_IN
               && !map_lock(supervisor->report[1], st.st_rdev,
                            clock_us() + LOCK_WITHIN)) {
        sense_set(&command, ABORTED_COMMAND, 0x08, 0x00);
        log_warning("dm-%u: another command on it takes too long",
                    minor(st.st_rdev));
    } else if (vet == VET_MAPPED) {
        multipath_execute(&command, st.st_rdev,
                          supervisor->server.listener.path, suspension);
    }
    work->refusal = command.refusal;
    work->status = command.status;
    if (work->cdb[0] == PERSISTENT_RESERVE_IN)
        size += command.payload;
    close(work->map);
    send(work->answer, &work->refusal, size, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/*
 * Who has suspended the map is dead, and its keys can be restored first; or
 * it hangs in the kernel, or another command is on the map already: then
 * they have to wait, and I/O has not.
 */
static void recover(const struct supervisor *supervisor,
                    struct suspension *suspension)
{
    const int64_t now = clock_us();
    const char *path = supervisor->server.listener.path;
    bool is_alone = map_lock(supervisor->report[1], suspension->device,
                             now + SECOND);

    multipath_recover(path, suspension, is_alone);
    if (!is_alone
        && map_lock(supervisor->report[1], suspension->device,
                    now + COMMAND_WITHIN))
        multipath_recover(path, suspension, true);
}

/*
 * The child's side of the supervisor's fork, stage 6 of privdrop.c. Somebody's
 * map is still suspended, or else there is a command on the queue.
 */
void worker_run(const struct supervisor *supervisor,
                struct suspension *suspension, bool is_resumer)
{
    struct work work = { .map = -1, .answer = -1 };
    int error;

    if (!is_resumer) {
        error = work_take(supervisor->queue[QUEUE_OUT], &work);
        while (write(supervisor->report[1], "w", 1) < 0 && errno == EINTR)
            ;
        if (error != 0 && error != EAGAIN)
            log_warning("cannot take a command on a multipath map: %s",
                        strerror(error));
        if (error != 0) /* without closing: an exit does not linger */
            _exit(EXIT_FAILURE);
    }
    descriptors_close_except(supervisor->report[1], work.map, work.answer);
    if (supervisor->is_filtered
        && sandbox_enter(WORKER, supervisor->queue[QUEUE_IN]) < 0) {
        log_error("no seccomp filter for a worker: %s", strerror(errno));
        _exit(EXIT_FAILURE);
    }
    if (is_resumer)
        recover(supervisor, suspension);
    else
        work_do(supervisor, &work, suspension);
    _exit(EXIT_SUCCESS);
}
