/* SPDX-License-Identifier: MIT */
/*
 * ask.c - what a session does for a command on a multipath map: it has a
 * worker carry it out.
 *
 *	session:    puts the map's descriptor and one end of a fresh pair of
 *	            sockets on the queue, and waits at the other, where it has
 *	            put the command
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

/* Puts a byte and two descriptors on the queue. */
static ssize_t queue_put(int queue, int map, int answer)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control;
    char byte = 0;
    struct iovec part = { .iov_base = &byte, .iov_len = 1 };
    struct msghdr message = { .msg_iov = &part,
                              .msg_iovlen = 1,
                              .msg_control = control.bytes,
                              .msg_controllen = sizeof(control.bytes) };
    const int fds[2] = { map, answer };
    struct cmsghdr *header;

    memset(&control, 0, sizeof(control));
    header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(fds));
    memcpy(CMSG_DATA(header), fds, sizeof(fds));
    return sendmsg(queue, &message, MSG_NOSIGNAL);
}

int worker_ask(int queue, const struct pr_command *command)
{
    bool is_out = command->cdb[0] == PERSISTENT_RESERVE_OUT;
    const struct log_peer peer = *log_about();
    uint8_t request[sizeof(peer) + PROTOCOL_CDB_SIZE + PROTOCOL_DATA_MAX];
    size_t size = sizeof(peer) + PROTOCOL_CDB_SIZE;
    int ends[2], error;
    ssize_t sent;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return -1;
    memcpy(request, &peer, sizeof(peer));
    memcpy(request + sizeof(peer), command->cdb, PROTOCOL_CDB_SIZE);
    if (is_out && command->length > 0) {
        memcpy(request + size, command->data, command->length);
        size += command->length;
    }
    sent = send(ends[0], request, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0)
        sent = queue_put(queue, command->fd, ends[1]);
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
    if (bytes < ANSWER_HEAD)
        sense_set(command, ABORTED_COMMAND, 0x08, 0x00);
    else
        command->payload = (size_t)bytes - ANSWER_HEAD;
}
