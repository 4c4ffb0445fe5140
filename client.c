/* SPDX-License-Identifier: MIT */
/*
 * client.c - one connected client: moves the bytes and descriptors of its
 * conversation and has its requests executed.
 *
 * It must never block on the client's socket, read beyond the frame in
 * progress, keep a descriptor longer than the request it came with, or let
 * one client's bad input cost anything but that client's connection.
 */
#include "server.h"
#include "sockets.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

static void client_log(const struct client *client, int level, const char *what,
                       const char *why)
{
    log_at(level, "client pid %d uid %u: %s%s", client->record->peer.pid,
           client->record->peer.uid, what, why);
}

void client_begin(struct client *client, int socket, struct service *service,
                  struct record *record)
{
    *record = (struct record){ .peer = socket_peer(socket),
                               .since = clock_us() };
    client->socket = socket;
    client->service = service;
    client->answer = -1;
    client->record = record;
    client->deadline = record->since + service->timeout;
    client->refusal_logged = false;
    client->is_busy = false;
    protocol_begin(&client->conversation);
    client_log(client, LOG_EVENT + TRACE_CLIENT_CONNECT, "connected", "");
}

bool client_poll(const struct client *client, struct pollfd *fds, int64_t *wake)
{
    fds->fd = client->answer >= 0 ? client->answer : client->socket;
    fds->events = protocol_is_sending(&client->conversation) ? POLLOUT : POLLIN;
    if (client->socket < 0)
        return false;
    *wake = sooner(*wake, client->deadline);
    return client->answer >= 0 || client->conversation.state == PROTOCOL_REPLY;
}

void client_leave(const struct client *client)
{
    if (client->socket >= 0)
        client_log(client, LOG_EVENT + TRACE_CLIENT_END, "told to leave", "");
}

/*
 * Sets whether a device has, or had, a command that is not yet answered. While
 * it has, the end of the supervisor only asks the session to leave; else it
 * kills it, in close() and wherever else a descriptor can make it hang. (A
 * process without a queue has no supervisor.)
 */
static void client_busy(struct client *client, bool busy)
{
    if (client->service->queue >= 0 && client->is_busy != busy)
        prctl(PR_SET_PDEATHSIG, busy ? SIGTERM : SIGKILL, 0, 0, 0);
    client->is_busy = busy;
    client->record->busy = busy;
}

void client_close(struct client *client)
{
    if (client->conversation.fd >= 0)
        close(client->conversation.fd);
    close(client->socket);
    client->socket = -1;
}

/*
 * Reads once. Returns NULL if the conversation goes on, or why not; *more is
 * whether there is something to do before the next poll: nothing if the
 * frame is not complete, or if it was the last one before the client idles.
 */
