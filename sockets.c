/* SPDX-License-Identifier: MIT */
/*
 * sockets.c - see sockets.h. What a session calls of it must never make a
 * system call but the one that tells who is at the other end: its filter has
 * few.
 */
#include "sockets.h"
#include "log.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

socklen_t socket_address(struct sockaddr_un *address, const char *name)
{
    size_t length = strlen(name);

    memset(address, 0, sizeof(*address));
    address->sun_family = AF_UNIX;
    if (length == 0 || length >= sizeof(address->sun_path))
        return 0;
    memcpy(address->sun_path, name, length);
    if (name[0] == '@')
        address->sun_path[0] = '\0';
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
}

bool is_in_time(int64_t deadline)
{
    if (clock_us() >= deadline)
        return false;
    nanosleep(&(struct timespec){ .tv_nsec = 50000000 }, NULL);
    return true;
}

int socket_connect(const char *name, int type, int64_t deadline)
{
    struct sockaddr_un address;
    socklen_t length = socket_address(&address, name);
    int fd, error;

    errno = ENAMETOOLONG;
    fd = length == 0 ? -1
                     : socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    do
        error = connect(fd, (struct sockaddr *)&address, length) < 0 ? errno
                                                                     : 0;
    while (error == EAGAIN && is_in_time(deadline));
    if (error == 0)
        return fd;
    close(fd);
    errno = error;
    return -1;
}

struct ucred socket_peer(int socket)
{
    struct ucred peer = { 0, (uid_t)-1, (gid_t)-1 };

    getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer,
               &(socklen_t){ sizeof(peer) });
    return peer;
}

void message_set(struct message *message, struct iovec *parts, uint8_t count,
                 const int *fds, size_t size)
{
    const struct cmsghdr header = { .cmsg_level = SOL_SOCKET,
                                    .cmsg_type = SCM_RIGHTS,
                                    .cmsg_len = (socklen_t)CMSG_LEN(size) };

    message->head = (struct msghdr){ .msg_iov = parts, .msg_iovlen = count };
    message->head.msg_control = size > 0 ? message->control : NULL;
    message->head.msg_controllen = size > 0 ? header.cmsg_len : 0;
    memcpy(message->control, &header, sizeof(header));
    if (fds != NULL)
        memcpy(message->control + CMSG_LEN(0), fds, size);
}

size_t message_take(struct message *message, int type, void *to, size_t size)
{
    const struct cmsghdr *header = CMSG_FIRSTHDR(&message->head);
    size_t came;

    if (header == NULL || header->cmsg_level != SOL_SOCKET
        || header->cmsg_type != type)
        return 0;
    came = header->cmsg_len - CMSG_LEN(0);
    memcpy(to, CMSG_DATA(header), came < size ? came : size);
    return came;
}
