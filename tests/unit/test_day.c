/* SPDX-License-Identifier: MIT
 * A bursty day, played against the real keeper, table, queue and hand-off on a clock of this test's own: two hours of
 * an ancestor's user ("fast_and_wild", with a floor and ages, and sooner grown), quiet but for six bursts. This process
 * is the broker's loop, the connector (a login takes 150 ms), the server (an end of file is answered at once) and all
 * clients.
 *
 * Checked at every step, at the table's words and at what the server sees: the cap (I3), the floor, the order of
 * arrival with waiters that give up in between (I4), the age of what is handed out, who is retired (least recently used
 * first, nobody while one waits, at the policy's pace, politely), and that nobody starves.
 */
#include "handoff.h"
#include "keeper.h"
#include "opening.h"
#include "share.h"

#include "../support/helpers.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define MS 1000ull
#define S 1000000ull
#define SLOT 1u /* of the one process that all clients are */

enum { CAP = 30, CORE = 5, FLOOR = 2, RECYCLE_S = 900, LIFETIME_S = 600, INTERVAL_S = 5, UNLOAD_MS = 500 };
enum { DAY_S = 7200, BURST_EVERY_S = 1200, BURST_AT_S = 600, BURST_S = 3, BUSY_S = 15 };
#define LOGIN_US (150 * MS)
#define LEASE_US (20 * MS)
/* The waits before growing by four (half a second at most each), the logins, and the burst's 4500 leases by CAP
 * sessions. */
#define LONGEST_US (10 * S)

static uint64_t now_us = 1000 * S;

/* Instead of core/clock.c's. */
uint64_t dbp_now_us(void) {
    return now_us;
}

static struct dbp_share share;
static struct dbp_table *table;
static struct dbp_queue *queue;
static struct dbp_registry *registry;
static struct dbp_keeper *keeper;
static struct dbp_pool_spec spec;
static uint32_t pool;
static int control = -1;
static uint64_t seed;

/* ---- the connector and the server ---- */

static struct {
    uint64_t due_us; /* of its login; 0: none under way */
    uint32_t incarnation;
    int server_fd; /* -1: none */
} sessions[DBP_SESSIONS_MAX];
static uint32_t logins, kills, connection_id;

static int to_connector(void *arg, const union dbp_wire_any *msg) {
    (void)arg;
    if (msg->head.type == DBP_WIRE_KILL) {
        kills++;
        return 0;
    }
    sessions[msg->open.session].due_us = now_us + LOGIN_US;
    sessions[msg->open.session].incarnation = msg->open.incarnation;
    logins++;
    return 0;
}

static int no_watch(void *arg, uint32_t session, uint32_t incarnation, int fd, uint32_t events, bool first) {
    (void)incarnation;
    (void)arg, (void)session, (void)fd, (void)events, (void)first;
    return 0; /* the server's step below says which fds have events */
}

static bool rung;        /* a client has something for the broker to look at */
static uint64_t wake_us; /* when the keeper wants to be called again */

static void serve_logins_and_ends(void) {
    uint8_t bytes[64];

    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        if (sessions[i].due_us != 0 && sessions[i].due_us <= now_us) {
            struct dbp_wire_opened opened;
            int fds[2];
            memset(&opened, 0, sizeof opened);
            assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), 0);
            opened.session = i;
            opened.incarnation = sessions[i].incarnation;
            opened.facts.connection_id = ++connection_id;
            opened.facts.status = 2;
            sessions[i].due_us = 0;
            sessions[i].server_fd = fds[1];
            dbp_opening_delivered(keeper, &opened, fds[0]);
            wake_us = now_us; /* as broker.c: each message and event is followed by a tick */
        }
        if (sessions[i].server_fd >= 0) {
            ssize_t got = recv(sessions[i].server_fd, bytes, sizeof bytes, 0);
            if (got < 0)
                continue;
            assert_true(got == 5 && bytes[4] == 1); /* COM_QUIT is all that a session without holder may hear */
            assert_int_equal(recv(sessions[i].server_fd, bytes, sizeof bytes, 0), 0);
            close(sessions[i].server_fd);
            sessions[i].server_fd = -1;
            dbp_keeper_event(keeper, i, EPOLLIN | EPOLLRDHUP);
            wake_us = now_us;
        }
    }
}

/* ---- the clients: as client.c does it ---- */

struct request {
    uint64_t arrived_us, patience_us; /* gives up after so long; 0: never */
    uint32_t ticket;
};
static struct request waiting[8192]; /* in order of arrival */
static uint32_t n_waiting;
static struct {
    bool held;
    uint64_t until_us;
    dbp_word word;
} leases[DBP_SESSIONS_MAX];
static uint64_t longest_us;
static uint32_t arrived, served, gave_up, at_once;

static enum dbp_state state_of(uint32_t session) {
    return dbp_word_state(atomic_load(&table->sessions[session].word));
}

