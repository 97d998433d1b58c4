/* SPDX-License-Identifier: MIT
 * The real broker in this process, a fake connector and server in a child, clients as puppets in others. Every test
 * ends with this process's fds as they were before it.
 */
#include "attach.h"
#include "broker.h"
#include "inspect.h"

#include "../support/puppet.h"
#include "../support/stage.h"

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define SLOTS 6u

static struct dbp_pool_counters *count;
static struct dbp_pool_spec spec;

/* The broker's thread stays in the question whether somebody is the connector, his channel in its hand, until a fork
 * was made beside it, or for so long that one would have been. */
static _Atomic bool asked, forked;

static void stay(void) {
    if (atomic_exchange(&asked, true))
        return;
    for (int i = 0; i < 300 && !atomic_load(&forked); i++)
        poll(NULL, 0, 1);
}

/* Set: the log stands still. */
static _Atomic bool hold_log, in_log;
static _Atomic uint32_t lost_lines;

static void on_log(enum dbp_log_level level, const char *text) {
    test_log(level, text);
    if (strstr(text, "lines are lost"))
        atomic_fetch_add(&lost_lines, 1);
    if (!atomic_load(&hold_log))
        return;
    atomic_store(&in_log, true);
    while (atomic_load(&hold_log))
        poll(NULL, 0, 1);
}

static int setup_with(uint32_t size, uint32_t overflow) {
    spec = test_spec("default", size, overflow);
    atomic_store(&log_warnings, 0);
    if (stage_open(SLOTS, (struct dbp_broker_ops){.log = on_log}) != 0)
        return -1;
    count = &share.table->pools[0].count;
    return 0;
}

static int setup(void **state) {
    (void)state;
    return setup_with(2, 0);
}

static int setup_overflow(void **state) {
    (void)state;
    return setup_with(1, 2);
}

static int teardown(void **state) {
    (void)state;
    return stage_close();
}

static struct puppet *client(void) {
    return puppet_ready(&share, &spec);
}

static bool state_is(enum dbp_state state, int64_t n) {
    return eventually_equal(&count->state[state], n);
}

/* Every session of the cap can be had again by one process, which returns them. */
static void assert_whole(int64_t cap) {
    struct puppet *p = client();

    for (uint32_t i = 0; i < (uint32_t)cap; i++)
        assert_int_equal(puppet_acquire(p, i), 0);
    assert_int_equal(dbp_pool_count(share.table, 0, DBP_LEASED), cap);
    assert_int_equal(atomic_load(&count->size), cap);
    for (uint32_t i = 0; i < (uint32_t)cap; i++)
        assert_int_equal(puppet_release(p, i, DBP_RETURN_CLEAN), 0);
    kill_child(p->pid);
    assert_true(eventually_equal(&count->waiting, 0));
    assert_true(atomic_load(&fake->most) <= cap); /* I3, as the server saw it */
    assert_int_equal(atomic_load(&fake->strange), 0);
}

/* ---- one session, many processes ---- */

static void test_one_session_serves_two_processes(void **state) {
    struct puppet *a = client(), *b = client();

    (void)state;
    assert_int_equal(puppet_acquire(a, 0), 0);
    assert_int_equal(puppet_query(a, 0, "Q 4711"), 0);
    assert_int_equal(a->nonce, 4711);
    assert_int_equal(a->facts.greeting_len, 7);
    uint32_t id = a->facts.connection_id;
    assert_int_equal(puppet_release(a, 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(puppet_acquire(b, 0), 0);
    assert_int_equal(puppet_query(b, 0, "Q 4712"), 0);
    assert_int_equal(b->nonce, 4712);
    assert_int_equal(b->facts.connection_id, id);
    assert_int_equal(atomic_load(&fake->opens), 1);
    assert_int_equal(puppet_release(b, 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(atomic_load(&fake->rollbacks), 0); /* no command beyond the app's own */
    assert_whole(2);
}

static void test_I3_the_cap_holds_and_returns_serve_the_queue(void **state) {
    struct puppet *p[4];

    (void)state;
    for (int i = 0; i < 4; i++)
        p[i] = client();
    assert_int_equal(puppet_acquire(p[0], 0), 0);
    assert_int_equal(puppet_acquire(p[1], 0), 0);
    puppet_start(p[2], PUPPET_ACQUIRE);
    assert_true(eventually_equal(&count->waiting, 1));
    puppet_start(p[3], PUPPET_ACQUIRE);
    assert_true(eventually_equal(&count->waiting, 2));
    assert_int_equal(puppet_release(p[0], 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(puppet_result(p[2]), 0); /* I4: the first to come */
    assert_int_equal(atomic_load(&count->waiting), 1);
    assert_int_equal(puppet_release(p[1], 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(puppet_result(p[3]), 0);
    assert_int_equal(atomic_load(&fake->opens), 2);
    assert_int_equal(puppet_release(p[2], 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(puppet_release(p[3], 0, DBP_RETURN_CLEAN), 0);
    kill_child(p[0]->pid);
    assert_whole(2);
}

static void test_overflow_is_opened_when_needed_and_ended_politely(void **state) {
    struct puppet *p = client();

    (void)state;
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(puppet_acquire(p, i), 0);
    assert_int_equal(atomic_load(&fake->alive), 3);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(puppet_release(p, i, DBP_RETURN_CLEAN), 0);
    assert_true(eventually_equal(&count->size, 1));
    assert_int_equal(atomic_load(&fake->quits), 2);
    assert_int_equal(atomic_load(&fake->kills), 0);
    assert_int_equal(atomic_load(&fake->alive), 1);
    assert_int_equal(atomic_load(&count->closed), 2);
    assert_whole(3);
}

static void test_a_raised_cap_serves_those_who_wait(void **state) {
    struct puppet *p = client(), *q = client();

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_acquire(p, 1), 0);
    puppet_start(q, PUPPET_ACQUIRE);
    assert_true(eventually_equal(&count->waiting, 1));
    p->spec.pool_size = 3;
    assert_int_equal(puppet_do(p, PUPPET_REGISTER), 0);
    assert_int_equal(puppet_result(q), 0);
    assert_int_equal(atomic_load(&fake->most), 3);
}

/* ---- resets ---- */

static void test_I6_a_transaction_does_not_survive_its_lease(void **state) {
    struct puppet *p = client();

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_query(p, 0, "BEGIN"), 0);
    assert_int_equal(p->status & 1, 1);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_RESET), 0);
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(atomic_load(&fake->opens), 1); /* the same session: waiting for it was enough */
    assert_int_equal(puppet_query(p, 0, "Q 1"), 0);
    assert_int_equal(p->status & 3, 2);
    assert_int_equal(atomic_load(&fake->rollbacks), 1);
    assert_int_equal(atomic_load(&fake->autocommits), 0);
    assert_int_equal(puppet_query(p, 0, "SET autocommit=0"), 0);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_RESET), 0);
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_query(p, 0, "Q 1"), 0);
    assert_int_equal(p->status & 3, 2);
    assert_int_equal(atomic_load(&fake->autocommits), 2); /* the app's and the broker's */
    assert_int_equal(atomic_load(&count->resets), 2);
    assert_int_equal(puppet_query(p, 0, "CHAIN"), 0); /* completion_type=CHAIN */
    assert_int_equal(puppet_query(p, 0, "BEGIN"), 0);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_RESET), 0);
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_query(p, 0, "Q 1"), 0);
    assert_int_equal(p->status & 3, 2);
}

