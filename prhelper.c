/* SPDX-License-Identifier: MIT */
/*
 * prhelper.c - start-up, and the inner loop, which serves clients.
 *
 *	process     what it does                   loop
 *	supervisor  forks the others               supervise(), supervisor.c
 *	session     serves one client              serve(), here
 *	worker      one command on a multipath     none: multipath/worker.c
 *	            map, or resumes one
 *
 * A command can hang in the kernel for as long as its disk does. That is why
 * each client has a process of its own, and why the supervisor does nothing
 * but fork it: no client can keep another, or the next one, waiting. With
 * --single-process there is but one process, whose serve() has the listener
 * and all clients.
 *
 * It must never lose what is in flight when it is told to stop.
 */
#include "process.h"
#include "supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define READY_WITHIN (5 * SECOND) /* who waits for that may be busy */

/* ---- The loop --------------------------------------------------------- */

/* Takes in the client that waits at the listener. */
static void client_accept(struct server *server, int64_t now)
{
    struct roster *roster = &server->roster;
    unsigned i;
    int socket;

    if (roster->active >= roster->most) {
        i = roster_evict(roster);
        client_leave(&server->clients[i]);
        client_close(&server->clients[i]);
        roster_remove(roster, i);
    }
    i = roster_find(roster, 0);
    socket = accept4(server->listener.fd, NULL, NULL, SOCK_CLOEXEC);
    if (socket < 0) {
        roster_back_off(roster, "accept a new client", errno, now);
        return;
    }
    log_syslog_renew();
    roster->complained = false;
    roster_enter(roster, i, 1); /* the sandbox forbids getpid() */
    roster->clients++;
    client_begin(&server->clients[i], socket, &server->service,
                 &roster->records[i]);
}

/* Commands in flight go on, but a reply has to be read within LEAVE_WITHIN. */
static void stop(struct server *server, int64_t now)
{
    unsigned i;

    server->service.timeout = LEAVE_WITHIN;
    for (i = 0; i < server->roster.used; i++) {
        struct client *client = &server->clients[i];

        if (client->answer < 0)
            client->deadline = sooner(client->deadline, now + LEAVE_WITHIN);
    }
    if (server->listener.fd < 0)
        return;
    server->service.suspension.resume_by = 0; /* try once more, now */
    listen_remove(&server->listener);
    notify_send(server->notify, "STOPPING=1", 0);
}

/*
 * Serves the clients of the listener until a signal says stop; or, where there
 * is no listener, the one client until it has gone. That is not closed then: an
 * exiting process does not linger in close(), whatever a client has queued.
 */
static void serve(struct server *server)
{
    struct pollfd *fds = server->fds;
    bool stopping = false;

    for (;;) {
        int64_t now = clock_us(), wake = log_check(now);
        unsigned i, in_flight = 0, signals = signals_take();

        *log_about() = (struct ucred){ 0 }; /* not the last client any more */
        if ((signals & SIGNAL_STOP) != 0 && !stopping) {
            stopping = true;
            stop(server, now);
        }
        fds[0] = (struct pollfd){ .fd = -1, .events = POLLIN };
        if (server->listener.fd >= 0) {
            now = multipath_check(server->service.socket_path,
                                  &server->service.suspension, now, &wake);
            wake = sooner(wake, report_status(&server->roster,
                                              signals & SIGNAL_STATUS, 0, now));
            if (now < server->roster.retry)
                wake = sooner(wake, server->roster.retry);
            else if (!stopping)
                fds[0].fd = server->listener.fd;
        }
        for (i = 0; i < server->roster.used; i++)
            in_flight += client_poll(&server->clients[i], &fds[i + 1], &wake);
        if (stopping && in_flight == 0) {
            for (i = 0; i < server->roster.used; i++)
                client_leave(&server->clients[i]);
            return;
        }
        events_wait(fds, server->roster.used + 1, now, wake);

        now = clock_us(); /* a client that takes long makes no other expire */
        for (i = 0; i < server->roster.used; i++) {
            struct client *client = &server->clients[i];

            if (client->socket < 0
                || client_work(client, fds[i + 1].revents != 0, now))
                continue;
            if (server->listener.fd < 0)
                return;
            client_close(client);
            roster_remove(&server->roster, i);
        }
        if (server->listener.fd >= 0 && fds[0].revents != 0)
            client_accept(server, clock_us());
    }
}

/* ---- Start-up --------------------------------------------------------- */

static void *table(size_t size, int flags)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        flags | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        fatal("cannot allocate %zu bytes:", size);
    return memory;
}

