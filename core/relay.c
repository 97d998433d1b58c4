/* SPDX-License-Identifier: MIT
 * The handshake relay: see relay.h. One thread per login; it lives for milliseconds.
 */
#include "relay.h"

#include "thread.h"

#include "handshake.h"
#include "replay.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define FLOW_BYTES 16384u /* holds a whole greeting or answer, of a few hundred bytes each */
#define STACK_BYTES ((size_t)256 * 1024u)

/* The client library's codes (errmsg.h): it never sees the server's address, so it cannot say these itself. */
#define CR_CONNECTION_ERROR 2002
#define CR_CONN_HOST_ERROR 2003
#define CR_UNKNOWN_HOST 2005

/* A session lives for hours behind NATs and firewalls: an idle one finds out in a minute and a half that the other side
 * is gone. */
#define KEEPALIVE_IDLE_S 60
#define KEEPALIVE_INTERVAL_S 10
#define KEEPALIVE_PROBES 3

/* One direction: bytes[0..n) were received and not sent yet. first: the packet that is masked has yet to come. */
struct flow {
    size_t n;
    bool first;
    uint8_t bytes[FLOW_BYTES];
};

struct dbp_relay {
    pthread_t thread;
    bool joined;
    int door;
    int end_fd; /* eventfd: ask the thread to end */
    int stop_fd;
    int server;
    char socket[DBP_DOOR_NAME_MAX]; /* "" is TCP */
    uint16_t port;
    uint64_t deadline_us;
    /* The thread's until it is joined. */
    int client;
    bool greeted, answered; /* the greeting and the answer were masked and passed */
    bool asked;             /* ended because of end_fd, both flows empty */
    bool unanswered;        /* the last bytes were the client's */
    struct dbp_relay_session session;
    uint32_t offered;
    struct flow down; /* server to client */
    struct flow up;
};

/* ---- to the server ---- */

static void fail(struct dbp_error *errorp, uint32_t code, const char *what, const char *whom, int why) {
    *errorp = (struct dbp_error){.code = code, .sqlstate = "HY000"};
    snprintf(errorp->text, sizeof errorp->text, "%s '%.256s' (%d)", what, whom, why);
}

/* Connects fd until deadline_us. 0, -errno, DBP_E_CLOSED. */
static int connect_until(int fd, const struct sockaddr *addr, socklen_t len, int stop_fd, uint64_t deadline_us) {
    for (;;) {
        struct pollfd stop = {.fd = stop_fd, .events = POLLIN};

        if (connect(fd, addr, len) == 0)
            return 0;
        if (errno == EINPROGRESS || errno == EINTR)
            break;
        if (errno != EAGAIN)
            return -errno;
        /* A unix socket whose queue is full says so at once, and there is nothing to watch. */
        if (dbp_now_us() >= deadline_us)
            return -EAGAIN;
        if (poll(&stop, 1, 10) > 0)
            return DBP_E_CLOSED;
    }
    for (;;) {
        struct pollfd p[2] = {{.fd = fd, .events = POLLOUT}, {.fd = stop_fd, .events = POLLIN}};
        int n = poll(p, 2, dbp_poll_ms(deadline_us)), error = 0;
        socklen_t error_len = sizeof error;

        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0 && p[1].revents)
            return DBP_E_CLOSED;
        if (n > 0 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &error_len) != 0)
            return -errno;
        if (n > 0)
            return -error;
        if (dbp_now_us() >= deadline_us)
            return -ETIMEDOUT;
    }
}

static void tune_tcp(int fd) {
    int on = 1, idle = KEEPALIVE_IDLE_S, interval = KEEPALIVE_INTERVAL_S, probes = KEEPALIVE_PROBES;

    /* Each may fail without harm to the session: none is checked. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
    /* No TCP_USER_TIMEOUT: it counts the time that a living server does not read, and LOAD DATA waits for locks. The
     * broker sets it when it ends the session (ending.c). */
}

