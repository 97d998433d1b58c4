/* SPDX-License-Identifier: MIT
 * What the broker does to sessions that nobody asks for: floor, idle and life times, keepalive, gradual retirement; and
 * the two policies that a return and a wait meet. The real broker, a fake connector and server, puppets as clients.
 */
#include "broker.h"
#include "table.h"

#include "../support/puppet.h"
#include "../support/stage.h"

#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>

#include <cmocka.h>

static struct dbp_pool_counters *count;
static struct dbp_pool_spec spec;

static int setup(void **state) {
    (void)state;
    spec = test_spec("default", 4, 0);
    if (stage_open(6, (struct dbp_broker_ops){0}) != 0)
        return -1;
    count = &share.table->pools[0].count;
    return 0;
}

static int teardown(void **state) {
    (void)state;
    return stage_close();
}

/* A client that had n sessions at a time and has returned them. */
static struct puppet *burst(uint32_t n) {
    struct puppet *p = puppet_ready(&share, &spec);

    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(puppet_acquire(p, i), 0);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(puppet_release(p, i, DBP_RETURN_CLEAN), 0);
    return p;
}

static void test_the_floor_is_open_before_anybody_asks_and_is_kept(void **state) {
    (void)state;
    spec.min_size = 2;
    puppet_ready(&share, &spec);
    assert_true(eventually_equal(&count->state[DBP_IDLE], 2));
    assert_int_equal(dbp_pool_acquires(share.table, 0), 0);
    atomic_store(&fake->hang_up, atomic_load(&share.table->sessions[0].connection_id)); /* the server ends one */
    fake_poke(fake);
    assert_true(eventually_equal(&count->closed, 1));
    /* Its idle count is summed up now and then, and may be the one of before. */
    assert_true(eventually_at_least(&fake->opens, 3));
    assert_true(eventually_equal(&count->state[DBP_IDLE], 2));
    assert_int_equal(atomic_load(&fake->opens), 3);
}

static void test_idle_ones_go_down_to_the_floor_politely(void **state) {
    (void)state;
    spec.min_size = 1;
    spec.idle_timeout_s = 1;
    burst(4);
    assert_true(eventually_equal(&count->size, 1));
    assert_true(eventually_equal(&count->closed, 3));
    assert_int_equal(atomic_load(&fake->quits), 3);
    assert_int_equal(atomic_load(&fake->kills), 0);
}

static void test_a_burst_is_retired_gradually_down_to_the_core(void **state) {
    (void)state;
    spec.core_size = 1;
    spec.retire_interval_ms = 50;
    spec.retire_quantity = 2;
    burst(4);
    assert_true(eventually_equal(&count->size, 1));
    assert_int_equal(atomic_load(&fake->quits), 3);
    assert_int_equal(atomic_load(&fake->kills), 0);
}

static void test_a_silent_session_is_pinged_and_stays(void **state) {
    (void)state;
    spec.keepalive_s = 1;
    struct puppet *p = burst(1);
    assert_true(eventually_at_least(&fake->pings, 2));
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_query(p, 0, "Q 7"), 0); /* I5: the answers of the pings are not on the wire */
    assert_int_equal(p->nonce, 7);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(atomic_load(&count->resets), 0);
    assert_int_equal(atomic_load(&fake->opens), 1);
    assert_int_equal(atomic_load(&fake->strange), 0);
}

static void test_an_old_session_is_replaced_before_it_goes(void **state) {
    (void)state;
    spec.max_lifetime_s = 2;
    burst(1);
    assert_true(eventually_at_least(&fake->opens, 2));
    assert_true(eventually_at_least(&fake->quits, 1));
    assert_int_equal(atomic_load(&fake->kills), 0);
    assert_true(atomic_load(&fake->most) == 2); /* for a moment there were both */
}

static void test_I3_at_the_cap_an_old_session_just_goes(void **state) {
    (void)state;
    spec.pool_size = 1;
    spec.max_lifetime_s = 1;
    burst(1);
    assert_true(eventually_equal(&count->size, 0));
    assert_int_equal(atomic_load(&fake->most), 1);
}

static void test_I6_a_return_may_commit(void **state) {
    struct puppet *p = puppet_ready(&share, &spec);

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_query(p, 0, "BEGIN"), 0);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_COMMIT), 0);
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_query(p, 0, "Q 1"), 0);
    assert_int_equal(p->status & 3, 2);
    assert_int_equal(atomic_load(&fake->commits), 1);
    assert_int_equal(atomic_load(&fake->rollbacks), 0);
}

static void test_one_waiter_too_many_is_refused_at_once(void **state) {
    struct puppet *holder, *waiter, *late;

    (void)state;
    spec.pool_size = 1;
    spec.max_waiting = 1;
    holder = puppet_ready(&share, &spec);
    waiter = puppet_ready(&share, &spec);
    late = puppet_ready(&share, &spec);
    assert_int_equal(puppet_acquire(holder, 0), 0);
    puppet_start(waiter, PUPPET_ACQUIRE);
    assert_true(eventually_equal(&count->waiting, 1));
    assert_int_equal(puppet_acquire(late, 0), DBP_E_FULL);
    assert_int_equal(puppet_release(holder, 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(puppet_result(waiter), 0);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_the_floor_is_open_before_anybody_asks_and_is_kept),
        TEST(test_idle_ones_go_down_to_the_floor_politely),
        TEST(test_a_burst_is_retired_gradually_down_to_the_core),
        TEST(test_a_silent_session_is_pinged_and_stays),
        TEST(test_an_old_session_is_replaced_before_it_goes),
        TEST(test_I3_at_the_cap_an_old_session_just_goes),
        TEST(test_I6_a_return_may_commit),
        TEST(test_one_waiter_too_many_is_refused_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
