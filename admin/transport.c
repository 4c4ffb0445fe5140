/* SPDX-License-Identifier: MIT */
/*
 * transport.c - the helper's other end: connects to its socket, hands it one
 * command with the descriptor of the device, and reads the reply.
 *
 * It must never hand the device to a stranger, send a command twice, wait
 * without a limit, or believe what the helper says about the length of
 * anything.
 */
#include "../sockets.h"
#include "client.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

/* A read meets unit attentions that are older; so many are passed over. */
enum { ATTENTIONS_MOST = 8 };

/* How long a helper may take to say hello. */
#define HELLO_WITHIN (5 * SECOND)

/* Reads once. Nothing else than who sent it can come along. */
static ssize_t helper_receive(struct helper *helper, void *to, size_t size)
{
    struct iovec vector = { .iov_base = to, .iov_len = size };
    struct message message;
    ssize_t got;

    message_set(&message, &vector, 1, NULL, sizeof(helper->sender));
    got = recvmsg(helper->socket, &message.head, 0);
    if (got > 0)
        message_take(&message, SCM_CREDENTIALS, &helper->sender,
                     sizeof(helper->sender));
    return got;
}

/*
 * Reads all of size bytes by then. Returns EXIT_GOOD, or having said what is
 * wrong an exit status: late, if they did not come in time.
 */
static int helper_read(struct helper *helper, void *to, size_t size, int64_t by,
                       int late)
{
    struct pollfd ready = { .fd = helper->socket, .events = POLLIN };
    uint8_t *at = to;

    while (size > 0) {
        int64_t left = by - clock_us();
        ssize_t got;

        if (left <= 0) {
            say("%s", late == EXIT_NO_HELPER
                          ? "the helper accepts, but says nothing"
                          : "no answer in time; the disk may still carry the "
                            "command out");
            return late;
        }
        if (poll(&ready, 1, (int)(left / 1000 + 1)) <= 0)
            continue;
        got = helper_receive(helper, at, size);
        if (got == 0) {
            say("the helper closed the connection: see what it logs with -v");
            return EXIT_NO_HELPER;
        }
        if (got < 0 && errno != EINTR) {
            say("cannot read from the helper: %s", strerror(errno));
            return EXIT_NO_HELPER;
        }
        if (got > 0) {
            at += got;
            size -= (size_t)got;
        }
    }
    return EXIT_GOOD;
}

/*
 * Sends a few bytes, which fit into any socket's buffer; fd may be -1. Returns
 * EXIT_GOOD, or having said what is wrong an exit status.
 */
static int helper_send(const struct helper *helper, const void *bytes,
                       size_t size, int fd)
{
    struct iovec vector = { .iov_base = (void *)bytes, .iov_len = size };
    struct message message;

    message_set(&message, &vector, 1, &fd, fd >= 0 ? sizeof(fd) : 0);
    if (sendmsg(helper->socket, &message.head, MSG_NOSIGNAL) == (ssize_t)size)
        return EXIT_GOOD;
    say("cannot send to the helper: %s", strerror(errno));
    return EXIT_NO_HELPER;
}

static const char *no_helper(int error)
{
    switch (error) {
    case ENOENT:
        return ": no helper was started with this socket, or not yet";
    case ECONNREFUSED:
        return ": it was left behind by a helper that has ended, or is no "
               "socket";
    case EACCES:
        return ": the mode of the socket, or of its directory, keeps you out";
    case EAGAIN:
        return ": the helper is there, but does not accept";
    default:
        return "";
    }
}

/*
 * Who listens there gets the device from us. The directory of a socket may
 * belong to virtual machines, so that must be root, or ourselves.
 */
static void helper_trust(struct helper *helper, const char *path)
{
    helper->maker = socket_peer(helper->socket);
    if (helper->maker.uid != 0 && helper->maker.uid != geteuid())
        die(EXIT_NO_HELPER,
            "who listens on %s is not trusted with the device: process %ld of "
            "user %lu",
            path, (long)helper->maker.pid, (unsigned long)helper->maker.uid);
}

