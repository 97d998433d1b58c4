/* SPDX-License-Identifier: MIT
 * The ring of waiters: order of arrival, holes, a full ring, wrap-around, and what a process killed or stopped in the
 * middle of an operation leaves.
 */
#include "queue.h"

#include "../support/helpers.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct dbp_queue *queue;

static int setup(void **state) {
    (void)state;
    queue = aligned_alloc(64, sizeof *queue);
    if (!queue)
        return -1;
    dbp_queue_init(queue);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    free(queue);
    return 0;
}

static uint32_t push(uint32_t proc) {
    uint32_t ticket = 0;

    assert_true(dbp_queue_push(queue, proc, false, &ticket));
    return ticket;
}

static void give_up(uint32_t ticket) {
    assert_true(dbp_queue_move(queue, dbp_queue_look(queue, ticket), DBP_PLACE_FREE, 0));
}

static void assert_oldest(uint32_t ticket) {
    dbp_place place;

    assert_true(dbp_queue_oldest(queue, &place));
    assert_int_equal(dbp_place_ticket(place), ticket);
    assert_int_equal(dbp_place_state(place), DBP_PLACE_WAITING);
}

/* A ring whose next ticket is `first`, as after so many waits. */
static void start_at(uint32_t first) {
    for (uint32_t i = 0; i < DBP_WAITERS_MAX; i++) {
        uint32_t ticket = first + i;
        atomic_store(&queue->places[ticket % DBP_WAITERS_MAX],
                     dbp_place_kept((dbp_place)(ticket - DBP_WAITERS_MAX) << 32, ticket));
    }
    atomic_store(&queue->head, first);
    atomic_store(&queue->tail, first);
}

static void test_an_empty_queue_is_quiet(void **state) {
    dbp_place place;
    uint32_t ticket = 0;

    (void)state;
    assert_true(dbp_queue_quiet(queue));
    assert_false(dbp_queue_oldest(queue, &place));
    assert_false(dbp_queue_next(queue, &ticket, &place));
    assert_int_equal(ticket, 0);
}

static void test_a_place_says_who_waits_and_how(void **state) {
    uint32_t ticket;
    dbp_place place;

    (void)state;
    assert_true(dbp_queue_push(queue, DBP_PROCS_MAX - 1, true, &ticket));
    place = dbp_queue_look(queue, ticket);
    assert_int_equal(dbp_place_proc(place), DBP_PROCS_MAX - 1);
    assert_true(dbp_place_event(place));
    assert_false(dbp_queue_quiet(queue));
    assert_true(dbp_queue_move(queue, place, DBP_PLACE_GRANTED, DBP_SESSIONS_MAX - 1));
    place = dbp_queue_look(queue, ticket);
    assert_int_equal(dbp_place_session(place), DBP_SESSIONS_MAX - 1);
    assert_int_equal(dbp_place_proc(place), DBP_PROCS_MAX - 1);
    assert_true(dbp_place_event(place));
    assert_int_equal(dbp_place_ticket(place), ticket);
}

static void test_I4_the_oldest_waiter_is_the_first_to_come(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 5; i++)
        assert_int_equal(push(i), i);
    for (uint32_t i = 0; i < 5; i++) {
        assert_oldest(i);
        assert_oldest(i); /* looking takes nothing */
        assert_true(dbp_queue_move(queue, dbp_queue_look(queue, i), DBP_PLACE_GRANTED, 0));
    }
    dbp_place place;
    assert_false(dbp_queue_oldest(queue, &place));
    assert_true(dbp_queue_quiet(queue));
}

static void test_I4_who_gave_up_is_passed_over(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 6; i++)
        push(i);
    give_up(0);
    give_up(2);
    assert_true(dbp_queue_move(queue, dbp_queue_look(queue, 3), DBP_PLACE_FAILED, 0));
    assert_oldest(1);
    give_up(1);
    assert_oldest(4);
    give_up(4);
    give_up(5);
    dbp_place place;
    assert_false(dbp_queue_oldest(queue, &place));
    assert_true(dbp_queue_quiet(queue)); /* else newcomers would queue for ever */
}

static void test_a_word_that_changed_is_not_moved(void **state) {
    (void)state;
    dbp_place seen = dbp_queue_look(queue, push(1));
    assert_true(dbp_queue_move(queue, seen, DBP_PLACE_GRANTED, 5));
    assert_false(dbp_queue_move(queue, seen, DBP_PLACE_FREE, 0)); /* its waiter wanted to give up: too late */
    assert_int_equal(dbp_place_session(dbp_queue_look(queue, 0)), 5);
}

