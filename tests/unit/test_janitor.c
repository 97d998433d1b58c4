/* SPDX-License-Identifier: MIT
 * The policy of a pool, as a table of situations and as a property of all of them.
 */
#include "janitor.h"

#include "../support/helpers.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define NOW 1000000u

static const struct {
    const char *what;
    struct dbp_janitor_view view;
    uint32_t open, retire;
    uint64_t wake_at_us;
} cases[] = {
    {"nobody waits: nothing is opened in advance", {.pool_size = 5, .cap = 10}, 0, 0, 0},
    {"one waiter, one login", {.waiting = 1, .pool_size = 5, .cap = 10}, 1, 0, 0},
    {"a login under way serves a waiter", {.waiting = 3, .opening = 1, .total = 1, .pool_size = 5, .cap = 10}, 2, 0, 0},
    {"so does a reset", {.waiting = 1, .resetting = 1, .total = 1, .pool_size = 5, .cap = 10}, 0, 0, 0},
    {"and an idle session", {.waiting = 2, .idle = 2, .total = 2, .pool_size = 5, .cap = 10}, 0, 0, 0},
    {"the cap holds (I3)", {.waiting = 20, .total = 8, .pool_size = 5, .cap = 10}, 2, 0, 0},
    {"so many logins at once, the rest when these are done", {.waiting = 20, .pool_size = 20, .cap = 20}, 4, 0, 0},
    {"at the cap nothing is opened", {.waiting = 20, .total = 10, .pool_size = 5, .cap = 10}, 0, 0, 0},
    {"closing ones count in it (I3)", {.waiting = 5, .total = 10, .closing = 4, .pool_size = 5, .cap = 10}, 0, 0, 0},
    {"above a cap that was lowered: nothing", {.waiting = 5, .total = 12, .pool_size = 5, .cap = 10}, 0, 0, 0},
    {"overflow goes when nobody waits", {.idle = 4, .rested = 4, .total = 8, .pool_size = 5, .cap = 10}, 0, 3, 0},
    {"as many as are idle", {.idle = 1, .rested = 1, .total = 8, .pool_size = 5, .cap = 10}, 0, 1, 0},
    {"not those that are leaving already",
     {.idle = 4, .rested = 4, .total = 8, .closing = 2, .pool_size = 5, .cap = 10},
     0,
     1,
     0},
    {"overflow stays for its grace",
     {.now_us = NOW, .idle = 4, .next_rested_us = NOW + 7, .total = 8, .pool_size = 5, .cap = 10},
     0,
     0,
     NOW + 7},
    {"what was used goes on",
     {.now_us = NOW, .idle = 4, .rested = 1, .next_rested_us = NOW + 7, .total = 8, .pool_size = 5, .cap = 10},
     0,
     1,
     NOW + 7},
    {"within the pool's size there is no grace to look at",
     {.now_us = NOW, .idle = 5, .rested = 3, .next_rested_us = NOW + 7, .total = 5, .pool_size = 5, .cap = 10},
     0,
     0,
     0},
    {"a cap that was lowered knows no grace",
     {.now_us = NOW, .idle = 4, .next_rested_us = NOW + 7, .surplus = 2, .total = 12, .pool_size = 5, .cap = 10},
     0,
     2,
     NOW + 7},
    {"kept ones stay", {.idle = 5, .total = 5, .pool_size = 5, .cap = 10}, 0, 0, 0},
    {"nobody is retired while one waits", {.waiting = 1, .idle = 4, .total = 8, .pool_size = 5, .cap = 10}, 0, 0, 0},
    {"after a failure: not before its time",
     {.now_us = NOW, .retry_at_us = NOW + 1, .failures = 1, .waiting = 4, .pool_size = 5, .cap = 10},
     0,
     0,
     NOW + 1},
    {"then one scout",
     {.now_us = NOW, .retry_at_us = NOW, .failures = 1, .waiting = 4, .pool_size = 5, .cap = 10},
     1,
     0,
     0},
    {"and only one",
     {.now_us = NOW,
      .retry_at_us = NOW,
      .failures = 1,
      .waiting = 4,
      .opening = 1,
      .total = 1,
      .pool_size = 5,
      .cap = 10},
     0,
     0,
     0},
    {"with nobody waiting there is nothing to retry",
     {.now_us = NOW, .retry_at_us = NOW + 1, .failures = 9, .pool_size = 5, .cap = 10},
     0,
     0,
     0},
    {"the floor is opened before anybody asks", {.min_size = 3, .pool_size = 5, .cap = 10}, 3, 0, 0},
    {"what is under way counts for it", {.opening = 2, .total = 2, .min_size = 3, .pool_size = 5, .cap = 10}, 1, 0, 0},
    {"closing ones do not", {.closing = 3, .total = 3, .min_size = 3, .pool_size = 5, .cap = 5}, 2, 0, 0},
    {"waiters and floor do not add up", {.waiting = 2, .min_size = 3, .pool_size = 5, .cap = 10}, 3, 0, 0},
    {"the floor, too, waits after a failure",
     {.now_us = NOW, .retry_at_us = NOW + 1, .failures = 1, .min_size = 3, .pool_size = 5, .cap = 10},
     0,
     0,
     NOW + 1},
    {"below the core growth is at once",
     {.waiting = 1, .leased = 4, .total = 4, .core_size = 5, .unload_us = 9, .pool_size = 8, .cap = 8},
     1,
     0,
     0},
    {"beyond it an overload is sat out first",
     {.now_us = NOW, .waiting = 1, .leased = 5, .total = 5, .core_size = 5, .unload_us = 9, .pool_size = 8, .cap = 8},
     0,
     0,
     NOW + 9},
    {"until its time has come",
     {.now_us = NOW,
      .memory = {.overload_until_us = NOW},
      .waiting = 2,
      .leased = 5,
      .total = 5,
      .core_size = 5,
      .unload_us = 9,
      .pool_size = 8,
      .cap = 8},
     2,
     0,
     0},
    {"what is being opened is busy, too",
     {.now_us = NOW,
      .waiting = 9,
      .leased = 2,
      .opening = 1,
      .total = 3,
      .core_size = 5,
      .unload_us = 9,
      .pool_size = 8,
      .cap = 8},
     2,
     0,
     NOW + 9},
    {"without an unload time there is no wait",
     {.now_us = NOW, .waiting = 1, .leased = 5, .total = 5, .core_size = 5, .pool_size = 8, .cap = 8},
     1,
     0,
     0},
    {"a surplus is noticed, not ended yet",
     {.now_us = NOW,
      .idle = 6,
      .total = 6,
      .core_size = 2,
      .retire_interval_us = 5,
      .retire_quantity = 2,
      .pool_size = 8,
      .cap = 8},
     0,
     0,
     NOW + 5},
    {"then shrinks by quantity",
     {.now_us = NOW,
      .memory = {.retire_at_us = NOW},
      .idle = 6,
      .total = 6,
      .core_size = 2,
      .retire_interval_us = 5,
      .retire_quantity = 2,
      .pool_size = 8,
      .cap = 8},
     0,
     2,
     NOW + 5},
    {"the interval runs on while all that there is more is in use",
     {.now_us = NOW,
      .memory = {.retire_at_us = NOW + 3},
      .idle = 2,
      .leased = 1,
      .total = 3,
      .core_size = 2,
      .retire_interval_us = 5,
      .retire_quantity = 2,
      .pool_size = 8,
      .cap = 8},
     0,
     0,
     NOW + 3},
    {"and begins anew when it was at its end",
     {.now_us = NOW,
      .memory = {.retire_at_us = NOW},
      .idle = 2,
      .leased = 1,
      .total = 3,
      .core_size = 2,
      .retire_interval_us = 5,
      .retire_quantity = 2,
      .pool_size = 8,
      .cap = 8},
     0,
     0,
     NOW + 5},
    {"down to the core, and rests",
     {.now_us = NOW,
      .memory = {.retire_at_us = NOW},
      .idle = 3,
      .total = 3,
      .core_size = 2,
      .retire_interval_us = 5,
      .retire_quantity = 2,
      .pool_size = 8,
      .cap = 8},
     0,
     1,
     0},
    {"a quantity of 0 counts as 1",
     {.now_us = NOW,
      .memory = {.retire_at_us = NOW},
      .idle = 6,
      .total = 6,
      .core_size = 5,
      .retire_interval_us = 5,
      .pool_size = 8,
      .cap = 8},
     0,
     1,
     0},
    {"stale ones go", {.now_us = NOW, .idle = 4, .stale = 3, .total = 4, .pool_size = 8, .cap = 8}, 0, 3, 0},
    {"but not below the floor",
     {.now_us = NOW, .idle = 4, .stale = 4, .total = 4, .min_size = 2, .pool_size = 8, .cap = 8},
     0,
     2,
     0},
    {"the next one is waited for",
     {.now_us = NOW, .idle = 4, .next_stale_us = NOW + 3, .total = 4, .pool_size = 8, .cap = 8},
     0,
     0,
     NOW + 3},
    {"none is stale while somebody waits",
     {.now_us = NOW, .waiting = 1, .idle = 4, .stale = 4, .total = 4, .pool_size = 8, .cap = 8},
     0,
     0,
     0},
};

