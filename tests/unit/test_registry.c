/* SPDX-License-Identifier: MIT
 * The registry of pools: what makes one, which is its alias's current one, every field is checked, and the password is
 * nowhere but in its own memory (I9).
 */
#include "registry.h"

#include "../support/helpers.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static struct dbp_registry *registry;
static struct dbp_table *table;
static char text[DBP_TEXT_MAX];

static int setup(void **state) {
    (void)state;
    memset(text, 'x', sizeof text);
    return dbp_registry_new(&registry) != 0 || dbp_table_new(&table) != 0;
}

static int teardown(void **state) {
    (void)state;
    registry = dbp_registry_free(registry);
    table = dbp_table_free(table);
    return reap_all();
}

static int put(const struct dbp_pool_spec *spec, uint32_t *poolp) {
    bool added = false;

    return dbp_registry_put(registry, table, spec, text, poolp, &added);
}

static void assert_refused(const struct dbp_pool_spec *spec, int why, const char *named) {
    uint32_t pool = 99, n = atomic_load(&table->n_pools);

    assert_int_equal(put(spec, &pool), why);
    assert_int_equal(pool, 99);
    assert_int_equal(atomic_load(&table->n_pools), n);
    if (!strstr(text, named))
        fail_msg("'%s' does not name %s", text, named);
    assert_null(strstr(text, "pa55"));
}

static void test_the_first_fixes_the_rest_find(void **state) {
    struct dbp_pool_spec spec = test_spec("default", 3, 2), other = test_spec("other", 7, 0);
    uint32_t pool = 99;
    bool added = false;

    (void)state;
    assert_int_equal(dbp_registry_put(registry, table, &spec, text, &pool, &added), 0);
    assert_int_equal(pool, 0);
    assert_true(added);
    assert_int_equal(dbp_registry_put(registry, table, &other, text, &pool, &added), 0);
    assert_int_equal(pool, 1);
    assert_int_equal(dbp_registry_put(registry, table, &spec, text, &pool, &added), 0);
    assert_int_equal(pool, 0);
    assert_false(added);

    assert_int_equal(atomic_load(&table->n_pools), 2);
    assert_string_equal(table->pools[0].alias, "default");
    assert_string_equal(table->pools[1].alias, "other");
    assert_int_equal(atomic_load(&table->pools[0].live), 1);
    assert_int_equal(atomic_load(&table->pools[2].live), 0);
    assert_int_equal(atomic_load(&table->pools[0].ring_above), 3);
    assert_int_equal(atomic_load(&table->pools[0].count.max), 5);
    assert_true(dbp_queue_quiet(&table->pools[0].queue));
    uint32_t ticket;
    assert_true(dbp_queue_push(&table->pools[1].queue, 0, false, &ticket));

    assert_string_equal(dbp_registry_spec(registry, 1)->alias, "other");
    assert_null(dbp_registry_spec(registry, 2));
    assert_null(dbp_registry_spec(registry, UINT32_MAX));
}