static void test_I5_a_failed_reset_ends_the_session(void **state) {
    struct puppet *p = client();

    (void)state;
    atomic_store(&fake->reset_mode, FAKE_RESET_ERR);
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_query(p, 0, "Q 1"), 0);
    uint32_t id = p->facts.connection_id;
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_RESET), 0);
    assert_true(eventually_equal(&count->closed, 1));
    assert_true(eventually_at_least(&fake->kills, 1)); /* the server hangs up by itself, maybe sooner than it is told */
    assert_int_equal(atomic_load(&fake->last_killed), id);
    atomic_store(&fake->reset_mode, FAKE_RESET_OK);
    assert_whole(2);
}

static void test_I5_unread_bytes_are_found_by_the_reset(void **state) {
    struct puppet *p = client();

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_query(p, 0, "Q 1"), 0);
    snprintf(p->sql, sizeof p->sql, "Q 2");
    assert_int_equal(puppet_do(p, PUPPET_SEND), 0); /* and nobody reads its answer */
    assert_true(eventually_at_least(&fake->queries, 2));
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_RESET), 0);
    assert_true(eventually_equal(&count->closed, 1));
    assert_true(eventually_at_least(&fake->kills, 1));
    assert_whole(2);
}

static void test_a_reset_that_hangs_serves_a_waiter_from_elsewhere(void **state) {
    struct puppet *p = client();

    (void)state;
    atomic_store(&fake->reset_mode, FAKE_RESET_SILENT);
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_acquire(p, 1), 0);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_RESET), 0);
    assert_true(eventually_at_least(&fake->rollbacks, 1));
    assert_true(state_is(DBP_RESETTING, 1));
    puppet_start(p, PUPPET_ACQUIRE);
    assert_true(eventually_equal(&count->waiting, 1));
    /* Its server hangs up in the middle: the waiter gets a new one. */
    atomic_store(&fake->reset_mode, FAKE_RESET_OK);
    atomic_store(&fake->hang_up, atomic_load(&share.table->sessions[0].connection_id));
    fake_poke(fake);
    assert_int_equal(puppet_result(p), 0);
    assert_int_equal(atomic_load(&fake->opens), 3);
}

/* ---- ending ---- */

static void test_I5_a_doomed_session_is_killed(void **state) {
    struct puppet *p = client();

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_query(p, 0, "Q 1"), 0);
    uint32_t id = p->facts.connection_id;
    snprintf(p->sql, sizeof p->sql, "HANG");
    assert_int_equal(puppet_do(p, PUPPET_SEND), 0);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_DOOM), 0);
    assert_true(eventually_equal(&count->closed, 1));
    assert_int_equal(atomic_load(&fake->last_killed), id);
    assert_int_equal(atomic_load(&fake->quits), 0);
    assert_int_equal(atomic_load(&count->kills), 1);
    assert_whole(2);
}