static void test_situations(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct dbp_janitor_plan plan = dbp_janitor_plan(&cases[i].view);
        if (plan.open != cases[i].open || plan.retire != cases[i].retire || plan.wake_at_us != cases[i].wake_at_us)
            fail_msg("%s: open %u retire %u wake %llu", cases[i].what, plan.open, plan.retire,
                     (unsigned long long)plan.wake_at_us);
    }
}

static void test_I3_no_situation_passes_the_cap_or_retires_too_much(void **state) {
    uint64_t random = test_seed();

    (void)state;
    for (int i = 0; i < 200000; i++) {
        uint64_t r = test_random(&random);
        struct dbp_janitor_view v = {.now_us = NOW, .retry_at_us = NOW - 1 + (r & 3), .failures = (r >> 2) & 3};
        v.waiting = (r >> 4) & 31;
        v.opening = (r >> 9) & 7;
        v.resetting = (r >> 12) & 3;
        v.idle = (r >> 14) & 7;
        v.closing = (r >> 17) & 7;
        v.total = v.opening + v.resetting + v.idle + v.closing + ((r >> 20) & 15);
        v.pool_size = 1 + ((r >> 24) & 15);
        v.cap = v.pool_size + ((r >> 28) & 15);
        struct dbp_janitor_plan plan = dbp_janitor_plan(&v);
        assert_true(plan.open == 0 || v.total + plan.open <= v.cap);
        assert_true(plan.open <= v.waiting);
        assert_true(plan.retire <= v.idle);
        assert_true(plan.retire == 0 || v.total - v.closing - plan.retire >= v.pool_size);
        assert_true(plan.open == 0 || plan.retire == 0);
        assert_true(v.failures == 0 || plan.open <= 1);
        /* Somebody waits whom nobody serves, there is room, and yet nothing is planned: only if it wakes up later. */
        if (plan.open == 0 && v.total < v.cap && v.waiting > v.opening + v.resetting + v.idle)
            assert_true(plan.wake_at_us > NOW || (v.failures > 0 && v.opening > 0) || v.opening >= DBP_LOGINS_AT_ONCE);
        assert_true(plan.open == 0 || v.opening + plan.open <= DBP_LOGINS_AT_ONCE);
    }
}