static void test_another_identity_is_another_pool_and_supersedes(void **state) {
    const struct dbp_pool_spec spec = test_spec("default", 3, 2);
    struct dbp_pool_spec other;
    uint32_t pool;
    bool changed;

    (void)state;
    assert_int_equal(put(&spec, &pool), 0);
#define ANOTHER(field, change)                                                                 \
    do {                                                                                       \
        other = spec;                                                                          \
        change;                                                                                \
        changed = false;                                                                       \
        assert_int_equal(dbp_registry_put(registry, table, &other, text, &pool, &changed), 0); \
        assert_true(changed);                                                                  \
        assert_int_equal(pool, 1);                                                             \
        assert_true(dbp_registry_superseded(registry, 0));                                     \
        assert_false(dbp_registry_superseded(registry, 1));                                    \
        if (!strstr(text, #field))                                                             \
            fail_msg("'%s' does not name " #field, text);                                      \
        assert_null(strstr(text, "pa55"));                                                     \
        assert_null(strstr(text, "SET ")); /* I9: a statement may hold a secret */             \
        /* back again, and the other one is gone */                                            \
        assert_int_equal(dbp_registry_put(registry, table, &spec, text, &pool, &changed), 0);  \
        assert_true(changed);                                                                  \
        assert_int_equal(pool, 0);                                                             \
        assert_true(dbp_registry_superseded(registry, 1));                                     \
        dbp_registry_drop(registry, table, 1);                                                 \
        assert_null(dbp_registry_spec(registry, 1));                                           \
        assert_int_equal(atomic_load(&table->pools[1].live), 0);                               \
        assert_false(dbp_registry_superseded(registry, 0));                                    \
    } while (0)
    ANOTHER(host, strcpy(other.host, "127.0.0.2"));
    ANOTHER(unix_socket, strcpy(other.unix_socket, "/run/s"));
    ANOTHER(user, strcpy(other.user, "root"));
    ANOTHER(database, strcpy(other.database, "shop2"));
    ANOTHER(charset, strcpy(other.charset, "latin1"));
    ANOTHER(init_sql, strcpy(other.init_sql, "SET sql_mode=''"));
    ANOTHER(init_sql, memcpy(other.init_sql + strlen(other.init_sql) + 1, "SET b=3", 8)); /* a second statement */
    ANOTHER(facts_sql, strcpy(other.facts_sql, "SELECT 1"));
    ANOTHER(port, other.port = 3307);
    ANOTHER(client_flags, other.client_flags = 2);
    ANOTHER(autocommit, other.autocommit = 0);
}

static void test_a_free_place_is_as_new(void **state) {
    struct dbp_pool_spec spec = test_spec("default", 3, 2), other = test_spec("other", 1, 0);
    uint32_t pool, ticket, next;

    (void)state;
    assert_int_equal(put(&spec, &pool), 0);
    uint32_t before = dbp_registry_handle(registry, pool);
    assert_true(dbp_pool_lives(table, before));
    atomic_store(&table->pools[0].count.opened, 5);
    atomic_store(&table->pools[0].error_seq, 4);
    assert_true(dbp_queue_push(&table->pools[0].queue, 0, false, &ticket));
    assert_true(
        dbp_queue_move(&table->pools[0].queue, dbp_queue_look(&table->pools[0].queue, ticket), DBP_PLACE_FREE, 0));
    dbp_registry_drop(registry, table, 0);
    assert_false(dbp_pool_lives(table, before));
    assert_int_equal(put(&other, &pool), 0);
    assert_int_equal(pool, 0);
    /* But nothing that was meant for the one before is this one's: neither its name nor a ticket comes again. */
    assert_false(dbp_pool_lives(table, before));
    assert_true(dbp_pool_lives(table, dbp_registry_handle(registry, pool)));
    assert_int_equal(dbp_pool_place(dbp_registry_handle(registry, pool)), 0);
    assert_true(dbp_queue_push(&table->pools[0].queue, 0, false, &next));
    assert_int_equal(next, ticket + 1);
    assert_string_equal(table->pools[0].alias, "other");
    assert_int_equal(atomic_load(&table->pools[0].count.opened), 0);
    assert_int_equal(atomic_load(&table->pools[0].error_seq), 0);
    assert_int_equal(atomic_load(&table->n_pools), 1);
}

static void test_the_newest_policy_wins_and_the_password_is_a_candidate(void **state) {
    struct dbp_pool_spec spec = test_spec("default", 3, 2);
    uint32_t pool = 99;

    (void)state;
    assert_int_equal(put(&spec, &pool), 0);
    spec.pool_size = 10;
    spec.max_overflow = 5;
    spec.recycle_s = 60;
    spec.connect_timeout_s = 9;
    strcpy(spec.password, "pa55-rotated");
    assert_int_equal(put(&spec, &pool), 0);
    assert_int_equal(pool, 0);
    assert_int_equal(dbp_registry_spec(registry, 0)->recycle_s, 60);
    assert_string_equal(dbp_registry_spec(registry, 0)->password, "pa55-Of-TheTest");
    assert_true(dbp_registry_candidate(registry, 0) != 0);
    assert_int_equal(atomic_load(&table->pools[0].count.max), 15);
    assert_int_equal(atomic_load(&table->pools[0].ring_above), 10);
}

static const char *login_password(void) {
    static struct dbp_pool_spec spec;

    dbp_registry_login_spec(registry, 0, &spec);
    return spec.password;
}

static void test_a_candidate_becomes_the_password_or_is_forgotten(void **state) {
    struct dbp_pool_spec spec = test_spec("default", 3, 2);
    uint32_t pool;

    (void)state;
    assert_int_equal(put(&spec, &pool), 0);
    assert_int_equal(dbp_registry_candidate(registry, 0), 0);
    assert_string_equal(login_password(), "pa55-Of-TheTest");
    strcpy(spec.password, "wrong");
    assert_int_equal(put(&spec, &pool), 0);
    uint64_t first = dbp_registry_candidate(registry, 0);
    assert_string_equal(login_password(), "wrong");
    assert_int_equal(put(&spec, &pool), 0); /* said again: the same one */
    assert_true(dbp_registry_candidate(registry, 0) == first);
    assert_true(dbp_registry_candidate_refused(registry, 0, first, in_seconds(3600)));
    assert_false(dbp_registry_candidate_refused(registry, 0, first, in_seconds(3600)));
    assert_string_equal(login_password(), "pa55-Of-TheTest");
    strcpy(spec.password, "rotated");
    assert_int_equal(put(&spec, &pool), 0);
    uint64_t second = dbp_registry_candidate(registry, 0);
    assert_true(second != 0 && second != first);
    dbp_registry_candidate_proved(registry, 0, first); /* the answer to an older login */
    assert_false(dbp_registry_candidate_refused(registry, 0, first, in_seconds(3600)));
    assert_string_equal(dbp_registry_spec(registry, 0)->password, "pa55-Of-TheTest");
    dbp_registry_candidate_proved(registry, 0, second);
    assert_string_equal(dbp_registry_spec(registry, 0)->password, "rotated");
    assert_int_equal(dbp_registry_candidate(registry, 0), 0);
}

/* Settings may change before the server does: what was refused may be right later. But servers lock accounts. */
static void test_a_refused_password_may_be_said_again_after_a_while(void **state) {
    struct dbp_pool_spec spec = test_spec("default", 3, 2);
    uint32_t pool;

    (void)state;
    assert_int_equal(put(&spec, &pool), 0);
    strcpy(spec.password, "too early");
    assert_int_equal(put(&spec, &pool), 0);
    assert_true(dbp_registry_candidate_refused(registry, 0, dbp_registry_candidate(registry, 0), in_seconds(3600)));
    uint64_t turn = dbp_registry_turn(registry);
    assert_int_equal(put(&spec, &pool), 0);
    assert_true(dbp_registry_candidate(registry, 0) == 0);
    assert_true(dbp_registry_turn(registry) == turn); /* nor does it end a back-off */
    strcpy(spec.password, "another");
    assert_int_equal(put(&spec, &pool), 0);
    assert_string_equal(login_password(), "another");
    assert_true(dbp_registry_candidate_refused(registry, 0, dbp_registry_candidate(registry, 0), dbp_now_us()));
    assert_int_equal(put(&spec, &pool), 0);
    assert_string_equal(login_password(), "another");
}

static void test_I10_a_specification_out_of_range_is_refused(void **state) {
    const struct dbp_pool_spec good = test_spec("default", 3, 2);
    struct dbp_pool_spec spec;

    (void)state;
#define INVALID(field, change)                        \
    do {                                              \
        spec = good;                                  \
        change;                                       \
        assert_refused(&spec, DBP_E_INVALID, #field); \
    } while (0)
    INVALID(alias, spec.alias[0] = '\0');
    INVALID(port, spec.port = 65536);
    INVALID(autocommit, spec.autocommit = 2);
    INVALID(connect_timeout_s, spec.connect_timeout_s = 0);
    INVALID(connect_timeout_s, spec.connect_timeout_s = 3601);
    INVALID(pool_size, spec.pool_size = 0);
    INVALID(pool_size, spec.pool_size = DBP_SESSIONS_MAX + 1);
    INVALID(max_overflow, spec.max_overflow = DBP_SESSIONS_MAX + 1);
    INVALID(max_overflow, spec.max_overflow = UINT32_MAX); /* and no sum that wraps */
    INVALID(pool_size, spec.max_overflow = DBP_SESSIONS_MAX - 2);
    INVALID(alias, memset(spec.alias, 'a', sizeof spec.alias)); /* strings without an end */
    INVALID(host, memset(spec.host, 'a', sizeof spec.host));
    INVALID(unix_socket, memset(spec.unix_socket, 'a', sizeof spec.unix_socket));
    INVALID(user, memset(spec.user, 'a', sizeof spec.user));
    INVALID(password, memset(spec.password, 'p', sizeof spec.password));
    INVALID(database, memset(spec.database, 'a', sizeof spec.database));
    INVALID(charset, memset(spec.charset, 'a', sizeof spec.charset));
    INVALID(facts_sql, memset(spec.facts_sql, 'a', sizeof spec.facts_sql));
    INVALID(init_sql, memset(spec.init_sql, 'a', sizeof spec.init_sql));
    INVALID(init_sql, memset(spec.init_sql, 'a', sizeof spec.init_sql - 1)); /* a list ends with two zeroes */
    spec = good;
    spec.port = 65535;
    spec.connect_timeout_s = 3600;
    spec.max_overflow = DBP_SESSIONS_MAX - 3;
    memset(spec.database, 'd', sizeof spec.database - 1);
    uint32_t pool;
    assert_int_equal(put(&spec, &pool), 0); /* the edges are inside */
}

static void test_there_is_room_for_so_many_pools(void **state) {
    uint32_t pool;
    char alias[16];

    (void)state;
    for (uint32_t i = 0; i < DBP_POOLS_MAX; i++) {
        snprintf(alias, sizeof alias, "pool%u", i);
        struct dbp_pool_spec spec = test_spec(alias, 1, 0);
        assert_int_equal(put(&spec, &pool), 0);
        assert_int_equal(pool, i);
    }
    struct dbp_pool_spec spec = test_spec("one-more", 1, 0);
    assert_refused(&spec, DBP_E_FULL, "256");
    spec = test_spec("pool7", 2, 0);
    assert_int_equal(put(&spec, &pool), 0); /* those that live can still be found */
    assert_int_equal(pool, 7);
}

static void test_a_pool_that_closes_is_found_by_nobody_until_it_is_put_again(void **state) {
    struct dbp_pool_spec spec = test_spec("default", 3, 2);
    uint32_t pool, again;

    (void)state;
    assert_int_equal(put(&spec, &pool), 0);
    uint32_t handle = dbp_registry_handle(registry, pool);
    dbp_registry_close(registry, table, pool);
    assert_true(dbp_registry_closing(registry, pool));
    assert_false(dbp_pool_lives(table, handle));
    assert_int_equal(atomic_load(&table->pools[0].count.max), 0);
    dbp_registry_mend(registry, table);
    assert_false(dbp_pool_lives(table, handle));
    assert_int_equal(put(&spec, &again), 0);
    assert_int_equal(again, pool);
    assert_int_equal(dbp_registry_handle(registry, again), handle); /* its sessions are there still */
    assert_true(dbp_pool_lives(table, handle));
    assert_int_equal(atomic_load(&table->pools[0].count.max), 5);
}

static void test_without_the_newest_pool_of_an_alias_the_one_before_is_current(void **state) {
    struct dbp_pool_spec spec = test_spec("default", 3, 2);
    uint32_t pool;

    (void)state;
    for (uint16_t port = 1; port <= 3; port++) {
        spec.port = port;
        assert_int_equal(put(&spec, &pool), 0);
    }
    assert_true(dbp_registry_superseded(registry, 0));
    assert_true(dbp_registry_superseded(registry, 1));
    assert_false(dbp_registry_superseded(registry, 2));
    dbp_registry_drop(registry, table, 2);
    assert_true(dbp_registry_superseded(registry, 0));
    assert_false(dbp_registry_superseded(registry, 1));
}

/* The longest names that servers take, and tokens of clouds. */
static void test_legal_names_and_long_passwords_fit(void **state) {
    struct dbp_pool_spec spec = test_spec("default", 3, 2);
    uint32_t pool;

    (void)state;
    memset(spec.user, 'u', 128);
    memset(spec.database, 'd', 256);
    memset(spec.password, 'p', 4096);
    assert_int_equal(put(&spec, &pool), 0);
    assert_int_equal(strlen(dbp_registry_spec(registry, pool)->password), 4096);
}

static void test_I9_the_password_is_not_in_shared_memory(void **state) {
    struct dbp_pool_spec spec = test_spec("default", 3, 2);
    uint32_t pool;

    (void)state;
    assert_int_equal(put(&spec, &pool), 0);
    assert_non_null(memmem(table, sizeof *table, "default", 7)); /* the search finds what is there */
    assert_null(memmem(table, sizeof *table, "pa55", 4));
    assert_null(memmem(table, sizeof *table, spec.user, strlen(spec.user) + 1));
}

static void test_I9_a_forked_child_has_no_password(void **state) {
    struct dbp_pool_spec spec = test_spec("default", 3, 2);
    uint32_t pool;

    (void)state;
    assert_int_equal(put(&spec, &pool), 0);
    pid_t pid = fork_child();
    if (pid == 0) {
        const struct dbp_pool_spec *theirs = dbp_registry_spec(registry, 0);
        for (size_t i = 0; i < sizeof *theirs; i++)
            if (((const char *)theirs)[i] != '\0')
                _exit(1);
        _exit(0);
    }
    assert_int_equal(wait_child(pid), 0);
    assert_string_equal(dbp_registry_spec(registry, 0)->password, spec.password);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_the_first_fixes_the_rest_find),
        TEST(test_another_identity_is_another_pool_and_supersedes),
        TEST(test_a_free_place_is_as_new),
        TEST(test_the_newest_policy_wins_and_the_password_is_a_candidate),
        TEST(test_a_candidate_becomes_the_password_or_is_forgotten),
        TEST(test_a_refused_password_may_be_said_again_after_a_while),
        TEST(test_I10_a_specification_out_of_range_is_refused),
        TEST(test_there_is_room_for_so_many_pools),
        TEST(test_a_pool_that_closes_is_found_by_nobody_until_it_is_put_again),
        TEST(test_without_the_newest_pool_of_an_alias_the_one_before_is_current),
        TEST(test_legal_names_and_long_passwords_fit),
        TEST(test_I9_the_password_is_not_in_shared_memory),
        TEST(test_I9_a_forked_child_has_no_password),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
