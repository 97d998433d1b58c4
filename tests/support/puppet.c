/* SPDX-License-Identifier: MIT
 * A client process that does what the test tells it: see puppet.h.
 */
#include "puppet.h"

#include "attach.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static bool is_channel(int fd, const struct dbp_share *share) {
    int type = 0;
    socklen_t n = sizeof type;

    return fd != share->control_fd && getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &n) == 0 && type == SOCK_SEQPACKET;
}

static int first_file, end_of_files;

static int lose(const struct dbp_share *share, bool all) {
    int n = 0;

    for (int fd = 3; fd < 256; fd++) {
        if (fcntl(fd, F_GETFD) < 0 || !(all || is_channel(fd, share)))
            continue;
        close(fd);
        n++;
    }
    if (!all)
        return n == 1 ? 0 : -1;
    first_file = memfd_create("of the application", MFD_CLOEXEC);
    for (end_of_files = first_file + 1; end_of_files < first_file + n; end_of_files++)
        if (memfd_create("of the application", MFD_CLOEXEC) < 0)
            return -1;
    return n;
}

static int written(void) {
    struct stat found;
    int n = 0;

    for (int fd = first_file; fd < end_of_files; fd++)
        n += fstat(fd, &found) == 0 ? (int)found.st_size : 1;
    return n;
}

static int obey(struct puppet *p, const struct dbp_share *share, struct dbp_client **client) {
    uint32_t w = p->which;

    switch (p->verb) {
    case PUPPET_ATTACH:
        return dbp_client_attach_own(share, "puppet", p->place, p->deadline_us, client);
    case PUPPET_ATTACH_SOON:
        return dbp_client_attach_own(share, "puppet", p->place, dbp_now_us() + 400000u, client);
    case PUPPET_CLAIM: {
        uint32_t holder;
        int channel;
        return dbp_attach(share, DBP_ROLE_CONNECTOR, "liar", p->deadline_us, &channel, &holder);
    }
    case PUPPET_REGISTER:
        return dbp_client_register(*client, &p->spec, p->deadline_us, p->text, sizeof p->text, &p->pool);
    case PUPPET_ACQUIRE:
        return dbp_acquire(*client, p->pool, p->deadline_us, NULL, NULL, &p->leases[w]);
    case PUPPET_ACQUIRE_NOW:
        return dbp_acquire_now(*client, p->pool, &p->leases[w]);
    case PUPPET_BEGIN:
        return dbp_wait_begin(*client, p->pool, DBP_WAIT_EVENT, &p->waits[w]);
    case PUPPET_POLL:
        return dbp_wait_poll(*client, &p->waits[w], &p->leases[w]);
    case PUPPET_CANCEL:
        return dbp_wait_cancel(*client, &p->waits[w], &p->leases[w]);
    case PUPPET_RELEASE:
        if (p->fds[w] >= 0) {
            dbp_unguard_fd(*client, p->fds[w]);
            close(p->fds[w]);
        }
        p->fds[w] = -1;
        return dbp_release(*client, &p->leases[w], p->status, p->how);
    case PUPPET_FETCH:
        p->status = dbp_lease_status(*client, &p->leases[w]);
        return dbp_session_fetch(*client, &p->leases[w], p->deadline_us, &p->fds[w], &p->facts);
    case PUPPET_QUERY:
        return session_query(p->fds[w], p->sql, &p->nonce, &p->status);
    case PUPPET_SEND:
        return session_send(p->fds[w], p->sql);
    case PUPPET_CENSUS:
        return fd_census(0);
    case PUPPET_NO_FILES:
        return allow_files(false);
    case PUPPET_FILES:
        return allow_files(true);
    case PUPPET_VALID:
        return dbp_lease_valid(*client, &p->leases[w]);
    case PUPPET_LOSE_CHANNEL:
        return lose(share, false);
    case PUPPET_LOSE_ALL:
        return lose(share, true);
    case PUPPET_LOOK:
        return written();
    case PUPPET_ERROR:
        dbp_pool_error(*client, p->pool, &p->error);
        return 0;
    }
    return -1;
}

static void run(struct puppet *p, const struct dbp_share *share) {
    struct dbp_client *client = NULL;

    for (uint32_t n = 1;; n++) {
        while (atomic_load(&p->asked) < n)
            poll(NULL, 0, 1);
        p->rc = obey(p, share, &client);
        atomic_store(&p->done, n);
    }
}

struct puppet *puppet_new(const struct dbp_share *share) {
    struct puppet *p = shared_memory(sizeof *p);

    memset(p->fds, -1, sizeof p->fds);
    pid_t pid = fork_child();
    if (pid == 0)
        run(p, share);
    p->pid = pid;
    return p;
}

void puppet_start(struct puppet *p, enum puppet_verb verb) {
    p->verb = verb;
    p->deadline_us = in_seconds(WAIT_S);
    atomic_fetch_add(&p->asked, 1);
}

int puppet_result(struct puppet *p) {
    return eventually_at_least(&p->done, atomic_load(&p->asked)) ? p->rc : INT32_MIN;
}

int puppet_do(struct puppet *p, enum puppet_verb verb) {
    puppet_start(p, verb);
    return puppet_result(p);
}

struct puppet *puppet_ready(const struct dbp_share *share, const struct dbp_pool_spec *spec) {
    struct puppet *p = puppet_new(share);

    p->spec = *spec;
    if (puppet_do(p, PUPPET_ATTACH) != 0 || puppet_do(p, PUPPET_REGISTER) != 0)
        abort();
    return p;
}

int puppet_acquire(struct puppet *p, uint32_t which) {
    p->which = which;
    return puppet_do(p, PUPPET_ACQUIRE);
}

int puppet_release(struct puppet *p, uint32_t which, enum dbp_return how) {
    p->which = which;
    p->how = how;
    return puppet_do(p, PUPPET_RELEASE);
}

int puppet_query(struct puppet *p, uint32_t which, const char *sql) {
    p->which = which;
    snprintf(p->sql, sizeof p->sql, "%s", sql);
    if (p->fds[which] < 0) {
        int rc = puppet_do(p, PUPPET_FETCH);
        if (rc != 0)
            return rc;
    }
    return puppet_do(p, PUPPET_QUERY);
}