static void test_backoff_doubles_up_to_its_limit(void **state) {
    uint64_t before = 0;

    (void)state;
    assert_int_equal(dbp_janitor_backoff_us(1, false), DBP_RETRY_FIRST_US);
    assert_int_equal(dbp_janitor_backoff_us(2, false), 2 * DBP_RETRY_FIRST_US);
    for (uint32_t n = 1; n < 100; n++) {
        uint64_t us = dbp_janitor_backoff_us(n, false);
        assert_true(us >= before && us <= DBP_RETRY_MOST_US);
        before = us;
    }
    assert_int_equal(dbp_janitor_backoff_us(99, false), DBP_RETRY_MOST_US);
    assert_int_equal(dbp_janitor_backoff_us(UINT32_MAX, false), DBP_RETRY_MOST_US);
}

/* A wrong password is tried for somebody who waits, and not for the floor. */
static void test_a_refusal_is_met_again_for_a_waiter_only(void **state) {
    struct dbp_janitor_view v = {
        .now_us = NOW, .retry_at_us = NOW, .failures = 1, .refused = true, .min_size = 3, .pool_size = 5, .cap = 10};

    (void)state;
    assert_int_equal(dbp_janitor_plan(&v).open, 0);
    v.waiting = 4;
    assert_int_equal(dbp_janitor_plan(&v).open, 1);
    v.waiting = 0;
    v.failures = 0; /* one has succeeded */
    assert_int_equal(dbp_janitor_plan(&v).open, 3);
    assert_true(dbp_janitor_refused(1045) && dbp_janitor_refused(1049) && dbp_janitor_refused(1129));
    assert_false(dbp_janitor_refused(2002) || dbp_janitor_refused(2003) || dbp_janitor_refused(1040) ||
                 dbp_janitor_refused(2013) || dbp_janitor_refused(0));
    uint64_t before = 0;
    for (uint32_t n = 1; n < 100; n++) {
        uint64_t us = dbp_janitor_backoff_us(n, true);
        assert_true(us >= DBP_REFUSED_FIRST_US && us >= before && us <= DBP_REFUSED_MOST_US);
        before = us;
    }
    assert_int_equal(before, DBP_REFUSED_MOST_US);
}

