/* SPDX-License-Identifier: MIT
 * A connector and a MySQL server in one: see fake_connector.h.
 */
#include "fake_connector.h"

#include "attach.h"
#include "reset.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define SESSIONS ((int)DBP_SESSIONS_MAX)
#define IN_TRANS 1u
#define AUTOCOMMIT 2u

struct server_end {
    int fd; /* -1: free */
    uint32_t id;
    uint16_t status;
    bool chain;   /* completion_type=CHAIN: a plain ROLLBACK begins anew */
    bool busy;    /* runs a query that only a KILL ends */
    bool hung_up; /* wants to hang up, but lingers */
    size_t n;
    uint8_t in[512];
};

static struct server_end ends[SESSIONS];
static int n_ends; /* none after these was ever used */
static union dbp_wire_any held[SESSIONS];
static uint32_t n_held;

static void hang_up(struct fake *fake, struct server_end *end) {
    /* First the count, which a test may compare with the broker's as soon as that has seen the end. No login comes in
     * between: this thread does them too. */
    atomic_fetch_sub(&fake->alive, 1);
    shutdown(end->fd, SHUT_RDWR);
    close(end->fd);
    end->fd = -1;
}

static void leave(struct fake *fake, struct server_end *end) {
    if (atomic_load(&fake->linger))
        end->hung_up = true;
    else
        hang_up(fake, end);
}

/* ---- the server ---- */

