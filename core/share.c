/* SPDX-License-Identifier: MIT
 * Making what all processes inherit: see share.h.
 */
#include "share.h"

#include "attach.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

int dbp_share_new(uint32_t n_procs, struct dbp_share *sharep, int *broker_controlp) {
    struct dbp_share share = {.control_fd = -1, .doorbell_fd = -1};
    int pair[2] = {-1, -1}, on = 1, rc = 0;
    int *wake_fds = NULL;

    if (n_procs == 0 || n_procs > DBP_PROCS_MAX)
        return -EINVAL;
    rc = dbp_table_new(&share.table);
    if (rc != 0)
        return rc;
    wake_fds = malloc(n_procs * sizeof *wake_fds);
    share.wake_fds = wake_fds;
    share.doorbell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!wake_fds || share.doorbell_fd < 0 ||
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0 ||
        setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) != 0)
        goto fail;
    share.control_fd = pair[1];
    share.control_inode = dbp_socket_inode(pair[1]);
    for (; share.n_wake_fds < n_procs; share.n_wake_fds++) {
        wake_fds[share.n_wake_fds] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (wake_fds[share.n_wake_fds] < 0)
            goto fail;
    }
    *sharep = share;
    *broker_controlp = pair[0];
    return 0;

fail:
    rc = errno ? -errno : -ENOMEM;
    if (pair[0] >= 0)
        close(pair[0]);
    if (share.control_fd < 0 && pair[1] >= 0)
        close(pair[1]);
    dbp_share_free(&share);
    return rc;
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