/* A morning: sixty clients come, the server is away for a while, all leave. Logins take a step, closing another. */
static void test_a_day_ends_with_the_kept_sessions_idle(void **state) {
    struct dbp_janitor_view v = {.pool_size = 4, .cap = 6};
    uint32_t leased = 0, to_come = 60, most = 0;
    bool away = false;

    (void)state;
    for (uint32_t step = 0; step < 2000; step++) {
        v.now_us = (uint64_t)(step + 1) * 50000u;
        away = step > 20 && step < 200;
        if (step % 5 == 0 && to_come > 0) {
            v.waiting++;
            to_come--;
        }
        if (v.opening > 0) {
            uint32_t n = v.opening;
            v.opening = 0;
            if (away) {
                v.total -= n;
                v.failures += n;
                v.retry_at_us = v.now_us + dbp_janitor_backoff_us(v.failures, false);
            } else {
                v.failures = 0;
                v.idle += n;
            }
        }
        v.total -= v.closing;
        v.closing = 0;
        if (leased > 0 && step % 7 == 0) {
            leased--;
            v.idle++;
        }
        while (v.waiting > 0 && v.idle > 0) {
            v.waiting--;
            v.idle--;
            leased++;
        }
        v.rested = v.idle;
        struct dbp_janitor_plan plan = dbp_janitor_plan(&v);
        v.opening += plan.open;
        v.total += plan.open;
        v.idle -= plan.retire;
        v.closing += plan.retire;
        assert_true(v.total <= v.cap);
        assert_int_equal(v.total, v.opening + v.idle + v.closing + leased);
        most = v.total > most ? v.total : most;
    }
    assert_int_equal(to_come + v.waiting + leased, 0);
    assert_true(most > 1);
    assert_true(v.total <= v.pool_size);
    assert_int_equal(v.idle, v.total);
}

