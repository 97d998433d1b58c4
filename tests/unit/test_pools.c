/* SPDX-License-Identifier: MIT
 * Several pools in one instance: the cap over all of them, who gives up a session for whom, and an alias whose settings
 * have changed. The real broker, a fake connector and server, puppets as clients.
 */
#include "broker.h"
#include "handoff.h"

#include "../support/puppet.h"
#include "../support/stage.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define MOST 4u

static struct dbp_pool_counters *first, *second;
static struct dbp_pool_spec spec, other;
static _Atomic uint32_t current_pool, n_current;

static void pool_current(void *arg, uint32_t pool, const char *alias) {
    (void)arg;
    (void)alias;
    atomic_store(&current_pool, pool);
    atomic_fetch_add(&n_current, 1);
}

static int setup(void **state) {
    (void)state;
    atomic_store(&n_current, 0);
    spec = test_spec("default", 3, 1);
    other = test_spec("other", 3, 1);
    if (stage_open(8, (struct dbp_broker_ops){.pool_current = pool_current, .max_sessions = MOST}) != 0)
        return -1;
    first = &share.table->pools[0].count;
    second = &share.table->pools[1].count;
    return 0;
}

static int teardown(void **state) {
    (void)state;
    return stage_close();
}

static struct puppet *holding(const struct dbp_pool_spec *of, uint32_t n) {
    struct puppet *p = puppet_ready(&share, of);

    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(puppet_acquire(p, i), 0);
    return p;
}

static void give_back(struct puppet *p, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(puppet_release(p, i, DBP_RETURN_CLEAN), 0);
}

/* ---- the cap over all pools ---- */

static void test_I3_idle_sessions_make_room_for_another_pool(void **state) {
    struct puppet *p;

    (void)state;
    give_back(holding(&spec, 3), 3);
    p = holding(&other, 4); /* the fourth is the last of the first pool's */
    assert_int_equal(atomic_load(&fake->most), MOST);
    assert_true(eventually_equal(&first->size, 0));
    assert_int_equal(atomic_load(&fake->kills), 0); /* they went politely */
    give_back(p, 4);
}

static void test_no_session_goes_while_there_is_room(void **state) {
    struct puppet *p, *q;

    (void)state;
    p = holding(&spec, 2);
    give_back(p, 2);
    q = holding(&other, 2);
    give_back(q, 2);
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_acquire(p, 1), 0);
    assert_int_equal(atomic_load(&fake->opens), 4);
    assert_int_equal(atomic_load(&first->closed), 0);
    assert_int_equal(atomic_load(&second->closed), 0);
}

static void test_a_pool_in_full_use_gives_up_half(void **state) {
    struct puppet *p = holding(&spec, 4), *more[2], *q[2];

    (void)state;
    /* Its own waiters do not get what the other pool has a right to, though they came before. */
    for (uint32_t i = 0; i < 2; i++) {
        more[i] = puppet_ready(&share, &spec);
        puppet_start(more[i], PUPPET_ACQUIRE);
    }
    assert_true(eventually_equal(&first->waiting, 2));
    for (uint32_t i = 0; i < 2; i++) {
        q[i] = puppet_ready(&share, &other);
        puppet_start(q[i], PUPPET_ACQUIRE);
    }
    assert_true(eventually_equal(&second->waiting, 2));
    for (uint32_t marked = 0, tries = 0; marked < 2 && tries < 2000; tries++, usleep(10000)) {
        marked = 0;
        for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++)
            marked += atomic_load(&share.table->sessions[i].unfit) == DBP_UNFIT_SURPLUS;
    }
    give_back(p, 2);
    assert_int_equal(puppet_result(q[0]), 0);
    assert_int_equal(puppet_result(q[1]), 0);
    assert_int_equal(atomic_load(&first->waiting), 2);
    for (uint32_t i = 2; i < 4; i++)
        assert_int_equal(puppet_release(p, i, DBP_RETURN_CLEAN), 0);
    assert_int_equal(puppet_result(more[0]), 0);
    assert_int_equal(puppet_result(more[1]), 0);
    assert_int_equal(atomic_load(&fake->most), MOST);
    assert_int_equal(atomic_load(&fake->kills), 0);
}

