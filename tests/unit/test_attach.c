/* SPDX-License-Identifier: MIT
 * Who is attached: processes that lose their channel, or all of their fds, and go on; who has a slot, and who gives it
 * up. The real broker, a fake connector and server, puppets as clients.
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

/* ---- slots ---- */

static int setup_own(void **state) {
    (void)state;
    spec = test_spec("default", 4, 0);
    if (stage_open(4, (struct dbp_broker_ops){.n_own = 3}) != 0)
        return -1;
    count = &share.table->pools[0].count;
    return 0;
}

static void test_who_has_held_nothing_longest_makes_room(void **state) {
    struct puppet *p[SLOTS - 1], *late;

    (void)state;
    assert_true(eventually_at_least(&fake->attached, 1));
    for (uint32_t i = 0; i < SLOTS - 1; i++)
        p[i] = puppet_ready(&share, &spec);
    assert_int_equal(puppet_acquire(p[0], 0), 0); /* the first one has a session, so it is the second that goes */
    assert_int_equal(puppet_query(p[0], 0, "Q 1"), 0);
    late = puppet_ready(&share, &spec);
    assert_true(is_let_go(p[1]));
    assert_false(is_let_go(p[0]));
    assert_false(is_let_go(p[2]));
    assert_int_equal(puppet_acquire(late, 0), 0);
    assert_int_equal(puppet_do(p[1], PUPPET_ACQUIRE_NOW), DBP_E_CLOSED);
    assert_int_equal(puppet_do(p[1], PUPPET_REGISTER), 0); /* it needs a slot again: the third makes room */
    assert_true(is_let_go(p[2]));
    assert_int_equal(puppet_query(p[0], 0, "Q 2"), 0);
    assert_int_equal(puppet_release(p[0], 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(puppet_acquire(p[1], 1), 0);
    assert_int_equal(puppet_query(p[1], 1, "Q 3"), 0);
    assert_int_equal(puppet_release(p[1], 1, DBP_RETURN_CLEAN), 0);
    assert_int_equal(atomic_load(&count->closed), 0); /* no session was lost on the way */
}

static void test_who_finds_all_slots_in_use_waits_for_one(void **state) {
    struct puppet *p[SLOTS - 1], *late = puppet_new(&share), *later = puppet_new(&share);

    (void)state;
    assert_true(eventually_at_least(&fake->attached, 1));
    for (uint32_t i = 0; i < SLOTS - 1; i++)
        p[i] = puppet_ready(&share, &spec);
    assert_int_equal(puppet_acquire(p[0], 0), 0);
    assert_int_equal(puppet_acquire(p[1], 0), 0);
    p[2]->which = 0;
    assert_int_equal(puppet_do(p[2], PUPPET_BEGIN), 0);
    assert_int_equal(puppet_do(late, PUPPET_ATTACH_SOON), DBP_E_FULL);
    puppet_start(late, PUPPET_ATTACH);
    for (uint32_t i = 0; i < SLOTS - 1; i++)
        assert_false(is_let_go(p[i]));
    assert_int_equal(puppet_do(p[2], PUPPET_CANCEL), DBP_E_TIMEOUT);
    assert_int_equal(puppet_result(late), 0);
    assert_true(is_let_go(p[2]));
    late->spec = spec;
    assert_int_equal(puppet_do(late, PUPPET_REGISTER), 0);
    assert_int_equal(puppet_do(late, PUPPET_BEGIN), 0);
    assert_int_equal(puppet_release(p[0], 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(puppet_do(p[0], PUPPET_BEGIN), 0);
    /* What was granted and is not taken yet is something, too. */
    assert_int_equal(puppet_do(later, PUPPET_ATTACH_SOON), DBP_E_FULL);
    assert_int_equal(puppet_do(late, PUPPET_POLL), 0);
    assert_int_equal(puppet_query(late, 0, "Q 4"), 0);
    puppet_start(later, PUPPET_ATTACH);
    assert_int_equal(puppet_release(late, 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(puppet_result(later), 0);
    assert_true(is_let_go(late));
    assert_int_equal(puppet_do(p[0], PUPPET_POLL), 0);
    assert_int_equal(puppet_query(p[0], 0, "Q 5"), 0);
    assert_int_equal(puppet_query(p[1], 0, "Q 6"), 0);
    assert_int_equal(atomic_load(&count->closed), 0);
}

#define CROWD 60

static void test_a_crowd_of_children_each_of_which_asks_once(void **state) {
    pid_t pids[CROWD];

    (void)state;
    assert_true(eventually_at_least(&fake->attached, 1));
    for (int i = 0; i < CROWD; i++) {
        pids[i] = fork_child();
        if (pids[i] == 0) {
            struct dbp_client *me;
            struct dbp_lease lease;
            char text[64];
            uint32_t pool;
            int rc = dbp_client_attach(&share, "child", in_seconds(WAIT_S), &me);
            for (int tries = 0; rc == 0 && tries < 100; tries++) { /* it may be let go of before it has something */
                rc = dbp_client_register(me, &spec, in_seconds(WAIT_S), text, sizeof text, &pool);
                if (rc == 0)
                    rc = dbp_acquire(me, pool, in_seconds(WAIT_S), NULL, NULL, &lease);
                if (rc != DBP_E_CLOSED)
                    break;
                rc = 0;
            }
            if (rc == 0)
                rc = dbp_release(me, &lease, 2, DBP_RETURN_CLEAN);
            usleep(200000); /* it stays for a while, and holds nothing */
            _exit(rc & 0xff);
        }
    }
    for (int i = 0; i < CROWD; i++)
        assert_int_equal(wait_child(pids[i]), 0);
    assert_true(atomic_load(&fake->most) <= 2);
    assert_int_equal(atomic_load(&count->closed), 0);
}

/* ---- the host's own processes ---- */

static struct puppet *own(uint32_t place) {
    struct puppet *p = puppet_new(&share);

    p->spec = spec;
    p->place = place;
    assert_int_equal(puppet_do(p, PUPPET_ATTACH), 0);
    assert_int_equal(puppet_do(p, PUPPET_REGISTER), 0);
    return p;
}

static void test_the_hosts_own_processes_have_slots_of_their_own(void **state) {
    (void)state;
    assert_true(eventually_at_least(&fake->attached, 1));
    assert_int_equal(atomic_load(&share.table->procs[0].attached) != 0, 1);
    struct puppet *stranger = puppet_ready(&share, &spec), *other = puppet_new(&share);
    assert_int_equal(slot_of(stranger), 3);
    assert_int_equal(puppet_acquire(stranger, 0), 0);
    assert_int_equal(puppet_do(other, PUPPET_ATTACH_SOON), DBP_E_FULL);
    struct puppet *worker = own(2), *mule = own(1);
    assert_int_equal(slot_of(worker), 2);
    assert_int_equal(slot_of(mule), 1);
    /* They keep theirs, though they hold nothing. */
    assert_int_equal(puppet_do(other, PUPPET_ATTACH_SOON), DBP_E_FULL);
    assert_int_equal(puppet_acquire(worker, 0), 0);
    kill_child(worker->pid);
    worker = own(2);
    assert_int_equal(slot_of(worker), 2);
    assert_int_equal(puppet_acquire(worker, 0), 0);
}

/* The broker's thread is busy until the test says so. */
static _Atomic bool busy, go_on;

static void be_busy(void) {
    if (!atomic_load(&busy))
        return;
    atomic_store(&busy, false);
    for (uint32_t i = 0; i < WAIT_S * 1000 && !atomic_load(&go_on); i++)
        usleep(1000);
}

static void test_a_respawned_process_takes_over_before_its_predecessor_is_seen_to_be_dead(void **state) {
    struct puppet *liar = puppet_new(&share), *worker = own(2), *next = puppet_new(&share);

    (void)state;
    struct puppet *stranger = puppet_ready(&share, &spec);
    assert_int_equal(puppet_acquire(stranger, 0), 0);
    assert_int_equal(puppet_acquire(worker, 0), 0);
    atomic_store(&go_on, false);
    atomic_store(&busy, true);
    stage_asked = be_busy;
    puppet_start(liar, PUPPET_CLAIM); /* to be the connector */
    while (atomic_load(&busy))
        usleep(1000);
    kill_child(worker->pid);
    next->place = 2;
    puppet_start(next, PUPPET_ATTACH);
    int queued = 0;
    for (uint32_t i = 0; i < WAIT_S * 1000 && queued == 0; i++) { /* its request is there */
        usleep(1000);
        queued = stage_queued();
    }
    assert_true(queued > 0);
    atomic_store(&go_on, true);
    assert_int_equal(puppet_result(next), 0);
    stage_asked = NULL;
    assert_int_equal(slot_of(next), 2);
    assert_int_equal(puppet_result(liar), DBP_E_INVALID);
    assert_true(eventually_equal(&count->closed, 1)); /* what the dead one held */
    assert_int_equal(puppet_query(stranger, 0, "Q 6"), 0);
}

static void test_who_says_that_it_is_a_living_worker_is_a_stranger(void **state) {
    struct puppet *worker = own(2), *child = puppet_new(&share);

    (void)state;
    assert_int_equal(puppet_acquire(worker, 0), 0);
    child->place = 2;
    assert_int_equal(puppet_do(child, PUPPET_ATTACH), 0);
    assert_int_equal(slot_of(child), 3);
    assert_int_equal(slot_of(worker), 2);
    assert_int_equal(puppet_query(worker, 0, "Q 7"), 0);
    child = puppet_new(&share);
    child->place = 77; /* and who names a place that is none */
    assert_int_equal(puppet_do(child, PUPPET_ATTACH), 0);
    assert_int_equal(slot_of(child), 3);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define OWN(name) cmocka_unit_test_setup_teardown(name, setup_own, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_a_process_without_channel_attaches_anew),
        TEST(test_a_process_may_lose_its_channel_again_and_again),
        TEST(test_I1_the_slots_next_process_is_another),
        TEST(test_a_process_that_has_closed_everything_is_told_and_writes_nowhere),
        TEST(test_who_has_held_nothing_longest_makes_room),
        TEST(test_who_finds_all_slots_in_use_waits_for_one),
        TEST(test_a_crowd_of_children_each_of_which_asks_once),
        OWN(test_the_hosts_own_processes_have_slots_of_their_own),
        OWN(test_a_respawned_process_takes_over_before_its_predecessor_is_seen_to_be_dead),
        OWN(test_who_says_that_it_is_a_living_worker_is_a_stranger),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
