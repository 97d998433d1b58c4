/* SPDX-License-Identifier: MIT
 * The broker's side of the sessions: see keeper.h.
 *
 * The cap is kept here and by nobody else: only the keeper takes a slot out of EMPTY and puts one back, and it counts
 * its own (pools[].total), not the shared counters.
 */
#include "keeper.h"

#include "handoff.h"
#include "janitor.h"
#include "reset.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define END_MOST_US                                                                                   \
    10000000u /* a session being ended whose server does not hang up: given up after this, and logged \
               */
#define RESET_MOST_US 30000000u /* a rollback of much work takes long; after this the session is killed instead */
#define TICK_US 1000000u        /* sweep and ages: bounds how long a stopped process's half-done work can stay */
#define RESEND_US 20000u        /* the connector's channel was full */
#define DRAIN_BYTES 65536u      /* read away per event from a session that is being ended */

struct kept {
    bool watched, server_gone, ending, resetting, opening_sent;
    bool wants_kill; /* asked or still to be asked */
    bool kill_sent;
    uint64_t deadline_us;    /* of the ending or the reset */
    uint32_t waiters_before; /* tail of the queue when its login was asked for */
    struct dbp_reset reset;
    struct dbp_session_facts facts;
};

struct kept_pool {
    uint32_t total; /* slots out of EMPTY */
    uint32_t failures;
    uint64_t retry_at_us;
    uint64_t wake_at_us;
    uint32_t last_logged; /* error code of the last logged login failure */
};

struct dbp_keeper {
    struct dbp_share share;
    struct dbp_table *table;
    struct dbp_registry *registry;
    struct dbp_keeper_ops ops;
    bool connector;
    uint64_t next_tick_us;
    struct kept_pool pools[DBP_POOLS_MAX];
    struct kept *sessions;     /* DBP_SESSIONS_MAX; pages of unused ones are never touched */
    int fds[DBP_SESSIONS_MAX]; /* the broker's copy of each session's fd; -1: none */
    pthread_mutex_t fd_lock;   /* fds, so that a fork never sees one in change */
};

