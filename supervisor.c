/* SPDX-License-Identifier: MIT */
/*
 * supervisor.c - the outer loop: forks a session for each client and a worker
 * for each command on a multipath map, notices when they end, and ends them.
 *
 * It must never receive a descriptor, nor own a client's socket: the last
 * close() of what a client has queued there can block for as long as that
 * client likes. So it is the session that accepts its client, and the
 * supervisor waits for a byte that says so before it looks at the listener
 * again. Nor may it wait for a session, or read the queue to the workers.
 */
#include "supervisor.h"
#include "process.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define FORK_CURE " (RLIMIT_NPROC, pids.max or TasksMax= allow too few)"

enum { LISTENER, REPORT, QUEUE, EVENTS };

/* ---- Sessions --------------------------------------------------------- */

/*
 * The child's side of the fork, stage 5 of privdrop.c: turns this process into
 * a session, whose client has its hello; or leaves with the errno that
 * prevented it.
 */
static void session_begin(struct supervisor *supervisor, unsigned place)
{
    struct server *server = &supervisor->server;
    int socket;

    /* The session dies with the supervisor, but see client_busy(). */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
        _exit(errno);
    if (getppid() != supervisor->pid)
        _exit(ESRCH); /* the supervisor was gone already */
    socket = accept4(server->listener.fd, NULL, NULL, SOCK_CLOEXEC);
    /* The supervisor waits for this byte. */
    if (socket < 0 || write(supervisor->report[1], "s", 1) < 0)
        _exit(errno);
    log_syslog_renew();
    server->roster.used = 1;
    client_begin(&server->clients[0], socket, &server->service,
                 &server->roster.records[place]);
    /* Sends the hello, which the client can read while we go on. */
    if (!client_work(&server->clients[0], true, 0))
        _exit(EXIT_SUCCESS);
    server->listener.fd = -1; /* is closed with the rest */
    descriptors_close_except(socket, server->service.queue, -1);
    if (descriptors_seal(server->service.queue) < 0
        || (supervisor->is_filtered
            && sandbox_enter(SESSION, server->service.queue) < 0)) {
        log_error("no sandbox for a session:");
        _exit(EXIT_FAILURE);
    }
}

static void session_leave(struct roster *roster, unsigned i, int64_t now)
{
    kill(roster->places[i].pid, SIGTERM);
    roster->active -= roster->places[i].leave_by == NEVER;
    roster->places[i].leave_by = now + LEAVE_WITHIN;
}

/*
 * There is no room for another process: a client has to go, if there is more
 * than one; but no further one if the process that has gone meanwhile made no
 * room for us, since then it is others who fill it.
 */
static void make_room(struct supervisor *supervisor, const char *what,
                      int error, int64_t now)
{
    struct roster *roster = &supervisor->server.roster;

    roster_back_off(roster, what, error, now);
    if (supervisor->room == ROOM_MADE || roster->active < 2)
        return;
    session_leave(roster, roster_evict(roster), now);
    supervisor->room = ROOM_AWAITED;
}

/*
 * Kills the sessions that were told to leave and have not: they hang in
 * something that is no command at a device, such as the close() of a
 * descriptor that their client made up. Tells one to leave if there have been
 * too many for a moment. Returns when to look again.
 */
static int64_t sessions_check(struct roster *roster, int64_t now)
{
    int64_t next;
    unsigned i;

    if (roster_is_crowded(roster, now))
        session_leave(roster, roster_evict(roster), now);
    next = roster->crowded_by;
    for (i = 0; i < roster->used; i++) {
        struct place *place = &roster->places[i];

        if (place->pid == 0)
            continue;
        if (place->leave_by <= now) {
            if (!roster->records[i].busy)
                kill(place->pid, SIGKILL);
            place->leave_by = now + LEAVE_WITHIN;
        }
        next = sooner(next, place->leave_by);
    }
    return next;
}

/* Kills all that are left: commands in flight have had their time. */
static void sessions_kill(const struct roster *roster)
{
    unsigned i, commands = 0;

    for (i = 0; i < roster->used; i++) {
        if (roster->places[i].pid == 0)
            continue;
        kill(roster->places[i].pid, SIGKILL);
        commands += roster->records[i].busy != 0;
    }
    if (commands > 0)
        log_error("%u commands did not end in time, leaving without them",
                  commands);
}

/* ---- Children --------------------------------------------------------- */

/*
 * Children have written to the pipe: the session that was pending has its
 * client ('s'), the worker that was pending its command ('w').
 */
static void reports_read(struct supervisor *supervisor)
{
    struct roster *roster = &supervisor->server.roster;
    char bytes[16];
    ssize_t count = read(supervisor->report[0], bytes, sizeof(bytes));

    while (count-- > 0) {
        if (supervisor->room == ROOM_ENOUGH) /* else one had to go for it */
            roster->complained = false;
        supervisor->room = ROOM_ENOUGH;
        if (bytes[count] == 'w') {
            workers_reported(&supervisor->workers);
        } else if (roster->pending != NOBODY) {
            roster->pending = NOBODY;
            roster->clients++;
        }
    }
}

