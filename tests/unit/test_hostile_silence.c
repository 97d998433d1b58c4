/* SPDX-License-Identifier: MIT
 * Peers that never speak again: a connector that does not answer, a server that does not answer a reset or does not
 * hang up, a KILL that always fails. The keeper alone, under a clock that the test moves: each wait has an end, and
 * the place in the cap comes back (I2).
 */
#include "ending.h"
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
#include <unistd.h>

#include <cmocka.h>

static uint64_t now;

/* Instead of clock.c. */
uint64_t dbp_now_us(void) {
    return now;
}

static struct dbp_share share;
static struct dbp_table *table;
static struct dbp_registry *registry;
static struct dbp_keeper *keeper;
static struct dbp_pool_counters *count;
static int control, server = -1, fds_before;
static union dbp_wire_any asked; /* the last request to the connector; its password is the test's */
static uint32_t n_opens, n_kills;

static int to_connector(void *arg, const union dbp_wire_any *msg) {
    (void)arg;
    n_opens += msg->head.type == DBP_WIRE_OPEN;
    n_kills += msg->head.type == DBP_WIRE_KILL;
    asked = *msg;
    return 0;
}

static int watch(void *arg, uint32_t session, uint32_t incarnation, int fd, uint32_t events, bool first) {
    (void)incarnation;
    (void)arg;
    (void)session;
    (void)fd;
    (void)events;
    (void)first;
    return 0;
}

static int setup(void **state) {
    struct dbp_keeper_ops ops = {.log = test_keeper_log, .to_connector = to_connector, .watch = watch};
    struct dbp_pool_spec spec = test_spec("silent", 1, 0);
    char text[DBP_TEXT_MAX];
    uint32_t pool;
    bool added;

    (void)state;
    fds_before = fd_census(0);
    now = 5000000000;
    n_opens = n_kills = 0;
    if (dbp_share_new(3, &share, &control) != 0 || dbp_registry_new(&registry) != 0 ||
        dbp_registry_put(registry, share.table, &spec, text, &pool, &added) != 0 ||
        dbp_keeper_new(&share, registry, &ops, DBP_SESSIONS_MAX, &keeper) != 0)
        return -1;
    table = share.table;
    count = &table->pools[0].count;
    dbp_keeper_attached(keeper, 1, 1);
    dbp_keeper_connector_ready(keeper);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    keeper = dbp_keeper_free(keeper);
    registry = dbp_registry_free(registry);
    close(control);
    if (server >= 0)
        close(server);
    server = -1;
    dbp_share_free(&share);
    return fd_census(0) == fds_before ? 0 : -1;
}

/* As the broker's loop: at the moment that the keeper asked for, again and again, until then. */
static void pass(uint64_t seconds) {
    uint64_t end = now + seconds * 1000000u, next;

    for (int turns = 0; turns < 100000; turns++) {
        next = dbp_keeper_tick(keeper);
        if (next > end)
            break;
        now = next > now ? next : now + 1;
    }
    now = end;
    (void)dbp_keeper_tick(keeper);
}

static uint32_t wait_in_line(void) {
    uint32_t ticket = 0;

    assert_true(dbp_queue_push(&table->pools[0].queue, 1, true, &ticket));
    dbp_keeper_attend(keeper, 0);
    return ticket;
}

static int claim(uint32_t ticket, uint32_t *sessionp, dbp_word *wordp) {
    return dbp_handoff_claim(&share, 0, ticket, dbp_holder(1, 1), sessionp, wordp);
}

static void deliver(void) {
    struct dbp_wire_opened opened;
    int pair[2];

    memset(&opened, 0, sizeof opened);
    opened.session = asked.open.session;
    opened.incarnation = asked.open.incarnation;
    opened.facts.status = 2;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    if (server >= 0)
        close(server);
    server = pair[1];
    dbp_opening_delivered(keeper, &opened, pair[0]);
}