/* A day of an ancestor's user ('fast_and_wild': core 5, 30 at most, one retired every 5 s), in steps of 10 ms: long
 * quiet hours with a few requests, and three bursts. Logins take 150 ms, a lease 20 ms. Checked at every step: the cap,
 * that nobody is retired while one waits, order of arrival, that nobody starves, that shrinking keeps to its pace. */
static void test_a_bursty_day_of_the_django_class(void **state) {
    enum { STEP_US = 10000, LOGIN_STEPS = 15, LEASE_STEPS = 2, STEPS = 60000, MOST = 30 };
    struct dbp_janitor_view v = {.pool_size = MOST,
                                 .cap = MOST,
                                 .core_size = 5,
                                 .retire_interval_us = 5000000,
                                 .retire_quantity = 1,
                                 .min_size = 2};
    static uint32_t ready[STEPS + LOGIN_STEPS + 1], back[STEPS + LEASE_STEPS + 1], arrived[STEPS * 4];
    uint32_t first = 0, last = 0, served = 0, longest = 0, most = 0, retired_of_interval = 0, retired = 0;
    uint64_t random = test_seed(), interval_end = 0;

    (void)state;
    for (uint32_t step = 0; step < STEPS; step++) {
        bool burst = step % 20000 > 19000 && step % 20000 < 19200;
        v.now_us = (uint64_t)(step + 1) * STEP_US;
        for (uint64_t n = burst ? 3 : test_random(&random) % 25 == 0; n > 0; n--)
            arrived[last++] = step;
        v.total -= v.closing;
        v.closing = 0;
        v.opening -= ready[step];
        v.idle += ready[step] + back[step];
        v.leased -= back[step];
        while (first < last && v.idle > 0) { /* the hand-off: oldest first, as the queue does it */
            longest = step - arrived[first] > longest ? step - arrived[first] : longest;
            first++;
            served++;
            v.idle--;
            v.leased++;
            back[step + LEASE_STEPS]++;
        }
        v.waiting = last - first;
        v.unload_us = 500000 + test_random(&random) % 1500000;
        struct dbp_janitor_plan plan = dbp_janitor_plan(&v);
        v.memory = plan.memory;
        assert_true(v.waiting == 0 || plan.retire == 0);
        if (v.now_us >= interval_end) {
            interval_end = v.now_us + v.retire_interval_us;
            retired_of_interval = 0;
        }
        retired_of_interval += plan.retire;
        assert_true(retired_of_interval <= 2); /* intervals of the policy and of this test may overlap */
        retired += plan.retire;
        ready[step + LOGIN_STEPS] += plan.open;
        v.opening += plan.open;
        v.total += plan.open;
        v.idle -= plan.retire;
        v.closing += plan.retire;
        assert_true(v.total <= MOST);
        assert_int_equal(v.total, v.opening + v.idle + v.leased + v.closing);
        assert_true(step < LOGIN_STEPS || v.total - v.closing >= v.min_size);
        most = v.total > most ? v.total : most;
    }
    assert_true(last - first <= 4);           /* whoever came in the last step */
    assert_true(longest * STEP_US < 3000000); /* the wait before growing (2 s at most), a login, and then some */
    assert_true(most > 5 && most <= MOST);
    assert_true(retired > 0 && v.total - v.closing < most); /* the burst's sessions have gone again, one by one */
    print_message("served %u, longest wait %u ms, most %u sessions, retired %u\n", served, longest * STEP_US / 1000,
                  most, retired);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_situations),
        cmocka_unit_test(test_I3_no_situation_passes_the_cap_or_retires_too_much),
        cmocka_unit_test(test_backoff_doubles_up_to_its_limit),
        cmocka_unit_test(test_a_refusal_is_met_again_for_a_waiter_only),
        cmocka_unit_test(test_a_day_ends_with_the_kept_sessions_idle),
        cmocka_unit_test(test_a_bursty_day_of_the_django_class),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
