/* SPDX-License-Identifier: MIT
 * The doorbell after a death: a client sets a pool's flag, then rings; others do not ring while the flag is set. One
 * that dies in between must not silence them for good (tests/model, mutant 9).
 */
#include "broker.h"
#include "table.h"

#include "../support/fake_connector.h"
#include "../support/puppet.h"

#include <setjmp.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

static struct dbp_share share;
static struct dbp_broker *broker;
static struct fake *fake;
static struct dbp_pool_spec spec;
static int control = -1;
static _Atomic int32_t connector_pid;

static bool connector_is(void *arg, int32_t pid) {
    (void)arg;
    return pid == atomic_load(&connector_pid);
}

static int setup(void **state) {
    struct dbp_broker_ops ops = {.log = test_log, .connector_is = connector_is};

    (void)state;
    spec = test_spec("default", 2, 0);
    if (dbp_share_new(6, &share, &control) != 0)
        return -1;
    atomic_store(&connector_pid, fake_start(&share, &fake));
    return dbp_broker_start(&share, control, &ops, &broker);
}

static int teardown(void **state) {
    (void)state;
    reap_all();
    broker = dbp_broker_stop(broker);
    close(control);
    close(fake->poke_fd);
    munmap(fake, sizeof *fake);
    dbp_share_free(&share);
    return 0;
}

static bool flag_is_taken(void *arg) {
    (void)arg;
    return atomic_load(&share.table->pools[0].attention) == 0;
}

/* What a client leaves that is killed, or stopped, between the two. */
static void set_the_flag_and_do_not_ring(void) {
    atomic_store(&share.table->pools[0].attention, 1);
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
