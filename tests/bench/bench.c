/*
 * bench.c - what `make bench` measures with; tests/bench/bench.py drives it
 *
 *   bench load SOCKET DEVICE CLIENTS REQUESTS in|out CPU SECONDS loop|fork
 *       Every client has one request outstanding; a tenth of REQUESTS more
 *       is sent first as warm-up. CPU is what to be pinned to, or -1. The
 *       clients share an epoll loop, or each is a process as QEMUs are.
 *       Prints: p50 and p99 latency in us, requests per second, median of
 *       connect and hello in us, sense key/ASC/ASCQ of the last reply.
 *       Killed by SIGALRM after SECONDS.
 *   bench connect SOCKET DEVICE CLIENTS ROUNDS
 *       Prints for each round the us in which all of these processes, which
 *       begin at once, have connected and had a request answered.
 *   bench floor -k SOCKET
 *       The least that a helper can do: a process for each client that
 *       receives a request with its descriptor, closes that and answers.
 *   bench start RUNS SOCKET PROGRAM [ARGUMENT...]
 *       Prints for each run the us from fork to the first connect.
 *
 * It must never count a reply that is not well formed: any such thing ends
 * it with a message and status 1.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    CDB_SIZE = 16,
    PARAMETER_SIZE = 24,
    ALLOCATION_LENGTH = 512,
    REPLY_SIZE = 104,
    EVENTS = 256
};

struct client {
    int fd;
    uint64_t sent; /* ns */
    size_t received;
    unsigned char reply[REPLY_SIZE + ALLOCATION_LENGTH];
};

/* In memory that forked clients share. */
struct load {
    int device;
    int out; /* PERSISTENT RESERVE OUT, not IN */
    long warm_up, total, sent, answered;
    uint64_t begin;       /* ns, end of the warm-up */
    uint64_t latencies[]; /* ns, of each reply after the warm-up */
};

/* A descriptor as ancillary data, aligned as cmsghdr wants it. */
union control {
    struct cmsghdr header;
    char space[CMSG_SPACE(sizeof(int))];
};

static void fail(const char *what)
{
    fprintf(stderr, "bench: %s: %s\n", what,
            errno ? strerror(errno) : "malformed");
    exit(1);
}

static uint64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static double percentile_us(const uint64_t *sorted, long n, long percent)
{
    long rank = (n - 1) * percent / 100;

    return (double)sorted[rank] / 1e3;
}

static struct sockaddr_un address(const char *path)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };

    size_t length = strlen(path);

    if (length >= sizeof(a.sun_path)) {
        errno = ENAMETOOLONG;
        fail(path);
    }
    memcpy(a.sun_path, path, length);
    return a;
}

/* ---- load ------------------------------------------------------------ */

static int client_connect(const char *path)
{
    struct sockaddr_un a = address(path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char hello[4];

    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
        fail("connect");
    if (recv(fd, hello, 4, MSG_WAITALL) != 4
        || send(fd, "\0\0\0", 4, MSG_NOSIGNAL) != 4)
        fail("hello");
    return fd;
}

/* As QEMU does it: the CDB with the descriptor, then the parameter list. */
static void client_request(struct load *l, struct client *c)
{
    static const unsigned char parameters[PARAMETER_SIZE];
    int length = l->out ? PARAMETER_SIZE : ALLOCATION_LENGTH;
    unsigned char cdb[CDB_SIZE] = { [0] = l->out ? 0x5f : 0x5e,
                                    [7] = (unsigned char)(length >> 8),
                                    [8] = (unsigned char)length };
    union control control;
    struct iovec data = { cdb, CDB_SIZE };
    struct msghdr message = { .msg_iov = &data,
                              .msg_iovlen = 1,
                              .msg_control = &control,
                              .msg_controllen = sizeof(control) };

    memset(&control, 0, sizeof(control));
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(&control.header), &l->device, sizeof(int));

    c->received = 0;
    c->sent = now();
    l->sent++;
    if (sendmsg(c->fd, &message, MSG_NOSIGNAL) != CDB_SIZE
        || (l->out
            && send(c->fd, parameters, PARAMETER_SIZE, MSG_NOSIGNAL)
                   != PARAMETER_SIZE))
        fail("request");
}

static uint32_t be32(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8
           | p[3];
}