static void test_I3_a_session_counts_until_the_server_hung_up(void **state) {
    struct puppet *p = client(), *q = client();

    (void)state;
    atomic_store(&fake->linger, 1); /* the server rolls back for long */
    atomic_store(&fake->kill_mode, FAKE_KILL_IGNORE);
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_acquire(p, 1), 0);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_DOOM), 0);
    assert_true(eventually_at_least(&fake->kills, 1));
    puppet_start(q, PUPPET_ACQUIRE);
    assert_true(eventually_equal(&count->waiting, 1));
    assert_int_equal(puppet_do(p, PUPPET_REGISTER), 0); /* a whole turn of the broker's loop, with the waiter queued */
    assert_int_equal(atomic_load(&count->size), 2);
    assert_int_equal(atomic_load(&count->state[DBP_CLOSING]), 1);
    assert_int_equal(atomic_load(&fake->opens), 2);
    atomic_store(&fake->linger, 0);
    fake_poke(fake);
    assert_int_equal(puppet_result(q), 0);
    assert_int_equal(atomic_load(&fake->opens), 3);
    assert_int_equal(atomic_load(&fake->most), 2);
}

static void test_a_failing_kill_is_not_repeated_in_a_loop(void **state) {
    struct puppet *p = client();

    (void)state;
    atomic_store(&fake->linger, 1);
    atomic_store(&fake->kill_mode, FAKE_KILL_FAIL); /* Too many connections */
    assert_int_equal(puppet_acquire(p, 0), 0);
    uint64_t began = dbp_now_us();
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_DOOM), 0);
    assert_true(eventually_at_least(&fake->kills, 3)); /* it is repeated */
    /* The first waits take 0.1 and 0.2 s at least, however slow the machine is: a loop would have sent thousands. */
    assert_true(dbp_now_us() - began >= 250000);
    assert_true(eventually_at_least(&log_warnings, 1)); /* the log has a thread of its own */
    assert_int_equal(atomic_load(&log_warnings), 1);
    atomic_store(&fake->kill_mode, FAKE_KILL_DO);
    atomic_store(&fake->linger, 0);
    assert_true(eventually_equal(&count->closed, 1));
}

static void test_an_idle_session_that_its_server_ends_leaves_the_pool(void **state) {
    struct puppet *p = client();

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_query(p, 0, "Q 1"), 0);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    atomic_store(&fake->hang_up, p->facts.connection_id);
    fake_poke(fake);
    assert_true(eventually_equal(&count->closed, 1));
    assert_int_equal(atomic_load(&count->size), 0);
    assert_whole(2);
}

static void test_I5_a_leased_session_that_its_server_ends_is_not_lent_again(void **state) {
    struct puppet *p = client();

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_query(p, 0, "Q 1"), 0);
    uint32_t session = p->leases[0].session;
    atomic_store(&fake->hang_up, p->facts.connection_id);
    fake_poke(fake);
    assert_true(eventually_at_least(&share.table->sessions[session].unfit, 1));
    assert_int_equal(puppet_query(p, 0, "Q 2"), -EPIPE);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0); /* a holder that did not notice */
    assert_true(eventually_equal(&count->closed, 1));
    assert_whole(2);
}

static void test_I5_a_dead_session_granted_to_a_dead_waiter_goes_to_nobody(void **state) {
    struct puppet *p = client(), *waiter = client(), *next = client();

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_acquire(p, 1), 0);
    assert_int_equal(puppet_query(p, 0, "Q 1"), 0);
    uint32_t session = p->leases[0].session;
    assert_int_equal(puppet_do(waiter, PUPPET_BEGIN), 0);
    puppet_start(next, PUPPET_ACQUIRE);
    assert_true(eventually_equal(&count->waiting, 2));
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    assert_true(state_is(DBP_GRANTED, 1));
    atomic_store(&fake->hang_up, p->facts.connection_id);
    fake_poke(fake);
    assert_true(eventually_at_least(&share.table->sessions[session].unfit, 1));
    kill_child(waiter->pid);
    assert_int_equal(puppet_result(next), 0);
    assert_int_equal(puppet_query(next, 0, "Q 2"), 0);
    assert_true(eventually_equal(&count->closed, 1));
}

/* ---- logins that fail ---- */

static void test_a_failed_login_is_told_to_who_waited_and_tried_again(void **state) {
    struct puppet *p = client();

    (void)state;
    atomic_store(&fake->open_mode, FAKE_OPEN_FAIL);
    assert_int_equal(puppet_acquire(p, 0), DBP_E_FAILED);
    assert_int_equal(puppet_do(p, PUPPET_ERROR), 0);
    assert_int_equal(p->error.code, 2003);
    assert_string_equal(p->error.sqlstate, "28000");
    assert_string_equal(p->error.text, "Refused by the fake");
    assert_int_equal(puppet_acquire(p, 0), DBP_E_FAILED);
    assert_int_equal(atomic_load(&count->size), 0);
    assert_true(eventually_equal(&count->waiting, 0));
    atomic_store(&fake->open_mode, FAKE_OPEN_DO);
    int rc;
    for (int tries = 0; (rc = puppet_acquire(p, 0)) == DBP_E_FAILED && tries < 3; tries++)
        continue; /* a login that was asked for before may still fail */
    assert_int_equal(rc, 0);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    assert_whole(2);
}

static bool error_is(struct puppet *p, uint32_t code) {
    assert_int_equal(puppet_do(p, PUPPET_ERROR), 0);
    return p->error.code == code;
}

/* A wrong password, said again and again, locks the account. */
static void test_a_refused_login_is_not_repeated_and_told_at_once(void **state) {
    struct puppet *p = client();

    (void)state;
    atomic_store(&fake->fail_code, 1045);
    atomic_store(&fake->open_mode, FAKE_OPEN_FAIL);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(puppet_acquire(p, 0), DBP_E_FAILED);
        assert_true(error_is(p, 1045));
    }
    assert_int_equal(atomic_load(&fake->fails), 1);
    assert_true(eventually_equal(&count->waiting, 0));
}