static void say(const struct dbp_keeper *keeper, enum dbp_log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void say(const struct dbp_keeper *keeper, enum dbp_log_level level, const char *format, ...) {
    char text[DBP_TEXT_MAX + 128];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    keeper->ops.log(level, text);
}

static struct dbp_session *shared(const struct dbp_keeper *keeper, uint32_t session) {
    return &keeper->table->sessions[session];
}

static dbp_word word_of(const struct dbp_keeper *keeper, uint32_t session) {
    return atomic_load(&shared(keeper, session)->word);
}

static uint32_t pool_of(const struct dbp_keeper *keeper, uint32_t session) {
    return atomic_load(&shared(keeper, session)->pool);
}

static const char *alias_of(const struct dbp_keeper *keeper, uint32_t pool) {
    return keeper->table->pools[pool].alias;
}

static void add(_Atomic int64_t *counter) {
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

static void watch(struct dbp_keeper *keeper, uint32_t session, uint32_t events) {
    struct kept *kept = &keeper->sessions[session];

    if (events == 0 && !kept->watched)
        return;
    int rc = keeper->ops.watch(keeper->ops.arg, session, keeper->fds[session], events, !kept->watched);
    if (rc != 0)
        say(keeper, DBP_LOG_ERROR, "cannot watch session %u: %s", session, strerror(-rc));
    kept->watched = events != 0 && rc == 0;
}

static void set_fd(struct dbp_keeper *keeper, uint32_t session, int fd) {
    pthread_mutex_lock(&keeper->fd_lock);
    if (keeper->fds[session] >= 0)
        close(keeper->fds[session]);
    keeper->fds[session] = fd;
    pthread_mutex_unlock(&keeper->fd_lock);
}

/* ---- ending ---- */

static void tend(struct dbp_keeper *keeper, uint32_t pool);

/* CLOSING or OPENING to EMPTY: the place in the cap is free again. */
static void vacate(struct dbp_keeper *keeper, uint32_t session) {
    struct kept *kept = &keeper->sessions[session];
    uint32_t pool = pool_of(keeper, session);

    if (keeper->fds[session] >= 0) {
        watch(keeper, session, 0);
        set_fd(keeper, session, -1);
    }
    kept->ending = kept->resetting = kept->wants_kill = kept->kill_sent = kept->opening_sent = kept->server_gone =
        false;
    explicit_bzero(&kept->facts, sizeof kept->facts);
    keeper->pools[pool].total--;
    if (!dbp_session_move(keeper->table, session, word_of(keeper, session), DBP_EMPTY, 0, NULL))
        abort(); /* OPENING and CLOSING are the broker's alone */
}

static void ended(struct dbp_keeper *keeper, uint32_t session) {
    uint32_t pool = pool_of(keeper, session);

    add(&keeper->table->pools[pool].count.closed);
    vacate(keeper, session);
    tend(keeper, pool);
}

static void ask_kill(struct dbp_keeper *keeper, uint32_t session) {
    struct kept *kept = &keeper->sessions[session];
    const struct dbp_pool_spec *spec = dbp_registry_spec(keeper->registry, pool_of(keeper, session));
    union dbp_wire_any msg;

    if (!keeper->connector || !spec)
        return;
    memset(&msg.kill, 0, sizeof msg.kill);
    dbp_wire_head_init(&msg.head, DBP_WIRE_KILL, 0);
    msg.kill.session = session;
    msg.kill.incarnation = atomic_load(&shared(keeper, session)->incarnation);
    msg.kill.connection_id = atomic_load(&shared(keeper, session)->connection_id);
    msg.kill.spec = *spec;
    kept->kill_sent = keeper->ops.to_connector(keeper->ops.arg, &msg) == 0;
    explicit_bzero(&msg, sizeof msg);
    if (kept->kill_sent)
        add(&keeper->table->pools[pool_of(keeper, session)].count.kills);
}

/* Takes up a session that is in CLOSING. */
static void begin_end(struct dbp_keeper *keeper, uint32_t session) {
    struct kept *kept = &keeper->sessions[session];
    static const uint8_t quit[5] = {1, 0, 0, 0, 1}; /* COM_QUIT */

    if (kept->server_gone) {
        ended(keeper, session);
        return;
    }
    kept->resetting = false;
    kept->ending = true;
    kept->deadline_us = dbp_now_us() + END_MOST_US;
    kept->wants_kill = dbp_word_owner(word_of(keeper, session)) != 0;
    /* An idle wire takes COM_QUIT: the server leaves at once and counts no aborted client. */
    if (!kept->wants_kill &&
        send(keeper->fds[session], quit, sizeof quit, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)sizeof quit)
        kept->wants_kill = true;
    /* Whoever still has a copy of the fd can write no more. It does not wake a server that is busy with a query: that
     * takes a KILL. */
    shutdown(keeper->fds[session], SHUT_WR);
    watch(keeper, session, EPOLLIN | EPOLLRDHUP);
    if (kept->wants_kill)
        ask_kill(keeper, session);
}

/* Ends a session that is idle or being reset; a lease is only marked, its holder's return ends it. */
static void end_unfit(struct dbp_keeper *keeper, uint32_t session) {
    atomic_store(&shared(keeper, session)->unfit, 1);
    dbp_word word = word_of(keeper, session);
    if ((dbp_word_state(word) == DBP_IDLE || dbp_word_state(word) == DBP_RESETTING) &&
        dbp_session_move(keeper->table, session, word, DBP_CLOSING, dbp_word_state(word) == DBP_RESETTING, NULL))
        begin_end(keeper, session);
}

/* Reads away what an ending session still sends: with a full receive buffer the server would never come to hang up. */
static bool drained_to_end(int fd) {
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

/* ---- resetting ---- */

static void reset_failed(struct dbp_keeper *keeper, uint32_t session, const char *why) {
    say(keeper, DBP_LOG_WARNING, "pool '%s': session %u could not be reset (%s) and is ended",
        alias_of(keeper, pool_of(keeper, session)), atomic_load(&shared(keeper, session)->connection_id), why);
    if (dbp_session_move(keeper->table, session, word_of(keeper, session), DBP_CLOSING, 1, NULL))
        begin_end(keeper, session);
}

static void go_on_resetting(struct dbp_keeper *keeper, uint32_t session) {
    struct kept *kept = &keeper->sessions[session];
    uint32_t pool = pool_of(keeper, session);
    uint8_t packet[DBP_RESET_PACKET_MAX];

    switch (dbp_reset_step(&kept->reset)) {
    case DBP_RESET_SEND: {
        size_t n = dbp_reset_command(&kept->reset, packet);
        if (send(keeper->fds[session], packet, n, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)n)
            reset_failed(keeper, session, "the server does not read");
        return;
    }
    case DBP_RESET_READ:
        return;
    case DBP_RESET_DONE:
        kept->resetting = false;
        atomic_store(&shared(keeper, session)->status, kept->reset.status & DBP_STATUS_KEPT);
        watch(keeper, session, EPOLLRDHUP);
        add(&keeper->table->pools[pool].count.resets);
        if (atomic_load(&shared(keeper, session)->unfit)) {
            end_unfit(keeper, session);
        } else if (dbp_idle_put(keeper->table, session, word_of(keeper, session))) {
            dbp_handoff_match(&keeper->share, pool);
            tend(keeper, pool);
        }
        return;
    case DBP_RESET_FAILED:
        reset_failed(keeper, session, "unexpected answer");
        return;
    }
}

static void begin_reset(struct dbp_keeper *keeper, uint32_t session) {
    struct kept *kept = &keeper->sessions[session];
    const struct dbp_pool_spec *spec = dbp_registry_spec(keeper->registry, pool_of(keeper, session));

    if (kept->server_gone) {
        end_unfit(keeper, session);
        return;
    }
    kept->resetting = true;
    kept->deadline_us = dbp_now_us() + RESET_MOST_US;
    dbp_reset_init(&kept->reset, spec && spec->autocommit);
    watch(keeper, session, EPOLLIN | EPOLLRDHUP);
    go_on_resetting(keeper, session);
}

static void read_reset_answer(struct dbp_keeper *keeper, uint32_t session) {
    struct kept *kept = &keeper->sessions[session];
    uint8_t data[DBP_RESET_PACKET_MAX];

    ssize_t n = recv(keeper->fds[session], data, sizeof data, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        kept->server_gone = true;
        end_unfit(keeper, session);
        return;
    }
    dbp_reset_feed(&kept->reset, data, (size_t)n);
    go_on_resetting(keeper, session);
}

/* ---- opening ---- */

static bool reserve(struct dbp_keeper *keeper, uint32_t pool, uint32_t *sessionp) {
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        struct dbp_session *session = shared(keeper, i);
        dbp_word word = atomic_load(&session->word);
        if (dbp_word_state(word) != DBP_EMPTY)
            continue;
        atomic_store(&session->pool, pool);
        atomic_fetch_add(&session->incarnation, 1);
        atomic_store(&session->unfit, 0);
        atomic_store(&session->users, 0);
        atomic_store(&session->connection_id, 0);
        if (!dbp_session_move(keeper->table, i, word, DBP_OPENING, 0, NULL))
            abort(); /* EMPTY is the broker's alone */
        keeper->pools[pool].total++;
        *sessionp = i;
        return true;
    }
    return false;
}

/* False when there is nobody to ask or no slot: the plan is made again later. */
static bool open_one(struct dbp_keeper *keeper, uint32_t pool) {
    union dbp_wire_any msg;
    uint32_t session;

    if (!keeper->connector || !reserve(keeper, pool, &session))
        return false;
    memset(&msg.open, 0, sizeof msg.open);
    dbp_wire_head_init(&msg.head, DBP_WIRE_OPEN, 0);
    msg.open.session = session;
    msg.open.incarnation = atomic_load(&shared(keeper, session)->incarnation);
    msg.open.spec = *dbp_registry_spec(keeper->registry, pool);
    keeper->sessions[session].opening_sent = true;
    keeper->sessions[session].waiters_before = atomic_load(&keeper->table->pools[pool].queue.tail);
    int rc = keeper->ops.to_connector(keeper->ops.arg, &msg);
    explicit_bzero(&msg, sizeof msg);
    if (rc != 0) {
        vacate(keeper, session);
        keeper->pools[pool].wake_at_us = dbp_now_us() + RESEND_US;
    }
    return rc == 0;
}

/* The session of an answer, if it is the one that was asked for. */
static struct kept *opening(struct dbp_keeper *keeper, uint32_t session, uint32_t incarnation) {
    if (session >= DBP_SESSIONS_MAX || dbp_word_state(word_of(keeper, session)) != DBP_OPENING ||
        !keeper->sessions[session].opening_sent || atomic_load(&shared(keeper, session)->incarnation) != incarnation)
        return NULL;
    return &keeper->sessions[session];
}

void dbp_keeper_opened(struct dbp_keeper *keeper, const struct dbp_wire_opened *msg, int fd) {
    struct kept *kept = opening(keeper, msg->session, msg->incarnation);

    if (!kept || msg->facts.greeting_len > DBP_GREETING_MAX || msg->facts.row_len > DBP_FACTS_ROW_MAX) {
        say(keeper, DBP_LOG_WARNING, "the connector delivered a session that nobody asked for");
        close(fd);
        return;
    }
    uint32_t pool = pool_of(keeper, msg->session);
    set_fd(keeper, msg->session, fd);
    kept->facts = msg->facts;
    kept->opening_sent = false;
    atomic_store(&shared(keeper, msg->session)->connection_id, msg->facts.connection_id);
    atomic_store(&shared(keeper, msg->session)->status, msg->facts.status & DBP_STATUS_KEPT);
    atomic_store(&shared(keeper, msg->session)->opened_us, dbp_now_us());
    watch(keeper, msg->session, EPOLLRDHUP);
    add(&keeper->table->pools[pool].count.opened);
    if (keeper->pools[pool].failures > 0)
        say(keeper, DBP_LOG_INFO, "pool '%s': the server answers again", alias_of(keeper, pool));
    keeper->pools[pool].failures = 0;
    keeper->pools[pool].last_logged = 0;
    if (!dbp_idle_put(keeper->table, msg->session, word_of(keeper, msg->session)))
        abort(); /* OPENING is the broker's alone */
    dbp_handoff_match(&keeper->share, pool);
    tend(keeper, pool);
}

static void publish_error(struct dbp_pool *pool, const struct dbp_error *error) {
    uint32_t seq = atomic_load(&pool->error_seq);

    atomic_store(&pool->error_seq, seq | 1u); /* readers: dbp_inspect_error */
    atomic_thread_fence(memory_order_release);
    pool->error = *error;
    pool->error.text[sizeof pool->error.text - 1] = '\0';
    pool->error.sqlstate[sizeof pool->error.sqlstate - 1] = '\0';
    atomic_store(&pool->error_seq, (seq | 1u) + 1);
}

void dbp_keeper_failed(struct dbp_keeper *keeper, const struct dbp_wire_failed *msg) {
    struct kept *kept = opening(keeper, msg->session, msg->incarnation);

    if (!kept)
        return;
    uint32_t pool = pool_of(keeper, msg->session);
    struct dbp_pool *p = &keeper->table->pools[pool];
    struct kept_pool *kp = &keeper->pools[pool];
    uint32_t before = kept->waiters_before;
    publish_error(p, &msg->error);
    add(&p->count.failures);
    vacate(keeper, msg->session);
    kp->failures++;
    kp->retry_at_us = dbp_now_us() + dbp_janitor_backoff_us(kp->failures);
    if (kp->last_logged != msg->error.code) {
        say(keeper, DBP_LOG_ERROR, "pool '%s': login failed: (%u) %s", alias_of(keeper, pool), msg->error.code,
            p->error.text);
        kp->last_logged = msg->error.code;
    }
    /* With sessions alive the waiters will be served by returns. Without, waiting longer would only hide the cause; but
     * whoever came after this login was asked for may be met by a better one. */
    int64_t alive = atomic_load(&p->count.size) - atomic_load(&p->count.state[DBP_OPENING]) -
                    atomic_load(&p->count.state[DBP_CLOSING]);
    if (alive <= 0)
        dbp_handoff_fail(&keeper->share, pool, before);
    tend(keeper, pool);
}

void dbp_keeper_killed(struct dbp_keeper *keeper, const struct dbp_wire_killed *msg) {
    if (msg->error.code == 0 || msg->session >= DBP_SESSIONS_MAX)
        return; /* the server's end of file says the rest */
    struct kept *kept = &keeper->sessions[msg->session];
    if (!kept->ending || atomic_load(&shared(keeper, msg->session)->incarnation) != msg->incarnation)
        return;
    say(keeper, DBP_LOG_WARNING, "pool '%s': KILL %u failed: (%u) %.*s",
        alias_of(keeper, pool_of(keeper, msg->session)), atomic_load(&shared(keeper, msg->session)->connection_id),
        msg->error.code, (int)sizeof msg->error.text - 1, msg->error.text);
    kept->kill_sent = false; /* the tick asks again until the session's deadline */
}

/* ---- policy ---- */

static uint32_t figure(_Atomic int64_t *counter) {
    int64_t value = atomic_load(counter);

    return value < 0 ? 0 : (uint32_t)value;
}

static uint32_t waiting_in(struct dbp_keeper *keeper, uint32_t pool, uint32_t most) {
    struct dbp_queue *queue = &keeper->table->pools[pool].queue;
    uint32_t ticket = atomic_load(&queue->head), n = 0;
    dbp_place place;

    /* Counted, not taken from the counter, which may be wrong by what a killed process left: a waiter must never be
     * overlooked. More than the cap allows need not be counted. */
    while (n < most && dbp_queue_next(queue, &ticket, &place))
        n++;
    return n;
}

/* The idle session that was returned longest ago goes. */
static bool retire_one(struct dbp_keeper *keeper, uint32_t pool) {
    uint32_t oldest = DBP_SESSIONS_MAX;
    uint64_t since = UINT64_MAX;
    dbp_word word = 0;

    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        dbp_word w = word_of(keeper, i);
        if (dbp_word_state(w) != DBP_IDLE || pool_of(keeper, i) != pool ||
            atomic_load(&shared(keeper, i)->returned_us) >= since)
            continue;
        since = atomic_load(&shared(keeper, i)->returned_us);
        oldest = i;
        word = w;
    }
    if (oldest == DBP_SESSIONS_MAX || !dbp_session_move(keeper->table, oldest, word, DBP_CLOSING, 0, NULL))
        return false;
    begin_end(keeper, oldest);
    return true;
}

static void tend(struct dbp_keeper *keeper, uint32_t pool) {
    const struct dbp_pool_spec *spec = dbp_registry_spec(keeper->registry, pool);
    struct kept_pool *kp = &keeper->pools[pool];
    struct dbp_pool_counters *count = &keeper->table->pools[pool].count;

    if (!spec)
        return;
    struct dbp_janitor_view view = {
        .now_us = dbp_now_us(),
        .retry_at_us = kp->retry_at_us,
        .failures = kp->failures,
        .opening = figure(&count->state[DBP_OPENING]),
        .resetting = figure(&count->state[DBP_RESETTING]),
        .idle = figure(&count->state[DBP_IDLE]),
        .closing = figure(&count->state[DBP_CLOSING]),
        .total = kp->total,
        .pool_size = spec->pool_size,
        .cap = spec->pool_size + spec->max_overflow,
    };
    view.waiting = waiting_in(keeper, pool, view.cap);
    if (view.closing > view.total)
        view.closing = view.total;
    struct dbp_janitor_plan plan = dbp_janitor_plan(&view);
    kp->wake_at_us = plan.wake_at_us;
    while (plan.open-- > 0 && open_one(keeper, pool))
        continue;
    /* Not a loop over tend: begin_end of a session that is gone already ends up here again, with one less. */
    while (plan.retire > 0 && retire_one(keeper, pool))
        plan.retire--;
}

void dbp_keeper_attend(struct dbp_keeper *keeper, uint32_t pool) {
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        struct kept *kept = &keeper->sessions[i];
        enum dbp_state state = dbp_word_state(word_of(keeper, i));
        if ((state != DBP_RESETTING && state != DBP_CLOSING) || pool_of(keeper, i) != pool)
            continue;
        if (state == DBP_CLOSING && !kept->ending)
            begin_end(keeper, i);
        else if (state == DBP_RESETTING && !kept->resetting)
            begin_reset(keeper, i);
    }
    tend(keeper, pool);
}