/*
 * Each client of --single-process takes a descriptor of the same process,
 * and may have sent another one. Returns how many clients there can be.
 */
static unsigned clients_limit(unsigned wanted)
{
    enum { OTHERS = 32 };
    int limit = (descriptors_limit(wanted * 2 + OTHERS) - OTHERS) / 2;

    return limit > 0 ? (unsigned)limit : 1;
}

/* The tables take memory only where they are used. */
static void server_set_up(struct server *server, const struct options *options,
                          unsigned clients)
{
    struct roster *roster = &server->roster;

    roster->pending = NOBODY;
    roster->crowded_by = NEVER;
    roster->status_by = NEVER;
    roster->places = table(roster->slots * sizeof(struct place), MAP_PRIVATE);
    roster->records = table(roster->slots * sizeof(struct record), MAP_SHARED);
    log_share(table(4096, MAP_SHARED));
    server->service.timeout = options->client_timeout;
    server->service.socket_path = server->listener.path;
    server->service.queue = -1;
    /* They lie side by side, so that in a session both begin on one page. */
    server->fds = table((clients + 1) * sizeof(struct pollfd)
                            + clients * sizeof(struct client),
                        MAP_PRIVATE);
    server->clients = (struct client *)(void *)(server->fds + clients + 1);
}

/*
 * There is room for as many sessions again as there may be clients: those
 * that were told to leave while a disk makes them hang.
 */
static void supervisor_set_up(struct supervisor *supervisor,
                              const struct options *options)
{
    struct workers *workers = &supervisor->workers;
    struct server *server = &supervisor->server;
    int ends[2];

    server->roster.most = options->max_clients;
    server->roster.slots = workers->slots = options->max_clients * 2 + 16;
    server_set_up(server, options, 1);
    /* A session does not read this table, and needs no copy of it. */
    madvise(server->roster.places, workers->slots * sizeof(struct place),
            MADV_DONTFORK);
    workers->pids = table(workers->slots * sizeof(pid_t), MAP_PRIVATE);
    workers->suspensions = table(workers->slots * sizeof(struct suspension),
                                 MAP_SHARED);
    madvise(workers->suspensions, workers->slots * sizeof(struct suspension),
            MADV_DONTFORK); /* see worker_start() */
    supervisor->stop_timeout = options->stop_timeout;
    supervisor->stop_by = NEVER;
    supervisor->pid = getpid();
    if (pipe2(supervisor->report, O_CLOEXEC | O_NONBLOCK) < 0)
        fatal("cannot make a pipe:");
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        fatal("cannot make a queue:");
    supervisor->queue = ends[0];
    server->service.queue = descriptor_high(ends[1]);
    close(ends[1]);
    if (trace_file() >= 0)
        trace_file_set(descriptor_high(trace_file()));
}

int main(int argc, char **argv)
{
    struct options options;
    struct supervisor supervisor = { 0 };
    struct server *server = &supervisor.server;
    int report = -1, syslog = -1;

    /* Stage 1; privdrop.c has the list. */
    signal(SIGPIPE, SIG_IGN); /* what happens to be stderr must not kill us */
    signal(SIGXFSZ, SIG_IGN);
    daemon_open_standard_fds();
    log_open(false);
    options_parse(&options, argc, argv);
    listen_activated(&server->listener, options.socket_path);
    server->notify = notify_open();

    if (options.background) {
        report = daemon_background();
        syslog = log_syslog_open();
    }
    signals_set_up();
    if (options.pid_file != NULL)
        daemon_pid_file(options.pid_file);
    if (server->listener.fd < 0)
        listen_open(&server->listener, options.socket_path);
    /* Stage 2. */
    if (options.single_process) {
        server->roster.most = server->roster.slots = clients_limit(
            options.max_clients);
        server_set_up(server, &options, server->roster.slots);
        signal(SIGCHLD, SIG_IGN); /* as pid 1 we would inherit children */
    } else {
        supervisor_set_up(&supervisor, &options);
    }
    privdrop(options.uid, options.gid); /* stage 3 */
    if (options.background)
        daemon_background_ready(report, syslog);
    if (options.sandbox) /* stage 4 */
        supervisor.is_filtered = sandbox_main(server->listener.directory,
                                              server->service.queue);
    notify_send(server->notify, "READY=1", clock_us() + READY_WITHIN);

    if (options.single_process || supervise(&supervisor))
        serve(server);
    if (server->listener.fd >= 0) /* says what all processes have lost */
        log_check(NEVER);
    /* Nothing is closed: a process that exits does not linger in close(). */
    _exit(EXIT_SUCCESS);
}
