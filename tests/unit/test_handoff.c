/* SPDX-License-Identifier: MIT
 * The hand-off between sessions and waiters: order, wake-ups, and every half-done step that a death can leave
 * (DESIGN.md, crash matrix). One process plays all: slots 1 to 4 are the others.
 */
#include "handoff.h"
#include "share.h"

#include "../support/helpers.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static struct dbp_share share;
static struct dbp_table *table;
static struct dbp_queue *queue;
static int control = -1;

static int setup(void **state) {
    (void)state;
    if (dbp_share_new(8, &share, &control) != 0)
        return -1;
    table = share.table;
    queue = &table->pools[0].queue;
    dbp_queue_init(queue);
    dbp_queue_init(&table->pools[1].queue);
    atomic_store(&table->n_pools, 2);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    close(control);
    dbp_share_free(&share);
    return 0;
}

static dbp_word word_of(uint32_t session) {
    return atomic_load(&table->sessions[session].word);
}

static enum dbp_state state_of(uint32_t session) {
    return dbp_word_state(word_of(session));
}

static void make_idle(uint32_t session) {
    assert_true(dbp_session_move(table, session, word_of(session), DBP_OPENING, 0, NULL));
    assert_true(dbp_idle_put(table, session, word_of(session)));
}

static uint32_t wait_in(uint32_t slot, bool event) {
    uint32_t ticket = 0;

    assert_true(dbp_queue_push(queue, slot, event, &ticket));
    atomic_fetch_add(&table->pools[0].count.waiting, 1);
    return ticket;
}

static enum dbp_place_state place_of(uint32_t ticket) {
    return dbp_place_state(dbp_queue_look(queue, ticket));
}

static bool was_woken(uint32_t slot) {
    uint64_t count;

    return read(share.wake_fds[slot], &count, sizeof count) == sizeof count;
}

static int64_t waiting(void) {
    return atomic_load(&table->pools[0].count.waiting);
}

static void assert_claims(uint32_t ticket, uint32_t slot, uint32_t expected) {
    uint32_t session = 99;
    dbp_word word;

    assert_int_equal(dbp_handoff_claim(&share, 0, ticket, slot, &session, &word), 0);
    assert_int_equal(session, expected);
    assert_true(word == word_of(session));
    assert_int_equal(dbp_word_state(word), DBP_LEASED);
    assert_int_equal(dbp_word_owner(word), slot);
    assert_int_equal(place_of(ticket), DBP_PLACE_FREE);
}

static void test_I4_sessions_go_to_the_oldest_in_turn(void **state) {
    uint32_t session;
    dbp_word word;

    (void)state;
    uint32_t a = wait_in(1, false), b = wait_in(2, false), c = wait_in(1, false);
    dbp_handoff_match(&share, 0); /* nothing to give */
    assert_int_equal(dbp_handoff_claim(&share, 0, a, 1, &session, &word), DBP_E_BUSY);
    make_idle(0);
    make_idle(1);
    dbp_handoff_match(&share, 0);
    assert_int_equal(place_of(c), DBP_PLACE_WAITING);
    assert_int_equal(waiting(), 1);
    assert_claims(b, 2, 1); /* claimed in any order, granted in that of arrival */
    assert_claims(a, 1, 0);
    make_idle(2);
    dbp_handoff_match(&share, 0);
    assert_claims(c, 1, 2);
    assert_int_equal(waiting(), 0);
    assert_int_equal(dbp_handoff_claim(&share, 0, c, 1, &session, &word), DBP_E_FAILED); /* once only */
}

static void test_nobody_waits_so_sessions_stay_idle(void **state) {
    (void)state;
    make_idle(0);
    dbp_handoff_match(&share, 0);
    assert_int_equal(state_of(0), DBP_IDLE);
    assert_true(dbp_idle_any(table, 0));
}

static void test_a_pool_serves_its_own_waiters_only(void **state) {
    uint32_t ticket;

    (void)state;
    assert_true(dbp_queue_push(&table->pools[1].queue, 1, false, &ticket));
    make_idle(0);
    dbp_handoff_match(&share, 0);
    dbp_handoff_match(&share, 1);
    assert_int_equal(state_of(0), DBP_IDLE);
}

