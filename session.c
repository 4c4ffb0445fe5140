/* SPDX-License-Identifier: MIT */
/*
 * session.c - the processes that serve the clients: forks one for each,
 * notices when it ends, chooses who has to go when there are too many, and
 * ends them all. (With --single-process: the same choice, without a fork.)
 *
 * Main must never receive a descriptor, nor own a client's socket: the last
 * close() of what a client has queued there can block for as long as that
 * client likes. So it is the session that accepts its client, and main
 * waits for a byte that says so before it looks at the listener again.
 * Main must never wait for a session, or believe its record for more than
 * fairness and statistics.
 */
#include "kernel.h"
#include "prhelper.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define RETRY_AFTER (SECOND / 10) /* after accept or fork has failed */

/* How long there may be too many clients: those who reconnect are leaving. */
#define CROWDED_FOR (SECOND / 4)

static bool session_is_active(const struct server *server, unsigned i)
{
    if (server->options->single_process)
        return i < server->used && server->clients[i].socket >= 0;
    return server->sessions[i].pid != 0
           && server->sessions[i].leave_by == NEVER;
}

static bool same_peer(const struct record *a, const struct record *b)
{
    return a->peer.pid == b->peer.pid && a->peer.uid == b->peer.uid;
}

/* Of one peer, or (NULL) of all. */
static unsigned active_count(const struct server *server,
                             const struct record *peer)
{
    unsigned i, active = 0;

    for (i = 0; i < server->slots; i++)
        active += session_is_active(server, i)
                  && (peer == NULL || same_peer(peer, &server->records[i]));
    return active;
}

/*
 * Of two with as many connections, who goes first? Not whoever came, or sent
 * a command, since there have been too many; not one with a command at a
 * device; the one that has been idle for longest.
 */
static bool goes_before(const struct server *server, const struct record *a,
                        const struct record *b)
{
    int64_t crowded = server->crowded_by - CROWDED_FOR;

    if ((a->since < crowded) != (b->since < crowded))
        return a->since < crowded;
    return a->busy != b->busy ? b->busy : a->since < b->since;
}

/*
 * Returns who has to go, and logs it: of the peer with the most connections,
 * the one that goes_before() its others. (Quadratic in the number of peers, but
 * only at a limit.)
 */
static unsigned victim_choose(const struct server *server)
{
    unsigned i, victim = server->slots, most = 0;
    unsigned clients = active_count(server, NULL);

    for (i = 0; i < server->slots; i++) {
        const struct record *record = &server->records[i];
        const struct record *best = &server->records[victim];
        unsigned connections;

        if (!session_is_active(server, i))
            continue;
        connections = victim < server->slots && same_peer(record, best)
                          ? most
                          : active_count(server, record);
        if (victim < server->slots
            && (connections < most
                || (connections == most && !goes_before(server, record, best))))
            continue;
        victim = i;
        most = connections;
    }
    *log_about() = server->records[victim].peer;
    log_warning("%u clients: disconnecting one of pid %d uid %u",
                clients < server->max_clients ? clients : server->max_clients,
                log_about()->pid, log_about()->uid);
    *log_about() = (struct log_peer){ 0 };
    return victim;
}

/*
 * Says once what is wrong, until something works again. Until then the
 * listener is looked at now and then, or a persistent failure would make us
 * spin.
 */
static void back_off(struct server *server, const char *what, int error,
                     int64_t now)
{
    if (!server->complained)
        log_error("cannot %s, trying again: %s", what, strerror(error));
    server->complained = true;
    server->retry = now + RETRY_AFTER;
}

static void session_leave(struct server *server, unsigned i, int64_t now)
{
    kill(server->sessions[i].pid, SIGTERM);
    server->sessions[i].leave_by = now + LEAVE_WITHIN;
}

/*
 * There is no room for another process: a client has to go, if there is more
 * than one; but no further one if the process that has gone meanwhile made no
 * room for us, since then it is others who fill it.
 */
void session_make_room(struct server *server, const char *what, int error,
                       int64_t now)
{
    back_off(server, what, error, now);
    if (server->sessions == NULL || server->room == ROOM_MADE
        || active_count(server, NULL) < 2)
        return;
    session_leave(server, victim_choose(server), now);
    server->room = ROOM_AWAITED;
}

/*
 * Closes all but standard input, output and error, the trace file, and these
 * (-1: none).
 */
