/* SPDX-License-Identifier: MIT
 * A replay behind a private door: the thread that carries the bytes (see dbpool.h), and the doors (see replay.h).
 */
#include "replay.h"

#include "thread.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#define STACK_BYTES ((size_t)256 * 1024u) /* a few kB are used; room for the sanitizers */
#define OWN_FDS_MAX 4096 /* how far the other end of a TCP connection is searched for among our own fds */

int dbp_poll_ms(uint64_t deadline_us) {
    uint64_t now = dbp_now_us();
    uint64_t left_ms = deadline_us > now ? (deadline_us - now + 999) / 1000 : 0;

    return left_ms > 60000 ? 60000 : (int)left_ms;
}

/* ---- doors ---- */

int dbp_unix_address(const char *name, struct sockaddr_un *addrp, socklen_t *lenp) {
    size_t n = strlen(name);
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    if (n == 0 || n >= sizeof addr.sun_path)
        return DBP_E_INVALID;
    memcpy(addr.sun_path, name, n);
    if (name[0] == '@')
        addr.sun_path[0] = 0; /* abstract: the length counts, there is no NUL at the end */
    *lenp = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n + (name[0] == '@' ? 0 : 1));
    *addrp = addr;
    return 0;
}

static int listen_at(int family, struct sockaddr *addr, socklen_t len, int *fdp) {
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -errno;
    /* More than one place, so that a stranger in the queue does not keep the right one out. */
    if (bind(fd, addr, len) != 0 || listen(fd, 16) != 0) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    *fdp = fd;
    return 0;
}

int dbp_door_open_unix(char name[DBP_DOOR_NAME_MAX], int *fdp) {
    struct sockaddr_un addr;
    socklen_t len;
    uint64_t nonce[2]; /* nobody can wait in our queue before us */
    char made[DBP_DOOR_NAME_MAX];

    if (getrandom(nonce, sizeof nonce, GRND_NONBLOCK) != (ssize_t)sizeof nonce)
        return -EAGAIN;
    snprintf(made, sizeof made, "@dbpool-%016llx%016llx", (unsigned long long)nonce[0], (unsigned long long)nonce[1]);
    if (dbp_unix_address(made, &addr, &len) != 0)
        return -EINVAL;
    int rc = listen_at(AF_UNIX, (struct sockaddr *)&addr, len, fdp);
    if (rc == 0)
        memcpy(name, made, sizeof made);
    return rc;
}

int dbp_door_open_tcp(uint16_t *portp, int *fdp) {
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof addr;
    int fd = -1, rc = listen_at(AF_INET, (struct sockaddr *)&addr, len, &fd);

    if (rc != 0)
        return rc;
    if (getsockname(fd, (struct sockaddr *)&addr, &len) != 0) {
        rc = -errno;
        close(fd);
        return rc;
    }
    *portp = ntohs(addr.sin_port);
    *fdp = fd;
    return 0;
}

/* A connection over loopback has both its ends on this machine; it is ours if the other end is one of our fds. */
static bool other_end_is_ours(int fd) {
    struct sockaddr_in peer = {0}, own = {0};
    socklen_t len = sizeof peer;

    if (getpeername(fd, (struct sockaddr *)&peer, &len) != 0 || peer.sin_family != AF_INET)
        return false;
    for (int i = 0; i < OWN_FDS_MAX; i++) {
        len = sizeof own;
        if (i != fd && getsockname(i, (struct sockaddr *)&own, &len) == 0 && len == sizeof own &&
            own.sin_family == AF_INET && own.sin_port == peer.sin_port && own.sin_addr.s_addr == peer.sin_addr.s_addr)
            return true;
    }
    return false;
}

static bool from_this_process(int fd) {
    struct ucred creds = {.pid = -1};
    int family = -1;
    socklen_t len = sizeof family;

    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &len) != 0)
        return false;
    if (family != AF_UNIX)
        return other_end_is_ours(fd);
    len = sizeof creds;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &creds, &len) == 0 && creds.pid == getpid();
}

