/* SPDX-License-Identifier: MIT
 * The lease table: layout, the one function that moves a session, the idle bits, counting again.
 */
#include "table.h"

#include "../support/helpers.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

static struct dbp_table *table;

static int setup(void **state) {
    (void)state;
    if (dbp_table_new(&table) != 0)
        return -1;
    for (uint32_t pool = 0; pool < 2; pool++)
        dbp_queue_init(&table->pools[pool].queue);
    atomic_store(&table->n_pools, 2);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    table = dbp_table_free(table);
    return reap_all();
}

static dbp_word word_of(uint32_t session) {
    return atomic_load(&table->sessions[session].word);
}

static dbp_word make_word(enum dbp_state state, uint32_t owner, uint32_t generation) {
    return (dbp_word)state | (dbp_word)owner << 4 | (dbp_word)generation << 32;
}

static void make_idle(uint32_t pool, uint32_t session) {
    atomic_store(&table->sessions[session].pool, pool);
    assert_true(dbp_session_move(table, session, word_of(session), DBP_OPENING, 0, NULL));
    assert_true(dbp_idle_put(table, session, word_of(session)));
}

static int64_t in_state(uint32_t pool, enum dbp_state state) {
    return dbp_pool_count(table, pool, state);
}

static void test_a_new_table_is_valid_and_empty(void **state) {
    (void)state;
    assert_true(dbp_table_valid(table));
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++)
        assert_int_equal(dbp_word_state(word_of(i)), DBP_EMPTY);
    assert_false(dbp_idle_any(table, 0));
    assert_null(dbp_table_free(NULL));
}

static void test_I10_a_segment_that_is_not_understood_is_refused(void **state) {
    (void)state;
    table->magic ^= 1;
    assert_false(dbp_table_valid(table));
    table->magic ^= 1;
    table->version++;
    assert_false(dbp_table_valid(table));
    table->version--;
    table->size--;
    assert_false(dbp_table_valid(table));
    table->size++;
    atomic_store(&table->n_pools, DBP_POOLS_MAX + 1);
    assert_false(dbp_table_valid(table));
    atomic_store(&table->n_pools, 2);

    struct dbp_session *last = &table->sessions[DBP_SESSIONS_MAX - 1];
    atomic_store(&last->word, make_word(DBP_STATES, 0, 1));
    assert_false(dbp_table_valid(table));
    atomic_store(&last->word, make_word(DBP_LEASED, DBP_PROCS_MAX, 1));
    assert_false(dbp_table_valid(table));
    atomic_store(&last->word, make_word(DBP_LEASED, DBP_PROCS_MAX - 1, 1));
    assert_true(dbp_table_valid(table));
}

/* The diagram of DESIGN.md, said once more: who reads "X" at [from][to] may rely on it. */
static const char *const allowed[DBP_STATES] = {
    /*                    E O I G L R C */
    [DBP_EMPTY] = /*   */ ".X.....", [DBP_OPENING] = /* */ "X.X....", [DBP_IDLE] = /*    */ "...XXXX",
    [DBP_GRANTED] = /* */ "..X.X..", [DBP_LEASED] = /*  */ "..X..XX", [DBP_RESETTING] = /**/ "..X...X",
    [DBP_CLOSING] = /* */ "X......",
};

static void test_I1_only_the_edges_of_the_diagram_exist(void **state) {
    (void)state;
    for (uint32_t from = DBP_STATES; from < 16; from++) { /* what no rule can have written */
        dbp_word word = make_word((enum dbp_state)from, 3, 7);
        atomic_store(&table->sessions[5].word, word);
        for (uint32_t to = 0; to < DBP_STATES; to++)
            assert_false(dbp_session_move(table, 5, word, (enum dbp_state)to, 9, NULL));
    }
    for (uint32_t from = 0; from < DBP_STATES; from++)
        for (uint32_t to = 0; to < DBP_STATES; to++) {
            dbp_word word = make_word((enum dbp_state)from, 3, 7), next = 0;
            atomic_store(&table->sessions[5].word, word);
            if (allowed[from][to] == 'X') {
                assert_true(dbp_session_move(table, 5, word, (enum dbp_state)to, 9, &next));
                assert_true(next == word_of(5));
                assert_int_equal(dbp_word_state(next), to);
                assert_int_equal(dbp_word_owner(next), 9);
                assert_int_equal(dbp_word_generation(next), 8);
                continue;
            }
            assert_false(dbp_session_move(table, 5, word, (enum dbp_state)to, 9, NULL));
            assert_true(word_of(5) == word);
        }
}

static void test_I1_a_word_read_before_any_move_never_matches_again(void **state) {
    uint32_t session;
    dbp_word lease, again;

    (void)state;
    make_idle(0, 0);
    assert_true(dbp_idle_take(table, 0, DBP_LEASED, 4, &session, &lease));
    assert_true(dbp_idle_put(table, session, lease));
    assert_true(dbp_idle_take(table, 0, DBP_LEASED, 4, &session, &again));
    /* Same state, same owner, same session: only the generation tells them apart. */
    assert_int_equal(dbp_word_state(lease), dbp_word_state(again));
    assert_int_equal(dbp_word_owner(lease), dbp_word_owner(again));
    assert_false(dbp_idle_put(table, session, lease));
    assert_false(dbp_session_move(table, session, lease, DBP_CLOSING, 1, NULL));
    assert_true(word_of(session) == again);
    assert_int_equal(in_state(0, DBP_LEASED), 1);
}

