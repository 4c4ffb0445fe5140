/* SPDX-License-Identifier: MIT */
/*
 * ask.c - how a session has a command carried out on a multipath map.
 *
 *	session:    puts the command, the map's descriptor and one end of a
 *	            fresh pair of sockets on the queue, and waits at the other
 *	supervisor: queue readable? fork --->  worker: takes one command from
 *	            (workers.c)                the queue, carries it out on the
 *	                                       map's paths, answers, exits
 *	                                       (worker.c)
 *
 * So a session, which talks to a client, needs no power to open devices or to
 * talk to multipathd, and a worker has it for one command. A worker that dies
 * closes its end of the pair, and the session says that the command failed.
 *
 * A session must never wait here for the answer: that is for its loop to do.
 */
#include "multipath.h"

#include "../sockets.h"

#include <unistd.h>

/* Puts a command on the queue. Less than 0, and errno: it is not there. */
static ssize_t work_put(int queue, const struct pr_command *command, int answer)
{
    bool is_out = command->cdb[0] == PERSISTENT_RESERVE_OUT;
    const int fds[DESCRIPTORS] = { command->fd, answer };
    struct iovec parts[3] = {
        { .iov_base = log_about(), .iov_len = sizeof(struct ucred) },
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

    sense_set(command, ABORTED_COMMAND, 0x08, 0x00);
    if (queue < 0 && suspension->alias[0] != '\0') {
        log_warning(MAP_SUSPENDED, suspension->alias);
        return -1;
    }
    if (queue < 0) {
        multipath_execute(command, socket_path, suspension);
        suspension->resume_by = 0; /* now, as nobody else does */
        return -1;
    }
    is_open = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0;
    if (!is_open || work_put(queue, command, ends[1]) < 0)
        log_warning("client pid %d uid %u: cannot ask for a command on a "
                    "multipath map:",
                    log_about()->pid, log_about()->uid);
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
