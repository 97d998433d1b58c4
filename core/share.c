/* SPDX-License-Identifier: MIT
 * Making what all processes inherit: see share.h.
 */
#include "share.h"

#include "attach.h"
#include "failure.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

/* Into *share and *controlp, which are -1 before; what was made is there also after a failure. */
static int make_fds(struct dbp_share *share, int *wake_fds, uint32_t n_procs, int *controlp) {
    int pair[2], on = 1;

    if ((share->doorbell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        return dbp_failed("the doorbell (eventfd)", errno);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0)
        return dbp_failed("the control socket (socketpair, SOCK_SEQPACKET)", errno);
    *controlp = pair[0];
    share->control_fd = pair[1];
    share->control_inode = dbp_socket_inode(pair[1]);
    if (setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) != 0)
        return dbp_failed("the control socket (setsockopt, SO_PASSCRED)", errno);
    for (; share->n_wake_fds < n_procs; share->n_wake_fds++) {
        int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (fd < 0)
            return dbp_failed("an eventfd for each process", errno);
        wake_fds[share->n_wake_fds] = fd;
    }
    return 0;
}

int dbp_share_new(uint32_t n_procs, struct dbp_share *sharep, int *broker_controlp) {
    struct dbp_share share = {.control_fd = -1, .doorbell_fd = -1};
    int control = -1;

    if (n_procs == 0 || n_procs > DBP_PROCS_MAX)
        return dbp_failed("the number of processes", EINVAL);
    int *wake_fds = malloc(n_procs * sizeof *wake_fds);
    if (!wake_fds)
        return dbp_failed("memory", ENOMEM);
    share.wake_fds = wake_fds;
    int rc = dbp_table_new(&share.table);
    if (rc == 0)
        rc = make_fds(&share, wake_fds, n_procs, &control);
    if (rc != 0) {
        if (control >= 0)
            close(control);
        dbp_share_free(&share);
        return rc;
    }
    *sharep = share;
    *broker_controlp = control;
    return 0;
}

void dbp_share_free(struct dbp_share *share) {
    if (share->control_fd >= 0)
        close(share->control_fd);
    if (share->doorbell_fd >= 0)
        close(share->doorbell_fd);
    for (uint32_t i = 0; i < share->n_wake_fds; i++)
        close(share->wake_fds[i]);
    free((void *)(uintptr_t)share->wake_fds);
    share->table = dbp_table_free(share->table);
    *share = (struct dbp_share){.control_fd = -1, .doorbell_fd = -1};
}
