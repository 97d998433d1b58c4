/* SPDX-License-Identifier: MIT
 * A private door for exactly one login of this very process: what a replay plays behind and what the connector's relay
 * listens at. (The replay's own interface is in dbpool.h.)
 *
 * Two kinds: an abstract unix socket (nothing in the file system, gone with its fd), and loopback TCP, because a client
 * library takes every unix socket for a safe transport and sends passwords over it in clear.
 */
#ifndef DBPOOL_REPLAY_H
#define DBPOOL_REPLAY_H

#include "dbpool.h"

#include <sys/socket.h>
#include <sys/un.h>

#define DBP_DOOR_NAME_MAX 48u

/* The address of a unix socket; '@' first means abstract, as libmariadb has it. 0, DBP_E_INVALID: too long, empty. */
int dbp_unix_address(const char *name, struct sockaddr_un *addrp, socklen_t *lenp) DBP_MUST_USE;

/* Opens a door. name gets the socket's name with a leading '@'. 0 or -errno. The caller owns *fdp. */
int dbp_door_open_unix(char name[DBP_DOOR_NAME_MAX], int *fdp) DBP_MUST_USE;
/* 127.0.0.1, a port that was free. */
int dbp_door_open_tcp(uint16_t *portp, int *fdp) DBP_MUST_USE;

/* Waits for a connection that a socket of this process has made, closing all others unheard (SO_PEERCRED, or one of our
 * own fds is the other end). end_fd, stop_fd: readable means stop; either may be -1.
 * 0 with *fdp (CLOEXEC, non-blocking, owned by the caller), DBP_E_TIMEOUT, DBP_E_CLOSED (stopped), -errno. */
int dbp_door_accept(int door, int end_fd, int stop_fd, uint64_t deadline_us, int *fdp) DBP_MUST_USE;

/* Milliseconds until deadline_us for poll(2), rounded up, at most a minute: callers loop. */
int dbp_poll_ms(uint64_t deadline_us);

#endif
