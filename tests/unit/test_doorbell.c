/* SPDX-License-Identifier: MIT
 * The doorbell after a death: a client sets a pool's flag, then rings; others do not ring while the flag is set. One
 * that dies in between must not silence them for good (tests/model, mutant 9).
 */
#include "broker.h"
#include "table.h"

#include "../support/puppet.h"
#include "../support/stage.h"

#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>

#include <cmocka.h>

static struct dbp_pool_spec spec;

static int setup(void **state) {
    (void)state;
    spec = test_spec("default", 2, 0);
    return stage_open(6, (struct dbp_broker_ops){0});
}

static int teardown(void **state) {
    (void)state;
    return stage_close();
}

static bool flag_is_taken(void *arg) {
    (void)arg;
    return !dbp_attention(share.table, 0);
}

/* What a client leaves that is killed, or stopped, between the two. */
static void set_the_flag_and_do_not_ring(void) {
    (void)dbp_attention_set(share.table, 0);
}

static void test_I2_a_flag_without_a_ring_is_taken_by_the_tick(void **state) {
    (void)state;
    puppet_ready(&share, &spec);
    set_the_flag_and_do_not_ring();
    assert_true(eventually(flag_is_taken, NULL));
}

static void test_I2_a_flag_without_a_ring_goes_with_its_process(void **state) {
    struct puppet *p = puppet_ready(&share, &spec), *other = puppet_ready(&share, &spec);

    (void)state;
    set_the_flag_and_do_not_ring();
    kill_child(p->pid);
    assert_true(eventually(flag_is_taken, NULL));
    assert_int_equal(puppet_acquire(other, 0), 0);
    assert_int_equal(puppet_release(other, 0, DBP_RETURN_DOOM), 0);
    assert_true(eventually_at_least(&fake->kills, 1));
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_I2_a_flag_without_a_ring_is_taken_by_the_tick),
        TEST(test_I2_a_flag_without_a_ring_goes_with_its_process),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
