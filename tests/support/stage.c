/* SPDX-License-Identifier: MIT
 * The stage of the broker's unit tests: see stage.h.
 */
#include "stage.h"

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

struct dbp_share share;
struct dbp_broker *broker;
struct fake *fake;

static int control = -1, fds_before;
static _Atomic int32_t connector_pid;

void (*_Atomic stage_asked)(void);

static bool connector_is(void *arg, int32_t pid) {
    (void)arg;
    void (*then)(void) = atomic_load(&stage_asked);
    if (then)
        then();
    return pid == atomic_load(&connector_pid);
}

int stage_open(uint32_t n_procs, struct dbp_broker_ops ops) {
    if (!ops.log)
        ops.log = test_log;
    ops.connector_is = connector_is;
    fds_before = fd_census(0);
    if (dbp_share_new(n_procs, &share, &control) != 0)
        return -1;
    atomic_store(&connector_pid, fake_start(&share, &fake));
    return dbp_broker_start(&share, control, &ops, &broker);
}

int stage_queued(void) {
    int n = 0;

    return ioctl(control, FIONREAD, &n) == 0 ? n : -1;
}

int stage_close(void) {
    reap_all();
    broker = dbp_broker_stop(broker);
    close(fake->poke_fd);
    munmap(fake, sizeof *fake);
    dbp_share_free(&share);
    return fd_census(0) == fds_before ? 0 : -1;
}
