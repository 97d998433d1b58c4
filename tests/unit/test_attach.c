/* SPDX-License-Identifier: MIT
 * Who is attached: processes that lose their channel, or all of their fds, and go on. The real broker, a fake connector
 * and server, puppets as clients.
 */
#include "broker.h"
#include "table.h"

#include "../support/puppet.h"
#include "../support/stage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define SLOTS 4u

static struct dbp_pool_counters *count;
static struct dbp_pool_spec spec;

static int setup(void **state) {
    (void)state;
    spec = test_spec("default", 2, 0);
    if (stage_open(SLOTS, (struct dbp_broker_ops){0}) != 0)
        return -1;
    count = &share.table->pools[0].count;
    return 0;
}

static int teardown(void **state) {
    (void)state;
    return stage_close();
}

static uint32_t slot_of(const struct puppet *p) {
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        if (atomic_load(&share.table->procs[slot].pid) == (uint32_t)p->pid)
            return slot;
    return DBP_PROCS_MAX;
}

static bool is_let_go(void *arg) {
    return slot_of(arg) == DBP_PROCS_MAX;
}

/* ---- a process whose channel was closed under it ---- */

static void test_a_process_without_channel_attaches_anew(void **state) {
    struct puppet *p = puppet_ready(&share, &spec);

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_do(p, PUPPET_LOSE_CHANNEL), 0);
    assert_true(eventually(is_let_go, p));
    assert_true(eventually_equal(&count->closed, 1)); /* to the broker it is dead */
    assert_int_equal(atomic_load(&fake->kills), 1);
    p->which = 1;
    assert_int_equal(puppet_do(p, PUPPET_ACQUIRE_NOW), DBP_E_CLOSED);
    assert_int_equal(puppet_do(p, PUPPET_BEGIN), DBP_E_CLOSED);
    assert_int_equal(puppet_do(p, PUPPET_REGISTER), 0);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), DBP_E_STALE);
    assert_int_equal(puppet_query(p, 1, "Q 1"), DBP_E_STALE);
    assert_int_equal(puppet_acquire(p, 1), 0);
    assert_int_equal(puppet_query(p, 1, "Q 2"), 0);
    assert_int_equal(puppet_release(p, 1, DBP_RETURN_CLEAN), 0);
    assert_true(slot_of(p) < SLOTS);
}

static void test_a_process_may_lose_its_channel_again_and_again(void **state) {
    struct puppet *p = puppet_ready(&share, &spec);

    (void)state;
    for (int i = 0; i < 20; i++) {
        assert_int_equal(puppet_do(p, PUPPET_LOSE_CHANNEL), 0);
        assert_int_equal(puppet_do(p, PUPPET_REGISTER), 0);
        assert_int_equal(puppet_acquire(p, 0), 0);
        assert_int_equal(puppet_query(p, 0, "Q 3"), 0);
        assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    }
    assert_int_equal(atomic_load(&fake->kills), 0);
}

static void test_I1_the_slots_next_process_is_another(void **state) {
    struct puppet *p = puppet_ready(&share, &spec), *next[SLOTS];
    uint32_t slot = slot_of(p), n = 0, session;
    dbp_word word;

    (void)state;
    uint32_t before = dbp_holder(slot, atomic_load(&share.table->procs[slot].attached));
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_do(p, PUPPET_LOSE_CHANNEL), 0);
    assert_true(eventually_equal(&count->closed, 1));
    do
        next[n] = puppet_ready(&share, &spec);
    while (slot_of(next[n++]) != slot && n < SLOTS - 1);
    struct puppet *q = next[n - 1];
    assert_int_equal(slot_of(q), slot);
    assert_int_not_equal(dbp_holder(slot, atomic_load(&share.table->procs[slot].attached)), before);
    assert_int_equal(puppet_acquire(q, 0), 0);
    assert_int_equal(puppet_do(p, PUPPET_VALID), 0);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_DOOM), DBP_E_STALE);
    assert_int_equal(puppet_query(q, 0, "Q 4"), 0);
    assert_int_equal(puppet_release(q, 0, DBP_RETURN_CLEAN), 0);

    /* What the first one takes although it was let go of (it was stopped in the middle of an acquire), the other one
     * does not answer for: the broker ends it. */
    int64_t closed = atomic_load(&count->closed);
    assert_true(dbp_idle_take(share.table, 0, DBP_LEASED, before, &session, &word));
    assert_true(eventually_equal(&count->closed, closed + 1));
}

static void test_a_process_that_has_closed_everything_is_told_and_writes_nowhere(void **state) {
    struct puppet *p = puppet_ready(&share, &spec);

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_true(puppet_do(p, PUPPET_LOSE_ALL) > 3);
    assert_true(eventually(is_let_go, p));
    assert_int_equal(puppet_do(p, PUPPET_REGISTER), -EBADF);
    p->which = 1;
    assert_int_equal(puppet_do(p, PUPPET_ACQUIRE_NOW), DBP_E_CLOSED);
    assert_int_equal(puppet_do(p, PUPPET_ATTACH), -EBADF);
    assert_int_equal(puppet_do(p, PUPPET_LOOK), 0);
    assert_true(eventually_equal(&count->closed, 1));
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_a_process_without_channel_attaches_anew),
        TEST(test_a_process_may_lose_its_channel_again_and_again),
        TEST(test_I1_the_slots_next_process_is_another),
        TEST(test_a_process_that_has_closed_everything_is_told_and_writes_nowhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
