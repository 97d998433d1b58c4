/* SPDX-License-Identifier: MIT
 * Opening and retiring sessions as the policy (janitor.c) wants.
 *
 * The cap is kept here and by nobody else: only the keeper takes a slot out of EMPTY and puts one back, and it counts
 * its own (pools[].total), not the shared counters.
 */
#include "opening.h"

#include "ending.h"
#include "handoff.h"
#include "janitor.h"
#include "rationing.h"
#include "resetting.h"

#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define LOGIN_GRACE_US                                                                                              \
    60000000u                  /* the connector bounds each login by itself; later than this it hangs or is stopped \
                                */
#define LOG_AGAIN_US 60000000u /* a failure that goes on is logged again after this */
#define CRASHES_MOST 2u        /* after so many deaths of the connector a login is taken for their cause */

static bool reserve(struct dbp_keeper *keeper, uint32_t pool, uint32_t *sessionp) {
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        struct dbp_session *session = shared(keeper, i);
        dbp_word word = atomic_load(&session->word);
        if (dbp_word_state(word) != DBP_EMPTY || keeper->home[i])
            continue;
        keeper->home[i] = (uint16_t)(pool + 1);
        atomic_store(&session->pool, handle_of(keeper, pool));
        atomic_store(&session->incarnation, ++keeper->sessions[i].incarnation);
        atomic_store(&session->unfit, 0);
        atomic_store(&session->users, 0);
        atomic_store(&session->returned_us, dbp_now_us()); /* not the predecessor's: it would be the first to retire */
        atomic_store(&session->connection_id, 0);
        if (!dbp_session_move(keeper->table, i, word, DBP_OPENING, 0, NULL))
            dbp_session_force(keeper->table, i, DBP_OPENING, 0); /* EMPTY is the broker's alone: damaged */
        keeper->pools[pool].total++;
        dbp_kept_activate(keeper, pool);
        keeper->total++;
        *sessionp = i;
        return true;
    }
    return false;
}

/* False when there is nobody to ask or no slot: the plan is made again later. */
static bool open_one(struct dbp_keeper *keeper, uint32_t pool) {
    union dbp_wire_any msg;
    uint32_t session;

    if (!keeper->connector || keeper->stopping)
        return false;
    if (dbp_now_us() < keeper->pools[pool].no_login_before_us) {
        keeper->pools[pool].wake_at_us = keeper->pools[pool].no_login_before_us;
        return false;
    }
    if (keeper->total >= keeper->max_sessions || !reserve(keeper, pool, &session)) {
        keeper->refused = true;
        return false;
    }
    memset(&msg.open, 0, sizeof msg.open);
    dbp_wire_head_init(&msg.head, DBP_WIRE_OPEN, 0);
    msg.open.session = session;
    msg.open.incarnation = keeper->sessions[session].incarnation;
    dbp_registry_login_spec(keeper->registry, pool, &msg.open.spec);
    keeper->sessions[session].candidate = dbp_registry_candidate(keeper->registry, pool);
    keeper->sessions[session].opening_sent = true;
    keeper->sessions[session].deadline_us =
        dbp_now_us() + LOGIN_GRACE_US + 2000000ull * msg.open.spec.connect_timeout_s;
    keeper->sessions[session].waiters_before = atomic_load(&keeper->table->pools[pool].queue.tail);
    int rc = keeper->ops.to_connector(keeper->ops.arg, &msg);
    explicit_bzero(&msg, sizeof msg);
    if (rc != 0) {
        dbp_ending_vacate(keeper, session);
        keeper->pools[pool].wake_at_us = dbp_now_us() + DBP_RESEND_US;
    }
    return rc == 0;
}

/* The session of an answer, if it is the one that was asked for. */
static struct kept *opening(struct dbp_keeper *keeper, uint32_t session, uint32_t incarnation) {
    if (session >= DBP_SESSIONS_MAX || dbp_word_state(word_of(keeper, session)) != DBP_OPENING ||
        !keeper->sessions[session].opening_sent || keeper->sessions[session].incarnation != incarnation)
        return NULL;
    return &keeper->sessions[session];
}

static void publish_error(struct dbp_pool *pool, const struct dbp_error *error) {
    struct dbp_error copy = *error;
    uint32_t words[DBP_ERROR_WORDS], seq = atomic_load(&pool->error_seq);

    copy.text[sizeof copy.text - 1] = '\0';
    copy.sqlstate[sizeof copy.sqlstate - 1] = '\0';
    memcpy(words, &copy, sizeof words);
    atomic_store(&pool->error_seq, seq | 1u);    /* readers: dbp_inspect_error */
    for (size_t i = 0; i < DBP_ERROR_WORDS; i++) /* release: error_seq is odd before any of them changes */
        atomic_store_explicit(&pool->error[i], words[i], memory_order_release);
    atomic_store(&pool->error_seq, (seq | 1u) + 1);
}