static void test_I11_only_the_granted_process_is_woken(void **state) {
    (void)state;
    wait_in(1, true);
    wait_in(2, true);
    make_idle(0);
    dbp_handoff_match(&share, 0);
    assert_true(was_woken(1));
    for (uint32_t slot = 0; slot < 8; slot++)
        assert_false(was_woken(slot));
}

static void test_a_sleeping_thread_needs_no_eventfd(void **state) {
    (void)state;
    wait_in(1, false);
    make_idle(0);
    dbp_handoff_match(&share, 0);
    assert_false(was_woken(1));
}

static void test_a_full_eventfd_is_awake_enough(void **state) {
    uint64_t full = UINT64_MAX - 1;

    (void)state;
    assert_int_equal(write(share.wake_fds[1], &full, sizeof full), sizeof full);
    uint32_t ticket = wait_in(1, true);
    make_idle(0);
    dbp_handoff_match(&share, 0);
    assert_true(was_woken(1));
    assert_claims(ticket, 1, 0);
}

static void test_I4_who_cancelled_is_handed_nothing(void **state) {
    uint32_t session;
    dbp_word word;

    (void)state;
    uint32_t a = wait_in(1, true), b = wait_in(2, true);
    assert_int_equal(dbp_handoff_cancel(&share, 0, a, 1, &session, &word), DBP_E_TIMEOUT);
    assert_int_equal(waiting(), 1);
    make_idle(0);
    dbp_handoff_match(&share, 0);
    assert_false(was_woken(1));
    assert_claims(b, 2, 0);
    assert_int_equal(dbp_handoff_cancel(&share, 0, a, 1, &session, &word), DBP_E_TIMEOUT); /* twice is harmless */
}

static void test_a_cancel_that_comes_too_late_has_the_session(void **state) {
    uint32_t session = 99;
    dbp_word word;

    (void)state;
    uint32_t a = wait_in(1, true);
    make_idle(0);
    dbp_handoff_match(&share, 0);
    assert_int_equal(dbp_handoff_cancel(&share, 0, a, 1, &session, &word), 0);
    assert_int_equal(session, 0);
    assert_int_equal(dbp_word_owner(word_of(0)), 1);
}

static void test_the_last_to_cancel_leaves_the_queue_quiet(void **state) {
    uint32_t session;
    dbp_word word;

    (void)state;
    uint32_t a = wait_in(1, false), b = wait_in(1, false);
    assert_int_equal(dbp_handoff_cancel(&share, 0, b, 1, &session, &word), DBP_E_TIMEOUT);
    assert_false(dbp_queue_quiet(queue));
    assert_int_equal(dbp_handoff_cancel(&share, 0, a, 1, &session, &word), DBP_E_TIMEOUT);
    assert_true(dbp_queue_quiet(queue));
}

static void test_I2_a_cancel_passes_an_idle_session_on(void **state) {
    uint32_t session;
    dbp_word word;

    (void)state;
    uint32_t a = wait_in(1, true), b = wait_in(2, true);
    make_idle(0); /* put back by a match that was about to grant it to a, and went on before b came */
    assert_int_equal(dbp_handoff_cancel(&share, 0, a, 1, &session, &word), DBP_E_TIMEOUT);
    assert_int_equal(place_of(b), DBP_PLACE_GRANTED);
    assert_claims(b, 2, 0);
}

static void test_failing_ends_those_who_came_before(void **state) {
    uint32_t session;
    dbp_word word;

    (void)state;
    uint32_t a = wait_in(1, true), b = wait_in(2, false), c = wait_in(3, true);
    dbp_handoff_fail(&share, 0, c);
    assert_true(was_woken(1));
    assert_false(was_woken(3));
    assert_int_equal(waiting(), 1);
    assert_int_equal(dbp_handoff_claim(&share, 0, a, 1, &session, &word), DBP_E_FAILED);
    assert_int_equal(dbp_handoff_cancel(&share, 0, b, 2, &session, &word), DBP_E_TIMEOUT);
    assert_int_equal(place_of(a), DBP_PLACE_FREE);
    assert_int_equal(place_of(b), DBP_PLACE_FREE);
    make_idle(0);
    dbp_handoff_match(&share, 0);
    assert_claims(c, 3, 0);
}