/* Receive what is there; 1 when the reply is complete and well formed. */
static int client_receive(struct load *l, struct client *c)
{
    uint32_t status, size;
    ssize_t n = recv(c->fd, c->reply + c->received,
                     sizeof(c->reply) - c->received, 0);

    if (n <= 0)
        fail("reply");
    c->received += (size_t)n;
    if (c->received < REPLY_SIZE)
        return 0;

    errno = 0;
    status = be32(c->reply);
    size = be32(c->reply + 4);
    if (size > ALLOCATION_LENGTH || c->received > REPLY_SIZE + size
        || (size && (l->out || status)) || status > 0xff
        || (status == 2 && (c->reply[8] & 0x7e) != 0x70
            && (c->reply[8] & 0x7e) != 0x72))
        fail("reply");
    return c->received == REPLY_SIZE + size;
}

static void load_count(struct load *l, const struct client *c)
{
    uint64_t t = now();
    long i = __sync_fetch_and_add(&l->answered, 1);

    if (i >= l->warm_up && i < l->total)
        l->latencies[i - l->warm_up] = t - c->sent;
    if (i + 1 == l->warm_up)
        l->begin = t;
}

static void load_one(struct load *l, struct client *c)
{
    while (*(volatile long *)&l->answered < l->total) {
        client_request(l, c);
        while (!client_receive(l, c))
            ;
        load_count(l, c);
    }
}

static void load_many(struct load *l, struct client *clients, int n)
{
    int poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[EVENTS];

    for (int i = 0; i < n; i++) {
        struct epoll_event e = { .events = EPOLLIN };

        e.data.ptr = &clients[i];
        if (epoll_ctl(poller, EPOLL_CTL_ADD, clients[i].fd, &e) < 0)
            fail("epoll_ctl");
        client_request(l, &clients[i]);
    }
    while (l->answered < l->total) {
        int ready = epoll_wait(poller, events, EVENTS, -1);

        for (int i = 0; i < ready; i++) {
            struct client *c = events[i].data.ptr;

            if (!client_receive(l, c))
                continue;
            load_count(l, c);
            if (l->sent < l->total)
                client_request(l, c);
        }
    }
}

static void load_fork(struct load *l, struct client *clients, int n)
{
    int status;

    for (int i = 0; i < n; i++) {
        pid_t child = fork();

        if (child < 0)
            fail("fork");
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            load_one(l, &clients[i]);
            _exit(0);
        }
    }
    while (wait(&status) > 0)
        if (status != 0)
            exit(1);
}

static void *shared(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        fail("mmap");
    return memory;
}