/* ---- time ---- */

static void check_age(struct dbp_keeper *keeper, uint32_t session, const struct dbp_pool_spec *spec, uint64_t now,
                      uint64_t *nextp) {
    if (spec->recycle_s == 0 || atomic_load(&shared(keeper, session)->unfit))
        return;
    uint64_t end = atomic_load(&shared(keeper, session)->opened_us) + (uint64_t)spec->recycle_s * 1000000u;
    if (end <= now)
        end_unfit(keeper, session);
    else if (end < *nextp)
        *nextp = end;
}

static void check_deadline(struct dbp_keeper *keeper, uint32_t session, uint64_t now, uint64_t *nextp) {
    struct kept *kept = &keeper->sessions[session];

    if (kept->deadline_us > now) {
        if (kept->ending && kept->wants_kill && !kept->kill_sent)
            ask_kill(keeper, session);
        if (kept->deadline_us < *nextp)
            *nextp = kept->deadline_us;
    } else if (kept->ending) {
        say(keeper, DBP_LOG_WARNING,
            "pool '%s': the server did not hang up session %u within %u s; its place is reused",
            alias_of(keeper, pool_of(keeper, session)), atomic_load(&shared(keeper, session)->connection_id),
            END_MOST_US / 1000000u);
        ended(keeper, session);
    } else if (kept->resetting) {
        reset_failed(keeper, session, "no answer in time");
    }
}

