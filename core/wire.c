/* SPDX-License-Identifier: MIT
 * Sending and receiving control messages: see wire.h. A receiver trusts nothing but the kernel: size, magic, version,
 * type and the number of fds are checked, and every fd of a refused message is closed.
 */
#include "wire.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define FDS_MAX 253 /* SCM_MAX_FD of the kernel: a hostile sender can attach no more, and all of them fit */

static const struct {
    size_t size;
    int fds;  /* exactly so many */
    bool nay; /* an answer that may say no (result != 0), and then carries none */
} formats[DBP_WIRE_TYPES] = {
    [DBP_WIRE_ATTACH] = {sizeof(struct dbp_wire_attach), 1, false},
    [DBP_WIRE_ATTACHED] = {sizeof(struct dbp_wire_attached), 0, true},
    [DBP_WIRE_REGISTER] = {sizeof(struct dbp_wire_register), 0, false},
    [DBP_WIRE_REGISTERED] = {sizeof(struct dbp_wire_registered), 0, true},
    [DBP_WIRE_FETCH] = {sizeof(struct dbp_wire_fetch), 0, false},
    [DBP_WIRE_SESSION] = {sizeof(struct dbp_wire_session), 1, true},
    [DBP_WIRE_OPEN] = {sizeof(struct dbp_wire_open), 0, false},
    [DBP_WIRE_OPENED] = {sizeof(struct dbp_wire_opened), 1, false},
    [DBP_WIRE_FAILED] = {sizeof(struct dbp_wire_failed), 0, false},
    [DBP_WIRE_KILL] = {sizeof(struct dbp_wire_kill), 0, false},
    [DBP_WIRE_KILLED] = {sizeof(struct dbp_wire_killed), 0, false},
    [DBP_WIRE_CANCEL] = {sizeof(struct dbp_wire_cancel), 0, false},
};

void dbp_wire_head_init(struct dbp_wire_head *head, enum dbp_wire_type type, uint32_t serial) {
    memset(head, 0, sizeof *head);
    head->magic = DBP_WIRE_MAGIC;
    head->version = DBP_VERSION;
    head->type = (uint16_t)type;
    head->serial = serial;
}

int dbp_wire_send(int sock, const union dbp_wire_any *msg, int fd) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = (void *)(uintptr_t)msg};
    struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};

    if (msg->head.type == 0 || msg->head.type >= DBP_WIRE_TYPES)
        return -EINVAL;
    iov.iov_len = formats[msg->head.type].size;
    if (fd >= 0) {
        memset(&control, 0, sizeof control);
        mh.msg_control = control.bytes;
        mh.msg_controllen = sizeof control.bytes;
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&mh);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(cmsg), &fd, sizeof fd);
    }
    ssize_t n;
    do
        n = sendmsg(sock, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    return (size_t)n == iov.iov_len ? 0 : -EIO;
}

static bool understood(const union dbp_wire_any *msg, size_t n, int n_fds) {
    if (n < sizeof msg->head || msg->head.magic != DBP_WIRE_MAGIC || msg->head.version != DBP_VERSION)
        return false;
    if (msg->head.type == 0 || msg->head.type >= DBP_WIRE_TYPES || n != formats[msg->head.type].size)
        return false;
    if (msg->head.result != 0)
        return formats[msg->head.type].nay && n_fds == 0;
    return n_fds == formats[msg->head.type].fds;
}

int dbp_wire_recv(int sock, union dbp_wire_any *msg, int *fdp, int32_t *pidp) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FDS_MAX * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
    } control;
    struct iovec iov = {.iov_base = msg, .iov_len = sizeof *msg};
    struct msghdr mh = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    int fds[FDS_MAX], n_fds = 0;
    int32_t pid = 0;
    ssize_t n;

    do
        n = recvmsg(sock, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == ECONNRESET ? -EPIPE : -errno;

    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(&mh); cmsg; cmsg = CMSG_NXTHDR(&mh, cmsg)) {
        if (cmsg->cmsg_level != SOL_SOCKET)
            continue;
        if (cmsg->cmsg_type == SCM_CREDENTIALS && cmsg->cmsg_len == CMSG_LEN(sizeof(struct ucred))) {
            struct ucred creds;
            memcpy(&creds, CMSG_DATA(cmsg), sizeof creds);
            pid = creds.pid;
        } else if (cmsg->cmsg_type == SCM_RIGHTS) {
            size_t bytes = cmsg->cmsg_len - CMSG_LEN(0);
            int count = (int)(bytes / sizeof(int));
            if (count > FDS_MAX - n_fds)
                count = FDS_MAX - n_fds; /* cannot be: the kernel's limit is for the whole message */
            memcpy(fds + n_fds, CMSG_DATA(cmsg), (size_t)count * sizeof(int));
            n_fds += count;
        }
    }
    /* A message of no bytes, fds or not, is how SEQPACKET says end of stream as well as "nothing": none of ours is
     * empty. */
    int rc = 0;
    if (n == 0 && n_fds == 0)
        rc = -EPIPE;
    else if ((mh.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == MSG_CTRUNC && n_fds == 0 && understood(msg, (size_t)n, 1))
        rc = -EMFILE; /* our buffer has room for all: the kernel found none in our table of files */
    else if ((mh.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || !understood(msg, (size_t)n, n_fds))
        rc = DBP_E_INVALID;
    if (rc != 0 && rc != -EMFILE) {
        for (int i = 0; i < n_fds; i++)
            close(fds[i]);
        return rc;
    }
    *fdp = n_fds ? fds[0] : -1;
    if (pidp)
        *pidp = pid;
    return rc;
}