static void test_the_generation_wraps_and_the_owner_is_cut(void **state) {
    dbp_word next;

    (void)state;
    atomic_store(&table->sessions[1].word, make_word(DBP_IDLE, 0, UINT32_MAX));
    assert_true(dbp_session_move(table, 1, word_of(1), DBP_GRANTED, UINT32_MAX, &next));
    assert_int_equal(dbp_word_generation(next), 0);
    assert_int_equal(dbp_word_owner(next), DBP_OWNER_MASK);
    assert_int_equal(dbp_word_state(next), DBP_GRANTED);
}

static void test_counters_follow_every_move_in_the_sessions_own_pool(void **state) {
    static const enum dbp_state path[] = {DBP_OPENING, DBP_IDLE,   DBP_GRANTED, DBP_LEASED, DBP_RESETTING,
                                          DBP_IDLE,    DBP_LEASED, DBP_CLOSING, DBP_EMPTY};
    (void)state;
    atomic_store(&table->sessions[2].pool, 1);
    for (size_t i = 0; i < sizeof path / sizeof *path; i++) {
        assert_true(dbp_session_move(table, 2, word_of(2), path[i], 0, NULL));
        for (int s = DBP_OPENING; s < DBP_STATES; s++) {
            assert_int_equal(in_state(1, (enum dbp_state)s), s == (int)path[i]);
            assert_int_equal(in_state(0, (enum dbp_state)s), 0);
        }
        assert_int_equal(atomic_load(&table->pools[1].count.size), path[i] != DBP_EMPTY);
    }
}

static void test_a_failed_move_counts_nothing(void **state) {
    (void)state;
    make_idle(0, 3);
    assert_false(dbp_session_move(table, 3, word_of(3) + ((dbp_word)1 << 32), DBP_LEASED, 1, NULL));
    assert_int_equal(in_state(0, DBP_IDLE), 1);
    assert_int_equal(in_state(0, DBP_LEASED), 0);
}

static void test_idle_take_is_lowest_first_and_once_only(void **state) {
    static const uint32_t slots[] = {1023, 64, 63, 0, 500};
    static const uint32_t order[] = {0, 63, 64, 500, 1023};
    uint32_t session = 77;
    dbp_word word;

    (void)state;
    for (size_t i = 0; i < 5; i++)
        make_idle(0, slots[i]);
    assert_false(dbp_idle_take(table, 1, DBP_LEASED, 1, &session, &word)); /* the other pool has none */
    for (size_t i = 0; i < 5; i++) {
        assert_true(dbp_idle_any(table, 0));
        assert_true(dbp_idle_take(table, 0, DBP_LEASED, 1 + (uint32_t)i, &session, &word));
        assert_int_equal(session, order[i]);
        assert_int_equal(dbp_word_owner(word), 1 + i);
    }
    session = 77;
    assert_false(dbp_idle_take(table, 0, DBP_LEASED, 9, &session, &word));
    assert_int_equal(session, 77); /* untouched on failure */
    assert_false(dbp_idle_any(table, 0));
}

static void test_I1_an_idle_bit_without_an_idle_session_lends_nothing(void **state) {
    uint32_t session;
    dbp_word word;

    (void)state;
    make_idle(0, 8);
    assert_true(dbp_idle_take(table, 0, DBP_LEASED, 1, &session, &word));
    dbp_idle_offer(table, 8); /* as a sweep that was overtaken, or a second offer, leaves it */
    assert_true(dbp_idle_any(table, 0));
    assert_false(dbp_idle_take(table, 0, DBP_LEASED, 2, &session, &word));
    assert_int_equal(dbp_word_owner(word_of(8)), 1);
    assert_false(dbp_idle_any(table, 0)); /* a wrong hint is dropped */

    /* A bit of pool 0 whose slot lives in pool 1 now. */
    atomic_store(&table->pools[0].idle[0], (uint64_t)1 << 9);
    make_idle(1, 9);
    assert_false(dbp_idle_take(table, 0, DBP_LEASED, 2, &session, &word));
    assert_true(dbp_idle_take(table, 1, DBP_LEASED, 2, &session, &word));
    assert_int_equal(session, 9);
}

static void test_I2_a_session_put_back_is_offered(void **state) {
    uint32_t session;
    dbp_word word;

    (void)state;
    make_idle(0, 70);
    for (int i = 0; i < 3; i++) {
        assert_true(dbp_idle_take(table, 0, DBP_LEASED, 1, &session, &word));
        assert_true(dbp_idle_put(table, session, word));
    }
    assert_true(dbp_idle_any(table, 0));
    dbp_idle_offer(table, 70); /* offered twice is lent once */
    assert_true(dbp_idle_take(table, 0, DBP_GRANTED, 123, &session, &word));
    assert_false(dbp_idle_take(table, 0, DBP_LEASED, 1, &session, &word));
}

