/* SPDX-License-Identifier: MIT */
/*
 * fuzz_client.c - fuzzes one client's conversation, client.c and protocol.c.
 * The input is what the client and the kernel do: for each recvmsg() a byte
 * that says what comes (see fuzz_recvmsg) and the bytes that do, for each
 * send() a byte that says how much is taken, for each command the device's
 * result.
 *
 * The model, struct peer, is the wire format read from the other end. It
 * must never look into the helper's struct conversation: what is asked for,
 * executed, answered and closed is compared with the model alone.
 */
#include "fuzz.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

ssize_t fuzz_recvmsg(int socket, struct msghdr *message, int flags);
ssize_t fuzz_send(int socket, const void *data, size_t size, int flags);
int fuzz_getsockopt(int socket, int level, int option, void *value,
                    socklen_t *size);
int fuzz_close(int fd);
int fuzz_clock_gettime(clockid_t clock, struct timespec *now);
int fuzz_socket(int domain, int type, int protocol);
int fuzz_connect(int fd, const struct sockaddr *address, socklen_t size);
int fuzz_nanosleep(const struct timespec *time, struct timespec *rest);
int fuzz_prctl(int option, ...);

enum {
    SOCKET = 1000,
    ANSWER, /* where a worker's answer comes */
    QUEUE,
    FIRST_FD = 2000, /* descriptors are numbers from here on, each used once */
    FDS = 16384,     /* more than messages in the longest input */
    HEAD = 104,      /* of a reply */
    DATA = 8192,
    OVERSHOOT = 64 /* a target may write more than it was asked for */
};

enum frame { HELLO_OUT, HELLO_IN, CDB, PARAMETERS, REQUEST, REPLY };

static struct peer {
    enum frame frame; /* in progress */
    size_t done, size;
    uint8_t cdb[16];
    uint8_t bytes[HEAD + DATA]; /* of the frame, if it is not the CDB */
    int fd;                     /* of the request in progress, -1: none */
    bool vetted, asked;         /* asked: for a worker's answer */
    bool over; /* nothing may be read, executed or sent any more */
    bool socket_closed;
    int sent, closed; /* descriptors */
    bool is_closed[FDS];
} peer;

static void frame_begin(enum frame frame, size_t size)
{
    peer.frame = frame;
    peer.size = size;
    peer.done = 0;
}

static size_t data_length(void)
{
    if (peer.cdb[0] == 0xff)
        return 0;
    return (size_t)peer.cdb[7] * 256 + peer.cdb[8];
}

static void frame_end(void)
{
    switch (peer.frame) {
    case HELLO_OUT:
        frame_begin(HELLO_IN, 4);
        break;
    case HELLO_IN:
        peer.over = peer.bytes[0] != 0 || peer.bytes[1] != 0
                    || peer.bytes[2] != 0 || peer.bytes[3] > 1;
        frame_begin(CDB, 16);
        break;
    case CDB:
        peer.over = peer.fd < 0
                    || (peer.cdb[0] != 0x5e && peer.cdb[0] != 0x5f
                        && peer.cdb[0] != 0xff)
                    || data_length() > DATA;
        if (peer.cdb[0] == 0x5f && data_length() > 0)
            frame_begin(PARAMETERS, data_length());
        else
            frame_begin(REQUEST, 0);
        break;
    case PARAMETERS:
        frame_begin(REQUEST, 0);
        break;
    default:
        frame_begin(CDB, 16);
    }
}

static int fd_new(void)
{
    MUST(peer.sent < FDS);
    return FIRST_FD + peer.sent++;
}

/* One control message, as much of it as there is room for, as Linux does. */
static size_t control_put(struct msghdr *message, size_t offset, int type,
                          size_t size)
{
    uint8_t *control = message->msg_control;
    struct cmsghdr header = { .cmsg_level = SOL_SOCKET, .cmsg_type = type };
    size_t room = message->msg_controllen - offset, i;

    if (room < CMSG_LEN(type == SCM_RIGHTS ? sizeof(int) : 0)) {
        message->msg_flags |= MSG_CTRUNC;
        return offset;
    }
    if (size > room - CMSG_LEN(0)) {
        message->msg_flags |= MSG_CTRUNC;
        size = (room - CMSG_LEN(0)) / sizeof(int) * sizeof(int);
    }
    header.cmsg_len = CMSG_LEN(size);
    memcpy(control + offset, &header, sizeof(header));
    for (i = 0; i + sizeof(int) <= size; i += sizeof(int)) {
        int value = type == SCM_RIGHTS ? fd_new() : 1;

        memcpy(control + offset + CMSG_LEN(i), &value, sizeof(value));
    }
    return offset + (room < CMSG_SPACE(size) ? room : CMSG_SPACE(size));
}