static int register_again(const char *password) {
    char text[DBP_TEXT_MAX];

    strcpy(spec.password, password);
    return dbp_broker_register(broker, &spec, text);
}

/* A mule with older settings, say: what works for all others is not lost by it. */
static void test_a_wrong_password_does_not_replace_the_right_one(void **state) {
    struct puppet *p = client();

    (void)state;
    strcpy(fake->password, "pa55-Of-TheTest");
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(register_again("wrong"), 0);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_DOOM), 0);
    assert_int_equal(puppet_acquire(p, 0), 0); /* one login more, and no waiter is told */
    assert_int_equal(atomic_load(&fake->fails), 1);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_DOOM), 0);
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(atomic_load(&fake->fails), 1);
}

static void test_a_refused_password_is_not_tried_at_each_word(void **state) {
    struct puppet *p = client();

    (void)state;
    strcpy(fake->password, "nobody has this");
    assert_int_equal(puppet_acquire(p, 0), DBP_E_FAILED);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(register_again("wrong"), 0);
        assert_int_equal(puppet_acquire(p, 0), DBP_E_FAILED);
        assert_true(error_is(p, 1045));
    }
    /* The first one's, the other one's, and the first one's after that. */
    assert_int_equal(atomic_load(&fake->fails), 3);
    strcpy(spec.password, "pa55-Of-TheTest");
}

static void test_the_right_password_is_tried_at_once(void **state) {
    struct puppet *p = client();

    (void)state;
    strcpy(fake->password, "rotated");
    assert_int_equal(puppet_acquire(p, 0), DBP_E_FAILED);
    assert_true(error_is(p, 1045));
    assert_int_equal(register_again("rotated"), 0);
    assert_int_equal(puppet_acquire(p, 0), 0); /* and not after the time that a refusal takes */
    assert_int_equal(register_again("wrong"), 0);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_DOOM), 0);
    assert_int_equal(puppet_acquire(p, 0), 0);
    strcpy(spec.password, "pa55-Of-TheTest");
}

static void test_a_failed_login_fails_nobody_while_sessions_live(void **state) {
    struct puppet *p = client(), *q = client();

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    atomic_store(&fake->open_mode, FAKE_OPEN_FAIL);
    puppet_start(q, PUPPET_ACQUIRE);
    assert_true(eventually_at_least(&fake->fails, 2));
    assert_int_equal(atomic_load(&count->waiting), 1);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(puppet_result(q), 0);
}

static void test_I2_malformed_deliveries_lose_no_place(void **state) {
    struct puppet *p = client();

    (void)state;
    atomic_store(&fake->open_mode, FAKE_OPEN_BAD_FACTS);
    assert_int_equal(puppet_acquire(p, 0), DBP_E_FAILED);
    assert_int_equal(atomic_load(&count->size), 0);
    atomic_store(&fake->open_mode, FAKE_OPEN_NO_FD); /* refused by the wire: as good as no answer */
    p->which = 0;
    uint32_t opens = atomic_load(&fake->opens);
    puppet_start(p, PUPPET_ACQUIRE);
    assert_true(eventually_at_least(&fake->opens, opens + 1));
    assert_int_equal(dbp_pool_count(share.table, 0, DBP_IDLE), 0);
    /* Until the connector is replaced: the login counts as failed, and the next one is served. */
    atomic_store(&fake->open_mode, FAKE_OPEN_DO);
    atomic_store(&fake->reconnect, 1);
    fake_poke(fake);
    assert_int_equal(puppet_result(p), DBP_E_FAILED);
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_query(p, 0, "Q 5"), 0);
}

/* ---- deaths ---- */

static void test_I2_a_killed_holders_sessions_are_killed_and_replaced(void **state) {
    struct puppet *p = client(), *q = client();

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_acquire(p, 1), 0);
    assert_int_equal(puppet_query(p, 1, "Q 1"), 0);
    snprintf(p->sql, sizeof p->sql, "HANG");
    assert_int_equal(puppet_do(p, PUPPET_SEND), 0);
    puppet_start(q, PUPPET_ACQUIRE);
    assert_true(eventually_equal(&count->waiting, 1));
    kill_child(p->pid);
    assert_int_equal(puppet_result(q), 0);
    assert_int_equal(puppet_query(q, 0, "Q 9"), 0);
    assert_true(eventually_at_least(&fake->kills, 2));
    assert_int_equal(puppet_release(q, 0, DBP_RETURN_CLEAN), 0);
    assert_whole(2);
}

