/* SPDX-License-Identifier: MIT */
/*
 * worker.c - the process that carries out one command on a multipath map, and
 * how a session has it do so.
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

#include "../supervisor.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MAP, ANSWER, DESCRIPTORS }; /* what comes with a command */

/*
 * A command on the queue. There is room for as many descriptors as there can
 * be (SCM_MAX_FD, include/net/scm.h in the kernel): what does not fit would be
 * closed in recvmsg(), while all others wait.
 */
struct message {
    struct msghdr head;
    struct iovec parts[3];
    char control[CMSG_SPACE(253 * sizeof(int))]
        __attribute__((aligned(sizeof(size_t))));
};

static void message_set(struct message *message, const uint8_t *cdb,
                        uint8_t *data, size_t length)
{
    memset(message, 0, sizeof(*message));
    message->parts[0].iov_base = log_about();
    message->parts[0].iov_len = sizeof(struct log_peer);
    message->parts[1].iov_base = (void *)cdb;
    message->parts[1].iov_len = PROTOCOL_CDB_SIZE;
    message->parts[2].iov_base = data;
    message->parts[2].iov_len = length;
    message->head.msg_iov = message->parts;
    message->head.msg_iovlen = COUNT(message->parts);
    message->head.msg_control = message->control;
    message->head.msg_controllen = sizeof(message->control);
}

/* ---- The session's side ----------------------------------------------- */

int worker_ask(int queue, const struct pr_command *command)
{
    bool is_out = command->cdb[0] == PERSISTENT_RESERVE_OUT;
    struct message message;
    struct cmsghdr *header;
    int ends[2], error;
    ssize_t sent;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return -1;
    message_set(&message, command->cdb, command->data,
                is_out ? command->length : 0);
    message.head.msg_controllen = CMSG_SPACE(DESCRIPTORS * sizeof(int));
    header = CMSG_FIRSTHDR(&message.head);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(DESCRIPTORS * sizeof(int));
    memcpy(CMSG_DATA(header), (int[]){ command->fd, ends[1] },
           DESCRIPTORS * sizeof(int));
    sent = sendmsg(queue, &message.head, MSG_NOSIGNAL);
    error = errno;
    close(ends[1]);
    if (sent >= 0)
        return ends[0];
    close(ends[0]);
    errno = error;
    return -1;
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
    /* As in struct conversation: some targets write more than asked for. */
    uint8_t data[PROTOCOL_DATA_MAX + 64];
};

/* Takes a command off the queue. Returns 0 or errno. */
static int work_take(int queue, struct work *work)
{
    size_t length = sizeof(struct log_peer) + sizeof(work->cdb);
    struct message message;
    struct cmsghdr *header;
    ssize_t bytes;

    message_set(&message, work->cdb, work->data, PROTOCOL_DATA_MAX);
    bytes = recvmsg(queue, &message.head, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (bytes < 0)
        return errno;
    if (work->cdb[0] == PERSISTENT_RESERVE_OUT)
        length += protocol_data_length(work->cdb);
    header = CMSG_FIRSTHDR(&message.head);
    if (header == NULL || header->cmsg_level != SOL_SOCKET
        || header->cmsg_type != SCM_RIGHTS
        || header->cmsg_len != CMSG_LEN(sizeof(work->fds))
        || (size_t)bytes != length
        || protocol_data_length(work->cdb) > PROTOCOL_DATA_MAX
        || (work->cdb[0] != PERSISTENT_RESERVE_IN
            && work->cdb[0] != PERSISTENT_RESERVE_OUT
            && work->cdb[0] != PROTOCOL_CLEANUP))
        return EPROTO; /* too many descriptors are open, or a session errs */
    memcpy(work->fds, CMSG_DATA(header), sizeof(work->fds));
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
 * The child's side of the supervisor's fork, stage 6 of privdrop.c: a resumer
 * is for a map that is still suspended, another one for a command on the queue.
 */
void worker_run(const struct supervisor *supervisor,
                struct suspension *suspension, bool is_resumer)
{
    struct work work = { .fds = { -1, -1 } };
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
    descriptors_close_except(supervisor->report[1], work.fds[MAP],
                             work.fds[ANSWER]);
    if (supervisor->is_filtered
        && sandbox_enter(WORKER, supervisor->queue[QUEUE_IN]) < 0) {
        log_error("no seccomp filter for a worker: %s", strerror(errno));
        _exit(EXIT_FAILURE);
    }
    if (is_resumer)
        multipath_recover(supervisor->server.listener.path,
                          supervisor->report[1], suspension);
    else
        work_do(supervisor, &work, suspension);
    _exit(EXIT_SUCCESS);
}