static void test_marks_are_taken_back_when_the_other_pool_needs_nothing_more(void **state) {
    struct puppet *p, *q = puppet_ready(&share, &other);

    (void)state;
    spec.pool_size = 4;
    spec.max_overflow = 0;
    p = holding(&spec, 4);
    first = &share.table->pools[p->pool].count;
    assert_int_equal(puppet_do(q, PUPPET_BEGIN), 0);
    for (uint32_t marked = 0, tries = 0; marked < 1 && tries < 2000; tries++, usleep(10000)) {
        marked = 0;
        for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++)
            marked += atomic_load(&share.table->sessions[i].unfit) == DBP_UNFIT_SURPLUS;
    }
    assert_int_equal(puppet_do(q, PUPPET_CANCEL), DBP_E_TIMEOUT);
    bool any = true;
    for (uint32_t tries = 0; any && tries < 2000; tries++, usleep(10000)) {
        any = false;
        for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++)
            any = any || atomic_load(&share.table->sessions[i].unfit) != DBP_FIT;
    }
    assert_false(any);
    give_back(p, 4);
    assert_int_equal(atomic_load(&first->closed), 0);
    assert_int_equal(atomic_load(&fake->opens), 4);
}

static void test_a_floor_is_a_claim_like_any_other(void **state) {
    (void)state;
    give_back(holding(&spec, 3), 3);
    other.min_size = 2;
    puppet_ready(&share, &other);
    assert_true(eventually_equal(&second->state[DBP_IDLE], 2));
    assert_true(eventually_equal(&first->size, 2));
    assert_int_equal(atomic_load(&fake->most), MOST);
}

static void test_a_floor_that_can_never_be_is_refused(void **state) {
    struct puppet *p = puppet_new(&share);

    (void)state;
    assert_int_equal(puppet_do(p, PUPPET_ATTACH), 0);
    p->spec = test_spec("default", 9, 0);
    p->spec.min_size = MOST + 1;
    assert_int_equal(puppet_do(p, PUPPET_REGISTER), DBP_E_INVALID);
    assert_non_null(strstr(p->text, "min_size"));
    assert_non_null(strstr(p->text, "max_sessions"));
}

static void test_a_smaller_cap_is_reached_though_all_are_in_use_and_waited_for(void **state) {
    struct puppet *p = holding(&spec, 4), *waiter = puppet_ready(&share, &spec);

    (void)state;
    puppet_start(waiter, PUPPET_ACQUIRE);
    assert_true(eventually_equal(&first->waiting, 1));
    spec.pool_size = 1;
    spec.max_overflow = 0;
    puppet_ready(&share, &spec);
    give_back(p, 3);
    assert_true(eventually_equal(&first->size, 1));
    assert_int_equal(atomic_load(&first->waiting), 1);
    assert_int_equal(puppet_release(p, 3, DBP_RETURN_CLEAN), 0);
    assert_int_equal(puppet_result(waiter), 0);
    assert_int_equal(atomic_load(&fake->opens), 4);
}

/* ---- an alias whose settings have changed ---- */

