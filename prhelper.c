/* SPDX-License-Identifier: MIT */
/*
 * prhelper.c - the order of start-up, the loop, the order of shutdown.
 *
 *	main: poll()                      session: poll(), one per client
 *	- signals, children               - client socket: hello, then CDB and
 *	- listener: readable? fork  --->    descriptor, parameter list, SG_IO,
 *	- byte: a session has its client    reply
 *
 * A command can hang in the kernel for as long as its disk does. That is
 * why each client has a process of its own, and why main does nothing but
 * fork it: no client can keep another, or the next one, waiting. All
 * processes run the same loop; main's has no clients and a session's has
 * one and no listener. With --single-process main serves all by itself. For
 * a command on a multipath map, main forks a worker: multipath/workers.c.
 *
 * It must never let a signal interrupt anything but ppoll(): SG_IO on
 * /dev/sgN would send its command twice, or lose the result.
 */
#include "prhelper.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/*
 * Numbers up to this are for what a session must get nothing else in place
 * of, see session_begin(). As many descriptors can be on their way to workers
 * (too_many_unix_fds(), net/core/scm.c in the kernel).
 */
enum { HIGHEST_NUMBER = 512 };

/* How long a client that always has a request may keep signals waiting. */
#define SIGNALS_WITHIN (SECOND / 100)

static volatile sig_atomic_t caught[32]; /* by number */

static void signal_handle(int number)
{
    caught[number] = 1;
}

/* Signals stay blocked from here on, except inside ppoll(). */
static void signals_set_up(void)
{
    static const int handled[] = { SIGTERM, SIGINT, SIGHUP, SIGCHLD, SIGUSR1 };
    struct sigaction action = { .sa_handler = signal_handle };
    size_t i;

    sigfillset(&action.sa_mask);
    if (sigprocmask(SIG_SETMASK, &action.sa_mask, NULL) < 0)
        fatal("cannot block signals: %s", strerror(errno));
    for (i = 0; i < sizeof(handled) / sizeof(handled[0]); i++)
        if (sigaction(handled[i], &action, NULL) < 0)
            fatal("cannot handle signals: %s", strerror(errno));
}

static void *table(size_t size, int flags)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        flags | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        fatal("cannot allocate %zu bytes: %s", size, strerror(errno));
    return memory;
}

/* How many descriptors there can be, of which the caller has use for most. */
static int descriptors_limit(rlim_t most)
{
    struct rlimit limit = { most, most };

    getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < most) {
        limit.rlim_cur = most < limit.rlim_max ? most : limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
        most = limit.rlim_cur;
    }
    return (int)most;
}

/* The same file, with one of the two highest numbers that there can be. */
static int descriptor_high(int fd, int limit)
{
    int high = fcntl(fd, F_DUPFD_CLOEXEC, limit - 2);

    if (high < 0)
        fatal("too few descriptors, see ulimit -n: %s", strerror(errno));
    return high;
}

/*
 * The tables are sized for the most that may be, and take memory only where
 * they are used. There is room for as many sessions again as there may be
 * clients: those that were told to leave while a disk makes them hang. With
 * --single-process each client takes a descriptor, and may have sent one.
 */