uint64_t dbp_keeper_tick(struct dbp_keeper *keeper) {
    uint64_t now = dbp_now_us();
    bool sweep = now >= keeper->next_tick_us;

    if (sweep)
        keeper->next_tick_us = now + TICK_US;
    uint64_t next = keeper->next_tick_us;
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        enum dbp_state state = dbp_word_state(word_of(keeper, i));
        if (state == DBP_EMPTY || state == DBP_OPENING)
            continue;
        const struct dbp_pool_spec *spec = dbp_registry_spec(keeper->registry, pool_of(keeper, i));
        if (keeper->sessions[i].ending || keeper->sessions[i].resetting)
            check_deadline(keeper, i, now, &next);
        else if (spec && state != DBP_CLOSING)
            check_age(keeper, i, spec, now, &next);
    }
    for (uint32_t pool = 0; pool < DBP_POOLS_MAX && dbp_registry_spec(keeper->registry, pool); pool++) {
        struct kept_pool *kp = &keeper->pools[pool];
        if (sweep) {
            dbp_handoff_sweep(&keeper->share, pool);
            dbp_table_recount(keeper->table, pool);
            dbp_keeper_attend(keeper, pool);
        } else if (kp->wake_at_us && kp->wake_at_us <= now) {
            tend(keeper, pool);
        }
        if (kp->wake_at_us && kp->wake_at_us < next)
            next = kp->wake_at_us;
    }
    return next;
}

