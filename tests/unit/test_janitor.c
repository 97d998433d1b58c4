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
    {"at the cap nothing is opened", {.waiting = 20, .total = 10, .pool_size = 5, .cap = 10}, 0, 0, 0},
    {"closing ones count in it (I3)", {.waiting = 5, .total = 10, .closing = 4, .pool_size = 5, .cap = 10}, 0, 0, 0},
    {"above a cap that was lowered: nothing", {.waiting = 5, .total = 12, .pool_size = 5, .cap = 10}, 0, 0, 0},
    {"overflow goes when nobody waits", {.idle = 4, .total = 8, .pool_size = 5, .cap = 10}, 0, 3, 0},
    {"as many as are idle", {.idle = 1, .total = 8, .pool_size = 5, .cap = 10}, 0, 1, 0},
    {"not those that are leaving already", {.idle = 4, .total = 8, .closing = 2, .pool_size = 5, .cap = 10}, 0, 1, 0},
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
            assert_true(plan.wake_at_us > NOW || (v.failures > 0 && v.opening > 0));
    }
}

static void test_backoff_doubles_up_to_its_limit(void **state) {
    uint64_t before = 0;

    (void)state;
    assert_int_equal(dbp_janitor_backoff_us(1), DBP_RETRY_FIRST_US);
    assert_int_equal(dbp_janitor_backoff_us(2), 2 * DBP_RETRY_FIRST_US);
    for (uint32_t n = 1; n < 100; n++) {
        uint64_t us = dbp_janitor_backoff_us(n);
        assert_true(us >= before && us <= DBP_RETRY_MOST_US);
        before = us;
    }
    assert_int_equal(dbp_janitor_backoff_us(99), DBP_RETRY_MOST_US);
    assert_int_equal(dbp_janitor_backoff_us(UINT32_MAX), DBP_RETRY_MOST_US);
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
                v.retry_at_us = v.now_us + dbp_janitor_backoff_us(v.failures);
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_situations),
        cmocka_unit_test(test_I3_no_situation_passes_the_cap_or_retires_too_much),
        cmocka_unit_test(test_backoff_doubles_up_to_its_limit),
        cmocka_unit_test(test_a_day_ends_with_the_kept_sessions_idle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