/* With sessions alive the waiters will be served by returns. Without, waiting longer would only hide the cause. */
static bool any_alive(const struct dbp_keeper *keeper, uint32_t pool) {
    return keeper->pools[pool].total >
           dbp_kept_count(keeper, pool, DBP_OPENING) + dbp_kept_count(keeper, pool, DBP_CLOSING);
}

/* A login that was asked for has failed, or counts as failed. */
static void count_failure(struct dbp_keeper *keeper, uint32_t pool, const struct dbp_error *error) {
    struct dbp_pool *p = &keeper->table->pools[pool];
    struct kept_pool *kp = &keeper->pools[pool];
    uint64_t now = dbp_now_us();
    bool refused = dbp_janitor_refused(error->code);

    publish_error(p, error);
    add(&p->count.failures);
    /* Those that fail together are one try: they were begun before it was known. */
    if (refused != kp->refused)
        kp->failures = 0;
    if (!refused || kp->failures == 0 || now >= kp->retry_at_us)
        kp->failures++;
    kp->refused = refused;
    kp->retry_at_us = now + dbp_janitor_backoff_us(kp->failures, refused);
    if (kp->last_logged == error->code && now < kp->logged_us + LOG_AGAIN_US)
        return;
    dbp_kept_say(keeper, DBP_LOG_ERROR, "pool '%s': login failed: (%u) %.*s", alias_of(keeper, pool), error->code,
                 (int)sizeof error->text - 1, error->text);
    kp->last_logged = error->code;
    kp->logged_us = now;
}

static bool is_the_passwords(uint32_t error_code) {
    return error_code == 1045 || error_code == 1698; /* ER_ACCESS_DENIED_, ER_ACCESS_DENIED_NO_PASSWORD_ERROR */
}

static void login_failed(struct dbp_keeper *keeper, uint32_t session, const struct dbp_error *error) {
    uint32_t pool = pool_of(keeper, session), before = keeper->sessions[session].waiters_before;
    uint64_t candidate = keeper->sessions[session].candidate;

    dbp_ending_vacate(keeper, session);
    if (candidate && is_the_passwords(error->code)) {
        /* The next login tries the other one. */
        struct kept_pool *kp = &keeper->pools[pool];
        uint64_t again_us = dbp_now_us() + dbp_janitor_backoff_us(kp->candidates_refused + 1, true);
        if (dbp_registry_candidate_refused(keeper->registry, pool, candidate, again_us)) {
            kp->candidates_refused++;
            dbp_kept_say(keeper, DBP_LOG_WARNING,
                         "pool '%s': the other password that a process has is refused by the server: the one before it "
                         "stays ((%u) %.*s)",
                         alias_of(keeper, pool), error->code, (int)sizeof error->text - 1, error->text);
        }
        dbp_opening_tend(keeper, pool);
        return;
    }
    count_failure(keeper, pool, error);
    /* Whoever came after this login was asked for may be met by a better one. */
    if (!any_alive(keeper, pool))
        dbp_handoff_fail(&keeper->share, handle_of(keeper, pool), before);
    dbp_opening_tend(keeper, pool);
}

/* Waiters for whom no login will be begun in the next moments: they learn why at once, instead of that they have waited
 * in vain. */
static void fail_the_hopeless(struct dbp_keeper *keeper, uint32_t pool) {
    static const struct dbp_error no_connector = {
        .code = 2013, /* CR_SERVER_LOST, as a driver */
        .sqlstate = "HY000",
        .text =
            "dbpool: no new session can be opened: the connector process, a child of the uWSGI master, does not run"};
    struct kept_pool *kp = &keeper->pools[pool];
    uint64_t now = dbp_now_us();
    bool missing = !keeper->connector && now >= keeper->connector_due_us;

    if (any_alive(keeper, pool) || dbp_kept_count(keeper, pool, DBP_OPENING) > 0 ||
        dbp_kept_waiting(keeper, pool, 1) == 0)
        return;
    if (missing && kp->failures == 0) /* else the reason is known better */
        publish_error(&keeper->table->pools[pool], &no_connector);
    if (missing || (kp->refused && kp->failures > 0 && now < kp->retry_at_us))
        dbp_handoff_fail(&keeper->share, handle_of(keeper, pool), atomic_load(&keeper->table->pools[pool].queue.tail));
}

static bool is_stream(int fd) {
    int type = 0;
    socklen_t length = sizeof type;

    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 && type == SOCK_STREAM;
}