static void test_one_session_is_taken_if_it_is_idle_and_fit_and_the_pools(void **state) {
    uint32_t session;
    dbp_word word, again;

    (void)state;
    make_idle(0, 70);
    assert_false(dbp_idle_take_this(table, 1, 70, 1, &word)); /* it lives in pool 0 */
    assert_false(dbp_idle_take_this(table, 0, 71, 1, &word)); /* nothing lives there */
    atomic_store(&table->sessions[70].unfit, DBP_UNFIT);
    assert_false(dbp_idle_take_this(table, 0, 70, 1, &word));
    atomic_store(&table->sessions[70].unfit, DBP_FIT);
    assert_true(dbp_idle_take_this(table, 0, 70, 1, &word));
    assert_int_equal(dbp_word_owner(word_of(70)), 1);
    assert_false(dbp_idle_take_this(table, 0, 70, 2, &again));
    assert_true(dbp_idle_any(table, 0)); /* the bit stays, */
    assert_false(dbp_idle_take(table, 0, DBP_LEASED, 2, &session, &again));
    assert_false(dbp_idle_any(table, 0)); /* until somebody finds it wrong */
    assert_true(dbp_idle_put(table, 70, word));
    assert_true(dbp_idle_take(table, 0, DBP_LEASED, 2, &session, &again)); /* I2: it is found again all the same */
}

static void test_what_processes_count_is_summed_up(void **state) {
    struct dbp_pool_counters *count = &table->pools[0].count;

    (void)state;
    for (uint32_t i = 0; i < 4; i++)
        make_idle(0, i);
    for (uint32_t i = 0; i < 3; i++) {
        assert_true(dbp_session_move(table, i, word_of(i), DBP_LEASED, 5 * i, NULL));
        dbp_pool_count_acquire(table, 0, 5 * i);
    }
    assert_int_equal(in_state(0, DBP_LEASED), 3);
    assert_int_equal(in_state(0, DBP_IDLE), 1);
    assert_int_equal(dbp_pool_acquires(table, 0), 3);
    dbp_pool_sum_up(table, 0);
    assert_int_equal(atomic_load(&count->state[DBP_LEASED]), 3);
    assert_int_equal(atomic_load(&count->state[DBP_IDLE]), 1);
    assert_int_equal(atomic_load(&count->acquires), 3);
    /* Ended by the broker, for its holder who has died: it is his count that goes. */
    assert_true(dbp_session_move(table, 2, word_of(2), DBP_CLOSING, 1, NULL));
    assert_int_equal(atomic_load(&table->pools[0].usage[10].leased), 0);
    assert_int_equal(in_state(0, DBP_LEASED), 2);
}

static void test_I2_recount_puts_right_what_a_killed_process_left_uncounted(void **state) {
    struct dbp_pool_counters *count = &table->pools[0].count;
    uint32_t ticket;

    (void)state;
    for (uint32_t i = 0; i < 4; i++)
        make_idle(0, i);
    make_idle(1, 4);
    assert_true(dbp_session_move(table, 0, word_of(0), DBP_LEASED, 1, NULL));
    assert_true(dbp_queue_push(&table->pools[0].queue, 1, false, &ticket));
    assert_true(dbp_queue_push(&table->pools[0].queue, 1, false, &ticket));
    /* killed between the words and the counters */
    atomic_fetch_sub(&table->pools[0].usage[1].leased, 1);
    atomic_fetch_add(&count->state[DBP_CLOSING], 1);
    atomic_fetch_add(&count->size, 5);
    atomic_store(&count->waiting, 40);
    dbp_table_recount(table, 0);
    assert_int_equal(in_state(0, DBP_IDLE), 3);
    assert_int_equal(in_state(0, DBP_LEASED), 1);
    assert_int_equal(atomic_load(&count->size), 4);
    assert_int_equal(atomic_load(&count->waiting), 2);
    assert_int_equal(in_state(1, DBP_IDLE), 1);
    dbp_table_recount(table, 0); /* and again: nothing more to do */
    assert_int_equal(in_state(0, DBP_IDLE), 3);
    assert_int_equal(atomic_load(&count->waiting), 2);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_a_new_table_is_valid_and_empty),
        TEST(test_I10_a_segment_that_is_not_understood_is_refused),
        TEST(test_I1_only_the_edges_of_the_diagram_exist),
        TEST(test_I1_a_word_read_before_any_move_never_matches_again),
        TEST(test_the_generation_wraps_and_the_owner_is_cut),
        TEST(test_counters_follow_every_move_in_the_sessions_own_pool),
        TEST(test_a_failed_move_counts_nothing),
        TEST(test_idle_take_is_lowest_first_and_once_only),
        TEST(test_I1_an_idle_bit_without_an_idle_session_lends_nothing),
        TEST(test_I2_a_session_put_back_is_offered),
        TEST(test_one_session_is_taken_if_it_is_idle_and_fit_and_the_pools),
        TEST(test_what_processes_count_is_summed_up),
        TEST(test_I2_recount_puts_right_what_a_killed_process_left_uncounted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
