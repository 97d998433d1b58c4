/* SPDX-License-Identifier: MIT
 * Attaching: how any forked process gets a private channel to the broker and a slot in the table.
 * The process makes a socketpair and sends one end over the inherited control socket; the kernel tells the broker the
 * sender's pid; end of file on the channel is how the broker learns that the process is gone.
 */
#ifndef DBPOOL_ATTACH_H
#define DBPOOL_ATTACH_H

#include "wire.h"

/* 0 with *channelp (owned by the caller, CLOEXEC, non-blocking) and *holderp (dbp_holder); DBP_E_TIMEOUT, DBP_E_FULL
 * (no slot), -EBADF (the control socket was closed in this process, and its number may be another file's), -errno. */
int dbp_attach(const struct dbp_share *share, enum dbp_role role, const char *label, uint64_t deadline_us,
               int *channelp, uint32_t *holderp) DBP_MUST_USE;
/* The inode of the socket fd; 0 when it is none. A number that somebody else has closed may be another file's. */
uint64_t dbp_socket_inode(int fd);

/* The same in parts, which never wait; place is one of the host's own processes' (dbp_client_attach_own), 0 for any.
 * begin: 0, -EAGAIN (the broker has not started, and many have asked), -EBADF, -errno; then wait until *channelp is
 * readable. take: the answer, and channel is the caller's still; -EAGAIN when there is none yet, DBP_E_BUSY (so many
 * wait for a slot that there is no room to wait with them). */
int dbp_attach_begin(const struct dbp_share *share, enum dbp_role role, const char *label, uint32_t place,
                     uint64_t deadline_us, int *channelp) DBP_MUST_USE;
int dbp_attach_take(int channel, uint32_t *holderp) DBP_MUST_USE;

/* When to begin again after begin's or take's answer; 0: not at all. */
uint64_t dbp_attach_again_us(int rc);

/* Waits until fd is readable; fd -1: until the deadline. 0, DBP_E_TIMEOUT, -errno. EINTR is waited through. */
int dbp_wait_readable(int fd, uint64_t deadline_us) DBP_MUST_USE;

#endif