void dbp_opening_delivered(struct dbp_keeper *keeper, const struct dbp_wire_opened *msg, int fd) {
    struct kept *kept = opening(keeper, msg->session, msg->incarnation);

    if (!kept) {
        dbp_kept_say(keeper, DBP_LOG_WARNING, "the connector delivered a session that nobody asked for");
        close(fd);
        return;
    }
    bool sane_facts = msg->facts.greeting_len <= DBP_GREETING_MAX && msg->facts.row_len <= DBP_FACTS_ROW_MAX &&
                      msg->facts.collation[sizeof msg->facts.collation - 1] == '\0';
    if (!sane_facts || !is_stream(fd)) {
        close(fd);
        login_failed(keeper, msg->session,
                     sane_facts
                         ? &(struct dbp_error){.code = 2027, .text = "the connector sent something that is no session"}
                         : &(struct dbp_error){.code = 2027, .text = "the connector sent malformed facts"});
        return;
    }
    uint32_t pool = pool_of(keeper, msg->session);
    dbp_kept_set_fd(keeper, msg->session, fd);
    kept->facts = msg->facts;
    kept->opening_sent = false;
    atomic_store(&shared(keeper, msg->session)->connection_id, msg->facts.connection_id);
    atomic_store(&shared(keeper, msg->session)->status, msg->facts.status & DBP_STATUS_KEPT);
    kept->endpoint = msg->endpoint;
    kept->opened_us = dbp_now_us();
    atomic_store(&shared(keeper, msg->session)->opened_us, kept->opened_us);
    const struct dbp_pool_spec *spec = dbp_registry_spec(keeper->registry, pool);
    uint64_t lifetime_us = 1000000ull * (spec ? spec->max_lifetime_s : 0);
    kept->spoke_us = dbp_now_us();
    kept->expires_us = lifetime_us ? kept->spoke_us + lifetime_us - dbp_kept_random(keeper, lifetime_us / 10) : 0;
    kept->replaced = false;
    dbp_kept_watch(keeper, msg->session, EPOLLRDHUP);
    dbp_resetting_introduce(keeper, msg->session);
    add(&keeper->table->pools[pool].count.opened);
    if (keeper->pools[pool].failures > 0)
        dbp_kept_say(keeper, DBP_LOG_INFO, "pool '%s': the server answers again", alias_of(keeper, pool));
    dbp_registry_candidate_proved(keeper->registry, pool, kept->candidate);
    if (kept->candidate)
        keeper->pools[pool].candidates_refused = 0;
    keeper->pools[pool].failures = 0;
    keeper->pools[pool].refused = false;
    keeper->pools[pool].retry_at_us = 0;
    keeper->pools[pool].last_logged = 0;
    if (dbp_kept_move(keeper, msg->session, DBP_OPENING, DBP_IDLE, 0)) /* else damaged: the next tick ends it */
        dbp_idle_offer(keeper->table, msg->session);
    dbp_handoff_match(&keeper->share, handle_of(keeper, pool));
    dbp_opening_tend(keeper, pool);
}

void dbp_opening_failed(struct dbp_keeper *keeper, const struct dbp_wire_failed *msg) {
    if (opening(keeper, msg->session, msg->incarnation))
        login_failed(keeper, msg->session, &msg->error);
}

void dbp_opening_forgive(struct dbp_keeper *keeper, uint32_t pool) {
    keeper->pools[pool].failures = 0;
    keeper->pools[pool].refused = false;
    keeper->pools[pool].retry_at_us = 0;
}

void dbp_opening_crashed(struct dbp_keeper *keeper, uint32_t session, bool alone) {
    static const struct dbp_error crashed = {
        .code = 2013, .sqlstate = "HY000", .text = "dbpool: the connector process died while it logged in"};
    uint32_t pool = pool_of(keeper, session);

    if (keeper->pools[pool].failures >= (alone ? CRASHES_MOST - 1 : CRASHES_MOST)) {
        login_failed(keeper, session, &crashed);
        return;
    }
    /* It may have been killed, or another login of that moment was the cause: whoever waits is not told so yet. Each
     * pool has one login at a time now, until one of its logins succeeds. */
    dbp_ending_vacate(keeper, session);
    count_failure(keeper, pool, &crashed);
}

void dbp_opening_overdue(struct dbp_keeper *keeper, uint32_t session) {
    /* An answer that comes after all is for an incarnation that nobody waits for, and its fd is closed. */
    login_failed(keeper, session, &(struct dbp_error){.code = 2013, .text = "the connector did not answer in time"});
}

/* ---- policy ---- */