static void begin_lease(uint32_t session, dbp_word word, uint64_t arrived_us) {
    uint64_t age = now_us - atomic_load(&table->sessions[session].opened_us);

    assert_false(leases[session].held); /* I1 */
    assert_true(age < RECYCLE_S * S && age < LIFETIME_S * S);
    leases[session].held = true;
    leases[session].word = word;
    leases[session].until_us = now_us + (test_random(&seed) % 50 == 0 ? 25 * LEASE_US : LEASE_US);
    longest_us = now_us - arrived_us > longest_us ? now_us - arrived_us : longest_us;
    served++;
}

static void arrive(void) {
    struct request *request = &waiting[n_waiting];
    uint32_t session;
    dbp_place oldest;
    dbp_word word;

    arrived++;
    if ((dbp_queue_quiet(queue) || !dbp_queue_oldest(queue, &oldest)) &&
        dbp_idle_take(table, pool, DBP_LEASED, dbp_holder(SLOT, 1), &session, &word)) {
        assert_int_equal(n_waiting, 0); /* I4: nobody is overtaken */
        assert_int_equal(atomic_load(&table->sessions[session].unfit), 0);
        at_once++;
        begin_lease(session, word, now_us);
        return;
    }
    assert_true(n_waiting < sizeof waiting / sizeof *waiting);
    request->arrived_us = now_us;
    request->patience_us = test_random(&seed) % 20 == 0 ? 50 * MS + test_random(&seed) % S : 0;
    assert_true(dbp_queue_push(queue, SLOT, true, &request->ticket));
    atomic_fetch_add(&table->pools[pool].count.waiting, 1);
    n_waiting++;
    if (dbp_idle_any(table, pool))
        dbp_handoff_match(&share, pool);
    rung = true;
}

/* I4: those who were served are the oldest of those who have not given up. */
static void take_grants(void) {
    bool one_waits = false;
    uint32_t kept = 0;

    for (uint32_t i = 0; i < n_waiting; i++) {
        struct request request = waiting[i];
        uint32_t session;
        dbp_word word;
        int rc = dbp_handoff_claim(&share, pool, request.ticket, dbp_holder(SLOT, 1), &session, &word);
        if (rc == 0) {
            assert_false(one_waits);
            begin_lease(session, word, request.arrived_us);
            continue;
        }
        assert_int_equal(rc, DBP_E_BUSY);
        if (request.patience_us != 0 && now_us - request.arrived_us >= request.patience_us) {
            assert_int_equal(dbp_handoff_cancel(&share, pool, request.ticket, dbp_holder(SLOT, 1), &session, &word),
                             DBP_E_TIMEOUT);
            gave_up++;
            continue;
        }
        one_waits = true;
        waiting[kept++] = request;
    }
    n_waiting = kept;
}

static void end_leases(void) {
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        if (!leases[i].held || leases[i].until_us > now_us)
            continue;
        leases[i].held = false;
        atomic_store(&table->sessions[i].returned_us, now_us);
        if (atomic_load(&table->sessions[i].unfit)) {
            assert_true(dbp_session_move(table, i, leases[i].word, DBP_CLOSING, 0, NULL));
            rung = true;
        } else {
            assert_true(dbp_idle_put(table, i, leases[i].word));
            if (!dbp_queue_quiet(queue))
                dbp_handoff_match(&share, pool);
        }
    }
}

/* ---- the broker, and what it may do ---- */

static uint64_t interval_end_us;
static uint32_t retired_of_interval, retired, too_old, most;

static void check_what_was_ended(const bool *was_idle, uint32_t waited) {
    uint64_t newest_gone = 0, oldest_left = UINT64_MAX;
    uint32_t gone = 0;

    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        uint64_t returned = atomic_load(&table->sessions[i].returned_us);
        if (!was_idle[i])
            continue;
        if (state_of(i) == DBP_IDLE) {
            oldest_left = returned < oldest_left ? returned : oldest_left;
        } else if (atomic_load(&table->sessions[i].unfit)) {
            too_old++;
        } else if (state_of(i) == DBP_CLOSING) {
            newest_gone = returned > newest_gone ? returned : newest_gone;
            gone++;
        }
    }
    assert_true(gone == 0 || (waited == 0 && newest_gone <= oldest_left));
    if (now_us >= interval_end_us) {
        interval_end_us = now_us + INTERVAL_S * S;
        retired_of_interval = 0;
    }
    retired_of_interval += gone;
    retired += gone;
    assert_true(retired_of_interval <= 2); /* the policy's intervals and this test's may overlap */
}

static void check_sizes(bool warm) {
    uint32_t total = 0, closing = 0, at_server = 0;

    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        total += state_of(i) != DBP_EMPTY;
        closing += state_of(i) == DBP_CLOSING;
        at_server += sessions[i].server_fd >= 0 || sessions[i].due_us != 0;
    }
    assert_true(total <= CAP);
    assert_true(at_server <= CAP);
    assert_true(!warm || total - closing >= FLOOR);
    most = at_server > most ? at_server : most;
}