/* Connects, unless who listens there must not have the device. */
static void helper_connect(struct helper *helper, const char *path)
{
    const struct timeval patience = { .tv_sec = (time_t)(HELLO_WITHIN
                                                         / SECOND) };
    struct sockaddr_un address;
    socklen_t length = socket_address(&address, path);

    if (length == 0)
        die(EXIT_USAGE, "'%s' is no path of a socket: the limit is %zu bytes",
            path, sizeof(address.sun_path) - 1);
    helper->socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (helper->socket < 0)
        die(EXIT_OTHER, "cannot make a socket: %s", strerror(errno));
    /* With each message comes who has sent it, from the first byte on. */
    setsockopt(helper->socket, SOL_SOCKET, SO_PASSCRED, &(int){ 1 },
               sizeof(int));
    /* This is the time for connect(), too. */
    setsockopt(helper->socket, SOL_SOCKET, SO_SNDTIMEO, &patience,
               sizeof(patience));
    if (connect(helper->socket, (struct sockaddr *)&address, length) < 0) {
        int error = errno;

        die(EXIT_NO_HELPER, "cannot connect to %s: %s%s", path, strerror(error),
            no_helper(error));
    }
    helper_trust(helper, path);
}

void helper_open(struct helper *helper, const char *path)
{
    const int64_t begin = clock_us();
    uint8_t features[PROTOCOL_HELLO_SIZE];
    int status;

    helper_connect(helper, path);
    status = helper_read(helper, features, sizeof(features),
                         begin + HELLO_WITHIN, EXIT_NO_HELPER);
    memset(features, 0, sizeof(features));
    if (status == EXIT_GOOD)
        status = helper_send(helper, features, sizeof(features), -1);
    if (status != EXIT_GOOD)
        exit(status);
    helper->took = clock_us() - begin;
}

/* Is the head of a reply as QEMU wants it, with at most so much to come? */
static int head_check(uint32_t status, uint32_t size, size_t most)
{
    if (status > UINT8_MAX)
        say("the helper's reply has a status of %" PRIu32, status);
    else if (size > most)
        say("the helper's reply has %" PRIu32 " bytes of data, where there "
            "may be %zu: QEMU would abort",
            size, most);
    else
        return EXIT_GOOD;
    return EXIT_MALFORMED;
}

int helper_ask(struct helper *helper, int fd, const uint8_t *cdb,
               const uint8_t *list, size_t list_size, struct reply *reply)
{
    const int64_t begin = clock_us(), by = begin + helper->timeout;
    size_t most = cdb[0] == PERSISTENT_RESERVE_IN ? be16_get(cdb + 7) : 0;
    uint8_t head[PROTOCOL_STATUS_SIZE];
    uint32_t scsi_status, size;
    int status;

    status = helper_send(helper, cdb, PROTOCOL_CDB_SIZE, fd);
    if (status == EXIT_GOOD && list != NULL)
        status = helper_send(helper, list, list_size, -1);
    if (status == EXIT_GOOD)
        status = helper_read(helper, head, sizeof(head), by, EXIT_NO_ANSWER);
    if (status != EXIT_GOOD)
        return status;
    scsi_status = be32_get(head);
    size = be32_get(head + 4);
    status = head_check(scsi_status, size, scsi_status == GOOD ? most : 0);
    if (status != EXIT_GOOD)
        return status;
    reply->status = (uint8_t)scsi_status;
    memcpy(reply->sense, head + 8, sizeof(reply->sense));
    reply->size = size;
    status = helper_read(helper, reply->payload, size, by, EXIT_NO_ANSWER);
    reply->took = clock_us() - begin;
    return status;
}

int read_in(struct helper *helper, const struct command *command, int fd,
            struct reply *reply)
{
    uint8_t cdb[PROTOCOL_CDB_SIZE] = { PERSISTENT_RESERVE_IN, command->action };
    unsigned tries = 0;
    int status;

    be16_put(cdb + 7, PROTOCOL_DATA_MAX);
    do {
        status = helper_ask(helper, fd, cdb, NULL, 0, reply);
        if (status == EXIT_GOOD)
            status = outcome_print(command, fd, cdb, reply);
    } while (status == EXIT_UNIT_ATTENTION && ++tries <= ATTENTIONS_MOST);
    return status;
}