/* So many descriptors come, and perhaps the sender's credentials first. */
static void control_fill(struct msghdr *message, size_t fds, bool credentials)
{
    size_t end = 0;
    int first = FIRST_FD + peer.sent;

    message->msg_flags = 0;
    if (credentials)
        end = control_put(message, end, SCM_CREDENTIALS, sizeof(struct ucred));
    if (fds > 0)
        end = control_put(message, end, SCM_RIGHTS, fds * sizeof(int));
    message->msg_controllen = end;
    if (fds > 1 || (fds == 1 && (peer.frame != CDB || peer.fd >= 0))
        || message->msg_flags != 0)
        peer.over = true;
    else if (fds == 1)
        peer.fd = first;
}

/*
 * The first byte's high half: 0-12 so many descriptors come, 13 one and
 * credentials, 14 credentials, 15 an error; its low half: how many bytes, 0
 * all that there is room for, or which error.
 */
ssize_t fuzz_recvmsg(int socket, struct msghdr *message, int flags)
{
    static const int errors[] = { EAGAIN, EINTR, ECONNRESET, ENOMEM };
    uint32_t how = input_number(1), what = how >> 4;
    size_t room = message->msg_iov->iov_len, size = how & 15;
    uint8_t *to = peer.frame == CDB ? peer.cdb : peer.bytes;

    MUST(!peer.over && socket == SOCKET);
    MUST(flags == (MSG_DONTWAIT | MSG_CMSG_CLOEXEC));
    MUST(peer.frame == HELLO_IN || peer.frame == CDB
         || peer.frame == PARAMETERS);
    MUST(message->msg_iovlen == 1 && room == peer.size - peer.done);
    MUST(message->msg_controllen >= CMSG_LEN(sizeof(int)));
    if (what == 15) {
        errno = errors[size % 4];
        peer.over = size % 4 >= 2;
        return -1;
    }
    if (size == 0 || size > room)
        size = room;
    size = input_take(to + peer.done, size);
    if (size == 0) {
        message->msg_flags = 0;
        message->msg_controllen = 0;
        peer.over = true;
        return 0;
    }
    memcpy(message->msg_iov->iov_base, to + peer.done, size);
    control_fill(message, what < 13 ? what : 14 - what, what >= 13);
    peer.done += size;
    if (!peer.over && peer.done == peer.size)
        frame_end();
    return (ssize_t)size;
}

/* Byte: 0 takes all, 255 to 253 are errors, another takes so many bytes. */
ssize_t fuzz_send(int socket, const void *data, size_t size, int flags)
{
    static const int errors[] = { EAGAIN, EINTR, EPIPE };
    size_t how = input_number(1);

    MUST(!peer.over && socket == SOCKET);
    MUST(flags == (MSG_DONTWAIT | MSG_NOSIGNAL));
    MUST(peer.frame == HELLO_OUT || peer.frame == REPLY);
    MUST(size > 0 && size <= peer.size - peer.done);
    MUST(memcmp(data, peer.bytes + peer.done, size) == 0);
    MUST(peer.closed == peer.sent);
    if (how >= 253) {
        errno = errors[255 - how];
        peer.over = errno == EPIPE;
        return -1;
    }
    if (how > 0 && how < size)
        size = how;
    peer.done += size;
    if (peer.done == peer.size)
        frame_end();
    return (ssize_t)size;
}

int fuzz_getsockopt(int socket, int level, int option, void *value,
                    socklen_t *size)
{
    MUST(socket == SOCKET && level == SOL_SOCKET && option == SO_PEERCRED);
    *size = sizeof(struct ucred);
    memset(value, 0, *size);
    return 0;
}

int fuzz_close(int fd)
{
    if (fd == SOCKET) {
        MUST(!peer.socket_closed);
        peer.socket_closed = true;
        return 0;
    }
    MUST(fd >= FIRST_FD && fd < FIRST_FD + peer.sent);
    MUST(!peer.is_closed[fd - FIRST_FD]);
    peer.is_closed[fd - FIRST_FD] = true;
    peer.closed++;
    return 0;
}

int fuzz_clock_gettime(clockid_t clock, struct timespec *now)
{
    MUST(clock == CLOCK_MONOTONIC);
    now->tv_sec = 1;
    now->tv_nsec = 0;
    return 0;
}

/* Of sockets.c, and not for who has a client. */
int fuzz_socket(int domain, int type, int protocol)
{
    MUST(domain + type + protocol < 0);
    return -1;
}

int fuzz_connect(int fd, const struct sockaddr *address, socklen_t size)
{
    MUST(fd < 0 && address == NULL && size == 0);
    return -1;
}

int fuzz_nanosleep(const struct timespec *time, struct timespec *rest)
{
    MUST(time == NULL && rest == NULL);
    return -1;
}

/* The reply that must come of the result. */
static void reply_expect(const struct pr_command *command)
{
    uint8_t *reply = peer.bytes;
    size_t payload = command->payload;

    if (peer.cdb[0] != 0x5e || command->status != 0)
        payload = 0;
    if (payload > data_length())
        payload = data_length();
    memset(reply, 0, 8);
    reply[3] = command->status;
    reply[6] = (uint8_t)(payload >> 8);
    reply[7] = (uint8_t)payload;
    memcpy(reply + 8, command->sense, 96);
    memcpy(reply + HEAD, command->data, payload);
    peer.fd = -1;
    peer.vetted = false;
    frame_begin(REPLY, HEAD + payload);
}

