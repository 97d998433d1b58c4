/* SPDX-License-Identifier: MIT
 * Attaching to the broker: see attach.h.
 */
#include "attach.h"
#include "table.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATIENCE_MOST_MS 60000u
#define BEGIN_AGAIN_US 5000u
#define AGAIN_MOST_US 200000u

int dbp_wait_readable(int fd, uint64_t deadline_us) {
    for (;;) {
        uint64_t now = dbp_now_us();
        uint64_t left_ms = deadline_us > now ? (deadline_us - now + 999) / 1000 : 0;
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int n = poll(&p, 1, left_ms > 60000 ? 60000 : (int)left_ms);

        if (n > 0)
            return 0; /* also on hang-up: the read will tell */
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n == 0 && dbp_now_us() >= deadline_us)
            return DBP_E_TIMEOUT;
    }
}

uint64_t dbp_socket_inode(int fd) {
    struct stat found;

    return fd >= 0 && fstat(fd, &found) == 0 && S_ISSOCK(found.st_mode) ? found.st_ino : 0;
}

static int send_request(const struct dbp_share *share, enum dbp_role role, const char *label, uint32_t place,
                        uint64_t deadline_us, int theirs) {
    union dbp_wire_any msg;
    uint64_t now = dbp_now_us(), left_ms = deadline_us > now ? (deadline_us - now) / 1000 : 0;

    memset(&msg.attach, 0, sizeof msg.attach);
    dbp_wire_head_init(&msg.head, DBP_WIRE_ATTACH, 1);
    msg.attach.role = (uint32_t)role;
    msg.attach.place = place;
    msg.attach.patience_ms = left_ms > PATIENCE_MOST_MS ? PATIENCE_MOST_MS : (uint32_t)left_ms;
    msg.attach.patience_ms -= msg.attach.patience_ms / 4; /* a refusal that comes before the deadline says more */
    snprintf(msg.attach.label, sizeof msg.attach.label, "%s", label);
    return dbp_wire_send(share->control_fd, &msg, theirs);
}

int dbp_attach_begin(const struct dbp_share *share, enum dbp_role role, const char *label, uint32_t place,
                     uint64_t deadline_us, int *channelp) {
    int pair[2];

    if (dbp_socket_inode(share->control_fd) != share->control_inode)
        return -EBADF;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0)
        return -errno;
    int rc = send_request(share, role, label, place, deadline_us, pair[1]);
    close(pair[1]); /* the broker has its own copy; with ours open, its refusal would not be an end of file here */
    if (rc == 0)
        *channelp = pair[0];
    else
        close(pair[0]);
    return rc;
}

int dbp_attach_take(int channel, uint32_t *holderp) {
    union dbp_wire_any msg;
    int fd = -1;

    int rc = dbp_wire_recv(channel, &msg, &fd, NULL);
    if (rc != 0)
        return rc == DBP_E_INVALID ? -EPROTO : rc;
    if (fd >= 0)
        close(fd);
    if (msg.head.type != DBP_WIRE_ATTACHED)
        return -EPROTO;
    if (msg.head.result != 0)
        return (int)msg.head.result;
    if (msg.attached.slot >= DBP_PROCS_MAX || msg.attached.attach == 0 || msg.attached.attach > DBP_ATTACHES)
        return -EPROTO;
    *holderp = dbp_holder(msg.attached.slot, msg.attached.attach);
    return 0;
}

uint64_t dbp_attach_again_us(int rc) {
    if (rc == -EAGAIN)
        return BEGIN_AGAIN_US;
    /* Not all of those that wait at the same moment. */
    return rc == DBP_E_BUSY ? AGAIN_MOST_US / 2 + (uint32_t)getpid() * 1000u % (AGAIN_MOST_US / 2) : 0;
}

int dbp_attach(const struct dbp_share *share, enum dbp_role role, const char *label, uint64_t deadline_us,
               int *channelp, uint32_t *holderp) {
    for (;;) {
        int channel = -1, rc = dbp_attach_begin(share, role, label, 0, deadline_us, &channel);
        if (rc == 0)
            rc = dbp_wait_readable(channel, deadline_us);
        if (rc == 0)
            rc = dbp_attach_take(channel, holderp);
        if (rc == 0) {
            *channelp = channel;
            return 0;
        }
        if (channel >= 0)
            close(channel);
        uint64_t pause_us = dbp_attach_again_us(rc);
        if (pause_us == 0)
            return rc;
        if (dbp_now_us() + pause_us >= deadline_us)
            return rc == DBP_E_BUSY ? DBP_E_FULL : DBP_E_TIMEOUT;
        poll(NULL, 0, (int)(pause_us / 1000u));
    }
}