static void lease(uint32_t *sessionp, dbp_word *wordp) {
    uint32_t ticket = wait_in_line();

    assert_int_equal(asked.head.type, DBP_WIRE_OPEN);
    deliver();
    assert_int_equal(claim(ticket, sessionp, wordp), 0);
}

static void test_a_login_that_is_never_answered_fails_at_last(void **state) {
    uint32_t ticket = wait_in_line(), session;
    struct dbp_wire_opened late;
    dbp_word word;
    int pair[2];

    (void)state;
    assert_int_equal(n_opens, 1);
    memset(&late, 0, sizeof late);
    late.session = asked.open.session;
    late.incarnation = asked.open.incarnation;
    pass(69); /* its own limits, twice the connect timeout, and a minute */
    assert_int_equal(atomic_load(&count->state[DBP_OPENING]), 1);
    assert_int_equal(claim(ticket, &session, &word), DBP_E_BUSY);
    pass(2);
    assert_int_equal(claim(ticket, &session, &word), DBP_E_FAILED); /* who waited is told */
    assert_int_equal(atomic_load(&count->failures), 1);
    /* It comes after all: too late, and closed. */
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    dbp_opening_delivered(keeper, &late, pair[0]);
    char byte;
    assert_int_equal(recv(pair[1], &byte, 1, MSG_DONTWAIT), 0);
    close(pair[1]);
    assert_int_equal(dbp_pool_count(share.table, 0, DBP_IDLE), 0);
    pass(2);
    lease(&session, &word); /* the next one is served */
}

static void test_a_reset_that_is_never_answered_is_killed(void **state) {
    uint32_t session;
    dbp_word word;

    (void)state;
    lease(&session, &word);
    assert_true(dbp_session_move(table, session, word, DBP_RESETTING, DBP_RESET_ROLLBACK, NULL));
    dbp_keeper_attend(keeper, 0);
    pass(25);
    assert_int_equal(atomic_load(&count->state[DBP_RESETTING]), 1); /* a long rollback is no fault */
    assert_int_equal(n_kills, 0);
    pass(10);
    assert_int_equal(n_kills, 1);
    assert_int_equal(asked.kill.session, session);
}

static void answer_kill(uint32_t session, uint32_t code) {
    struct dbp_wire_killed killed = {.session = session, .incarnation = asked.kill.incarnation};

    killed.error.code = code;
    dbp_ending_killed(keeper, &killed);
}

static void doom(uint32_t *sessionp) {
    dbp_word word;

    lease(sessionp, &word);
    assert_true(dbp_session_move(table, *sessionp, word, DBP_CLOSING, 1, NULL));
    dbp_keeper_attend(keeper, 0);
}

/* The server has the session for as long as it does not say otherwise: another one in its place would be one too many.
 */
static void test_I3_a_kill_that_fails_is_asked_again_for_ever(void **state) {
    uint32_t session;

    (void)state;
    doom(&session);
    uint32_t ticket = wait_in_line();
    for (uint32_t i = 0; i < 100; i++) {
        answer_kill(session, 2003);
        uint32_t before = n_kills;
        pass(1);
        assert_int_equal(n_kills, before + 1);
        assert_int_equal(atomic_load(&count->state[DBP_CLOSING]), 1);
        assert_int_equal(n_opens, 1);
    }
    uint32_t next;
    dbp_word word;
    assert_int_equal(claim(ticket, &next, &word), DBP_E_BUSY);
}

/* One who is refused is refused again, and the server counts it. */
static void test_a_refused_kill_is_asked_again_seldom(void **state) {
    uint32_t session;

    (void)state;
    doom(&session);
    for (uint32_t i = 0; i < 300; i++) {
        if (asked.head.type == DBP_WIRE_KILL)
            answer_kill(session, 1045);
        asked.head.type = 0;
        pass(1);
    }
    assert_in_range(n_kills, 5, 9);
}