static void server_set_up(struct server *server, const struct options *options)
{
    enum { OTHERS = 32 };
    bool is_single = options->single_process;
    unsigned slots = options->max_clients, clients = 1;
    int limit = descriptors_limit(is_single ? slots * 2 + OTHERS
                                            : HIGHEST_NUMBER + 1);
    int type = SOCK_SEQPACKET | SOCK_CLOEXEC | (is_single ? SOCK_NONBLOCK : 0);
    int low;

    server->options = options;
    server->pid = getpid();
    server->stop_by = NEVER;
    server->status_by = NEVER;
    server->crowded_by = NEVER;
    if (is_single)
        slots = clients = (unsigned)(limit > OTHERS + 2 ? limit - OTHERS : 2)
                          / 2;
    server->max_clients = slots;
    slots = slots * 2 + 16;
    if (pipe2(server->report, O_CLOEXEC | O_NONBLOCK) < 0)
        fatal("cannot make a pipe: %s", strerror(errno));
    if (socketpair(AF_UNIX, type, 0, server->queue) < 0)
        fatal("cannot make a queue: %s", strerror(errno));
    if (!is_single) {
        server->sessions = table(slots * sizeof(struct session), MAP_PRIVATE);
        /* What a session does not see it need not have a copy of. */
        madvise(server->sessions, slots * sizeof(struct session),
                MADV_DONTFORK);
        low = server->queue[QUEUE_IN];
        server->queue[QUEUE_IN] = descriptor_high(low, limit);
        close(low);
        if (trace_file() >= 0)
            trace_file_set(descriptor_high(trace_file(), limit));
    }
    server->slots = slots;
    server->workers = table(slots * sizeof(pid_t), MAP_PRIVATE);
    server->suspensions = table(slots * sizeof(struct suspension), MAP_SHARED);
    server->records = table(slots * sizeof(struct record), MAP_SHARED);
    log_share(table(sizeof(struct log_shared), MAP_SHARED));
    server->clients = table(clients * sizeof(struct client), MAP_PRIVATE);
    server->fds = table((clients + FDS_CLIENTS) * sizeof(struct pollfd),
                        MAP_PRIVATE);
}

/* Begins to leave; what is in flight goes on, but for replies not read. */
static void server_stop(struct server *server, int64_t now)
{
    unsigned i;

    server->stopping = true;
    for (i = 0; i < server->used; i++)
        client_hurry(&server->clients[i], now);
    if (server->is_session)
        return;
    server->stop_by = now + server->options->stop_timeout;
    listen_remove(&server->listener);
    notify_send(server->notify, "STOPPING=1");
    if (!server->options->single_process)
        session_stop_all(server, now);
}

/*
 * Fills in what to poll for and returns how much that is; ppoll() passes over
 * a negative descriptor. *wake is when to look at the clock again.
 */
static nfds_t server_interest(struct server *server, int64_t now, int64_t *wake)
{
    struct pollfd *fds = server->fds;
    bool accepting = server->pending == 0 && !server->stopping
                     && now >= server->retry;
    bool working = server->worker_pending == 0 && now >= server->worker_retry;
    unsigned i;

    fds[FDS_LISTENER].fd = accepting ? server->listener.fd : -1;
    fds[FDS_REPORT].fd = server->report[0];
    fds[FDS_QUEUE].fd = working ? server->queue[QUEUE_OUT] : -1;
    for (i = 0; i < FDS_CLIENTS; i++)
        fds[i].events = POLLIN;
    if (now < server->retry)
        *wake = sooner(*wake, server->retry);
    if (now < server->worker_retry)
        *wake = sooner(*wake, server->worker_retry);
    for (i = 0; i < server->used; i++) {
        struct client *client = &server->clients[i];

        fds[i + FDS_CLIENTS].fd = -1;
        if (client->socket < 0)
            continue;
        client_poll(client, &fds[i + FDS_CLIENTS]);
        *wake = sooner(*wake, client->deadline);
    }
    return i + FDS_CLIENTS;
}

/* A session has nothing to wait for but its client. */
static void server_wait(struct server *server, nfds_t count, int64_t now,
                        int64_t wake)
{
    nfds_t first = server->is_session ? FDS_CLIENTS : 0;
    int64_t us = wake > now ? wake - now : 0;
    struct timespec until = { (time_t)(us / SECOND),
                              (long)(us % SECOND) * 1000 };
    bool interrupted = false;
    sigset_t none;

    sigemptyset(&none);
    /* With something ready ppoll() lets no signal in, so now and then: */
    if (now >= server->signals_by) {
        server->signals_by = now + SIGNALS_WITHIN;
        interrupted = ppoll(NULL, 0, &(struct timespec){ 0 }, &none) < 0;
    }
    if (!interrupted
        && ppoll(server->fds + first, count - first,
                 wake == NEVER ? NULL : &until, &none)
               >= 0)
        return;
    if (errno != EINTR) /* short of memory: do not spin */
        nanosleep(&(struct timespec){ .tv_nsec = 100000000 }, NULL);
    while (count > 0)
        server->fds[--count].revents = 0;
}