void fds_close_except(int a, int b, int c)
{
    const int keep[] = { a, b, c, trace_file() };
    unsigned from = STDERR_FILENO + 1;

    for (;;) {
        unsigned next = ~0U, i;

        for (i = 0; i < sizeof(keep) / sizeof(keep[0]); i++)
            if (keep[i] >= (int)from && (unsigned)keep[i] < next)
                next = (unsigned)keep[i];
        if (next > from)
            syscall(SYS_close_range, from, next == ~0U ? next : next - 1, 0U);
        if (next == ~0U)
            return;
        from = next + 1;
    }
}

/*
 * The child's side of session_spawn(): turns this process into a session,
 * or leaves with the errno that prevented it.
 */
static void session_begin(struct server *server, struct record *record)
{
    rlim_t limit = (rlim_t)server->queue[QUEUE_IN];
    int socket;

    /* It dies with main, but see client_busy(). */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
        _exit(errno);
    if (getppid() != server->pid)
        _exit(ESRCH); /* main was gone before we asked to go with it */
    socket = accept4(server->listener.fd, NULL, NULL, SOCK_CLOEXEC);
    if (socket < 0)
        _exit(errno);
    if (write(server->report[1], "s", 1) < 0)
        _exit(errno); /* main would wait for this byte */
    log_syslog_renew();
    server->clients[0].is_session = true;
    client_begin(&server->clients[0], socket, server->queue[QUEUE_IN], record,
                 server->options->client_timeout);
    /* The client reads its hello while we go on; we read nothing of it yet. */
    if (!client_work(&server->clients[0]))
        _exit(EXIT_SUCCESS);
    server->is_session = true;
    server->sessions = NULL;
    munmap(server->suspensions, server->slots * sizeof(struct suspension));
    server->used = 1;
    memset(server->fds, 0, FDS_CLIENTS * sizeof(struct pollfd));
    close(server->listener.fd);
    close(server->report[0]);
    close(server->report[1]);
    close(server->queue[QUEUE_OUT]);
    fds_close_except(socket, server->queue[QUEUE_IN], -1);
    /* The filter tells these by number: that shall name nothing else. */
    if (trace_file() >= 0 && (rlim_t)trace_file() < limit)
        limit = (rlim_t)trace_file();
    if (setrlimit(RLIMIT_NOFILE, &(struct rlimit){ limit, limit }) < 0)
        _exit(EXIT_FAILURE);
    if (sandbox_enter(server, SESSION) < 0) {
        log_error("no sandbox for a session: %s", strerror(errno));
        _exit(EXIT_FAILURE);
    }
}

/* A client is waiting at the listener: starts its session. */
void session_spawn(struct server *server, int64_t now)
{
    unsigned i;
    pid_t pid;

    for (i = 0; i < server->slots && server->sessions[i].pid != 0; i++)
        ;
    if (i == server->slots) {
        session_make_room(server, "find a place for a new client", EUSERS, now);
        return;
    }
    server->records[i] = (struct record){ .since = now };
    pid = fork();
    if (pid == 0) {
        session_begin(server, &server->records[i]);
        return;
    }
    if (pid < 0) {
        session_make_room(server, "fork for a new client" FORK_CURE, errno,
                          now);
        return;
    }
    server->sessions[i] = (struct session){ pid, NEVER };
    server->sessions_there++;
    server->pending = pid;
}

/*
 * Children have written to the pipe: the session that was pending has its
 * client ('s'), the worker that was pending its command ('w').
 */
void session_reported(struct server *server)
{
    char bytes[16];
    ssize_t count = read(server->report[0], bytes, sizeof(bytes));

    while (count-- > 0) {
        if (server->room == ROOM_ENOUGH) /* or else it was made for this one */
            server->complained = false;
        server->room = ROOM_ENOUGH;
        if (bytes[count] == 'w') {
            server->worker_pending = 0;
            server->worker_retry = 0;
            continue;
        }
        server->pending = 0;
        server->totals.clients++;
    }
}

/* What a client has done that is gone. */
static void totals_add(struct server *server, const struct record *record)
{
    server->totals.commands += record->commands;
    server->totals.errors += record->errors;
}