static int connect_unix(const struct dbp_relay_route *route, struct dbp_error *errorp, int *fdp) {
    struct sockaddr_un addr;
    socklen_t len;
    int rc = -ENAMETOOLONG, fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -errno;
    if (dbp_unix_address(route->unix_socket, &addr, &len) == 0)
        rc = connect_until(fd, (struct sockaddr *)&addr, len, route->stop_fd, route->connect_deadline_us);
    if (rc == 0) {
        *fdp = fd;
        return 0;
    }
    close(fd);
    if (rc > 0)
        return rc;
    fail(errorp, CR_CONNECTION_ERROR, "Can't connect to local MySQL server through socket", route->unix_socket, -rc);
    return DBP_E_FAILED;
}

/* 0 with *fdp, -errno, DBP_E_CLOSED. */
static int connect_address(const struct sockaddr *addr, socklen_t length, int stop_fd, uint64_t deadline_us, int *fdp) {
    int fd = socket(addr->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -errno;
    int rc = connect_until(fd, addr, length, stop_fd, deadline_us);
    if (rc != 0) {
        close(fd);
        return rc;
    }
    tune_tcp(fd);
    *fdp = fd;
    return 0;
}

static int connect_tcp(const struct dbp_relay_route *route, struct dbp_error *errorp, int *fdp) {
    const char *host = route->host[0] ? route->host : "127.0.0.1";
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *list;
    char port[16];
    uint64_t n_left = 0;
    int rc = -EADDRNOTAVAIL;

    snprintf(port, sizeof port, "%u", route->port ? route->port : 3306u);
    int gai = getaddrinfo(host, port, &hints, &list);
    if (gai != 0) {
        fail(errorp, CR_UNKNOWN_HOST, "Unknown MySQL server host", host, gai);
        return DBP_E_FAILED;
    }
    for (struct addrinfo *ai = list; ai; ai = ai->ai_next)
        n_left++;
    for (struct addrinfo *ai = list; ai && rc < 0; ai = ai->ai_next, n_left--) {
        /* A share of the time for each address, so that a dead first one leaves some to the second. */
        uint64_t now = dbp_now_us(), left = route->connect_deadline_us > now ? route->connect_deadline_us - now : 0;
        rc = connect_address(ai->ai_addr, ai->ai_addrlen, route->stop_fd, now + left / n_left, fdp);
    }
    freeaddrinfo(list);
    if (rc >= 0)
        return rc;
    fail(errorp, CR_CONN_HOST_ERROR, "Can't connect to MySQL server on", host, -rc);
    return DBP_E_FAILED;
}

static int connect_endpoint(const struct dbp_relay_route *route, struct dbp_error *errorp, int *fdp) {
    struct sockaddr_storage addr = {0};
    char text[NI_MAXHOST] = "?";

    if (route->endpoint->length > sizeof route->endpoint->address)
        return -EINVAL;
    memcpy(&addr, route->endpoint->address, route->endpoint->length);
    int rc = connect_address((struct sockaddr *)&addr, route->endpoint->length, route->stop_fd,
                             route->connect_deadline_us, fdp);
    if (rc >= 0)
        return rc;
    (void)getnameinfo((struct sockaddr *)&addr, route->endpoint->length, text, sizeof text, NULL, 0, NI_NUMERICHOST);
    fail(errorp, CR_CONN_HOST_ERROR, "Can't connect to MySQL server on", text, -rc);
    return DBP_E_FAILED;
}

/* ---- the thread ---- */

static bool mask_greeting(struct dbp_relay *r, const struct dbp_packet *p) {
    uint8_t *payload = r->down.bytes + DBP_PACKET_HEAD;
    struct dbp_greeting greeting;
    size_t len;

    if (p->len > 0 && payload[0] == 0xff) /* no greeting but an ERR, e.g. 1040 or 1130: libmysqlclient reports it */
        return true;
    if (p->seq != 0 || dbp_greeting_mask(payload, p->len) != 0 || dbp_greeting_parse(payload, p->len, &greeting) != 0 ||
        dbp_greeting_rebuild(payload, p->len, greeting.capabilities, greeting.status, r->session.greeting,
                             sizeof r->session.greeting, &len) != 0)
        return false;
    r->session.greeting_len = (uint32_t)len;
    r->offered = greeting.capabilities;
    r->greeted = true;
    return true;
}

static bool mask_answer(struct dbp_relay *r, const struct dbp_packet *p) {
    uint8_t *payload = r->up.bytes + DBP_PACKET_HEAD;
    struct dbp_login login;

    if (!r->greeted || p->seq != 1 || dbp_login_mask(payload, p->len, r->offered) != 0 ||
        dbp_login_parse(payload, p->len, r->offered, &login) != 0)
        return false;
    r->session.capabilities = login.capabilities & r->offered;
    r->session.charset = login.charset;
    r->answered = true;
    return true;
}

/* Receives into a flow and masks its first packet once it is whole. False: end of file, or not MySQL. */
static bool receive(struct dbp_relay *r, struct flow *f, int fd) {
    struct dbp_packet p;

    if (f->n == sizeof f->bytes) /* not asked for: this is a hang-up, and the rest has no way to go */
        return false;
    ssize_t n = recv(fd, f->bytes + f->n, sizeof f->bytes - f->n, MSG_DONTWAIT);

    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    if (n == 0)
        return false;
    f->n += (size_t)n;
    r->unanswered = f == &r->up;
    if (!f->first)
        return true;
    int rc = dbp_packet_peek(f->bytes, f->n, sizeof f->bytes - DBP_PACKET_HEAD, &p);
    if (rc == DBP_E_BUSY)
        return true;
    f->first = false;
    if (rc == 0 && (f == &r->down ? mask_greeting(r, &p) : mask_answer(r, &p)))
        return true;
    f->n = 0; /* nothing unmasked gets through */
    return false;
}

static bool pass_on(struct flow *f, int fd) {
    if (f->first || f->n == 0)
        return true;
    ssize_t n = send(fd, f->bytes, f->n, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    f->n -= (size_t)n;
    memmove(f->bytes, f->bytes + n, f->n);
    return true;
}

static short receive_event(const struct flow *f) {
    return f->n < sizeof f->bytes ? POLLIN : 0;
}

static short send_event(const struct flow *f) {
    return !f->first && f->n > 0 ? POLLOUT : 0;
}

static void pump(struct dbp_relay *r) {
    while (dbp_now_us() < r->deadline_us) {
        struct pollfd p[4] = {
            {.fd = r->client, .events = (short)(receive_event(&r->up) | send_event(&r->down))},
            {.fd = r->server, .events = (short)(receive_event(&r->down) | send_event(&r->up))},
            {.fd = r->end_fd, .events = POLLIN},
            {.fd = r->stop_fd, .events = POLLIN},
        };
        int n = poll(p, 4, dbp_poll_ms(r->deadline_us));

        if (n < 0 && errno != EINTR)
            return;
        if (n <= 0)
            continue;
        if (p[3].revents)
            return;
        if ((p[2].revents & POLLIN) && !(p[0].revents & POLLIN)) {
            r->asked = r->up.n == 0 && r->down.n == 0;
            return;
        }
        /* An end of file of the client comes after what it wrote: that (its COM_QUIT) still goes to the server. */
        if ((p[0].revents & ~POLLOUT) && !receive(r, &r->up, r->client)) {
            (void)pass_on(&r->up, r->server);
            return;
        }
        if ((p[1].revents & ~POLLOUT) && !receive(r, &r->down, r->server)) {
            (void)pass_on(&r->down, r->client);
            return;
        }
        if (!pass_on(&r->down, r->client) || !pass_on(&r->up, r->server))
            return;
    }
}

static void *run(void *arg) {
    struct dbp_relay *r = arg;
    int on = 1;

    if (dbp_door_accept(r->door, r->end_fd, r->stop_fd, r->deadline_us, &r->client) == 0) {
        if (r->port)
            setsockopt(r->client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        close(r->door); /* that was the one login */
        r->door = -1;
        pump(r);
        if (!r->asked) { /* neither side must wait for what nobody brings */
            shutdown(r->client, SHUT_RDWR);
            shutdown(r->server, SHUT_RDWR);
        }
    } else {
        close(r->door);
        r->door = -1;
    }
    return NULL;
}

/* ---- outside ---- */

int dbp_relay_start(const struct dbp_relay_route *route, struct dbp_error *errorp, struct dbp_relay **relayp) {
    bool local = route->unix_socket[0] != 0;
    struct dbp_relay *r = calloc(1, sizeof *r);

    if (!r)
        return -ENOMEM;
    r->door = r->end_fd = r->server = r->client = r->session.fd = -1;
    r->joined = true;
    r->stop_fd = route->stop_fd;
    r->deadline_us = route->deadline_us;
    r->down.first = r->up.first = true;

    int rc = local                                            ? connect_unix(route, errorp, &r->server)
             : route->endpoint && route->endpoint->length > 0 ? connect_endpoint(route, errorp, &r->server)
                                                              : connect_tcp(route, errorp, &r->server);
    if (rc == 0)
        rc = local ? dbp_door_open_unix(r->socket, &r->door) : dbp_door_open_tcp(&r->port, &r->door);
    if (rc == 0 && (r->end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        rc = -errno;
    if (rc == 0)
        rc = dbp_thread_start(STACK_BYTES, run, r, &r->thread);
    r->joined = rc != 0;
    if (rc != 0) {
        dbp_relay_free(r);
        return rc;
    }
    *relayp = r;
    return 0;
}

const char *dbp_relay_socket(const struct dbp_relay *r) {
    return r->port ? NULL : r->socket;
}

uint16_t dbp_relay_port(const struct dbp_relay *r) {
    return r->port;
}

struct dbp_endpoint dbp_relay_endpoint(const struct dbp_relay *r) {
    return dbp_endpoint_of(r->server);
}

static void join(struct dbp_relay *r) {
    uint64_t one = 1;

    if (r->joined)
        return;
    while (write(r->end_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
    pthread_join(r->thread, NULL); /* it ends at the latest at its deadline */
    r->joined = true;
}

static bool same_address(const struct sockaddr_storage *a, socklen_t a_len, const struct sockaddr_storage *b,
                         socklen_t b_len) {
    return a_len == b_len && a_len > sizeof a->ss_family && memcmp(a, b, a_len) == 0;
}

/* True if client_fd and the accepted socket are the two ends of one connection: the accepted end has the door's
 * address, and over TCP each end has an address of its own. (A unix client has none; there SO_PEERCRED has spoken, and
 * the door took one connection only.) */
static bool connected_to_us(const struct dbp_relay *r, int client_fd) {
    struct sockaddr_storage a = {0}, b = {0};
    socklen_t a_len = sizeof a, b_len = sizeof b;

    if (getpeername(client_fd, (struct sockaddr *)&a, &a_len) != 0 ||
        getsockname(r->client, (struct sockaddr *)&b, &b_len) != 0 || !same_address(&a, a_len, &b, b_len))
        return false;
    if (!r->port)
        return true;
    a_len = sizeof a;
    b_len = sizeof b;
    return getsockname(client_fd, (struct sockaddr *)&a, &a_len) == 0 &&
           getpeername(r->client, (struct sockaddr *)&b, &b_len) == 0 && same_address(&a, a_len, &b, b_len);
}

/* Nothing to read and no end of file. */
static bool silent(int fd) {
    char byte;

    return recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

int dbp_relay_detach(struct dbp_relay *r, int client_fd, struct dbp_relay_session *sessionp) {
    if (r->server < 0)
        return DBP_E_INVALID;
    join(r);
    if (r->client < 0 || !r->answered || !connected_to_us(r, client_fd))
        return DBP_E_INVALID;
    if (!r->asked || r->unanswered || !silent(r->client) || !silent(r->server))
        return -EPROTO;
    *sessionp = r->session;
    sessionp->fd = r->server;
    r->server = -1;
    return 0;
}

struct dbp_relay *dbp_relay_free(struct dbp_relay *r) {
    if (!r)
        return NULL;
    join(r);
    int fds[] = {r->door, r->end_fd, r->server, r->client};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    explicit_bzero(r, sizeof *r); /* the flows have held what was made from the password */
    free(r);
    return NULL;
}