static void test_I4_a_killed_waiter_is_handed_nothing(void **state) {
    struct puppet *p = client(), *first = client(), *second = client();

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_acquire(p, 1), 0);
    puppet_start(first, PUPPET_ACQUIRE);
    assert_true(eventually_equal(&count->waiting, 1));
    puppet_start(second, PUPPET_ACQUIRE);
    assert_true(eventually_equal(&count->waiting, 2));
    kill_child(first->pid);
    assert_true(eventually_equal(&count->waiting, 1));
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(puppet_result(second), 0);
    assert_int_equal(atomic_load(&fake->kills), 0);
    assert_int_equal(puppet_release(second, 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(puppet_release(p, 1, DBP_RETURN_CLEAN), 0);
    assert_whole(2);
}

static void test_I2_a_session_granted_to_a_killed_waiter_goes_on(void **state) {
    struct puppet *p = client(), *first = client(), *second = client();

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_acquire(p, 1), 0);
    assert_int_equal(puppet_do(first, PUPPET_BEGIN), 0); /* an event loop that never looks */
    puppet_start(second, PUPPET_ACQUIRE);
    assert_true(eventually_equal(&count->waiting, 2));
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    assert_true(state_is(DBP_GRANTED, 1));
    kill_child(first->pid);
    assert_int_equal(puppet_result(second), 0);
    assert_int_equal(puppet_query(second, 0, "Q 3"), 0);
    assert_int_equal(atomic_load(&fake->opens), 2); /* the very session: it was never used */
}

static void test_I2_a_connector_that_dies_with_a_login_under_way(void **state) {
    struct puppet *p = client();

    (void)state;
    atomic_store(&fake->open_mode, FAKE_OPEN_HOLD);
    puppet_start(p, PUPPET_ACQUIRE);
    assert_true(eventually_at_least(&fake->held, 1));
    assert_int_equal(atomic_load(&count->state[DBP_OPENING]), 1);
    atomic_store(&fake->open_mode, FAKE_OPEN_DO);
    atomic_store(&fake->reconnect, 1);
    fake_poke(fake);
    assert_int_equal(puppet_result(p), 0); /* it may have been killed: tried once more */
    assert_int_equal(atomic_load(&count->failures), 1);
    atomic_store(&fake->open_mode, FAKE_OPEN_HOLD);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_DOOM), 0);
    puppet_start(p, PUPPET_ACQUIRE);
    assert_true(eventually_at_least(&fake->held, 1));
    atomic_store(&fake->reconnect, 1);
    fake_poke(fake);
    assert_true(eventually_at_least(&fake->attached, 3));
    assert_true(eventually_at_least(&fake->held, 1));
    atomic_store(&fake->open_mode, FAKE_OPEN_DO);
    atomic_store(&fake->reconnect, 1);
    fake_poke(fake);
    assert_int_equal(puppet_result(p), DBP_E_FAILED); /* twice, at the same login */
    assert_true(error_is(p, 2013));
    assert_non_null(strstr(p->error.text, "the connector process died"));
    assert_int_equal(atomic_load(&count->failures), 3);
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    assert_whole(2);
}

/* Which of two logins it was is not known: nobody is told so before it is. */
static void test_I2_a_connector_that_dies_with_two_logins_under_way(void **state) {
    struct puppet *p = client(), *q = client();

    (void)state;
    atomic_store(&fake->open_mode, FAKE_OPEN_HOLD);
    puppet_start(p, PUPPET_ACQUIRE);
    puppet_start(q, PUPPET_ACQUIRE);
    assert_true(eventually_at_least(&fake->held, 2));
    atomic_store(&fake->open_mode, FAKE_OPEN_DO);
    atomic_store(&fake->reconnect, 1);
    fake_poke(fake);
    assert_int_equal(puppet_result(p), 0);
    assert_int_equal(puppet_result(q), 0);
    assert_int_equal(atomic_load(&count->failures), 2);
}

static void test_without_a_connector_waiters_are_told_so(void **state) {
    struct puppet *p = client(), *q = client();

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    atomic_store(&fake->away, 1);
    fake_poke(fake);
    assert_true(eventually_at_least(&fake->away, 2));
    puppet_start(q, PUPPET_ACQUIRE); /* served by a return, for as long as there is a session */
    assert_true(eventually_equal(&count->waiting, 1));
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(puppet_result(q), 0);
    assert_int_equal(puppet_release(q, 0, DBP_RETURN_DOOM), 0);
    assert_int_equal(puppet_acquire(p, 0), DBP_E_FAILED);
    assert_true(error_is(p, 2013));
    assert_non_null(strstr(p->error.text, "connector process"));
    assert_non_null(strstr(p->error.text, "does not run"));
    atomic_store(&fake->reconnect, 1);
    fake_poke(fake);
    assert_true(eventually_at_least(&fake->attached, 2));
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    assert_whole(2);
}

static void test_I2_a_kill_is_asked_of_the_next_connector(void **state) {
    struct puppet *p = client();

    (void)state;
    atomic_store(&fake->linger, 1);
    atomic_store(&fake->kill_mode, FAKE_KILL_IGNORE);
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_DOOM), 0);
    assert_true(eventually_at_least(&fake->kills, 1));
    atomic_store(&fake->kill_mode, FAKE_KILL_DO);
    atomic_store(&fake->reconnect, 1);
    fake_poke(fake);
    assert_true(eventually_equal(&count->closed, 1));
    assert_int_equal(atomic_load(&fake->kills), 2);
}

/* ---- who may say what ---- */

static void test_only_the_hosts_child_becomes_connector(void **state) {
    uint32_t slot;
    int channel;

    (void)state;
    assert_true(eventually_at_least(&fake->attached, 1));
    assert_int_equal(dbp_attach(&share, DBP_ROLE_CONNECTOR, "me too", in_seconds(WAIT_S), &channel, &slot),
                     DBP_E_INVALID);
    assert_int_equal(dbp_attach(&share, (enum dbp_role)7, "what", in_seconds(WAIT_S), &channel, &slot), DBP_E_INVALID);
    struct puppet *p = client();
    assert_int_equal(puppet_acquire(p, 0), 0); /* the real one is still there */
}