static void server_serve(struct server *server)
{
    struct pollfd *fds = server->fds;
    unsigned i;

    if (fds[FDS_REPORT].revents != 0)
        session_reported(server);
    if (fds[FDS_QUEUE].revents != 0)
        worker_spawn(server, clock_us());
    for (i = 0; i < server->used; i++) {
        struct client *client = &server->clients[i];

        if (client->socket < 0)
            continue;
        if (fds[i + FDS_CLIENTS].revents != 0
                ? !client_work(client)
                : client_expire(client, clock_us()))
            session_drop(server, client);
    }
    if (fds[FDS_LISTENER].revents == 0)
        return;
    if (server->options->single_process)
        session_accept(server, clock_us());
    else /* the child goes on in the loop, too */
        session_spawn(server, clock_us());
}

/* When stopping: is there nothing left to wait for? */
static bool server_is_done(struct server *server, int64_t now)
{
    unsigned i;

    for (i = 0; i < server->used; i++)
        if (server->clients[i].socket >= 0
            && client_is_in_flight(&server->clients[i]))
            return now >= server->stop_by;
    if (server->is_session
        || (server->sessions_there == 0 && !worker_any(server)))
        return true;
    if (now < server->stop_by)
        return false;
    if (server->sessions != NULL)
        session_kill_all(server);
    return true;
}

/* What only main does, between two polls. Returns when to do it again. */
static int64_t main_check(struct server *server, int64_t now)
{
    int64_t wake;

    if (caught[SIGCHLD]) {
        caught[SIGCHLD] = 0;
        session_reap(server, now);
    }
    if (caught[SIGUSR1]) {
        caught[SIGUSR1] = 0;
        report_totals(server, now);
    }
    wake = worker_check(server, now);
    if (server->sessions != NULL)
        wake = sooner(wake, session_check(server, now));
    return sooner(wake, report_status(server, now));
}

static void loop(struct server *server)
{
    unsigned i;

    for (;;) {
        int64_t now = clock_us();
        int64_t wake = sooner(server->stop_by, log_check(now));
        nfds_t count;

        if ((caught[SIGTERM] || caught[SIGINT] || caught[SIGHUP])
            && !server->stopping)
            server_stop(server, now);
        if (!server->is_session)
            wake = sooner(wake, main_check(server, now));
        if (server->stopping && server_is_done(server, now))
            break;
        count = server_interest(server, now, &wake);
        server_wait(server, count, now, wake);
        server_serve(server);
    }
    for (i = 0; i < server->used; i++)
        if (server->clients[i].socket >= 0)
            client_leave(&server->clients[i]);
}

int main(int argc, char **argv)
{
    struct options options;
    struct server server = { 0 };
    int report = -1, syslog = -1;
    bool activated;

    signal(SIGPIPE, SIG_IGN); /* a write to stderr may not work, no more */
    signal(SIGXFSZ, SIG_IGN);
    daemon_open_standard_fds();
    log_open();
    options_parse(&options, argc, argv);
    activated = listen_is_activated(&options);
    server.notify = notify_open();

    if (options.background) {
        report = daemon_background();
        syslog = log_syslog_open();
    }
    signals_set_up();
    if (options.background || options.pid_file_given)
        daemon_pid_file(options.pid_file);
    if (activated)
        listen_activated(&server.listener);
    else
        listen_open(&server.listener, options.socket_path);
    server_set_up(&server, &options);
    privdrop(options.uid, options.gid);
    if (options.background)
        daemon_background_ready(report, syslog);
    sandbox_main(&server);
    notify_send(server.notify, "READY=1");

    loop(&server);
    log_check(NEVER);
    /* Without closing anything: an exiting process does not linger. */
    _exit(EXIT_SUCCESS);
}