static void broker_turn(void) {
    static bool was_idle[DBP_SESSIONS_MAX];
    uint32_t waited = n_waiting;

    serve_logins_and_ends();
    for (int turn = 0; rung || wake_us <= now_us; turn++) {
        assert_true(turn < 100); /* else it wants to be called for ever at one moment */
        for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++)
            was_idle[i] = state_of(i) == DBP_IDLE;
        if (rung)
            dbp_keeper_attend(keeper, pool);
        rung = false;
        wake_us = dbp_keeper_tick(keeper);
        check_what_was_ended(was_idle, waited);
        serve_logins_and_ends();
    }
}

/* ---- the day ---- */

static int setup(void **state) {
    struct dbp_keeper_ops ops = {.log = test_keeper_log, .to_connector = to_connector, .watch = no_watch};
    char text[DBP_TEXT_MAX];
    bool added;

    struct timespec ts;

    (void)state;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    now_us = 1000 * S + (uint64_t)ts.tv_nsec; /* another seed each time */
    seed = test_seed();
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++)
        sessions[i].server_fd = -1;
    spec = test_spec("default", CAP, 0);
    spec.core_size = CORE;
    spec.min_size = FLOOR;
    spec.recycle_s = RECYCLE_S;
    spec.max_lifetime_s = LIFETIME_S;
    spec.retire_interval_ms = INTERVAL_S * 1000;
    spec.retire_quantity = 1;
    spec.unload_timeout_ms = UNLOAD_MS;
    if (dbp_share_new(4, &share, &control) != 0 || dbp_registry_new(&registry) != 0)
        return -1;
    table = share.table;
    if (dbp_registry_put(registry, table, &spec, text, &pool, &added) != 0)
        return -1;
    queue = &table->pools[pool].queue;
    if (dbp_keeper_new(&share, registry, &ops, DBP_SESSIONS_MAX, &keeper) != 0)
        return -1;
    dbp_keeper_attached(keeper, SLOT, 1); /* the keeper ends what strangers hold */
    dbp_keeper_connector_ready(keeper);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    keeper = dbp_keeper_free(keeper);
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++)
        if (sessions[i].server_fd >= 0)
            close(sessions[i].server_fd);
    registry = dbp_registry_free(registry);
    close(control);
    dbp_share_free(&share);
    return 0;
}

static void step(uint32_t arrivals, uint64_t began_us) {
    broker_turn();
    end_leases();
    take_grants();
    while (arrivals-- > 0)
        arrive();
    broker_turn();
    take_grants();
    check_sizes(now_us - began_us > S);
}

static void test_a_bursty_day(void **state) {
    uint64_t began = now_us, calm_since_us = 0;
    uint32_t bursts_over = 0;

    (void)state;
    while (now_us - began < DAY_S * S) {
        uint64_t of_hour = (now_us - began) % (BURST_EVERY_S * S);
        bool burst = of_hour >= BURST_AT_S * S && of_hour < (BURST_AT_S + BURST_S) * S;
        bool busy = of_hour >= BURST_AT_S * S && of_hour < (BURST_AT_S + BUSY_S) * S;

        step(now_us - began < 2 * S ? 0 : burst ? 15 : test_random(&seed) % (busy ? 25 : 4) == 0, began);
        now_us += busy ? 10 * MS : 100 * MS;
        if (busy) {
            calm_since_us = now_us;
        } else if (calm_since_us != 0 && now_us - calm_since_us > (CAP + 2) * INTERVAL_S * S) {
            /* Long enough for all of a burst's to have gone, one by one: what is idle is the core. */
            assert_true(dbp_pool_count(table, pool, DBP_IDLE) <= CORE + 1); /* +1: it replaces one */
            calm_since_us = 0;
            bursts_over++;
        }
    }
    for (int i = 0; i < 1000 && (n_waiting > 0 || i < 100); i++, now_us += 10 * MS)
        step(0, began);
    print_message("%u requests, %u at once, %u gave up; longest wait %llu ms, most %u sessions, %u logins, %u retired, "
                  "%u too old\n",
                  arrived, at_once, gave_up, (unsigned long long)(longest_us / MS), most, logins, retired, too_old);
    assert_int_equal(n_waiting, 0);
    assert_int_equal(served + gave_up, arrived);
    assert_true(longest_us < LONGEST_US);
    /* It was a day in which all of this could have gone wrong. */
    assert_int_equal(bursts_over, DAY_S / BURST_EVERY_S);
    assert_int_equal(most, CAP);
    assert_true(retired > 0 && too_old > 0 && gave_up > 0 && at_once > 0);
    assert_int_equal(kills, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_bursty_day, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
