/* SPDX-License-Identifier: MIT
 * The connector's process: see connector_process.h.
 */
#include <uwsgi.h>

#include "connector_process.h"

#include <dirent.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "../core/connector.h"

extern struct uwsgi_server uwsgi;

#define ATTACH_MOST_US 5000000u /* the broker runs when this process is started: longer means that it is stopped */
#define PAUSE_US 1000000u       /* between two starts, when the first one did not live that long */
#define END_MOST_US 2000000u    /* a thread of it may wait for a resolver */

static struct {
    _Atomic pid_t pid; /* 0: none */
    uint64_t started_us;
} process;

/* Reaps it if it has ended; uWSGI, which waits for any child, may have done so before. */
static bool has_ended(pid_t pid) {
    return waitpid(pid, NULL, WNOHANG) != 0;
}

/* Nothing but the pool's own fds and the log: this process must keep no port, no client's connection and no file of the
 * application alive. */
static void close_the_hosts_files(const struct dbp_share *share) {
    DIR *dir = opendir("/proc/self/fd");
    struct dirent *entry;

    if (!dir)
        return; /* no /proc: then they are kept, as uWSGI's own helpers keep them */
    while ((entry = readdir(dir))) {
        int fd = atoi(entry->d_name);
        if (fd > STDERR_FILENO && fd != dirfd(dir) && fd != share->control_fd)
            close(fd);
    }
    closedir(dir);
}

/* Until the master has noted our pid, by which the broker knows us: it then closes its end. */
static void wait_until_noted(int fd) {
    struct pollfd p = {.fd = fd, .events = POLLIN};

    if (poll(&p, 1, (int)(ATTACH_MOST_US / 1000u)) < 0)
        return; /* interrupted: then the broker may refuse us, and the next one is started */
}

static void run(const struct dbp_share *share, dbp_log_fn log, int noted) {
    static const int ignored[] = {SIGALRM, SIGHUP, SIGUSR1, SIGUSR2, SIGPIPE, SIGTSTP, SIGINT, SIGTERM, SIGQUIT};

    /* As uWSGI starts its gateways (core/gateway.c); but a terminal's Ctrl-C, which all processes get, must not end
     * this one before its work is done: it ends with the broker. */
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
        signal(ignored[i], SIG_IGN);
    wait_until_noted(noted);
    close_the_hosts_files(share);
    if (uwsgi.master_as_root)
        uwsgi_as_root();
    uwsgi.mypid = getpid();
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); /* after the change of user, which takes it back */
    int rc = dbp_connector_main(share, dbp_now_us() + ATTACH_MOST_US, log);
    if (rc != 0)
        uwsgi_log_verbose("[dbpool] error: connector: %s\n",
                          rc < 0 ? strerror(-rc) : "the broker in the master does not answer");
    _exit(rc != 0);
}

void connector_process_keep(const struct dbp_share *share, dbp_log_fn log) {
    uint64_t now = dbp_now_us();
    int noted[2];

    if (process.pid > 0 && !has_ended(process.pid))
        return;
    if (process.started_us && now < process.started_us + PAUSE_US)
        return;
    process.started_us = now;
    if (pipe2(noted, O_CLOEXEC) != 0) {
        uwsgi_log_verbose("[dbpool] error: the connector cannot be started: %s\n", strerror(errno));
        return;
    }
    pid_t pid = uwsgi_fork("uWSGI dbpool connector");
    if (pid == 0) {
        close(noted[1]);
        run(share, log, noted[0]);
    }
    if (pid < 0)
        uwsgi_log_verbose("[dbpool] error: the connector cannot be started: %s\n", strerror(errno));
    else
        uwsgi_log("spawned dbpool connector (pid: %d)\n", (int)pid);
    atomic_store(&process.pid, pid > 0 ? pid : 0);
    close(noted[0]);
    close(noted[1]);
}

bool connector_process_is(int32_t pid) {
    return pid > 0 && atomic_load(&process.pid) == pid;
}

void connector_process_end(void) {
    uint64_t deadline = dbp_now_us() + END_MOST_US;

    if (process.pid <= 0)
        return;
    while (!has_ended(process.pid)) {
        if (dbp_now_us() >= deadline) {
            kill(process.pid, SIGKILL);
            deadline = UINT64_MAX; /* it ends now: nothing survives this signal */
        }
        usleep(2000);
    }
    process.pid = 0;
}