static void ok(const struct server_end *end, uint64_t nonce) {
    uint8_t packet[4 + 15] = {15, 0, 0, 1, 0x00, 0, 0xfe};

    memcpy(packet + 7, &nonce, 8);
    packet[15] = (uint8_t)end->status;
    packet[16] = (uint8_t)(end->status >> 8);
    if (send(end->fd, packet, sizeof packet, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        return; /* the client is gone; the end of file will tell */
}

static void err(const struct server_end *end) {
    static const uint8_t packet[] = {9, 0, 0, 1, 0xff, 0x28, 0x04, '#', 'H', 'Y', '0', '0', '0'};

    if (send(end->fd, packet, sizeof packet, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        return;
}

/* What no broker may send. */
static void strange(struct fake *fake, const char *what, int number, const char *text) {
    fprintf(stderr, "fake server: %s %d '%s'\n", what, number, text);
    atomic_fetch_add(&fake->strange, 1);
}

static void query(struct fake *fake, struct server_end *end, const char *sql) {
    bool rollback = strncmp(sql, "ROLLBACK", 8) == 0, autocommit = strncmp(sql, "SET autocommit=", 15) == 0;
    bool question = strncmp(sql, "Q ", 2) == 0, commit = strncmp(sql, "COMMIT", 6) == 0;
    uint64_t nonce = 0;

    if (strcmp(sql, "SET ROLE NONE") == 0 || strcmp(sql, DBP_TRACKING_SQL) == 0) {
        atomic_fetch_add(sql[4] == 'R' ? &fake->roles : &fake->trackings, 1);
        ok(end, 0);
        return;
    }
    if (rollback || autocommit) {
        atomic_fetch_add(rollback ? &fake->rollbacks : &fake->autocommits, 1);
        if (atomic_load(&fake->reset_mode) == FAKE_RESET_SILENT)
            return;
        if (atomic_load(&fake->reset_mode) == FAKE_RESET_ERR) {
            err(end);
            return;
        }
    }
    if (commit)
        atomic_fetch_add(&fake->commits, 1);
    if ((rollback || commit) && !(end->chain && !strstr(sql, "NO CHAIN")))
        end->status &= (uint16_t)~IN_TRANS;
    else if (autocommit)
        end->status = (uint16_t)((end->status & ~AUTOCOMMIT) | (sql[15] == '1' ? AUTOCOMMIT : 0));
    else if (strcmp(sql, "BEGIN") == 0)
        end->status |= IN_TRANS;
    else if (strcmp(sql, "CHAIN") == 0)
        end->chain = true;
    else if (strcmp(sql, "HANG") == 0) {
        end->busy = true;
        return;
    } else if (question)
        nonce = strtoull(sql + 2, NULL, 10);
    else if (!rollback && !commit)
        strange(fake, "statement", 3, sql);
    ok(end, nonce);
    if (question) /* counted when its answer is there */
        atomic_fetch_add(&fake->queries, 1);
}

static void serve(struct fake *fake, struct server_end *end) {
    ssize_t n = recv(end->fd, end->in + end->n, sizeof end->in - 1 - end->n, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        leave(fake, end);
        return;
    }
    end->n += (size_t)n;
    while (end->n >= 4 && end->n >= 4u + end->in[0] && !end->busy) {
        size_t size = 4u + end->in[0];
        char sql[260];
        memcpy(sql, end->in + 5, size - 5);
        sql[size - 5] = '\0';
        uint8_t command = end->in[4];
        memmove(end->in, end->in + size, end->n - size);
        end->n -= size;
        if (command == 1) {
            atomic_fetch_add(&fake->quits, 1);
            leave(fake, end);
            return;
        }
        if (command == 14) {
            ok(end, 0);
            atomic_fetch_add(&fake->pings, 1);
            continue;
        }
        if (command == 2 || command == 31) {
            atomic_fetch_add(command == 2 ? &fake->databases : &fake->empties, 1);
            if (command == 31) {
                end->status = AUTOCOMMIT;
                end->chain = false;
            }
            ok(end, 0);
            continue;
        }
        if (command != 3)
            strange(fake, "command", command, sql);
        query(fake, end, sql);
    }
}

/* ---- the connector ---- */

static void send_to_broker(int channel, const union dbp_wire_any *msg, int fd) {
    int rc;

    while ((rc = dbp_wire_send(channel, msg, fd)) == -EAGAIN) {
        struct pollfd p = {.fd = channel, .events = POLLOUT};
        poll(&p, 1, 100);
    }
    (void)rc; /* a broker that is gone is met by the next read */
}

static void fail(struct fake *fake, int channel, const struct dbp_wire_open *open) {
    union dbp_wire_any msg;

    memset(&msg.failed, 0, sizeof msg.failed);
    dbp_wire_head_init(&msg.head, DBP_WIRE_FAILED, open->head.serial);
    msg.failed.session = open->session;
    msg.failed.incarnation = open->incarnation;
    msg.failed.error.code = atomic_load(&fake->fail_code);
    snprintf(msg.failed.error.sqlstate, sizeof msg.failed.error.sqlstate, "28000");
    snprintf(msg.failed.error.text, sizeof msg.failed.error.text, "Refused by the fake");
    if (msg.failed.error.code >= FAKE_LONG_TEXT)
        memset(msg.failed.error.text, (int)('a' + msg.failed.error.code % 26), sizeof msg.failed.error.text - 1);
    atomic_fetch_add(&fake->fails, 1);
    send_to_broker(channel, &msg, -1);
}

static void deliver(struct fake *fake, int channel, const struct dbp_wire_open *open) {
    static uint32_t ids = 100;
    uint32_t mode = atomic_load(&fake->open_mode);
    struct server_end *end = NULL;
    union dbp_wire_any msg;
    int pair[2];

    memset(&msg.opened, 0, sizeof msg.opened);
    dbp_wire_head_init(&msg.head, DBP_WIRE_OPENED, open->head.serial);
    msg.opened.session = open->session;
    msg.opened.incarnation = open->incarnation;
    if (mode == FAKE_OPEN_NO_FD) {
        msg.head.result = 1;
        atomic_fetch_add(&fake->opens, 1);
        send_to_broker(channel, &msg, -1);
        return;
    }
    for (int i = 0; i < SESSIONS && !end; i++)
        if (ends[i].fd < 0)
            end = &ends[i];
    if (!end || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0)
        _exit(98);
    if (end - ends >= n_ends)
        n_ends = (int)(end - ends) + 1;
    *end = (struct server_end){.fd = pair[1], .id = ++ids, .status = open->spec.autocommit ? AUTOCOMMIT : 0};
    msg.opened.facts.connection_id = end->id;
    msg.opened.facts.status = end->status | atomic_load(&fake->facts);
    msg.opened.facts.greeting_len = mode == FAKE_OPEN_BAD_FACTS ? DBP_GREETING_MAX + 1 : 7;
    memcpy(msg.opened.facts.greeting,
           "\x0a"
           "fake!",
           7);
    atomic_fetch_add(&fake->opens, 1);
    uint32_t alive = atomic_fetch_add(&fake->alive, 1) + 1;
    if (alive > atomic_load(&fake->most))
        atomic_store(&fake->most, alive); /* this thread is the only writer */
    send_to_broker(channel, &msg, pair[0]);
    if (mode == FAKE_OPEN_TWICE)
        send_to_broker(channel, &msg, pair[0]);
    close(pair[0]);
}

static void on_open(struct fake *fake, int channel, const union dbp_wire_any *msg) {
    if (fake->password[0] && strcmp(fake->password, msg->open.spec.password) != 0) {
        atomic_store(&fake->fail_code, 1045);
        fail(fake, channel, &msg->open);
        return;
    }
    switch (atomic_load(&fake->open_mode)) {
    case FAKE_OPEN_FAIL:
        fail(fake, channel, &msg->open);
        return;
    case FAKE_OPEN_HOLD:
        if (n_held == DBP_SESSIONS_MAX)
            _exit(97);
        held[n_held++] = *msg;
        atomic_store(&fake->held, n_held);
        return;
    default:
        deliver(fake, channel, &msg->open);
    }
}

static void on_kill(struct fake *fake, int channel, const struct dbp_wire_kill *kill_msg) {
    union dbp_wire_any msg;
    uint32_t mode = atomic_load(&fake->kill_mode);

    atomic_store(&fake->last_killed, kill_msg->connection_id);
    atomic_fetch_add(&fake->kills, 1);
    if (mode == FAKE_KILL_DO)
        for (int i = 0; i < n_ends; i++)
            if (ends[i].fd >= 0 && ends[i].id == kill_msg->connection_id)
                hang_up(fake, &ends[i]);
    if (mode == FAKE_KILL_IGNORE)
        return;
    memset(&msg.killed, 0, sizeof msg.killed);
    dbp_wire_head_init(&msg.head, DBP_WIRE_KILLED, kill_msg->head.serial);
    msg.killed.session = kill_msg->session;
    msg.killed.incarnation = kill_msg->incarnation;
    if (mode == FAKE_KILL_FAIL) {
        msg.killed.error.code = 1040;
        snprintf(msg.killed.error.text, sizeof msg.killed.error.text, "Too many connections");
    }
    send_to_broker(channel, &msg, -1);
}

/* What the test has asked for since the last poke. */
static void obey(struct fake *fake, int channel) {
    uint32_t id = atomic_exchange(&fake->hang_up, 0);

    for (int i = 0; i < SESSIONS; i++)
        if (ends[i].fd >= 0 && ((id && ends[i].id == id) || (ends[i].hung_up && !atomic_load(&fake->linger))))
            hang_up(fake, &ends[i]);
    if (atomic_load(&fake->open_mode) != FAKE_OPEN_HOLD) {
        uint32_t n = n_held;
        n_held = 0;
        atomic_store(&fake->held, 0);
        for (uint32_t i = 0; i < n; i++)
            on_open(fake, channel, &held[i]);
    }
}

static int attach_again(const struct dbp_share *share, struct fake *fake) {
    int channel;
    uint32_t slot;

    if (dbp_attach(share, DBP_ROLE_CONNECTOR, "connector", in_seconds(WAIT_S), &channel, &slot) != 0)
        _exit(96);
    atomic_fetch_add(&fake->attached, 1);
    return channel;
}

static void run(const struct dbp_share *share, struct fake *fake) {
    int channel = attach_again(share, fake);

    for (;;) {
        static struct pollfd p[SESSIONS + 2];
        p[0] = (struct pollfd){.fd = fake->poke_fd, .events = POLLIN};
        p[1] = (struct pollfd){.fd = channel, .events = POLLIN};
        int n_polled = n_ends; /* more may come in this round */
        for (int i = 0; i < n_polled; i++) {
            bool deaf = ends[i].busy || ends[i].hung_up;
            p[i + 2] = (struct pollfd){.fd = deaf ? -1 : ends[i].fd, .events = POLLIN};
        }
        if (poll(p, (nfds_t)n_polled + 2, -1) < 0 && errno != EINTR)
            _exit(95);
        if (p[0].revents) {
            uint64_t pokes;
            if (read(fake->poke_fd, &pokes, sizeof pokes) < 0 && errno != EAGAIN)
                _exit(94);
            if (atomic_load(&fake->away) == 1 && channel >= 0) {
                close(channel);
                channel = -1;
                n_held = 0;
                atomic_store(&fake->held, 0);
                atomic_store(&fake->away, 2);
            }
            if (atomic_exchange(&fake->reconnect, 0)) {
                if (channel >= 0)
                    close(channel);
                atomic_store(&fake->away, 0);
                n_held = 0; /* a connector that died has forgotten its logins */
                atomic_store(&fake->held, 0);
                channel = attach_again(share, fake);
                continue;
            }
            obey(fake, channel);
        }
        for (int i = 0; i < n_polled; i++)
            if (p[i + 2].revents && ends[i].fd >= 0 && ends[i].fd == p[i + 2].fd)
                serve(fake, &ends[i]);
        if (p[1].revents && channel >= 0) { /* it may have been left just now */
            union dbp_wire_any msg;
            int fd = -1;
            int rc = dbp_wire_recv(channel, &msg, &fd, NULL);
            if (rc == -EPIPE)
                _exit(0); /* the broker is gone */
            if (rc == 0 && msg.head.type == DBP_WIRE_OPEN)
                on_open(fake, channel, &msg);
            else if (rc == 0 && msg.head.type == DBP_WIRE_KILL)
                on_kill(fake, channel, &msg.kill);
            else if (rc == 0 && msg.head.type == DBP_WIRE_CANCEL)
                atomic_fetch_add(&fake->cancels, 1);
            else if (rc != -EAGAIN)
                strange(fake, "message", rc, "");
        }
    }
}

pid_t fake_start(const struct dbp_share *share, struct fake **fakep) {
    struct fake *fake = shared_memory(sizeof *fake);

    fake->poke_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    atomic_store(&fake->fail_code, 2003);
    for (int i = 0; i < SESSIONS; i++)
        ends[i].fd = -1;
    pid_t pid = fork_child();
    if (pid == 0)
        run(share, fake);
    *fakep = fake;
    return pid;
}

void fake_poke(const struct fake *fake) {
    uint64_t one = 1;

    if (write(fake->poke_fd, &one, sizeof one) < 0 && errno != EAGAIN)
        abort();
}