int dbp_door_accept(int door, int end_fd, int stop_fd, uint64_t deadline_us, int *fdp) {
    for (;;) {
        struct pollfd p[3] = {
            {.fd = door, .events = POLLIN}, {.fd = end_fd, .events = POLLIN}, {.fd = stop_fd, .events = POLLIN}};
        int n = poll(p, 3, dbp_poll_ms(deadline_us));

        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0 && (p[1].revents || p[2].revents))
            return DBP_E_CLOSED;
        if (n > 0) {
            int fd = accept4(door, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
            if (fd >= 0 && from_this_process(fd)) {
                *fdp = fd;
                return 0;
            }
            if (fd >= 0)
                close(fd);
            else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
                return -errno;
        }
        if (dbp_now_us() >= deadline_us)
            return DBP_E_TIMEOUT;
    }
}

/* ---- the thread ---- */

struct dbp_replay_server {
    struct dbp_replay *replay; /* the thread's until it is joined */
    pthread_t thread;
    int door;   /* as well */
    int end_fd; /* eventfd: stop asks the thread to end */
    uint64_t deadline_us;
};

/* Sends what the replay has to say. The driver reads each answer before it writes again, and a socket's buffer is
 * larger than all of them: one that would block is not a driver. */
static bool answer(struct dbp_replay *replay, int fd) {
    uint8_t buf[2048];
    size_t n = dbp_replay_take(replay, buf, sizeof buf);

    return n == 0 || send(fd, buf, n, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)n;
}

static void converse(struct dbp_replay_server *s, int fd) {
    uint8_t buf[4096];

    while (answer(s->replay, fd)) {
        struct pollfd p[2] = {{.fd = fd, .events = POLLIN}, {.fd = s->end_fd, .events = POLLIN}};
        int n = poll(p, 2, dbp_poll_ms(s->deadline_us));

        if (n < 0 && errno != EINTR)
            return;
        if (n > 0 && p[0].revents) {
            ssize_t got = recv(fd, buf, sizeof buf, MSG_DONTWAIT);
            if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
                return;
            if (got > 0 && dbp_replay_feed(s->replay, buf, (size_t)got) != 0)
                return;
        } else if (n > 0)
            return; /* asked to end, and nothing was left to read */
        if (dbp_now_us() >= s->deadline_us)
            return;
    }
}

static void *serve(void *arg) {
    struct dbp_replay_server *s = arg;
    int fd = -1;
    int rc = dbp_door_accept(s->door, s->end_fd, -1, s->deadline_us, &fd);

    close(s->door); /* nobody waits in its queue for what does not come */
    s->door = -1;
    if (rc != 0)
        return NULL;
    converse(s, fd);
    close(fd);
    return NULL;
}

static void server_free(struct dbp_replay_server *s) {
    dbp_replay_free(s->replay);
    if (s->door >= 0)
        close(s->door);
    if (s->end_fd >= 0)
        close(s->end_fd);
    free(s);
}

int dbp_replay_server_start(const struct dbp_session_facts *facts, const char *charset, uint16_t status,
                            uint64_t deadline_us, char *name, size_t namelen, struct dbp_replay_server **serverp) {
    char made[DBP_DOOR_NAME_MAX];
    struct dbp_replay_server *s = malloc(sizeof *s);

    if (!s)
        return -ENOMEM;
    *s = (struct dbp_replay_server){.door = -1, .end_fd = -1, .deadline_us = deadline_us};
    int rc = dbp_replay_new(facts, charset, status, &s->replay);
    if (rc == 0)
        rc = dbp_door_open_unix(made, &s->door);
    if (rc == 0 && strlen(made) >= namelen)
        rc = DBP_E_INVALID;
    if (rc == 0 && (s->end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        rc = -errno;
    if (rc == 0)
        rc = dbp_thread_start(STACK_BYTES, serve, s, &s->thread);
    if (rc != 0) {
        server_free(s);
        return rc;
    }
    memcpy(name, made, strlen(made) + 1);
    *serverp = s;
    return 0;
}

int dbp_replay_server_stop(struct dbp_replay_server *s, char *refusal, size_t n) {
    uint64_t one = 1;
    ssize_t wrote;

    do
        wrote = write(s->end_fd, &one, sizeof one);
    while (wrote < 0 && errno == EINTR);
    /* Should the write have failed (it cannot: the counter is 0), the deadline ends the thread all the same. */
    int rc = -pthread_join(s->thread, NULL);
    const char *why = dbp_replay_refusal(s->replay);
    if (n > 0)
        snprintf(refusal, n, "%s", why ? why : "");
    server_free(s);
    return rc;
}
