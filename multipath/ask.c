/* SPDX-License-Identifier: MIT */
/*
 * ask.c - what a session does for a command on a multipath map: it has a
 * worker carry it out.
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
 * It must never wait for the answer: that is for the loop to do.
 */
#include "multipath.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

int worker_ask(int queue, const struct pr_command *command)
{
    bool is_out = command->cdb[0] == PERSISTENT_RESERVE_OUT;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control;
    struct iovec parts[3] = {
        { .iov_base = log_about(), .iov_len = sizeof(struct log_peer) },
        { .iov_base = (void *)command->cdb, .iov_len = PROTOCOL_CDB_SIZE },
        { .iov_base = command->data, .iov_len = is_out ? command->length : 0 },
    };
    struct msghdr message = { .msg_iov = parts,
                              .msg_iovlen = 3,
                              .msg_control = control.bytes,
                              .msg_controllen = sizeof(control.bytes) };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    int ends[2], error;
    ssize_t sent;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return -1;
    memset(&control, 0, sizeof(control));
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(2 * sizeof(int));
    memcpy(CMSG_DATA(header), (int[]){ command->fd, ends[1] }, 2 * sizeof(int));
    sent = sendmsg(queue, &message, MSG_NOSIGNAL);
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