void dbp_keeper_event(struct dbp_keeper *keeper, uint32_t session, uint32_t events) {
    struct kept *kept = &keeper->sessions[session];

    if (keeper->fds[session] < 0)
        return;
    if (kept->resetting && (events & EPOLLIN)) {
        read_reset_answer(keeper, session);
        return;
    }
    if (kept->ending) {
        if (drained_to_end(keeper->fds[session]))
            ended(keeper, session);
        return;
    }
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        /* Level-triggered and for good: left armed it would fire for ever. */
        watch(keeper, session, 0);
        kept->server_gone = true;
        end_unfit(keeper, session);
    }
}

/* ---- processes ---- */

void dbp_keeper_connector_lost(struct dbp_keeper *keeper) {
    keeper->connector = false;
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        keeper->sessions[i].kill_sent = false;
        if (keeper->sessions[i].opening_sent)
            vacate(keeper, i);
    }
}

void dbp_keeper_connector_ready(struct dbp_keeper *keeper) {
    keeper->connector = true;
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++)
        if (keeper->sessions[i].ending && keeper->sessions[i].wants_kill)
            ask_kill(keeper, i);
    for (uint32_t pool = 0; dbp_registry_spec(keeper->registry, pool); pool++)
        tend(keeper, pool);
}

void dbp_keeper_holder_died(struct dbp_keeper *keeper, uint32_t slot) {
    uint32_t n_pools = atomic_load(&keeper->table->n_pools);

    /* Places first: a session granted to one of them then goes back by the sweep instead of being lost. */
    for (uint32_t pool = 0; pool < n_pools; pool++)
        dbp_handoff_bury(&keeper->share, pool, slot);
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        dbp_word word = word_of(keeper, i);
        if (dbp_word_state(word) == DBP_LEASED && dbp_word_owner(word) == slot &&
            dbp_session_move(keeper->table, i, word, DBP_CLOSING, 1, NULL))
            begin_end(keeper, i);
    }
    for (uint32_t pool = 0; pool < n_pools; pool++) {
        dbp_handoff_sweep(&keeper->share, pool);
        dbp_table_recount(keeper->table, pool);
        dbp_keeper_attend(keeper, pool);
    }
}