static void test_a_full_queue_refuses_and_recovers(void **state) {
    uint32_t ticket = 4711;

    (void)state;
    for (uint32_t i = 0; i < DBP_WAITERS_MAX; i++)
        assert_int_equal(push(1), i);
    assert_false(dbp_queue_push(queue, 1, false, &ticket));
    assert_int_equal(ticket, 4711);
    give_up(77); /* a hole: its place comes back only in turn */
    assert_false(dbp_queue_push(queue, 1, false, &ticket));
    give_up(0);
    assert_int_equal(push(1), DBP_WAITERS_MAX);
    assert_false(dbp_queue_push(queue, 1, false, &ticket));
    assert_oldest(1);
}

static void test_I4_order_holds_while_tickets_wrap(void **state) {
    uint32_t first = UINT32_MAX - 2;

    (void)state;
    start_at(first);
    for (uint32_t i = 0; i < 6; i++)
        assert_int_equal(push(i), first + i);
    for (uint32_t i = 0; i < 6; i++) {
        assert_oldest(first + i);
        give_up(first + i);
    }
    dbp_place place;
    assert_false(dbp_queue_oldest(queue, &place));
    assert_true(dbp_queue_quiet(queue));
    assert_int_equal(atomic_load(&queue->tail), first + 6);
}

static void test_I2_a_taker_killed_before_it_counted_blocks_nobody(void **state) {
    (void)state;
    push(1);
    /* Ticket 1 was taken by a process that was killed before it moved the tail on. */
    atomic_store(&queue->places[1],
                 dbp_place_kept((dbp_place)DBP_PLACE_WAITING | (dbp_place)2 << 14 | (dbp_place)1 << 32, 1));
    assert_int_equal(atomic_load(&queue->tail), 1);
    assert_int_equal(push(3), 2); /* behind it, not over it */
    assert_oldest(0);
    give_up(0);
    assert_oldest(1);
    give_up(1);
    assert_oldest(2);

    /* The same with nobody after it: whoever looks for the oldest finds it. */
    give_up(2);
    atomic_store(&queue->places[3],
                 dbp_place_kept((dbp_place)DBP_PLACE_WAITING | (dbp_place)2 << 14 | (dbp_place)3 << 32, 3));
    assert_oldest(3);
    give_up(3);
    dbp_place place;
    assert_false(dbp_queue_oldest(queue, &place));
    assert_true(dbp_queue_quiet(queue)); /* head must not overtake a lagging tail */
    assert_int_equal(push(1), 4);
    assert_oldest(4);
}

static void test_a_head_far_behind_catches_up(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 3 * DBP_WAITERS_MAX; i++)
        give_up(push(1)); /* nobody ever asks for the oldest */
    uint32_t ticket = push(9);
    assert_oldest(ticket);
    assert_int_equal(atomic_load(&queue->head), ticket);
}

static void test_I2_a_grant_that_is_never_taken_does_not_fill_the_queue(void **state) {
    dbp_place place;
    uint32_t at;

    (void)state;
    /* Two processes are stopped for a long time, one with a session granted to it, one told that a login failed. */
    uint32_t a = push(1), between = push(3), b = push(2);
    assert_true(dbp_queue_move(queue, dbp_queue_look(queue, a), DBP_PLACE_GRANTED, 5));
    assert_true(dbp_queue_move(queue, dbp_queue_look(queue, b), DBP_PLACE_FAILED, 0));
    give_up(between);
    for (uint32_t i = 0; i < 2 * DBP_WAITERS_MAX + 100; i++) {
        uint32_t first = push(3), second = push(4);
        assert_true((int32_t)(second - first) > 0);
        assert_oldest(first);
        at = atomic_load(&queue->head);
        assert_true(dbp_queue_next(queue, &at, &place));
        assert_int_equal(dbp_place_ticket(place), first);
        assert_true(dbp_queue_next(queue, &at, &place));
        assert_int_equal(dbp_place_ticket(place), second);
        assert_false(dbp_queue_next(queue, &at, &place));
        give_up(first);
        assert_oldest(second);
        give_up(second);
        assert_false(dbp_queue_oldest(queue, &place));
        assert_true(dbp_queue_quiet(queue));
    }
    assert_int_equal(dbp_place_session(dbp_queue_look(queue, a)), 5); /* still theirs when they come back */
    assert_int_equal(dbp_place_ticket(dbp_queue_look(queue, a)), a);
    give_up(a);
    give_up(b);
    for (uint32_t i = 0; i < DBP_WAITERS_MAX; i++)
        push(1);
    assert_false(dbp_queue_push(queue, 1, false, &at)); /* their entries are of use again */
}

static void test_a_queue_of_grants_that_nobody_takes_is_full(void **state) {
    uint32_t ticket;

    (void)state;
    for (uint32_t i = 0; i < DBP_WAITERS_MAX; i++)
        assert_true(dbp_queue_move(queue, dbp_queue_look(queue, push(1)), DBP_PLACE_GRANTED, 0));
    assert_false(dbp_queue_push(queue, 1, false, &ticket));
    give_up(9);
    assert_true(dbp_queue_push(queue, 1, false, &ticket));
    assert_oldest(ticket);
}