static const char *client_receive(struct client *client, bool *more)
{
    struct conversation *c = &client->conversation;
    struct message message;
    const char *violation;
    struct iovec data;
    ssize_t bytes;
    int fd = -1;

    *more = false;
    data.iov_base = protocol_rest(c, &data.iov_len);
    /* The kernel closes what is more than one descriptor. */
    message_set(&message, &data, 1, NULL, sizeof(fd));
    bytes = recvmsg(client->socket, &message.head,
                    MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (bytes < 0)
        return errno == EAGAIN || errno == EINTR ? NULL : strerror(errno);
    message_take(&message, SCM_RIGHTS, &fd, sizeof(fd));
    if (bytes == 0)
        violation = protocol_is_idle(c) ? "disconnected"
                                        : "disconnected inside a request";
    else if (message.head.msg_flags & MSG_CTRUNC)
        violation = fd >= 0 ? "more than one descriptor"
                            : "truncated ancillary data";
    else
        violation = protocol_moved(c, (size_t)bytes, fd);
    if (fd >= 0 && fd != c->fd)
        close(fd);
    *more = c->state == PROTOCOL_EXECUTE
            || (c->state == PROTOCOL_PARAMETERS && c->done == 0);
    return violation;
}

static const char *client_send(struct client *client)
{
    size_t size;
    uint8_t *data = protocol_rest(&client->conversation, &size);
    ssize_t bytes = send(client->socket, data, size,
                         MSG_DONTWAIT | MSG_NOSIGNAL);

    if (bytes < 0)
        return errno == EAGAIN || errno == EINTR
                   ? NULL
                   : "disconnected before its reply";
    return protocol_moved(&client->conversation, (size_t)bytes, -1);
}

/*
 * Has the command executed; false if the answer is still to come.
 *
 * The one answer of a disk that is not passed on: a unit attention, where the
 * command only reads. It is meant for the nexus, which is the host's: its
 * kernel and path checkers take such conditions all the time, and no guest
 * can rely on being the one that is told. But a QEMU that is migrated to reads
 * keys and reservation once, and gives the guest up for one. Who would change
 * something is told: the state may not be what it was when that was decided.
 */
static bool command_execute(struct client *client, struct pr_command *command)
{
    bool is_in = command->cdb[0] == PERSISTENT_RESERVE_IN;
    enum vet vet = sg_io_vet(command);

    client->record->since = clock_us();
    client->record->commands++;
    client_busy(client, vet != VET_ANSWERED);
    client->record->state = PROTOCOL_EXECUTE;
    report_request(client->record, command);
    if (vet == VET_SEND)
        sg_io_execute(command, SG_IO_TIMEOUT, is_in ? SG_IO_ATTENTIONS : 0);
    if (vet == VET_MAPPED)
        client->answer = multipath_ask(command, client->service->queue,
                                       client->service->socket_path,
                                       &client->service->suspension);
    if (client->answer >= 0)
        client->deadline = clock_us() + WORKER_WITHIN;
    return client->answer < 0;
}

/*
 * Has the request executed, or takes the answer that has come. Returns
 * whether there is a reply. The descriptor is closed before the client hears
 * that we are done.
 */
static bool client_execute(struct client *client)
{
    struct conversation *c = &client->conversation;
    struct pr_command command = {
        .fd = c->fd,
        .cdb = c->cdb,
        .length = protocol_data_length(c->cdb),
        .data = protocol_data(c),
        .sense = protocol_data(c) - PROTOCOL_SENSE_SIZE,
    };

    client->deadline = NEVER;
    if (client->answer >= 0) {
        worker_answer(client->answer, &command);
        client->answer = -1;
    } else if (!command_execute(client, &command)) {
        return false;
    }
    client->record->errors += command.status != GOOD;
    if (command.status != GOOD && command.refusal != NOT_REFUSED
        && !client->refusal_logged) {
        client_log(client, LOG_NORMAL,
                   "command refused: ", sg_io_refusals[command.refusal]);
        client->refusal_logged = true;
    }
    protocol_reply(c, command.status, command.payload);
    report_reply(client->record, &command, c->size - PROTOCOL_STATUS_SIZE);
    close(c->fd);
    c->fd = -1;
    return true;
}

bool client_work(struct client *client, bool is_ready, int64_t now)
{
    struct conversation *c = &client->conversation;
    const char *end = NULL;
    bool more = true;

    if (!is_ready && now < client->deadline)
        return true;
    *log_about() = client->record->peer;
    if (!is_ready && client->answer < 0)
        end = "timed out";
    else if (!is_ready)
        client_log(client, LOG_NORMAL, "a command on a multipath map hangs: ",
                   "do all paths answer?");
    while (more && end == NULL) {
        if (c->state == PROTOCOL_EXECUTE) {
            more = client_execute(client);
        } else if (protocol_is_sending(c)) {
            end = client_send(client);
            more = false;
        } else {
            end = client_receive(client, &more);
        }
    }
    if (end != NULL) {
        client_log(client, LOG_EVENT + TRACE_CLIENT_END, end, "");
        return false;
    }
    client->record->state = c->state;
    if (protocol_is_idle(c)) {
        client->deadline = NEVER;
        client_busy(client, false);
    } else if (client->deadline == NEVER && client->answer < 0) {
        client->deadline = clock_us() + client->service->timeout;
    }
    return true;
}
