/* SPDX-License-Identifier: MIT */
/*
 * daemon.c - what makes a process a daemon: standard descriptors that are
 * open, the background, the PID file.
 *
 * It must never close a descriptor that it did not open: libvirt holds a
 * lock on one that it lets us inherit, and believes us dead without it.
 */
#include "process.h"
#include "start.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

void daemon_open_standard_fds(void)
{
    int fd;

    for (fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) < 0)
            fatal("descriptor %d is closed, and /dev/null:", fd);
}

int daemon_background(void)
{
    int report[2], status;
    ssize_t got;
    char byte;
    pid_t pid;

    if (pipe2(report, O_CLOEXEC) < 0)
        fatal("cannot make a pipe:");
    signal(SIGCHLD, SIG_DFL); /* ignored, a child would leave no status */
    pid = process_fork();
    if (pid < 0)
        fatal("cannot fork:");
    if (pid == 0) {
        close(report[0]);
        setsid();
        return report[1];
    }
    close(report[1]);
    while ((got = read(report[0], &byte, 1)) < 0)
        ; /* interrupted by a signal */
    if (got == 1)
        _exit(EXIT_SUCCESS);
    if (waitpid(pid, &status, 0) == pid && WIFEXITED(status))
        _exit(WEXITSTATUS(status));
    fatal("the process in the background died");
}

void daemon_background_ready(int report, int syslog)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    if (null < 0) /* then all three go to syslogd */
        null = dup(syslog);
    if (null < 0 || chdir("/") < 0)
        fatal("cannot go to the background:");
    dup2(null, STDIN_FILENO);
    dup2(null, STDOUT_FILENO);
    dup2(null, STDERR_FILENO);
    close(null);
    log_open(dup2(syslog, STDERR_FILENO) == STDERR_FILENO);
    close(syslog);
    if (write(report, "", 1) < 0 && errno != EPIPE)
        _exit(EXIT_FAILURE); /* daemon_background() sees the end of the pipe */
    close(report);
}

void daemon_pid_file(const char *path)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    char line[32];
    int size = snprintf(line, sizeof(line), "%d\n", getpid());
    int fd, tries;

    for (tries = 0; tries < 100; tries++) {
        struct stat ours, there = { 0 };

        fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0)
            fatal("cannot create PID file '%s':", path);
        if (fcntl(fd, F_SETLK, &lock) < 0)
            fatal("cannot lock PID file '%s', does another instance run? %s",
                  path, strerror(errno));
        /* Somebody may have removed or replaced it since. */
        if (fstat(fd, &ours) < 0 || (stat(path, &there) < 0 && errno != ENOENT))
            fatal("cannot look at PID file '%s':", path);
        if (ours.st_dev == there.st_dev && ours.st_ino == there.st_ino) {
            if (ftruncate(fd, 0) < 0
                || pwrite(fd, line, (size_t)size, 0) != size)
                fatal("cannot write PID file '%s':", path);
            return;
        }
        close(fd);
    }
    fatal("PID file '%s' is replaced all the time: others can write to "
          "its directory",
          path);
}