static void test_I3_a_killed_session_keeps_its_place_until_the_server_hangs_up(void **state) {
    uint32_t session, next;
    dbp_word word;

    (void)state;
    doom(&session);
    uint32_t ticket = wait_in_line();
    answer_kill(session, 0);
    pass(100);
    assert_int_equal(n_kills, 1);
    assert_int_equal(n_opens, 1);
    shutdown(server, SHUT_RDWR);
    dbp_keeper_event(keeper, session, EPOLLIN | EPOLLRDHUP);
    pass(1);
    assert_int_equal(n_opens, 2);
    deliver();
    assert_int_equal(claim(ticket, &next, &word), 0);
}

/* What stands between forgets to hang up: the server has spoken for itself. */
static void test_I3_a_session_that_its_server_does_not_know_gives_its_place_back(void **state) {
    uint32_t session, next;
    dbp_word word;

    (void)state;
    doom(&session);
    uint32_t ticket = wait_in_line();
    pass(30);
    answer_kill(session, 1094);
    pass(9);
    assert_int_equal(n_opens, 1);
    pass(2);
    assert_int_equal(n_opens, 2);
    deliver();
    assert_int_equal(claim(ticket, &next, &word), 0);
    assert_int_equal(atomic_load(&count->closed), 1);
}

static void test_a_server_that_does_not_quit_is_told_by_kill(void **state) {
    uint32_t session;
    dbp_word word;

    (void)state;
    lease(&session, &word);
    assert_true(dbp_session_move(table, session, word, DBP_CLOSING, 0, NULL));
    dbp_keeper_attend(keeper, 0);
    pass(9);
    assert_int_equal(n_kills, 0);
    pass(2);
    assert_int_equal(n_kills, 1);
    assert_int_equal(asked.kill.connection_id, 0);
    assert_int_equal(atomic_load(&count->state[DBP_CLOSING]), 1);
}

/* A KILL needs a login, and the server has none left: one idle session goes for it, and nothing is opened meanwhile. */
static void makes_room(uint32_t code) {
    struct dbp_pool_spec spec = test_spec("silent", 2, 0);
    char text[DBP_TEXT_MAX];
    uint32_t idle, dead, pool;
    dbp_word word;
    bool added;

    assert_int_equal(dbp_registry_put(registry, table, &spec, text, &pool, &added), 0);
    lease(&idle, &word);
    doom(&dead);
    assert_true(dbp_idle_put(table, idle, word));
    answer_kill(dead, code);
    assert_int_equal(dbp_word_state(atomic_load(&table->sessions[idle].word)), DBP_CLOSING);
    dbp_ending_done(keeper, idle);
    wait_in_line();
    uint32_t opens = n_opens, kills = n_kills;
    asked.head.type = 0;
    for (int i = 0; i < 1000 && asked.head.type != DBP_WIRE_KILL; i++) {
        now += 1000;
        (void)dbp_keeper_tick(keeper);
    }
    assert_int_equal(n_kills, kills + 1);
    assert_int_equal(asked.kill.session, dead);
    assert_int_equal(n_opens, opens);
    pass(1);
    assert_int_equal(n_opens, opens + 1);
}

static void test_an_idle_session_makes_room_for_a_kill(void **state) {
    static const uint32_t codes[] = {1040, 1203, 1226};

    for (size_t i = 0; i < 3; i++) {
        makes_room(codes[i]);
        assert_int_equal(teardown(state), 0);
        assert_int_equal(setup(state), 0);
    }
}

/* Any process can write over the word while the server answers: the broker's process goes on, and the session ends. */
static void test_a_word_that_is_overwritten_during_a_reset(void **state) {
    static const uint8_t ok[] = {7, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0};

    for (uint32_t value = 0; value < 16; value++) {
        uint32_t session, next;
        dbp_word word;
        lease(&session, &word);
        assert_true(dbp_session_move(table, session, word, DBP_RESETTING, DBP_RESET_ROLLBACK, NULL));
        dbp_keeper_attend(keeper, 0);
        dbp_word right = atomic_load(&table->sessions[session].word);
        atomic_store(&table->sessions[session].word, (right & ~(dbp_word)0xf) | value);
        assert_int_equal(send(server, ok, sizeof ok, MSG_NOSIGNAL), sizeof ok);
        dbp_keeper_event(keeper, session, EPOLLIN);
        pass(1);
        if (value != DBP_RESETTING) {
            close(server);
            server = -1;
            dbp_keeper_event(keeper, session, EPOLLIN | EPOLLRDHUP);
        }
        pass(1);
        uint32_t ticket = wait_in_line();
        if (value == DBP_RESETTING)
            dbp_handoff_match(&share, 0);
        else
            deliver();
        assert_int_equal(claim(ticket, &next, &word), 0);
        assert_int_equal(teardown(state), 0);
        assert_int_equal(setup(state), 0);
    }
}

