/* SPDX-License-Identifier: MIT */
/*
 * worker.c - the process that carries out one command on a multipath map, how
 * a session has it do so, and how the supervisor forks it.
 *
 *	session:    puts the command, the map's descriptor and one end of a
 *	            fresh pair of sockets on the queue, and waits at the other
 *	supervisor: queue readable? fork --->  worker: takes one command from
 *	                                       the queue, carries it out on the
 *	                                       map's paths, answers, exits
 *
 * So a session, which talks to a client, needs no power to open devices or to
 * talk to multipathd, and a worker has it for one command. A worker that dies
 * closes its end of the pair, and the session says that the command failed.
 *
 * A worker must never trust what is on the queue, which a session has put
 * there. It lets no signal in, so that it ends what it has begun. A session
 * must never wait here for the answer: that is for its loop to do.
 */
#include "multipath.h"

#include "../process.h"
#include "../sockets.h"
#include "../supervisor.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAP, ANSWER, DESCRIPTORS }; /* what comes with a command */

/* ---- The session's side ----------------------------------------------- */

/* Puts a command on the queue. Less than 0, and errno: it is not there. */
static ssize_t work_put(int queue, const struct pr_command *command, int answer)
{
    bool is_out = command->cdb[0] == PERSISTENT_RESERVE_OUT;
    const int fds[DESCRIPTORS] = { command->fd, answer };
    struct iovec parts[3] = {
        { .iov_base = log_about(), .iov_len = sizeof(struct log_peer) },
        { .iov_base = (void *)command->cdb, .iov_len = PROTOCOL_CDB_SIZE },
        { .iov_base = command->data, .iov_len = is_out ? command->length : 0 },
    };
    struct message message;

    message_set(&message, parts, 3, fds, sizeof(fds));
    return sendmsg(queue, &message.head, MSG_NOSIGNAL);
}

/* A command that is not put on the queue ends as if its worker had died. */
int multipath_ask(struct pr_command *command, int queue,
                  const char *socket_path, struct suspension *suspension)
{
    bool is_open;
    int ends[2];

    if (queue < 0) {
        multipath_execute(command, socket_path, -1, suspension);
        return -1;
    }
    is_open = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0;
    if (!is_open || work_put(queue, command, ends[1]) < 0)
        log_warning("client pid %d uid %u: cannot ask for a command on a "
                    "multipath map:",
                    log_about()->pid, log_about()->uid);
    sense_set(command, ABORTED_COMMAND, 0x08, 0x00);
    if (!is_open)
        return -1;
    close(ends[1]);
    return ends[0];
}

void worker_answer(int answer, struct pr_command *command)
{
    struct iovec parts[4] = {
        { .iov_base = &command->refusal, .iov_len = sizeof(enum refusal) },
        { .iov_base = &command->status, .iov_len = 1 },
        { .iov_base = command->sense, .iov_len = PROTOCOL_SENSE_SIZE },
        { .iov_base = command->data, .iov_len = command->length },
    };
    struct msghdr message = { .msg_iov = parts, .msg_iovlen = 4 };
    ssize_t bytes;

    bytes = recvmsg(answer, &message, MSG_DONTWAIT);
    close(answer);
    command->payload = 0;
    if (bytes >= ANSWER_HEAD && (unsigned)command->refusal < REFUSALS) {
        command->payload = (size_t)bytes - ANSWER_HEAD;
    } else {
        command->refusal = NOT_REFUSED;
        sense_set(command, ABORTED_COMMAND, 0x08, 0x00);
    }
}

/* ---- The worker's side ------------------------------------------------ */

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
    size_t length = sizeof(struct log_peer) + sizeof(work->cdb);
    struct iovec parts[3] = {
        { .iov_base = log_about(), .iov_len = sizeof(struct log_peer) },
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
    size_t size = ANSWER_HEAD;

    if (vet == VET_SEND)
        sg_io_refuse(&command, NOT_MAPPED);
    else if (vet == VET_MAPPED)
        multipath_execute(&command, supervisor->server.listener.path,
                          supervisor->report[1], suspension);
    work->refusal = command.refusal;
    work->status = command.status;
    if (work->cdb[0] == PERSISTENT_RESERVE_IN)
        size += command.payload;
    close(work->fds[MAP]);
    send(work->fds[ANSWER], &work->refusal, size, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/*
 * Enters stage 6 of privdrop.c: for a map that is suspended, or else (NULL) for
 * a command on the queue, which may leave its map so, in our own place.
 */
__attribute__((noreturn)) static void worker_run(
    const struct supervisor *supervisor, struct suspension *suspension,
    struct suspension *own)
{
    struct work work = { .fds = { -1, -1 } };
    int error;

    if (suspension == NULL) {
        error = work_take(supervisor->queue[QUEUE_OUT], &work);
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
        && sandbox_enter(WORKER, supervisor->queue[QUEUE_IN]) < 0) {
        log_error("no seccomp filter for a worker:");
        _exit(EXIT_FAILURE);
    }
    if (suspension != NULL)
        multipath_recover(supervisor->server.listener.path,
                          supervisor->report[1], suspension);
    else
        work_do(supervisor, &work, own);
    _exit(EXIT_SUCCESS);
}

/* ---- The supervisor's side -------------------------------------------- */

int worker_start(struct supervisor *supervisor, struct suspension *suspension,
                 int64_t now)
{
    struct workers *workers = &supervisor->workers;
    size_t size = workers->slots * sizeof(struct suspension);
    unsigned place = workers_place(workers, suspension);
    pid_t pid = -1;
    int error = 0;

    if (place < workers->slots) { /* else again when one ends */
        /* They are for workers; a session is forked without them. */
        if (madvise(workers->suspensions, size, MADV_DOFORK) == 0)
            pid = process_fork();
        if (pid < 0)
            error = errno;
        if (pid == 0)
            worker_run(supervisor, suspension, &workers->suspensions[place]);
        madvise(workers->suspensions, size, MADV_DONTFORK);
    }
    workers_started(workers, place, pid, suspension, now);
    return error;
}