static void test_I10_garbage_on_a_channel_is_survived(void **state) {
    uint32_t slot;
    int channel;

    (void)state;
    assert_int_equal(dbp_attach(&share, DBP_ROLE_CLIENT, "rude", in_seconds(WAIT_S), &channel, &slot), 0);
    assert_int_equal(send(channel, "garbage", 7, MSG_NOSIGNAL), 7);
    assert_int_equal(send(share.control_fd, "garbage", 7, MSG_NOSIGNAL), 7);
    /* Messages that only the connector, or nobody, may send. */
    for (uint32_t type = 1; type < DBP_WIRE_TYPES; type++) {
        union dbp_wire_any msg;
        int fd = type == DBP_WIRE_ATTACH || type == DBP_WIRE_SESSION || type == DBP_WIRE_OPENED ? channel : -1;
        if (type == DBP_WIRE_REGISTER || type == DBP_WIRE_FETCH)
            continue;
        memset(&msg, 0, sizeof msg);
        dbp_wire_head_init(&msg.head, (enum dbp_wire_type)type, 1);
        assert_int_equal(dbp_wire_send(channel, &msg, fd), 0);
        if (type != DBP_WIRE_ATTACH)
            assert_int_equal(dbp_wire_send(share.control_fd, &msg, fd), 0);
    }
    union dbp_wire_any fetch;
    memset(&fetch, 0, sizeof fetch);
    dbp_wire_head_init(&fetch.head, DBP_WIRE_FETCH, 9);
    fetch.fetch.session = UINT32_MAX;
    assert_int_equal(dbp_wire_send(channel, &fetch, -1), 0);
    union dbp_wire_any answer;
    int fd = -1;
    assert_int_equal(dbp_wait_readable(channel, in_seconds(WAIT_S)), 0);
    assert_int_equal(dbp_wire_recv(channel, &answer, &fd, NULL), 0); /* the first thing that is answered */
    assert_int_equal(answer.head.serial, 9);
    assert_int_equal(answer.head.result, DBP_E_STALE);
    close(channel);
    assert_whole(2);
}

/* Any process can take a lease in the table; the session itself goes to those who know the pool's settings. */
static void test_a_session_is_handed_to_processes_that_registered_its_pool(void **state) {
    struct puppet *known = client(), *stranger = puppet_new(&share);

    (void)state;
    assert_int_equal(puppet_acquire(known, 0), 0);
    assert_int_equal(puppet_do(known, PUPPET_FETCH), 0);
    assert_int_equal(puppet_release(known, 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(puppet_do(stranger, PUPPET_ATTACH), 0);
    stranger->pool = 0;
    stranger->which = 0;
    stranger->deadline_us = in_seconds(WAIT_S);
    assert_int_equal(puppet_do(stranger, PUPPET_ACQUIRE), 0);
    assert_int_equal(puppet_do(stranger, PUPPET_FETCH), DBP_E_INVALID);
    kill_child(stranger->pid);
    assert_whole(2);
}

static void test_I10_only_the_connector_delivers(void **state) {
    struct puppet *p = client();
    union dbp_wire_any msg;
    uint32_t slot;
    int channel, fd = -1;

    (void)state;
    atomic_store(&fake->open_mode, FAKE_OPEN_HOLD);
    puppet_start(p, PUPPET_ACQUIRE);
    assert_true(eventually_at_least(&fake->held, 1));
    /* Another client forges the answer that the broker is waiting for. */
    assert_int_equal(dbp_attach(&share, DBP_ROLE_CLIENT, "forger", in_seconds(WAIT_S), &channel, &slot), 0);
    static const enum dbp_wire_type types[] = {DBP_WIRE_OPENED, DBP_WIRE_FAILED};
    for (int i = 0; i < 2; i++) {
        memset(&msg, 0, sizeof msg);
        dbp_wire_head_init(&msg.head, types[i], 0);
        msg.opened.session = 0; /* in FAILED they stand in the same place */
        msg.opened.incarnation = atomic_load(&share.table->sessions[0].incarnation);
        assert_int_equal(dbp_wire_send(channel, &msg, i == 0 ? channel : -1), 0);
    }
    memset(&msg, 0, sizeof msg);
    dbp_wire_head_init(&msg.head, DBP_WIRE_FETCH, 9);
    assert_int_equal(dbp_wire_send(channel, &msg, -1), 0);
    assert_int_equal(dbp_wait_readable(channel, in_seconds(WAIT_S)), 0);
    assert_int_equal(dbp_wire_recv(channel, &msg, &fd, NULL), 0); /* now it has read them all */
    assert_int_equal(atomic_load(&count->state[DBP_OPENING]), 1);
    assert_int_equal(atomic_load(&count->waiting), 1);
    atomic_store(&fake->open_mode, FAKE_OPEN_DO);
    fake_poke(fake);
    assert_int_equal(puppet_result(p), 0);
    assert_int_equal(puppet_query(p, 0, "Q 8"), 0);
    close(channel);
}

static void test_I1_only_the_holder_is_given_the_fd(void **state) {
    struct puppet *p = client(), *q = client();

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    q->leases[0] = p->leases[0];
    assert_int_equal(puppet_do(q, PUPPET_FETCH), DBP_E_STALE);
    assert_int_equal(puppet_query(p, 0, "Q 1"), 0);
    struct dbp_lease old = p->leases[0];
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(puppet_acquire(p, 1), 0);
    p->leases[0] = old;
    p->which = 0;
    assert_int_equal(puppet_do(p, PUPPET_FETCH), DBP_E_STALE);
}

static void test_there_are_so_many_slots_and_they_come_back(void **state) {
    struct puppet *p[SLOTS];

    (void)state;
    assert_true(eventually_at_least(&fake->attached, 1));
    for (uint32_t i = 0; i < SLOTS - 1; i++) {
        p[i] = client();
        assert_int_equal(puppet_do(p[i], PUPPET_BEGIN), 0); /* or it has a session: nobody gives his slot up */
    }
    struct puppet *late = puppet_new(&share);
    assert_int_equal(puppet_do(late, PUPPET_ATTACH_SOON), DBP_E_FULL);
    puppet_start(late, PUPPET_ATTACH);
    kill_child(p[2]->pid);
    assert_int_equal(puppet_result(late), 0);
}

/* ---- what must not leak ---- */

static void test_I11_a_forked_process_has_no_session_fd(void **state) {
    struct puppet *born_before = puppet_new(&share), *p = client();
    struct stat st;

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_query(p, 0, "Q 1"), 0);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)p->pid, p->fds[0]);
    assert_int_equal(stat(path, &st), 0);
    assert_true(has_inode(0, st.st_ino)); /* the broker has it */
    assert_true(has_inode(p->pid, st.st_ino));
    struct puppet *born_later = puppet_new(&share);
    assert_int_equal(puppet_do(born_later, PUPPET_CENSUS) > 0, 1);
    assert_false(has_inode(born_later->pid, st.st_ino));
    assert_int_equal(puppet_query(p, 0, "Q 2"), 0); /* and its holder goes on */
    /* Nothing of the broker's own either: what it inherits is what a process had before there were clients. */
    assert_int_equal(puppet_do(born_later, PUPPET_CENSUS), puppet_do(born_before, PUPPET_CENSUS));
}