/* The table says for people which session this is; what is killed, and where, is the broker's own knowledge. */
static void test_what_is_killed_is_not_read_from_the_table(void **state) {
    uint32_t session, ticket = wait_in_line();
    struct dbp_wire_opened opened;
    dbp_word word;
    int pair[2];

    (void)state;
    memset(&opened, 0, sizeof opened);
    opened.session = asked.open.session;
    opened.incarnation = asked.open.incarnation;
    opened.facts.status = 2;
    opened.facts.connection_id = 101;
    opened.endpoint.length = 16;
    memset(opened.endpoint.address, 7, 16);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    server = pair[1];
    uint64_t then = now;
    dbp_opening_delivered(keeper, &opened, pair[0]);
    assert_int_equal(claim(ticket, &session, &word), 0);
    atomic_store(&table->sessions[session].connection_id, 4711);
    atomic_store(&table->sessions[session].incarnation, 4712);
    atomic_store(&table->sessions[session].opened_us, UINT64_MAX);
    pass(3);
    assert_true(dbp_session_move(table, session, word, DBP_CLOSING, 1, NULL));
    dbp_keeper_attend(keeper, 0);
    assert_int_equal(asked.head.type, DBP_WIRE_KILL);
    assert_int_equal(asked.kill.connection_id, 101);
    assert_int_equal(asked.kill.incarnation, opened.incarnation);
    assert_true(asked.kill.opened_us == then);
    assert_memory_equal(&asked.kill.endpoint, &opened.endpoint, sizeof opened.endpoint); /* the session's own server */
}

/* A container's process has no pid here: who is attached is known by its channel. */
static void test_a_holder_without_a_pid_keeps_its_lease(void **state) {
    uint32_t session;
    dbp_word word;

    (void)state;
    lease(&session, &word);
    assert_int_equal(atomic_load(&table->procs[1].pid), 0);
    wait_in_line();
    pass(5);
    assert_true(atomic_load(&table->sessions[session].word) == word);
    assert_false(dbp_queue_quiet(&table->pools[0].queue));
    dbp_keeper_attached(keeper, 1, 0); /* and without a channel nobody has it */
    pass(2);
    assert_int_equal(dbp_word_state(atomic_load(&table->sessions[session].word)), DBP_CLOSING);
}

/* Nobody has used the pool for long, so nobody looks at its queue; the first one who finds it full rings. */
static void test_a_queue_that_was_damaged_while_nobody_used_it(void **state) {
    struct dbp_queue *queue = &table->pools[0].queue;
    uint32_t ticket;

    (void)state;
    pass(5);
    atomic_store(&queue->places[atomic_load(&queue->tail) % DBP_WAITERS_MAX], UINT64_C(0x3d52451a227507d4));
    assert_false(dbp_queue_push(queue, 1, true, &ticket));
    dbp_handoff_ring(&share, 0);
    assert_true(dbp_attention(table, 0));
    dbp_keeper_attend(keeper, 0);
    pass(2);
    assert_true(dbp_queue_push(queue, 1, true, &ticket));
}