static void test_a_grant_that_sleeps_for_ever_fills_the_queue_at_last(void **state) {
    uint32_t ticket, n = 0;

    (void)state;
    uint32_t sleeper = push(1);
    assert_true(dbp_queue_move(queue, dbp_queue_look(queue, sleeper), DBP_PLACE_GRANTED, 5));
    for (; n < 200 * DBP_WAITERS_MAX && dbp_queue_push(queue, 2, false, &ticket); n++)
        give_up(ticket);
    assert_true(n > 100 * DBP_WAITERS_MAX &&
                n < 200 * DBP_WAITERS_MAX); /* the count of laps has an end, and is whole */
    assert_int_equal(dbp_place_session(dbp_queue_look(queue, sleeper)), 5);
    assert_int_equal(dbp_place_proc(dbp_queue_look(queue, sleeper)), 1);
    give_up(sleeper);
    ticket = push(3);
    assert_oldest(ticket);
}

static void test_next_scans_only_who_waits(void **state) {
    uint32_t at = 0;
    dbp_place place;

    (void)state;
    for (uint32_t i = 0; i < 5; i++)
        push(i);
    give_up(1);
    assert_true(dbp_queue_move(queue, dbp_queue_look(queue, 3), DBP_PLACE_GRANTED, 0));
    static const uint32_t expected[] = {0, 2, 4};
    for (size_t i = 0; i < 3; i++) {
        assert_true(dbp_queue_next(queue, &at, &place));
        assert_int_equal(dbp_place_ticket(place), expected[i]);
        assert_int_equal(at, expected[i] + 1);
    }
    assert_false(dbp_queue_next(queue, &at, &place));
    assert_int_equal(at, 5);
}

static void test_the_futex_changes_with_the_state(void **state) {
    (void)state;
    uint32_t ticket = push(5);
    uint32_t waiting = atomic_load(dbp_queue_futex(queue, ticket));
    dbp_place seen = dbp_queue_look(queue, ticket);
    assert_int_equal(waiting, (uint32_t)seen);
    assert_true(dbp_queue_move(queue, seen, DBP_PLACE_GRANTED, 0));
    assert_int_not_equal(atomic_load(dbp_queue_futex(queue, ticket)), waiting);
}

/* Random operations against a list that is obviously right. */
static void test_I4_random_operations_agree_with_a_list(void **state) {
    static uint32_t list[DBP_WAITERS_MAX];
    uint64_t random = test_seed();
    uint32_t n = 0;

    (void)state;
    start_at((uint32_t)test_random(&random));
    for (int i = 0; i < 200000; i++) {
        uint64_t dice = test_random(&random);
        if (dice % 16 < 7) {
            list[n++] = push((uint32_t)(dice >> 8) % DBP_PROCS_MAX);
            if (n > 1)
                assert_int_equal((int32_t)(list[n - 1] - list[n - 2]) > 0, 1);
        } else if (n > 0 && dice % 16 < 10) {
            uint32_t at = (uint32_t)(dice >> 8) % n;
            give_up(list[at]);
            memmove(list + at, list + at + 1, (n - at - 1) * sizeof *list);
            n--;
        } else if (n > 0) {
            assert_oldest(list[0]);
            assert_true(dbp_queue_move(queue, dbp_queue_look(queue, list[0]), DBP_PLACE_GRANTED, 1));
            give_up(list[0]); /* claimed */
            memmove(list, list + 1, (n - 1) * sizeof *list);
            n--;
        } else {
            dbp_place place;
            assert_false(dbp_queue_oldest(queue, &place));
            assert_true(dbp_queue_quiet(queue));
        }
        if (n == 1000)
            while (n > 0)
                give_up(list[--n]);
    }
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_an_empty_queue_is_quiet),
        TEST(test_a_place_says_who_waits_and_how),
        TEST(test_I4_the_oldest_waiter_is_the_first_to_come),
        TEST(test_I4_who_gave_up_is_passed_over),
        TEST(test_a_word_that_changed_is_not_moved),
        TEST(test_a_full_queue_refuses_and_recovers),
        TEST(test_I4_order_holds_while_tickets_wrap),
        TEST(test_I2_a_taker_killed_before_it_counted_blocks_nobody),
        TEST(test_a_head_far_behind_catches_up),
        TEST(test_I2_a_grant_that_is_never_taken_does_not_fill_the_queue),
        TEST(test_a_queue_of_grants_that_nobody_takes_is_full),
        TEST(test_a_grant_that_sleeps_for_ever_fills_the_queue_at_last),
        TEST(test_next_scans_only_who_waits),
        TEST(test_the_futex_changes_with_the_state),
        TEST(test_I4_random_operations_agree_with_a_list),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