static void test_I11_forks_while_sessions_are_opened_inherit_none(void **state) {
    struct puppet *reference = puppet_new(&share), *p = client();
    int expected = puppet_do(reference, PUPPET_CENSUS);

    (void)state;
    /* Each doomed session is opened anew: its fd arrives while this process forks. */
    for (int i = 0; i < 150; i++) {
        assert_int_equal(puppet_acquire(p, 0), 0);
        assert_int_equal(puppet_release(p, 0, DBP_RETURN_DOOM), 0);
        puppet_start(p, PUPPET_ACQUIRE);
        pid_t pid = fork_child();
        if (pid == 0)
            _exit(fd_census(0));
        assert_int_equal(wait_child(pid), expected);
        assert_int_equal(puppet_result(p), 0);
        assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    }
}

static bool is_true(void *arg) {
    return atomic_load((_Atomic bool *)arg);
}

static void test_I11_a_fork_waits_for_an_fd_that_is_on_its_way(void **state) {
    struct puppet *reference = puppet_new(&share), *p = client();
    int expected = puppet_do(reference, PUPPET_CENSUS);

    union dbp_wire_any msg;
    int pair[2];

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    atomic_store(&asked, false);
    atomic_store(&forked, false);
    stage_asked = stay;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    memset(&msg.attach, 0, sizeof msg.attach);
    dbp_wire_head_init(&msg.head, DBP_WIRE_ATTACH, 1);
    msg.attach.role = DBP_ROLE_CONNECTOR;
    assert_int_equal(dbp_wire_send(share.control_fd, &msg, pair[1]), 0);
    close(pair[0]);
    close(pair[1]);
    assert_true(eventually(is_true, &asked));
    pid_t pid = fork_child();
    if (pid == 0)
        _exit(fd_census(0));
    atomic_store(&forked, true);
    assert_int_equal(wait_child(pid), expected);
    stage_asked = NULL;
}

/* A pipe that nobody reads, a full disk: what waits for the log is one thread, and neither the pool nor a fork. */
static void test_a_log_that_stands_still_holds_nobody_up(void **state) {
    struct puppet *p = client(), *q = client();

    (void)state;
    atomic_store(&in_log, false);
    atomic_store(&lost_lines, 0);
    atomic_store(&hold_log, true);
    atomic_store(&fake->open_mode, FAKE_OPEN_TWICE); /* each login gives a line */
    for (int i = 0; i < 200; i++) {
        assert_int_equal(puppet_acquire(p, 0), 0);
        assert_int_equal(puppet_release(p, 0, DBP_RETURN_DOOM), 0);
    }
    assert_true(eventually(is_true, &in_log));
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_RESET), 0);
    assert_int_equal(puppet_acquire(q, 0), 0);
    pid_t pid = fork_child();
    if (pid == 0)
        _exit(7);
    assert_int_equal(wait_child(pid), 7);
    uint32_t before = atomic_load(&log_lines);
    atomic_store(&hold_log, false);
    assert_true(eventually_at_least(&lost_lines, 1));
    assert_in_range(atomic_load(&log_lines) - before, 64, 66); /* what the queue holds, and the count of the rest */
}

static void test_stopping_leaves_a_log_that_stands_still_behind(void **state) {
    (void)state;
    atomic_store(&in_log, false);
    atomic_store(&hold_log, true);
    struct puppet *p = client();
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_true(eventually(is_true, &in_log));
    broker = dbp_broker_stop(broker);
    assert_null(broker);
    atomic_store(&hold_log, false);
}