static int load_main(char **arguments)
{
    const char *path = arguments[0];
    int n = atoi(arguments[2]), cpu = atoi(arguments[5]);
    long requests = atol(arguments[3]);
    struct load *l;
    struct client *clients;
    uint64_t *connects, end;
    cpu_set_t set;

    if (n < 1 || requests < n)
        fail("arguments");
    l = shared(sizeof(*l) + (size_t)requests * sizeof(l->latencies[0]));
    clients = shared((size_t)n * sizeof(*clients));
    connects = shared((size_t)n * sizeof(*connects));
    l->out = strcmp(arguments[4], "out") == 0;
    l->warm_up = requests / 10 + 1;
    l->total = l->warm_up + requests;
    l->device = open(arguments[1], O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (l->device < 0)
        fail(arguments[1]);
    CPU_ZERO(&set);
    if (cpu >= 0) {
        CPU_SET((size_t)cpu, &set);
        if (sched_setaffinity(0, sizeof(set), &set) < 0)
            fail("sched_setaffinity");
    }
    alarm((unsigned)atoi(arguments[6]));

    for (int i = 0; i < n; i++) {
        uint64_t begin = now();

        clients[i].fd = client_connect(path);
        connects[i] = now() - begin;
    }
    if (strcmp(arguments[7], "fork") == 0)
        load_fork(l, clients, n);
    else if (n == 1)
        load_one(l, clients);
    else
        load_many(l, clients, n);
    end = now();

    qsort(l->latencies, (size_t)requests, sizeof(uint64_t), compare);
    qsort(connects, (size_t)n, sizeof(uint64_t), compare);
    printf("%.2f %.2f %.0f %.1f %X/%02X/%02X\n",
           percentile_us(l->latencies, requests, 50),
           percentile_us(l->latencies, requests, 99),
           (double)requests * 1e9 / (double)(end - l->begin),
           percentile_us(connects, n, 50), clients[0].reply[10] & 15u,
           clients[0].reply[20], clients[0].reply[21]);
    return 0;
}

/* ---- connect --------------------------------------------------------- */

static int connect_main(const char *path, const char *device, int n, int rounds)
{
    struct load *l = shared(sizeof(*l));
    uint64_t *ends = shared((size_t)n * sizeof(*ends)), begin, end;
    int gate[2], status;
    char byte;

    l->device = open(device, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (l->device < 0)
        fail(device);
    for (int round = 0; round < rounds; round++) {
        if (pipe(gate) < 0)
            fail("pipe");
        for (int i = 0; i < n; i++) {
            struct client c = { 0 };
            pid_t child = fork();

            if (child < 0)
                fail("fork");
            if (child > 0)
                continue;
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            alarm(60);
            close(gate[1]);
            (void)!read(gate[0], &byte, 1);
            c.fd = client_connect(path);
            client_request(l, &c);
            while (!client_receive(l, &c))
                ;
            ends[i] = now();
            _exit(0);
        }
        usleep(20000); /* all of them wait, and the last round has ended */
        begin = now();
        close(gate[1]);
        while (wait(&status) > 0)
            if (status != 0)
                exit(1);
        close(gate[0]);
        end = begin;
        for (int i = 0; i < n; i++)
            end = ends[i] > end ? ends[i] : end;
        printf("%.1f\n", (double)(end - begin) / 1e3);
    }
    return 0;
}

/* ---- floor ----------------------------------------------------------- */

static void floor_session(int fd)
{
    unsigned char cdb[CDB_SIZE] = { 0 }, parameters[PARAMETER_SIZE];
    unsigned char hello[4] = { 0 };
    unsigned char reply[REPLY_SIZE] = { 0, 0, 0, 2, [8] = 0x70, [15] = 10 };

    if (send(fd, hello, 4, 0) != 4 || recv(fd, hello, 4, MSG_WAITALL) != 4)
        return;
    for (;;) {
        union control control;
        struct iovec data = { cdb, CDB_SIZE };
        struct msghdr message = { .msg_iov = &data,
                                  .msg_iovlen = 1,
                                  .msg_control = &control,
                                  .msg_controllen = sizeof(control) };
        int device;

        if (recvmsg(fd, &message, MSG_CMSG_CLOEXEC) != CDB_SIZE
            || !CMSG_FIRSTHDR(&message))
            return;
        if (cdb[0] == 0x5f
            && recv(fd, parameters, PARAMETER_SIZE, MSG_WAITALL)
                   != PARAMETER_SIZE)
            return;
        memcpy(&device, CMSG_DATA(&control.header), sizeof(device));
        close(device);
        if (send(fd, reply, REPLY_SIZE, MSG_NOSIGNAL) != REPLY_SIZE)
            return;
    }
}

static int floor_main(const char *path)
{
    struct sockaddr_un a = address(path);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);

    if (bind(listener, (struct sockaddr *)&a, sizeof(a)) < 0
        || listen(listener, SOMAXCONN) < 0)
        fail("listen");
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        int fd = accept(listener, NULL, NULL);

        if (fd < 0)
            fail("accept");
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            floor_session(fd);
            _exit(0);
        }
        close(fd);
    }
}

/* ---- start ----------------------------------------------------------- */

static int start_main(int runs, const char *path, char **program)
{
    struct sockaddr_un a = address(path);
    struct timespec pause = { 0, 10000 };

    prctl(PR_SET_TIMERSLACK, 1);
    for (int i = 0; i < runs; i++) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        uint64_t begin = now();
        pid_t child = fork();

        if (child == 0) {
            execv(program[0], program);
            _exit(127);
        }
        while (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
            if (waitpid(child, NULL, WNOHANG) != 0) {
                errno = ECHILD;
                fail(program[0]);
            }
            nanosleep(&pause, NULL);
        }
        printf("%.1f\n", (double)(now() - begin) / 1e3);
        close(fd);
        kill(child, SIGKILL); /* stock loses an early SIGTERM */
        waitpid(child, NULL, 0);
        unlink(path);
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 10 && strcmp(argv[1], "load") == 0)
        return load_main(argv + 2);
    if (argc == 6 && strcmp(argv[1], "connect") == 0)
        return connect_main(argv[2], argv[3], atoi(argv[4]), atoi(argv[5]));
    if (argc == 4 && strcmp(argv[1], "floor") == 0)
        return floor_main(argv[3]);
    if (argc >= 5 && strcmp(argv[1], "start") == 0)
        return start_main(atoi(argv[2]), argv[3], argv + 4);
    fputs("usage: see the top of bench.c\n", stderr);
    return 1;
}
