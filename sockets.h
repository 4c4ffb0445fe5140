/* SPDX-License-Identifier: MIT */
/*
 * sockets.h - Unix sockets: their addresses, who is at the other end, and what
 * comes along with a message. It must never send or receive by itself, or wait
 * where there is no deadline.
 */
#ifndef SOCKETS_H
#define SOCKETS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

/*
 * Writes the address of the Unix socket of that name; returns its length, or 0
 * if it does not fit. An abstract one begins with @, for a NUL, and has no end.
 */
socklen_t socket_address(struct sockaddr_un *, const char *name);
/* Waits a twentieth of a second. False: the deadline (clock_us()) is over. */
bool is_in_time(int64_t deadline);
/*
 * Connects a socket of that type, which does not block, to that name; waits
 * until the deadline for a place in its backlog. Returns it, or -1 and errno.
 */
int socket_connect(const char *name, int type, int64_t deadline);
/* Returns who has connected, or listens there; its uid is -1 if unknown. */
struct ucred socket_peer(int socket);

enum { MESSAGE_FDS = 253 }; /* SCM_MAX_FD, include/net/scm.h in the kernel */
struct message {
    struct msghdr head;
    char control[CMSG_SPACE(MESSAGE_FDS * sizeof(int))]
        __attribute__((aligned(sizeof(size_t))));
};
/*
 * Prepares a message of so many parts: descriptors of so many bytes are sent
 * along, and stay the caller's; or (NULL) there is room for so much to come.
 */
void message_set(struct message *, struct iovec *parts, uint8_t count,
                 const int *fds, size_t size);
/*
 * Takes at most size bytes of what came along: SCM_RIGHTS, which the caller
 * then closes, or SCM_CREDENTIALS. Returns how many bytes of it there were.
 */
size_t message_take(struct message *, int type, void *to, size_t size);

#endif