/* Any result. */
static void answer(struct pr_command *command)
{
    command->payload = input_number(2);
    command->status = (uint8_t)input_number(1);
    memset(command->sense, (int)input_number(1), 96);
    reply_expect(command);
}

static void command_check(const struct pr_command *command)
{
    MUST(!peer.over && peer.frame == REQUEST);
    MUST(command->fd == peer.fd && !peer.is_closed[peer.fd - FIRST_FD]);
    MUST(memcmp(command->cdb, peer.cdb, 10) == 0);
    MUST(command->length == data_length());
    if (peer.cdb[0] == 0x5f)
        MUST(memcmp(command->data, peer.bytes, data_length()) == 0);
}

const char *const sg_io_refusals[] = { [NOT_SCSI] = "refused" };

enum vet sg_io_vet(struct pr_command *command)
{
    command_check(command);
    MUST(!peer.vetted);
    peer.vetted = true;
    command->refusal = NOT_REFUSED;
    switch (input_number(1) % 4) {
    case 3:
        answer(command);
        command->refusal = NOT_SCSI;
        return VET_ANSWERED;
    case 2:
        return VET_MAPPED;
    default:
        return VET_SEND;
    }
}

static void data_fill(struct pr_command *command)
{
    if (peer.cdb[0] == 0x5e)
        memset(command->data, (int)input_number(1),
               command->length + OVERSHOOT);
}

void sg_io_execute(struct pr_command *command, unsigned timeout,
                   unsigned attentions)
{
    MUST(peer.vetted && command->fd == peer.fd && timeout >= 1000);
    MUST((attentions > 0) == (peer.cdb[0] == 0x5e));
    data_fill(command);
    answer(command);
}

/* How a session dies with its supervisor. */
int fuzz_prctl(int option, ...)
{
    (void)option;
    return 0;
}

int multipath_ask(struct pr_command *command, int queue,
                  const char *socket_path, struct suspension *suspension)
{
    (void)socket_path;
    (void)suspension;
    MUST(queue == QUEUE && peer.vetted && !peer.asked);
    command_check(command);
    if (input_number(1) == 255) { /* for whatever reason */
        command->payload = 0;
        command->status = 2;
        memset(command->sense, 0xb, 96);
        reply_expect(command);
        return -1;
    }
    peer.asked = true;
    return ANSWER;
}

void worker_answer(int fd, struct pr_command *command)
{
    MUST(fd == ANSWER && peer.asked);
    command_check(command);
    peer.asked = false;
    data_fill(command);
    answer(command);
}

void report_request(const struct record *record,
                    const struct pr_command *command)
{
    (void)record;
    MUST(!peer.is_closed[command->fd - FIRST_FD]);
}

/* The descriptor is still open, and the size is the reply's. */
void report_reply(const struct record *record, const struct pr_command *command,
                  size_t payload)
{
    (void)record;
    MUST(!peer.is_closed[command->fd - FIRST_FD]);
    MUST(HEAD + payload == peer.size);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static struct service service = { .timeout = 1000, .queue = QUEUE };
    struct client *client = malloc(sizeof(*client));
    struct record record;
    unsigned how;

    if (client == NULL || size > FDS - 16)
        goto end;
    memset(client, 0xa5, sizeof(*client));
    memset(&peer, 0, sizeof(peer));
    peer.fd = -1;
    frame_begin(HELLO_OUT, 4);
    peer.bytes[3] = 1; /* the feature that there is */
    input_begin(bytes, size);

    client_begin(client, SOCKET, &service, &record);
    while (client_work(client, true, 0)) {
        bool sending = peer.frame == HELLO_OUT || peer.frame == REPLY;
        bool idle = peer.frame == CDB && peer.done == 0;
        struct pollfd fds = { .fd = -1 };
        int64_t wake = NEVER;

        MUST(!peer.over);
        MUST(client_poll(client, &fds, &wake)
             == (peer.asked || peer.frame == REPLY));
        MUST(fds.fd == (peer.asked ? ANSWER : SOCKET));
        MUST(fds.events == (sending ? POLLOUT : POLLIN));
        MUST(wake == client->deadline);
        MUST(!(idle && record.busy) && !(peer.asked && !record.busy));
        if (peer.asked) {
            MUST(client_work(client, false, WORKER_WITHIN - SECOND));
            how = input_number(1);
        } else {
            MUST(client_work(client, false, NEVER - 1) == idle);
            how = 0;
        }
        if (how == 255) {
            peer.over = true; /* somebody has this client leave */
            break;
        }
        if (how == 254) { /* the worker hangs */
            if (!client_work(client, false, NEVER - 1))
                break;
            MUST(!peer.asked);
        }
    }
    MUST(peer.over);
    client_close(client);
    MUST(peer.socket_closed && peer.closed == peer.sent);
end:
    free(client);
    return 0;
}