static void session_ended(struct server *server, unsigned i, int status,
                          int64_t now)
{
    const struct record *record = &server->records[i];
    const struct session *session = &server->sessions[i];
    char whose[64] = " that had no client yet";
    bool has_client;

    /* Its byte may be in the pipe although the writer is gone. */
    if (server->pending == session->pid)
        session_reported(server);
    has_client = server->pending != session->pid;
    if (has_client)
        snprintf(whose, sizeof(whose), " of client pid %d uid %u",
                 record->peer.pid, record->peer.uid);
    if (WIFSIGNALED(status) && session->leave_by == NEVER)
        log_error("session %d%s died of signal %d%s", session->pid, whose,
                  WTERMSIG(status),
                  WTERMSIG(status) == SIGSYS
                      ? ": it made a system call that the sandbox forbids, see "
                        "the kernel's log"
                      : "");
    if (!has_client) {
        server->pending = 0;
        if (WIFEXITED(status))
            back_off(server, "accept a new client", WEXITSTATUS(status), now);
        else
            server->retry = now + RETRY_AFTER;
    }
    server->sessions[i].pid = 0;
    server->sessions_there--;
    totals_add(server, record);
}

/* Takes note of the children that have ended. */
void session_reap(struct server *server, int64_t now)
{
    pid_t pid;
    int status;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        unsigned i = server->slots;

        if (server->sessions != NULL)
            for (i = 0; i < server->slots; i++)
                if (server->sessions[i].pid == pid)
                    break;
        if (i < server->slots)
            session_ended(server, i, status, now);
        else
            worker_ended(server, pid, status, now);
        if (server->room == ROOM_AWAITED) {
            server->room = ROOM_MADE;
            server->retry = now;
            server->worker_retry = now;
        }
    }
}

void session_stop_all(struct server *server, int64_t now)
{
    unsigned i;

    for (i = 0; i < server->slots; i++)
        if (server->sessions[i].pid != 0)
            session_leave(server, i, now);
}

/*
 * Kills the sessions that were told to leave and have not: they hang in
 * something that is no command at a device, such as the close() of a
 * descriptor that their client made up. Tells one to leave if there have been
 * too many for a moment. Returns when to look again.
 */
int64_t session_check(struct server *server, int64_t now)
{
    int64_t next = NEVER;
    unsigned i;

    if (active_count(server, NULL) <= server->max_clients)
        server->crowded_by = NEVER;
    else if (server->crowded_by == NEVER)
        server->crowded_by = now + CROWDED_FOR;
    else if (server->crowded_by <= now)
        session_leave(server, victim_choose(server), now);
    for (i = 0; i < server->slots; i++) {
        struct session *session = &server->sessions[i];

        if (session->pid == 0 || session->leave_by == NEVER)
            continue;
        if (session->leave_by <= now) {
            if (!server->records[i].busy)
                kill(session->pid, SIGKILL);
            session->leave_by = now + LEAVE_WITHIN;
        }
        next = sooner(next, session->leave_by);
    }
    return sooner(next, server->crowded_by);
}

/* The end of our patience with commands in flight. */
void session_kill_all(struct server *server)
{
    unsigned i, commands = 0;

    for (i = 0; i < server->slots; i++) {
        if (server->sessions[i].pid == 0)
            continue;
        kill(server->sessions[i].pid, SIGKILL);
        commands += server->records[i].busy;
    }
    if (commands > 0)
        log_error("%u commands did not end in time, leaving without them",
                  commands);
}

/*
 * The end of a client. In a session it is the end of the process: one that
 * exits does not linger in close(), whatever the client has queued.
 */
void session_drop(struct server *server, struct client *client)
{
    if (server->is_session)
        _exit(EXIT_SUCCESS);
    totals_add(server, client->record);
    client_close(client);
}

/* The same as session_spawn() for --single-process. */
void session_accept(struct server *server, int64_t now)
{
    unsigned i;
    int socket;

    if (active_count(server, NULL) >= server->max_clients) {
        i = victim_choose(server);
        client_leave(&server->clients[i]);
        session_drop(server, &server->clients[i]);
    }
    for (i = 0; i < server->used && server->clients[i].socket >= 0; i++)
        ;
    socket = accept4(server->listener.fd, NULL, NULL, SOCK_CLOEXEC);
    if (socket < 0) {
        back_off(server, "accept a new client", errno, now);
        return;
    }
    server->complained = false;
    server->totals.clients++;
    log_syslog_renew();
    client_begin(&server->clients[i], socket, server->queue[QUEUE_IN],
                 &server->records[i], server->options->client_timeout);
    if (i == server->used)
        server->used++;
}
