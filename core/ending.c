/* SPDX-License-Identifier: MIT
 * Ending sessions: politely where the wire is idle, by KILL where it is not, counted against the cap until the server
 * has hung up. See ending.h.
 */
#include "ending.h"

#include "janitor.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define DRAIN_BYTES 65536u /* read away per event */

/* The connector may have it in its queue still. Without room in the channel it says it to a server that knows better.
 */
static void cancel_kill(struct dbp_keeper *keeper, uint32_t session) {
    union dbp_wire_any msg;

    memset(&msg.cancel, 0, sizeof msg.cancel);
    dbp_wire_head_init(&msg.head, DBP_WIRE_CANCEL, 0);
    msg.cancel.session = session;
    msg.cancel.incarnation = keeper->sessions[session].incarnation;
    (void)keeper->ops.to_connector(keeper->ops.arg, &msg);
}

void dbp_ending_vacate(struct dbp_keeper *keeper, uint32_t session) {
    struct kept *kept = &keeper->sessions[session];
    uint32_t pool = pool_of(keeper, session);

    if (keeper->fds[session] >= 0) {
        dbp_kept_watch(keeper, session, 0);
        dbp_kept_set_fd(keeper, session, -1);
    }
    if (kept->kill_sent && !kept->kill_done)
        cancel_kill(keeper, session);
    kept->ending = kept->resetting = kept->opening_sent = kept->server_gone = false;
    kept->wants_kill = kept->kill_sent = kept->kill_done = kept->unknown = kept->overdue = false;
    kept->kills_failed = 0;
    kept->kill_again_us = 0;
    explicit_bzero(&kept->facts, sizeof kept->facts);
    if (keeper->home[session]) {
        keeper->pools[pool].total--;
        keeper->total--;
    }
    /* OPENING and CLOSING are the broker's alone: if the word says anything else, it was damaged. */
    if (!dbp_kept_move(keeper, session, DBP_CLOSING, DBP_EMPTY, 0) &&
        !dbp_kept_move(keeper, session, DBP_OPENING, DBP_EMPTY, 0))
        dbp_session_force(keeper->table, session, DBP_EMPTY, 0);
    keeper->home[session] = 0;
}

void dbp_ending_done(struct dbp_keeper *keeper, uint32_t session) {
    uint32_t pool = pool_of(keeper, session);

    dbp_ending_vacate(keeper, session);
    add(&keeper->table->pools[pool].count.closed); /* last: who sees it finds the place free */
    dbp_kept_look_again(keeper, pool);
}

void dbp_ending_ask_kill(struct dbp_keeper *keeper, uint32_t session) {
    struct kept *kept = &keeper->sessions[session];
    const struct dbp_pool_spec *spec = dbp_registry_spec(keeper->registry, pool_of(keeper, session));
    union dbp_wire_any msg;

    if (!keeper->connector || !spec)
        return;
    memset(&msg.kill, 0, sizeof msg.kill);
    dbp_wire_head_init(&msg.head, DBP_WIRE_KILL, 0);
    msg.kill.session = session;
    msg.kill.incarnation = kept->incarnation;
    msg.kill.connection_id = kept->facts.connection_id;
    msg.kill.opened_us = kept->opened_us;
    msg.kill.endpoint = kept->endpoint;
    msg.kill.spec = *spec;
    kept->kill_sent = keeper->ops.to_connector(keeper->ops.arg, &msg) == 0;
    explicit_bzero(&msg, sizeof msg);
    if (!kept->kill_sent) /* its channel is full: look again soon */
        kept->kill_again_us = dbp_now_us() + DBP_RESEND_US;
    else
        add(&keeper->table->pools[pool_of(keeper, session)].count.kills);
}

/* A host that is gone never says so. The session is nobody's now, so its socket may be impatient: the kernel ends it
 * when our end of file, or a probe, is not acknowledged for so long. Means nothing to a unix socket. */
static void notice_a_dead_peer(int fd) {
    unsigned int timeout_ms = DBP_END_MOST_US / 1000u;
    int idle_s = 5, interval_s = 2, probes = 3;

    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof timeout_ms);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

void dbp_ending_begin(struct dbp_keeper *keeper, uint32_t session, bool kill) {
    struct kept *kept = &keeper->sessions[session];
    static const uint8_t quit[5] = {1, 0, 0, 0, 1}; /* COM_QUIT */

    if (kept->server_gone) {
        dbp_ending_done(keeper, session);
        return;
    }
    kept->resetting = false;
    kept->ending = true;
    kept->deadline_us = dbp_now_us() + DBP_END_MOST_US;
    kept->wants_kill = kill;
    /* An idle wire takes COM_QUIT: the server leaves at once and counts no aborted client. */
    if (!kept->wants_kill &&
        send(keeper->fds[session], quit, sizeof quit, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)sizeof quit)
        kept->wants_kill = true;
    /* Whoever still has a copy of the fd can write no more. It does not wake a server that is busy with a query: that
     * takes a KILL. */
    shutdown(keeper->fds[session], SHUT_WR);
    notice_a_dead_peer(keeper->fds[session]);
    dbp_kept_watch(keeper, session, EPOLLIN | EPOLLRDHUP);
    if (kept->wants_kill)
        dbp_ending_ask_kill(keeper, session);
}