static void session_ended(struct roster *roster, unsigned i, int status,
                          int64_t now)
{
    const struct place *place = &roster->places[i];
    const struct ucred peer = roster->records[i].peer;
    bool is_pending = i == roster->pending;
    char whose[64] = " that had no client yet";

    if (!is_pending)
        snprintf(whose, sizeof(whose), " of client pid %d uid %u", peer.pid,
                 peer.uid);
    if (WIFSIGNALED(status) && place->leave_by == NEVER)
        log_error("session %d%s died of signal %d%s", place->pid, whose,
                  WTERMSIG(status),
                  WTERMSIG(status) == SIGSYS
                      ? ": it made a system call that the sandbox forbids, see "
                        "the kernel's log"
                      : "");
    if (is_pending && WIFEXITED(status))
        roster_back_off(roster, "accept a new client", WEXITSTATUS(status),
                        now);
    else if (is_pending)
        roster->retry = now + SECOND / 10;
    roster_remove(roster, i);
}

static void children_reap(struct supervisor *supervisor, int64_t now)
{
    struct roster *roster = &supervisor->server.roster;
    pid_t pid;
    int status;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        unsigned i;

        if (roster->pending != NOBODY || supervisor->workers.pending != 0)
            reports_read(supervisor); /* what it wrote may be unread */
        i = roster_find(roster, pid);
        if (i < roster->used)
            session_ended(roster, i, status, now);
        else
            workers_ended(&supervisor->workers, pid, status, now);
        if (supervisor->room == ROOM_AWAITED) {
            supervisor->room = ROOM_MADE;
            roster->retry = now;
            if (supervisor->workers.pending == 0)
                supervisor->workers.retry = now;
        }
    }
}

/* ---- The loop --------------------------------------------------------- */

static void stop(struct supervisor *supervisor, int64_t now)
{
    struct roster *roster = &supervisor->server.roster;
    unsigned i;

    supervisor->stop_by = now + supervisor->stop_timeout;
    listen_remove(&supervisor->server.listener);
    notify_send(supervisor->server.notify, "STOPPING=1", 0);
    for (i = 0; i < roster->used; i++)
        if (roster->places[i].pid != 0)
            session_leave(roster, i, now);
}

static void worker_fork(struct supervisor *supervisor,
                        struct suspension *suspension, int64_t now)
{
    int error = worker_start(supervisor, suspension, now);

    if (error != 0)
        make_room(supervisor, "fork for a multipath map" FORK_CURE, error, now);
}

/* Forks for who waits at the listener. Returns true in the session. */
static bool session_start(struct supervisor *supervisor, int64_t now)
{
    struct roster *roster = &supervisor->server.roster;
    unsigned place = roster_find(roster, 0);
    pid_t pid;

    if (place == roster->slots) {
        make_room(supervisor, "find a place for a new client", EUSERS, now);
        return false;
    }
    roster->records[place] = (struct record){ .since = now };
    pid = process_fork();
    if (pid == 0) {
        session_begin(supervisor, place);
        return true;
    }
    if (pid < 0) {
        make_room(supervisor, "fork for a new client" FORK_CURE, errno, now);
        return false;
    }
    roster_enter(roster, place, pid);
    roster->pending = place;
    /* If there are too many from now on, it is not who has come that goes. */
    (void)roster_is_crowded(roster, now);
    return false;
}

bool supervise(struct supervisor *supervisor)
{
    struct workers *workers = &supervisor->workers;
    struct roster *roster = &supervisor->server.roster;
    struct pollfd fds[EVENTS] = { { .events = POLLIN },
                                  { supervisor->report[0], POLLIN, 0 },
                                  { .events = POLLIN } };

    for (;;) {
        int64_t now = clock_us(),
                wake = sooner(supervisor->stop_by, log_check(now));
        unsigned signals = signals_take();
        struct suspension *due;

        /* Who is to be killed may have reported since. */
        if (fds[REPORT].revents != 0
            || (workers->pending != 0 && now >= workers->retry))
            reports_read(supervisor);
        if ((signals & SIGNAL_CHILD) != 0)
            children_reap(supervisor, now);
        if ((signals & SIGNAL_STOP) != 0 && supervisor->stop_by == NEVER)
            stop(supervisor, now);
        wake = sooner(wake, workers_check(workers, now, &due));
        /* A worker that has a map suspended may die with us: in a container. */
        if (supervisor->stop_by <= now && workers->suspended) {
            supervisor->stop_by += 2 * supervisor->stop_timeout;
            supervisor->stop_timeout = 0;
        }
        if (supervisor->stop_by <= now
            || (supervisor->stop_by != NEVER
                && roster->count + workers->count == 0)) {
            sessions_kill(roster);
            return false;
        }
        /* But one each time: workers say what is due, and may lie. */
        if (due != NULL)
            worker_fork(supervisor, due, now);
        wake = sooner(wake, sessions_check(roster, now));
        wake = sooner(wake, report_status(roster, signals & SIGNAL_STATUS,
                                          workers->count, now));
        if (now < roster->retry)
            wake = sooner(wake, roster->retry);

        fds[QUEUE].fd = workers->pending == 0 && now >= workers->retry
                            ? supervisor->queue
                            : -1;
        fds[LISTENER].fd = roster->pending == NOBODY && now >= roster->retry
                                   && supervisor->stop_by == NEVER
                               ? supervisor->server.listener.fd
                               : -1;
        events_wait(fds, EVENTS, now, wake);

        if (fds[QUEUE].revents != 0)
            worker_fork(supervisor, NULL, clock_us());
        if (fds[LISTENER].revents != 0 && session_start(supervisor, clock_us()))
            return true;
    }
}