int dbp_keeper_lookup(const struct dbp_keeper *keeper, uint32_t slot, uint32_t session, uint32_t generation, int *fdp,
                      const struct dbp_session_facts **factsp) {
    if (session >= DBP_SESSIONS_MAX)
        return DBP_E_STALE;
    dbp_word word = word_of(keeper, session);
    if (dbp_word_state(word) != DBP_LEASED || dbp_word_owner(word) != slot || dbp_word_generation(word) != generation ||
        keeper->fds[session] < 0)
        return DBP_E_STALE;
    *fdp = keeper->fds[session];
    *factsp = &keeper->sessions[session].facts;
    return 0;
}

/* ---- life ---- */

int dbp_keeper_new(const struct dbp_share *share, struct dbp_registry *registry, const struct dbp_keeper_ops *ops,
                   struct dbp_keeper **keeperp) {
    struct dbp_keeper *keeper = calloc(1, sizeof *keeper);
    if (!keeper)
        return -ENOMEM;
    keeper->sessions = calloc(DBP_SESSIONS_MAX, sizeof *keeper->sessions);
    if (!keeper->sessions) {
        free(keeper);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++)
        keeper->fds[i] = -1;
    keeper->share = *share;
    keeper->table = share->table;
    keeper->registry = registry;
    keeper->ops = *ops;
    pthread_mutex_init(&keeper->fd_lock, NULL);
    *keeperp = keeper;
    return 0;
}

struct dbp_keeper *dbp_keeper_free(struct dbp_keeper *keeper) {
    static const uint8_t quit[5] = {1, 0, 0, 0, 1};

    if (!keeper)
        return NULL;
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        if (keeper->fds[i] < 0)
            continue;
        if (dbp_word_state(word_of(keeper, i)) == DBP_IDLE &&
            send(keeper->fds[i], quit, sizeof quit, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
            say(keeper, DBP_LOG_INFO, "session %u was gone already", i);
        shutdown(keeper->fds[i], SHUT_WR);
        close(keeper->fds[i]);
    }
    pthread_mutex_destroy(&keeper->fd_lock);
    free(keeper->sessions);
    free(keeper);
    return NULL;
}

void dbp_keeper_fork_lock(struct dbp_keeper *keeper) {
    pthread_mutex_lock(&keeper->fd_lock);
}

void dbp_keeper_fork_unlock(struct dbp_keeper *keeper) {
    pthread_mutex_unlock(&keeper->fd_lock);
}

void dbp_keeper_fork_child(struct dbp_keeper *keeper) {
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++)
        if (keeper->fds[i] >= 0)
            close(keeper->fds[i]);
}