void dbp_ending_unfit(struct dbp_keeper *keeper, uint32_t session) {
    atomic_store(&shared(keeper, session)->unfit, DBP_UNFIT);
    dbp_word word = word_of(keeper, session);
    bool kill = dbp_word_state(word) == DBP_RESETTING;
    if ((dbp_word_state(word) == DBP_IDLE || kill) &&
        dbp_session_move(keeper->table, session, word, DBP_CLOSING, kill, NULL))
        dbp_ending_begin(keeper, session, kill);
}

bool dbp_ending_drained(int fd) {
    static uint8_t scratch[4096];

    for (size_t n = 0; n < DRAIN_BYTES; n += sizeof scratch) {
        ssize_t got = recv(fd, scratch, sizeof scratch, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
            return true;
        if (got < 0)
            return false;
    }
    return false;
}

/* The server takes no further login, of anybody or of this user. */
static bool no_login_left(uint32_t code) {
    return code == 1040 || code == 1203 || code == 1226; /* ER_CON_COUNT_, ER_TOO_MANY_USER_CONNECTIONS, USER_LIMIT */
}

static bool same_server(const struct dbp_pool_spec *a, const struct dbp_pool_spec *b) {
    return a && b && a->port == b->port && strcmp(a->host, b->host) == 0 &&
           strcmp(a->unix_socket, b->unix_socket) == 0 && strcmp(a->user, b->user) == 0;
}

/* An idle session makes room for the login of a KILL: a dead statement and its locks are worse than one login more. */
static void make_room(struct dbp_keeper *keeper, uint32_t pool) {
    const struct dbp_pool_spec *spec = dbp_registry_spec(keeper->registry, pool);

    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        uint32_t other = pool_of(keeper, i);
        if (!keeper->home[i] || !same_server(spec, dbp_registry_spec(keeper->registry, other)) ||
            !dbp_kept_move(keeper, i, DBP_IDLE, DBP_CLOSING, 0))
            continue;
        /* Not for one of our own logins. */
        keeper->pools[other].no_login_before_us = keeper->pools[pool].no_login_before_us =
            dbp_now_us() + DBP_RETRY_MOST_US;
        dbp_kept_look_again(keeper, other);
        dbp_ending_begin(keeper, i, false);
        return;
    }
}

void dbp_ending_killed(struct dbp_keeper *keeper, const struct dbp_wire_killed *msg) {
    if (msg->session >= DBP_SESSIONS_MAX)
        return;
    struct kept *kept = &keeper->sessions[msg->session];
    if (!kept->ending || !kept->kill_sent || kept->incarnation != msg->incarnation)
        return;
    uint64_t now = dbp_now_us();
    uint32_t pool = pool_of(keeper, msg->session), code = msg->error.code;
    kept->unknown = code == 1094; /* ER_NO_SUCH_THREAD */
    kept->kill_done = code == 0 || kept->unknown;
    kept->deadline_us = now + DBP_END_MOST_US;
    if (kept->kill_done)
        return; /* the server's end of file says the rest */
    if (kept->kills_failed++ == 0)
        dbp_kept_say(keeper, DBP_LOG_WARNING, "pool '%s': KILL %u failed: (%u) %.*s", alias_of(keeper, pool),
                     kept->facts.connection_id, code, (int)sizeof msg->error.text - 1, msg->error.text);
    if (no_login_left(code))
        make_room(keeper, pool);
    kept->kill_sent = false; /* the tick asks again, for as long as the server has the session */
    kept->kill_again_us = now + dbp_janitor_backoff_us(kept->kills_failed, dbp_janitor_refused(code));
}

void dbp_ending_overdue(struct dbp_keeper *keeper, uint32_t session) {
    struct kept *kept = &keeper->sessions[session];
    const char *alias = alias_of(keeper, pool_of(keeper, session));
    uint32_t id = kept->facts.connection_id, seconds = DBP_END_MOST_US / 1000000u;

    kept->deadline_us = dbp_now_us() + DBP_END_MOST_US;
    if (kept->unknown) {
        dbp_kept_say(
            keeper, DBP_LOG_WARNING,
            "pool '%s': the server knows no session %u and has not hung it up within %u s; its place is reused", alias,
            id, seconds);
        dbp_ending_done(keeper, session);
        return;
    }
    if (!kept->overdue)
        dbp_kept_say(keeper, DBP_LOG_WARNING,
                     "pool '%s': the server has not hung up session %u within %u s (%s); it keeps its place until then",
                     alias, id, seconds,
                     kept->kill_done    ? "it was killed"
                     : kept->kill_sent  ? "no answer to its KILL yet"
                     : kept->wants_kill ? "it could not be killed yet"
                                        : "it was told to quit, and is killed now");
    kept->overdue = true;
    if (!kept->wants_kill) {
        kept->wants_kill = true;
        dbp_ending_ask_kill(keeper, session);
    }
}