static void test_failing_compares_tickets_across_the_wrap(void **state) {
    uint32_t first = UINT32_MAX;

    (void)state;
    for (uint32_t i = 0; i < DBP_WAITERS_MAX; i++)
        atomic_store(&queue->places[(first + i) % DBP_WAITERS_MAX],
                     dbp_place_kept((dbp_place)(first + i - DBP_WAITERS_MAX) << 32, first + i));
    atomic_store(&queue->head, first);
    atomic_store(&queue->tail, first);
    uint32_t a = wait_in(1, true), b = wait_in(1, true), c = wait_in(1, true);
    dbp_handoff_fail(&share, 0, c);
    assert_int_equal(place_of(a), DBP_PLACE_FAILED);
    assert_int_equal(place_of(b), DBP_PLACE_FAILED);
    assert_int_equal(place_of(c), DBP_PLACE_WAITING);
}

/* ---- what deaths leave ---- */

static void test_I2_killed_with_the_idle_bit_in_hand(void **state) {
    (void)state;
    make_idle(0);
    atomic_store(&table->pools[0].idle[0], 0);
    uint32_t ticket = wait_in(2, true);
    dbp_handoff_match(&share, 0);
    assert_int_equal(place_of(ticket), DBP_PLACE_WAITING);
    dbp_handoff_sweep(&share, 0);
    assert_claims(ticket, 2, 0);
}

/* Session 0 is granted to a waiter of slot 2, who was not told: step 1 of a grant, whose author was killed then. */
static uint32_t granted_untold(void) {
    uint32_t session;
    dbp_word word;

    make_idle(0);
    uint32_t ticket = wait_in(2, true);
    assert_true(dbp_idle_take(table, 0, DBP_GRANTED, ticket, &session, &word));
    assert_int_equal(session, 0);
    return ticket;
}

static void test_I2_killed_after_grant_step_1(void **state) {
    (void)state;
    uint32_t ticket = granted_untold();
    dbp_handoff_sweep(&share, 0);
    assert_true(was_woken(2));
    assert_int_equal(waiting(), 0);
    assert_claims(ticket, 2, 0);
}

static void test_I2_killed_after_grant_step_1_and_the_waiter_left(void **state) {
    uint32_t session;
    dbp_word word;

    (void)state;
    uint32_t ticket = granted_untold(), next = wait_in(3, true);
    assert_int_equal(dbp_handoff_cancel(&share, 0, ticket, 2, &session, &word), DBP_E_TIMEOUT);
    assert_int_equal(state_of(0), DBP_GRANTED);
    dbp_handoff_sweep(&share, 0);
    assert_false(was_woken(2));
    assert_claims(next, 3, 0);
}

static void test_I2_killed_after_grant_step_2_before_the_wake(void **state) {
    (void)state;
    uint32_t ticket = granted_untold();
    assert_true(dbp_queue_move(queue, dbp_queue_look(queue, ticket), DBP_PLACE_GRANTED, 0));
    dbp_handoff_sweep(&share, 0);
    assert_true(was_woken(2));
    assert_claims(ticket, 2, 0);
}

static void test_I1_two_grants_for_one_waiter_leave_it_one(void **state) {
    uint32_t stopped, session;
    dbp_word stopped_word;

    (void)state;
    make_idle(0);
    uint32_t ticket = wait_in(2, true);
    /* One process is stopped after step 1 with session 0; another comes back with session 1 and goes all the way. */
    assert_true(dbp_idle_take(table, 0, DBP_GRANTED, ticket, &stopped, &stopped_word));
    make_idle(1);
    dbp_handoff_match(&share, 0);
    assert_int_equal(place_of(ticket), DBP_PLACE_GRANTED);
    dbp_handoff_sweep(&share, 0);
    assert_int_equal(state_of(0), DBP_IDLE); /* back in the pool, whether its author comes back or not */
    assert_claims(ticket, 2, 1);
    /* The stopped one goes on: its place is gone, its word too. */
    assert_false(dbp_idle_put(table, stopped, stopped_word));
    dbp_word word;
    assert_true(dbp_idle_take(table, 0, DBP_LEASED, 3, &session, &word));
    assert_int_equal(session, 0);
}