/* The idle session that was returned longest ago goes. */
static bool retire_one(struct dbp_keeper *keeper, uint32_t pool) {
    uint32_t oldest = DBP_SESSIONS_MAX;
    uint64_t since = UINT64_MAX;
    dbp_word word = 0;

    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        dbp_word w = word_of(keeper, i);
        if (dbp_word_state(w) != DBP_IDLE || pool_of(keeper, i) != pool || dbp_kept_returned_us(keeper, i) >= since)
            continue;
        since = dbp_kept_returned_us(keeper, i);
        oldest = i;
        word = w;
    }
    if (oldest == DBP_SESSIONS_MAX || !dbp_session_move(keeper->table, oldest, word, DBP_CLOSING, 0, NULL))
        return false;
    dbp_ending_begin(keeper, oldest, false);
    return true;
}

/* Idle sessions of the pool that nobody used for so long, and when there will be one more (0: never). */
static void count_unused(struct dbp_keeper *keeper, uint32_t pool, uint64_t timeout_us, uint64_t now, uint32_t *np,
                         uint64_t *nextp) {
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        if (dbp_word_state(word_of(keeper, i)) != DBP_IDLE || pool_of(keeper, i) != pool)
            continue;
        uint64_t at = dbp_kept_returned_us(keeper, i) + timeout_us;
        if (at <= now)
            ++*np;
        else if (*nextp == 0 || at < *nextp)
            *nextp = at;
    }
}

void dbp_opening_replace(struct dbp_keeper *keeper, uint32_t session) {
    uint32_t pool = pool_of(keeper, session);
    struct dbp_kept_limits limits = dbp_kept_limits(keeper, pool);
    struct kept_pool *kp = &keeper->pools[pool];

    /* Only what the pool would keep; one more than that, and the old one simply goes. */
    if (!keeper->sessions[session].replaced && kp->failures == 0 && kp->total <= limits.pool_size &&
        kp->total < limits.cap)
        keeper->sessions[session].replaced = open_one(keeper, pool);
}

void dbp_opening_tend(struct dbp_keeper *keeper, uint32_t pool) {
    const struct dbp_pool_spec *spec = dbp_registry_spec(keeper->registry, pool);
    struct dbp_kept_limits limits = dbp_kept_limits(keeper, pool);
    struct kept_pool *kp = &keeper->pools[pool];

    if (!spec)
        return;
    kp->look_again = false;
    struct dbp_janitor_view view = {
        .now_us = dbp_now_us(),
        .memory = kp->memory,
        .retry_at_us = kp->retry_at_us,
        .failures = kp->failures,
        .refused = kp->refused,
        .opening = dbp_kept_count(keeper, pool, DBP_OPENING),
        .resetting = dbp_kept_count(keeper, pool, DBP_RESETTING),
        .idle = dbp_kept_count(keeper, pool, DBP_IDLE),
        .leased = dbp_kept_count(keeper, pool, DBP_LEASED) + dbp_kept_count(keeper, pool, DBP_GRANTED),
        .closing = dbp_kept_count(keeper, pool, DBP_CLOSING),
        .total = kp->total,
        .pool_size = limits.pool_size,
        .cap = limits.cap,
        .min_size = limits.min_size,
        .core_size = spec->core_size,
        .retire_interval_us = 1000ull * spec->retire_interval_ms,
        .retire_quantity = spec->retire_quantity,
        .unload_us = dbp_kept_random(keeper, 1000ull * spec->unload_timeout_ms),
    };
    view.waiting = dbp_kept_waiting(keeper, pool, view.cap);
    if (view.closing > view.total)
        view.closing = view.total;
    if (kp->allowance != UINT32_MAX) /* the room for all pools counts those that are being ended, a share does not */
        view.cap += view.closing;
    uint32_t standing = kp->total - view.closing;
    view.surplus = standing > limits.cap ? standing - limits.cap : 0;
    if (spec->idle_timeout_s > 0)
        count_unused(keeper, pool, 1000000ull * spec->idle_timeout_s, view.now_us, &view.stale, &view.next_stale_us);
    if (spec->overflow_grace_ms > 0 && standing > limits.pool_size)
        count_unused(keeper, pool, 1000ull * spec->overflow_grace_ms, view.now_us, &view.rested, &view.next_rested_us);
    else
        view.rested = view.idle;
    struct dbp_janitor_plan plan = dbp_janitor_plan(&view);
    kp->memory = plan.memory;
    kp->wake_at_us = plan.wake_at_us;
    while (plan.open-- > 0 && open_one(keeper, pool))
        continue;
    while (plan.retire > 0 && retire_one(keeper, pool)) {
        plan.retire--;
        view.closing++;
    }
    uint32_t live = kp->total > view.closing ? kp->total - view.closing : 0;
    dbp_rationing_mark(keeper, pool, live > limits.cap ? live - limits.cap : 0);
    fail_the_hopeless(keeper, pool);
}