static void test_another_identity_is_another_pool_and_the_old_one_goes_with_its_last_user(void **state) {
    struct puppet *old = holding(&spec, 2), *old2 = puppet_ready(&share, &spec), *new;

    (void)state;
    assert_int_equal(puppet_release(old, 0, DBP_RETURN_CLEAN), 0);
    spec.port = 3307;
    new = holding(&spec, 1);
    assert_int_equal(new->pool, 1);
    assert_int_equal(atomic_load(&current_pool), 1);
    assert_int_equal(atomic_load(&n_current), 2);
    assert_int_equal(puppet_query(old, 1, "Q 5"), 0); /* whoever has one goes on */
    assert_int_equal(puppet_acquire(old, 0), 0);      /* and gets one, while it lives */
    assert_int_equal(puppet_release(old, 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(puppet_release(old, 1, DBP_RETURN_CLEAN), 0);
    kill_child(old->pid);
    assert_int_equal(puppet_acquire(old2, 0), 0);
    assert_int_equal(puppet_release(old2, 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(atomic_load(&share.table->pools[0].live), 1);
    kill_child(old2->pid);
    assert_true(eventually_equal(&first->size, 0));
    for (uint32_t tries = 0; atomic_load(&share.table->pools[0].live) && tries < 2000; tries++)
        usleep(10000);
    assert_int_equal(atomic_load(&share.table->pools[0].live), 0);
    assert_int_equal(atomic_load(&fake->kills), 0);
    assert_int_equal(puppet_query(new, 0, "Q 6"), 0);

    /* its place is free, and as new */
    struct puppet *third = holding(&other, 1);
    assert_int_equal(dbp_pool_place(third->pool), 0);
    assert_int_equal(atomic_load(&first->opened), 1);
    assert_int_equal(puppet_query(third, 0, "Q 7"), 0);
}

static void test_the_last_pool_of_an_alias_stays_without_users(void **state) {
    struct puppet *p = holding(&spec, 1);

    (void)state;
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    kill_child(p->pid);
    p = holding(&spec, 1); /* as a respawned worker */
    assert_int_equal(p->pool, 0);
    assert_int_equal(atomic_load(&fake->opens), 1);
}

static void test_settings_may_be_changed_back(void **state) {
    struct puppet *old = holding(&spec, 1), *new;
    struct dbp_pool_spec changed = spec;

    (void)state;
    changed.port = 3307;
    new = holding(&changed, 1);
    assert_int_equal(puppet_release(new, 0, DBP_RETURN_CLEAN), 0);
    puppet_ready(&share, &spec);
    assert_int_equal(atomic_load(&current_pool), 0);
    kill_child(new->pid);
    assert_true(eventually_equal(&second->size, 0)); /* now that one is the old one */
    assert_int_equal(puppet_query(old, 0, "Q 8"), 0);
}

static void test_a_pool_is_there_before_any_process_asks(void **state) {
    char text[DBP_TEXT_MAX];

    (void)state;
    spec.min_size = 2;
    assert_int_equal(dbp_broker_register(broker, &spec, text), 0);
    assert_true(eventually_equal(&first->state[DBP_IDLE], 2));
    assert_int_equal(dbp_pool_acquires(share.table, 0), 0);
    give_back(holding(&spec, 2), 2);
    assert_int_equal(atomic_load(&fake->opens), 2);
    spec.alias[0] = '\0';
    assert_int_equal(dbp_broker_register(broker, &spec, text), DBP_E_INVALID);
    assert_non_null(strstr(text, "alias"));
}

/* ---- more pools than there are places ---- */

static int setup_many(void **state) {
    (void)state;
    atomic_store(&n_current, 0);
    spec = test_spec("default", 3, 1);
    if (stage_open(8, (struct dbp_broker_ops){.max_sessions = 300}) != 0)
        return -1;
    first = &share.table->pools[0].count;
    return 0;
}

static struct dbp_pool_spec numbered(uint32_t i) {
    struct dbp_pool_spec made = test_spec("", 2, 0);

    snprintf(made.alias, sizeof made.alias, "pool %u", i);
    return made;
}

static int again(struct puppet *p, const struct dbp_pool_spec *of) {
    p->spec = *of;
    return puppet_do(p, PUPPET_REGISTER);
}

static void use(struct puppet *p) {
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_query(p, 0, "Q 1"), 0);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
}

static void test_pools_that_nobody_uses_make_room(void **state) {
    struct puppet *p = puppet_ready(&share, &spec);
    char text[DBP_TEXT_MAX];

    (void)state;
    use(p);
    for (uint32_t i = 1; i < 2 * DBP_POOLS_MAX; i++) {
        other = numbered(i);
        assert_int_equal(dbp_broker_register(broker, &other, text), 0);
    }
    assert_true(dbp_pool_lives(share.table, p->pool)); /* that one is used */
    assert_int_equal(atomic_load(&first->size), 1);
    assert_int_equal(puppet_do(p, PUPPET_ACQUIRE_NOW), 0);
    assert_int_equal(puppet_query(p, 0, "Q 2"), 0);
}

static void test_the_pool_that_was_used_longest_ago_makes_room(void **state) {
    struct puppet *p = puppet_ready(&share, &spec), *q = puppet_ready(&share, &spec);

    (void)state;
    use(p);
    uint32_t before = p->pool;
    for (uint32_t i = 1; i <= DBP_POOLS_MAX; i++) {
        other = numbered(i);
        assert_int_equal(again(q, &other), 0);
        if (i % 16 == 0)
            use(q);
    }
    assert_int_not_equal(q->pool, before);
    assert_false(dbp_pool_lives(share.table, before));
    /* The process that had it hears so, and comes back by itself. */
    p->which = 0;
    assert_int_equal(puppet_do(p, PUPPET_ACQUIRE_NOW), DBP_E_INVALID);
    assert_int_equal(puppet_do(p, PUPPET_BEGIN), DBP_E_INVALID);
    assert_int_equal(puppet_do(p, PUPPET_ACQUIRE), DBP_E_INVALID);
    assert_int_equal(again(p, &spec), 0);
    assert_int_not_equal(p->pool, before);
    use(p);
    use(q);
    assert_int_equal(atomic_load(&fake->kills), 0); /* idle sessions went politely */
    assert_true(atomic_load(&fake->most) <= 300);
}

static void test_a_pool_in_use_does_not_make_room(void **state) {
    struct puppet *p = puppet_ready(&share, &spec), *q = puppet_ready(&share, &spec);
    struct dbp_pool_spec waited = test_spec("waited for", 1, 0);

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0); /* the oldest of all, and leased */
    uint32_t leased = p->pool;
    assert_int_equal(again(q, &waited), 0); /* the next one has a waiter */
    uint32_t awaited = q->pool;
    assert_int_equal(puppet_acquire(q, 1), 0);
    q->which = 2;
    assert_int_equal(puppet_do(q, PUPPET_BEGIN), 0);
    assert_int_equal(puppet_release(q, 1, DBP_RETURN_CLEAN), 0); /* which has been granted a session by now */
    for (uint32_t i = 1; i <= DBP_POOLS_MAX + 20; i++) {
        other = numbered(i);
        assert_int_equal(again(q, &other), 0);
    }
    assert_true(dbp_pool_lives(share.table, leased));
    assert_true(dbp_pool_lives(share.table, awaited));
    assert_int_equal(puppet_query(p, 0, "Q 3"), 0);
    q->which = 2;
    assert_int_equal(puppet_do(q, PUPPET_POLL), 0);
    assert_int_equal(puppet_query(q, 2, "Q 4"), 0);
}

/* A handle of before, in all ways in which it may be used too late. */
static void test_I1_a_place_that_is_another_pools_gives_nothing_to_the_one_before(void **state) {
    struct puppet *p = puppet_ready(&share, &spec), *q = puppet_ready(&share, &spec);
    uint32_t before = p->pool, session, ticket, slot = 0;
    dbp_word word;

    (void)state;
    use(p);
    for (uint32_t i = 1;
         i < 2 * DBP_POOLS_MAX && (i < 2 || q->pool == before || dbp_pool_place(q->pool) != dbp_pool_place(before));
         i++) {
        other = numbered(i);
        assert_int_equal(again(q, &other), 0);
    }
    assert_int_equal(dbp_pool_place(q->pool), dbp_pool_place(before));
    assert_int_not_equal(q->pool, before);
    use(q); /* there is an idle session now */
    assert_true(dbp_idle_any(share.table, q->pool));
    uint32_t idle = q->leases[0].session;
    p->which = 0;
    assert_int_equal(puppet_do(p, PUPPET_ACQUIRE_NOW), DBP_E_INVALID);
    assert_int_equal(puppet_do(p, PUPPET_BEGIN), DBP_E_INVALID);
    assert_int_equal(puppet_do(p, PUPPET_ACQUIRE), DBP_E_INVALID);
    /* One that was stopped after its look whether the pool lives: before it takes, */
    while (atomic_load(&share.table->procs[slot].pid) != (uint32_t)p->pid)
        slot++;
    uint32_t holder = dbp_holder(slot, atomic_load(&share.table->procs[slot].attached));
    assert_false(dbp_idle_take(share.table, before, DBP_LEASED, holder, &session, &word));
    assert_false(dbp_idle_take_this(share.table, before, idle, holder, &word));
    /* before it queues, */
    assert_true(dbp_queue_push(&dbp_pool_at(share.table, before)->queue, slot, true, &ticket));
    dbp_handoff_match(&share, before);
    assert_int_equal(dbp_handoff_claim(&share, before, ticket, holder, &session, &word), DBP_E_BUSY);
    dbp_handoff_match(&share, q->pool); /* and is granted what it did not ask for. */
    assert_int_equal(dbp_word_state(atomic_load(&share.table->sessions[idle].word)), DBP_GRANTED);
    assert_int_equal(dbp_handoff_claim(&share, before, ticket, holder, &session, &word), DBP_E_FAILED);
    assert_int_equal(dbp_word_state(atomic_load(&share.table->sessions[idle].word)), DBP_IDLE);
    /* And who takes it on purpose is not given the session: it has registered another pool here. */
    assert_true(dbp_idle_take(share.table, q->pool, DBP_LEASED, holder, &session, &word));
    p->leases[0] = (struct dbp_lease){.pool = q->pool,
                                      .session = session,
                                      .generation = dbp_word_generation(word),
                                      .incarnation = atomic_load(&share.table->sessions[session].incarnation)};
    p->which = 0;
    assert_int_equal(puppet_do(p, PUPPET_FETCH), DBP_E_INVALID);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    use(q);
}

static void test_two_generations_of_many_aliases(void **state) {
    struct puppet *old = puppet_ready(&share, &spec), *new = puppet_ready(&share, &spec);
    uint32_t n = DBP_POOLS_MAX - 40;

    (void)state;
    for (uint32_t i = 0; i < n; i++) {
        other = numbered(i);
        assert_int_equal(again(old, &other), 0);
    }
    for (uint32_t i = 0; i < n; i++) {
        other = numbered(i);
        other.port = 3307;
        assert_int_equal(again(new, &other), 0);
        if (i % 32 == 0)
            use(new);
    }
    other = numbered(1); /* a worker of before goes on until its end */
    if (puppet_do(old, PUPPET_ACQUIRE_NOW) != DBP_E_BUSY)
        assert_int_equal(again(old, &other), 0);
    use(old);
}

static void test_one_alias_for_many_tenants(void **state) {
    struct puppet *p = puppet_ready(&share, &spec);

    (void)state;
    for (uint32_t i = 0; i < DBP_POOLS_MAX + 64; i++) {
        snprintf(spec.database, sizeof spec.database, "tenant_%u", i % (DBP_POOLS_MAX + 44));
        assert_int_equal(again(p, &spec), 0);
        use(p);
    }
    assert_true(atomic_load(&fake->most) <= 300);
    assert_int_equal(atomic_load(&fake->kills), 0);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define MANY(name) cmocka_unit_test_setup_teardown(name, setup_many, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_I3_idle_sessions_make_room_for_another_pool),
        TEST(test_no_session_goes_while_there_is_room),
        TEST(test_a_pool_in_full_use_gives_up_half),
        TEST(test_marks_are_taken_back_when_the_other_pool_needs_nothing_more),
        TEST(test_a_floor_is_a_claim_like_any_other),
        TEST(test_a_floor_that_can_never_be_is_refused),
        TEST(test_a_smaller_cap_is_reached_though_all_are_in_use_and_waited_for),
        TEST(test_another_identity_is_another_pool_and_the_old_one_goes_with_its_last_user),
        TEST(test_the_last_pool_of_an_alias_stays_without_users),
        TEST(test_settings_may_be_changed_back),
        TEST(test_a_pool_is_there_before_any_process_asks),
        MANY(test_pools_that_nobody_uses_make_room),
        MANY(test_the_pool_that_was_used_longest_ago_makes_room),
        MANY(test_a_pool_in_use_does_not_make_room),
        MANY(test_I1_a_place_that_is_another_pools_gives_nothing_to_the_one_before),
        MANY(test_two_generations_of_many_aliases),
        MANY(test_one_alias_for_many_tenants),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