static void test_I2_a_session_put_back_that_became_unfit_is_told_to_the_broker(void **state) {
    uint32_t session;
    dbp_word word;

    (void)state;
    uint32_t ticket = granted_untold();
    assert_int_equal(dbp_handoff_cancel(&share, 0, ticket, 2, &session, &word), DBP_E_TIMEOUT);
    /* Its server hung up: the broker leaves it while it is granted. */
    atomic_store(&table->sessions[0].unfit, DBP_UNFIT);
    assert_false(dbp_attention(table, 0));
    dbp_handoff_sweep(&share, 0);
    assert_int_equal(state_of(0), DBP_IDLE);
    assert_true(dbp_attention(table, 0));
}

static void test_I1_killed_in_the_middle_of_a_claim(void **state) {
    uint32_t session;
    dbp_word word;

    (void)state;
    make_idle(0);
    uint32_t ticket = wait_in(2, true);
    dbp_handoff_match(&share, 0);
    assert_true(dbp_session_move(table, 0, word_of(0), DBP_LEASED, 2, &word)); /* and died */
    dbp_handoff_sweep(&share, 0);
    assert_true(word_of(0) == word); /* still the dead one's: only its burial ends it */
    dbp_handoff_bury(&share, 0, 2);
    assert_int_equal(place_of(ticket), DBP_PLACE_FREE);
    dbp_handoff_sweep(&share, 0);
    assert_true(word_of(0) == word);
    assert_int_equal(dbp_handoff_claim(&share, 0, ticket, 2, &session, &word), DBP_E_FAILED);
}

static void test_I4_a_dead_waiter_is_handed_nothing(void **state) {
    (void)state;
    uint32_t a = wait_in(2, true), b = wait_in(3, true), c = wait_in(2, false), d = wait_in(4, true);
    assert_int_equal(waiting(), 4);
    dbp_handoff_bury(&share, 0, 2);
    assert_int_equal(waiting(), 2);
    assert_int_equal(place_of(a), DBP_PLACE_FREE);
    assert_int_equal(place_of(c), DBP_PLACE_FREE);
    make_idle(0);
    make_idle(1);
    dbp_handoff_match(&share, 0);
    assert_false(was_woken(2));
    assert_claims(b, 3, 0);
    assert_claims(d, 4, 1);
}

static void test_I2_a_session_granted_to_a_dead_waiter_goes_on(void **state) {
    (void)state;
    uint32_t a = wait_in(2, true), b = wait_in(3, true);
    make_idle(0);
    dbp_handoff_match(&share, 0);
    assert_int_equal(place_of(a), DBP_PLACE_GRANTED);
    dbp_handoff_bury(&share, 0, 2);
    dbp_handoff_sweep(&share, 0);
    assert_claims(b, 3, 0);
    assert_int_equal(waiting(), 0);
}

static void test_I4_burying_finds_places_before_the_head(void **state) {
    (void)state;
    uint32_t a = wait_in(2, true);
    make_idle(0);
    dbp_handoff_match(&share, 0);
    wait_in(3, true);
    dbp_place place;
    assert_true(dbp_queue_oldest(queue, &place)); /* the head is past a now */
    dbp_handoff_bury(&share, 0, 2);
    assert_int_equal(place_of(a), DBP_PLACE_FREE);
}