static void test_I9_no_secret_in_shared_memory(void **state) {
    struct puppet *p = client();

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    atomic_store(&fake->open_mode, FAKE_OPEN_FAIL);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_DOOM), 0);
    assert_int_equal(puppet_acquire(p, 0), DBP_E_FAILED);
    broker = dbp_broker_stop(broker); /* nobody writes while we read it all */
    assert_null(memmem(share.table, sizeof *share.table, spec.password, strlen(spec.password)));
}

static void test_stopping_ends_idle_sessions_politely(void **state) {
    struct puppet *p = client();

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_acquire(p, 1), 0);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    broker = dbp_broker_stop(broker);
    assert_true(eventually_at_least(&fake->quits, 1));
    assert_int_equal(puppet_acquire(p, 0), DBP_E_CLOSED);
}

/* What a dead process had running must not go on, and commit, beside the host's next life. */
static void test_stopping_kills_what_is_in_use(void **state) {
    struct puppet *dead = client(), *alive = client();

    (void)state;
    assert_int_equal(puppet_acquire(dead, 0), 0);
    assert_int_equal(puppet_query(dead, 0, "Q 1"), 0);
    snprintf(dead->sql, sizeof dead->sql, "HANG");
    assert_int_equal(puppet_do(dead, PUPPET_SEND), 0);
    assert_int_equal(puppet_acquire(alive, 0), 0);
    kill_child(dead->pid);
    broker = dbp_broker_stop(broker);
    assert_int_equal(atomic_load(&fake->kills), 2);
    assert_int_equal(puppet_release(alive, 0, DBP_RETURN_CLEAN), DBP_E_STALE);
}

/* Bounded: a server that answers no KILL does not hold the host up. */
static void test_stopping_does_not_wait_for_ever(void **state) {
    struct puppet *p = client();

    (void)state;
    atomic_store(&fake->kill_mode, FAKE_KILL_IGNORE);
    assert_int_equal(puppet_acquire(p, 0), 0);
    broker = dbp_broker_stop(broker);
    assert_int_equal(atomic_load(&fake->kills), 1);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_one_session_serves_two_processes),
        TEST(test_I3_the_cap_holds_and_returns_serve_the_queue),
        cmocka_unit_test_setup_teardown(test_overflow_is_opened_when_needed_and_ended_politely, setup_overflow,
                                        teardown),
        TEST(test_a_raised_cap_serves_those_who_wait),
        TEST(test_I6_a_transaction_does_not_survive_its_lease),
        TEST(test_I5_a_failed_reset_ends_the_session),
        TEST(test_I5_unread_bytes_are_found_by_the_reset),
        TEST(test_a_reset_that_hangs_serves_a_waiter_from_elsewhere),
        TEST(test_I5_a_doomed_session_is_killed),
        TEST(test_I3_a_session_counts_until_the_server_hung_up),
        TEST(test_a_failing_kill_is_not_repeated_in_a_loop),
        TEST(test_an_idle_session_that_its_server_ends_leaves_the_pool),
        TEST(test_I5_a_leased_session_that_its_server_ends_is_not_lent_again),
        TEST(test_I5_a_dead_session_granted_to_a_dead_waiter_goes_to_nobody),
        TEST(test_a_failed_login_is_told_to_who_waited_and_tried_again),
        TEST(test_a_refused_login_is_not_repeated_and_told_at_once),
        TEST(test_a_wrong_password_does_not_replace_the_right_one),
        TEST(test_a_refused_password_is_not_tried_at_each_word),
        TEST(test_the_right_password_is_tried_at_once),
        TEST(test_a_failed_login_fails_nobody_while_sessions_live),
        TEST(test_I2_malformed_deliveries_lose_no_place),
        TEST(test_I2_a_killed_holders_sessions_are_killed_and_replaced),
        TEST(test_I4_a_killed_waiter_is_handed_nothing),
        TEST(test_I2_a_session_granted_to_a_killed_waiter_goes_on),
        TEST(test_I2_a_connector_that_dies_with_a_login_under_way),
        TEST(test_I2_a_connector_that_dies_with_two_logins_under_way),
        TEST(test_without_a_connector_waiters_are_told_so),
        TEST(test_I2_a_kill_is_asked_of_the_next_connector),
        TEST(test_only_the_hosts_child_becomes_connector),
        TEST(test_I10_garbage_on_a_channel_is_survived),
        TEST(test_a_session_is_handed_to_processes_that_registered_its_pool),
        TEST(test_I10_only_the_connector_delivers),
        TEST(test_I1_only_the_holder_is_given_the_fd),
        TEST(test_there_are_so_many_slots_and_they_come_back),
        TEST(test_I11_a_forked_process_has_no_session_fd),
        TEST(test_I11_forks_while_sessions_are_opened_inherit_none),
        TEST(test_I11_a_fork_waits_for_an_fd_that_is_on_its_way),
        TEST(test_I9_no_secret_in_shared_memory),
        TEST(test_stopping_ends_idle_sessions_politely),
        TEST(test_stopping_kills_what_is_in_use),
        TEST(test_stopping_does_not_wait_for_ever),
        TEST(test_a_log_that_stands_still_holds_nobody_up),
        TEST(test_stopping_leaves_a_log_that_stands_still_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
