/* SPDX-License-Identifier: MIT */
/*
 * workers.c - asks for commands on multipath maps to be carried out, by a
 * worker for each (worker.c).
 *
 *	session: puts the map's descriptor and one end of a fresh pair of
 *	         sockets on the queue, and waits at the other, where it has
 *	         put the command
 *	main:    queue readable? fork --->  worker: takes one command from the
 *	                                    queue, carries it out on the map's
 *	                                    paths, answers, exits
 *
 * So a session, which talks to a client, needs no power to open devices or
 * to talk to multipathd, and a worker has it for one command. Main must never
 * read the queue: what is in it may be a descriptor whose close() hangs.
 *
 * A worker that dies closes its end of the pair, and the session says that
 * the command failed. No map must stay suspended: a worker says in shared
 * memory which one is, and main starts another that resumes it.
 */
#include "multipath.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define RETRY_AFTER (SECOND / 10) /* after fork has failed */
#define RESUME_AGAIN (2 * SECOND) /* after one could not */
#define TAKE_WITHIN (2 * SECOND)  /* a command off the queue */

/* ---- In a session ----------------------------------------------------- */

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

/*
 * Asks for a command to be carried out: it is put into the worker's end of
 * the pair, so that on the queue, which all share, each takes little room.
 * Waits for that room (but with --single-process: nobody else would make
 * any). Returns where worker_answer() will find the result once that is
 * readable, or -1 and errno if it cannot be asked for.
 */
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

/*
 * Takes the result, or reports that the worker is gone or too late. Closes
 * answer.
 */
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

/* ---- In main ---------------------------------------------------------- */

static bool is_suspender(const struct server *server, unsigned i)
{
    return server->suspensions[i].alias[0] != '\0';
}

/* In this place; what it may have to resume is in another one. */
static pid_t worker_start(struct server *server, unsigned place,
                          unsigned suspender, int64_t now)
{
    /* Now: who has suspended it may resume it meanwhile. */
    bool is_resumer = is_suspender(server, suspender);
    pid_t pid = fork();

    if (pid == 0)
        worker_run(server, &server->suspensions[suspender], is_resumer);
    if (pid > 0) {
        server->workers[place] = pid;
        return pid;
    }
    session_make_room(server, "fork for a command on a multipath map" FORK_CURE,
                      errno, now);
    server->worker_retry = now + RETRY_AFTER;
    return 0;
}

static unsigned place_find(const struct server *server)
{
    unsigned i;

    for (i = 0; i < server->slots; i++)
        if (server->workers[i] == 0 && !is_suspender(server, i))
            break;
    return i;
}

/* A command is waiting on the queue. */
void worker_spawn(struct server *server, int64_t now)
{
    unsigned i = place_find(server);

    server->worker_retry = now + RETRY_AFTER;
    if (i < server->slots)
        server->worker_pending = worker_start(server, i, i, now);
    if (server->worker_pending != 0)
        server->worker_retry = now + TAKE_WITHIN;
}

/*
 * Kills a worker that hangs in taking its command, and has others resume the
 * maps that were left suspended: by the dead, and by those that hang. Returns
 * when to look again.
 */
int64_t worker_check(struct server *server, int64_t now)
{
    int64_t next = NEVER;
    unsigned i, place;

    for (i = 0; i < server->slots; i++) {
        if (server->workers[i] == 0 || !is_suspender(server, i))
            continue;
        place = place_find(server);
        if (now >= server->suspensions[i].resume_by && place < server->slots) {
            log_error("map %.*s has been suspended for too long: having it "
                      "resumed",
                      ALIAS_SIZE - 1, server->suspensions[i].alias);
            server->suspensions[i].resume_by = now + COMMAND_WITHIN;
            worker_start(server, place, i, now);
        }
        next = sooner(next, server->suspensions[i].resume_by);
    }
    if (now < server->worker_retry)
        return next;
    if (server->worker_pending != 0)
        session_reported(server); /* we may have been late ourselves */
    if (server->worker_pending != 0) {
        kill(server->worker_pending, SIGKILL);
        server->worker_retry = now + TAKE_WITHIN;
    }
    if (!server->is_resume_due)
        return next;
    server->is_resume_due = false;
    for (i = 0; i < server->slots; i++) {
        if (server->workers[i] != 0 || !is_suspender(server, i))
            continue;
        server->suspensions[i].resume_by = NEVER;
        if (worker_start(server, i, i, now) == 0)
            server->is_resume_due = true;
    }
    return next;
}

/* A child of main's that is no session has ended. */
void worker_ended(struct server *server, pid_t pid, int status, int64_t now)
{
    unsigned i;

    if (server->worker_pending == pid)
        session_reported(server); /* its byte must not be taken for another's */
    if (server->worker_pending == pid) {
        server->worker_pending = 0;
        server->worker_retry = 0;
    }
    for (i = 0; i < server->slots && server->workers[i] != pid; i++)
        ;
    if (i == server->slots)
        return;
    server->workers[i] = 0;
    if (WIFSIGNALED(status))
        log_error("a command on a multipath map died of signal %d",
                  WTERMSIG(status));
    if (is_suspender(server, i)) {
        log_error("map %.*s may be suspended: having it resumed",
                  ALIAS_SIZE - 1, server->suspensions[i].alias);
        server->is_resume_due = true;
        server->worker_retry =
            now + (WIFSIGNALED(status) ? RETRY_AFTER : RESUME_AGAIN);
    }
}

bool worker_any(const struct server *server)
{
    unsigned i;

    for (i = 0; i < server->slots; i++)
        if (server->workers[i] != 0)
            return true;
    return server->is_resume_due;
}