static void test_I2_a_grant_to_a_reused_place_goes_back(void **state) {
    uint32_t session;
    dbp_word word;

    (void)state;
    make_idle(0);
    uint32_t ticket = wait_in(2, true);
    assert_true(dbp_idle_take(table, 0, DBP_GRANTED, ticket, &session, &word));
    assert_true(dbp_queue_move(queue, dbp_queue_look(queue, ticket), DBP_PLACE_FREE, 0));
    for (uint32_t i = 1; i <= DBP_WAITERS_MAX; i++) { /* until another waits in the same entry */
        uint32_t t = 0;
        assert_true(dbp_queue_push(queue, 3, true, &t));
        if (i < DBP_WAITERS_MAX)
            assert_true(dbp_queue_move(queue, dbp_queue_look(queue, t), DBP_PLACE_FREE, 0));
    }
    dbp_handoff_sweep(&share, 0);
    assert_false(was_woken(2));
    assert_true(was_woken(3));
    assert_claims(ticket + DBP_WAITERS_MAX, 3, 0);
}

static void test_I2_a_grant_is_claimed_after_the_ring_went_past_it(void **state) {
    uint32_t session;
    dbp_word word;

    (void)state;
    uint32_t a = wait_in(2, true), b = wait_in(4, true);
    make_idle(0);
    make_idle(1);
    dbp_handoff_match(&share, 0);
    for (uint32_t i = 0; i < 2 * DBP_WAITERS_MAX; i++) {
        uint32_t ticket = wait_in(3, false);
        assert_int_equal(dbp_handoff_cancel(&share, 0, ticket, 3, &session, &word), DBP_E_TIMEOUT);
    }
    uint32_t next = wait_in(3, true);
    dbp_handoff_bury(&share, 0, 4);
    dbp_handoff_sweep(&share, 0); /* wakes a again, passes b's session on */
    assert_int_equal(dbp_handoff_claim(&share, 0, a, 2, &session, &word), 0);
    assert_int_equal(session, 0);
    assert_int_equal(dbp_handoff_claim(&share, 0, a, 2, &session, &word), DBP_E_FAILED);
    assert_int_equal(dbp_handoff_claim(&share, 0, b, 4, &session, &word), DBP_E_FAILED);
    assert_claims(next, 3, 1);
}

static void test_I5_a_session_that_its_server_left_is_granted_to_nobody(void **state) {
    (void)state;
    make_idle(0);
    atomic_store(&table->sessions[0].unfit, 1);
    uint32_t ticket = wait_in(2, true);
    dbp_handoff_match(&share, 0);
    assert_int_equal(place_of(ticket), DBP_PLACE_WAITING);
    make_idle(1);
    dbp_handoff_match(&share, 0);
    assert_claims(ticket, 2, 1);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_I4_sessions_go_to_the_oldest_in_turn),
        TEST(test_nobody_waits_so_sessions_stay_idle),
        TEST(test_a_pool_serves_its_own_waiters_only),
        TEST(test_I11_only_the_granted_process_is_woken),
        TEST(test_a_sleeping_thread_needs_no_eventfd),
        TEST(test_a_full_eventfd_is_awake_enough),
        TEST(test_I4_who_cancelled_is_handed_nothing),
        TEST(test_a_cancel_that_comes_too_late_has_the_session),
        TEST(test_the_last_to_cancel_leaves_the_queue_quiet),
        TEST(test_I2_a_cancel_passes_an_idle_session_on),
        TEST(test_failing_ends_those_who_came_before),
        TEST(test_failing_compares_tickets_across_the_wrap),
        TEST(test_I2_killed_with_the_idle_bit_in_hand),
        TEST(test_I2_killed_after_grant_step_1),
        TEST(test_I2_killed_after_grant_step_1_and_the_waiter_left),
        TEST(test_I2_killed_after_grant_step_2_before_the_wake),
        TEST(test_I1_two_grants_for_one_waiter_leave_it_one),
        TEST(test_I1_killed_in_the_middle_of_a_claim),
        TEST(test_I4_a_dead_waiter_is_handed_nothing),
        TEST(test_I2_a_session_granted_to_a_dead_waiter_goes_on),
        TEST(test_I2_a_session_put_back_that_became_unfit_is_told_to_the_broker),
        TEST(test_I4_burying_finds_places_before_the_head),
        TEST(test_I2_a_grant_to_a_reused_place_goes_back),
        TEST(test_I2_a_grant_is_claimed_after_the_ring_went_past_it),
        TEST(test_I5_a_session_that_its_server_left_is_granted_to_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