/* When a session was returned is written by its holder. */
static void test_a_return_in_the_future_does_not_keep_a_session_for_ever(void **state) {
    static const uint64_t lies[] = {UINT64_MAX, 0, 1};
    struct dbp_pool_spec spec = test_spec("silent", 1, 0);
    char text[DBP_TEXT_MAX];
    uint32_t session, pool;
    dbp_word word;
    bool added;

    spec.idle_timeout_s = 3;
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        assert_int_equal(dbp_registry_put(registry, table, &spec, text, &pool, &added), 0);
        lease(&session, &word);
        assert_true(dbp_idle_put(table, session, word));
        atomic_store(&table->sessions[session].returned_us, lies[i]);
        pass(1);
        assert_int_equal(dbp_word_state(atomic_load(&table->sessions[session].word)), DBP_IDLE);
        pass(5);
        assert_int_equal(dbp_word_state(atomic_load(&table->sessions[session].word)), DBP_CLOSING);
        assert_int_equal(teardown(state), 0);
        assert_int_equal(setup(state), 0);
    }
}

/* A login is the broker's and the connector's alone: there is nothing to end, to reset or to KILL. */
static void test_a_word_that_is_overwritten_during_a_login(void **state) {
    for (uint32_t value = 0; value < 16; value++) {
        uint32_t ticket = wait_in_line(), session = asked.open.session, next;
        dbp_word word = atomic_load(&table->sessions[session].word);
        atomic_store(&table->sessions[session].word, (word & ~(dbp_word)0xfffffff) | 1u << 4 | value);
        dbp_keeper_attend(keeper, 0);
        dbp_keeper_holder_died(keeper, 1);
        assert_int_equal(n_kills, 0);
        pass(1);
        assert_int_equal(n_kills, 0);
        ticket = wait_in_line();
        deliver();
        assert_int_equal(claim(ticket, &next, &word), 0);
        assert_int_equal(teardown(state), 0);
        assert_int_equal(setup(state), 0);
    }
}

static void test_a_ping_that_is_never_answered_costs_the_session(void **state) {
    uint32_t session, next;
    dbp_word word;

    (void)state;
    struct dbp_pool_spec spec = test_spec("silent", 1, 0);
    char text[DBP_TEXT_MAX];
    bool added;
    spec.keepalive_s = 60;
    assert_int_equal(dbp_registry_put(registry, table, &spec, text, &next, &added), 0);
    lease(&session, &word);
    atomic_store(&table->sessions[session].returned_us, now);
    assert_true(dbp_idle_put(table, session, word));
    pass(59);
    assert_int_equal(dbp_pool_count(share.table, 0, DBP_IDLE), 1);
    pass(2);
    assert_int_equal(atomic_load(&count->state[DBP_RESETTING]), 1);
    uint32_t ticket = wait_in_line(); /* at the cap: waits for it */
    pass(31);
    assert_int_equal(n_kills, 1);
    shutdown(server, SHUT_RDWR); /* now it goes */
    dbp_keeper_event(keeper, session, EPOLLIN | EPOLLRDHUP);
    pass(1);
    assert_int_equal(n_opens, 2);
    deliver();
    assert_int_equal(claim(ticket, &next, &word), 0);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_a_login_that_is_never_answered_fails_at_last),
        TEST(test_a_reset_that_is_never_answered_is_killed),
        TEST(test_I3_a_kill_that_fails_is_asked_again_for_ever),
        TEST(test_a_refused_kill_is_asked_again_seldom),
        TEST(test_I3_a_killed_session_keeps_its_place_until_the_server_hangs_up),
        TEST(test_I3_a_session_that_its_server_does_not_know_gives_its_place_back),
        TEST(test_a_server_that_does_not_quit_is_told_by_kill),
        TEST(test_an_idle_session_makes_room_for_a_kill),
        TEST(test_a_word_that_is_overwritten_during_a_reset),
        TEST(test_what_is_killed_is_not_read_from_the_table),
        TEST(test_a_holder_without_a_pid_keeps_its_lease),
        TEST(test_a_queue_that_was_damaged_while_nobody_used_it),
        TEST(test_a_return_in_the_future_does_not_keep_a_session_for_ever),
        TEST(test_a_word_that_is_overwritten_during_a_login),
        TEST(test_a_ping_that_is_never_answered_costs_the_session),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
