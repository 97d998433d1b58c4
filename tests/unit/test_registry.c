/* SPDX-License-Identifier: MIT
 * The registry of pools: the first registration fixes an alias's identity, every field is checked, and the password is
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
    assert_int_equal(atomic_load(&table->pools[0].pool_size), 3);
    assert_int_equal(atomic_load(&table->pools[0].count.max), 5);
    assert_true(dbp_queue_quiet(&table->pools[0].queue));
    uint32_t ticket;
    assert_true(dbp_queue_push(&table->pools[1].queue, 0, false, &ticket));

    assert_string_equal(dbp_registry_spec(registry, 1)->alias, "other");
    assert_null(dbp_registry_spec(registry, 2));
    assert_null(dbp_registry_spec(registry, UINT32_MAX));
}

static void test_another_identity_is_a_conflict_that_names_the_field(void **state) {
    const struct dbp_pool_spec spec = test_spec("default", 3, 2);
    struct dbp_pool_spec other;
    uint32_t pool;

    (void)state;
    assert_int_equal(put(&spec, &pool), 0);
#define CONFLICT(field, change)                         \
    do {                                                \
        other = spec;                                   \
        change;                                         \
        assert_refused(&other, DBP_E_CONFLICT, #field); \
    } while (0)
    CONFLICT(host, strcpy(other.host, "127.0.0.2"));
    CONFLICT(unix_socket, strcpy(other.unix_socket, "/run/s"));
    CONFLICT(user, strcpy(other.user, "root"));
    CONFLICT(database, strcpy(other.database, "shop2"));
    CONFLICT(charset, strcpy(other.charset, "latin1"));
    CONFLICT(init_sql, strcpy(other.init_sql, "SET sql_mode=''"));
    CONFLICT(facts_sql, strcpy(other.facts_sql, "SELECT 1"));
    CONFLICT(port, other.port = 3307);
    CONFLICT(client_flags, other.client_flags = 2);
    CONFLICT(autocommit, other.autocommit = 0);
    /* and a second statement that differs */
    struct dbp_pool_spec list = test_spec("lists", 1, 0);
    memcpy(list.init_sql, "SET a=1\0SET b=2\0", 17);
    assert_int_equal(put(&list, &pool), 0);
    memcpy(list.init_sql, "SET a=1\0SET b=3\0", 17);
    assert_refused(&list, DBP_E_CONFLICT, "init_sql");
    assert_null(strstr(text, "SET")); /* I9: a statement may hold a secret */
    assert_int_equal(dbp_registry_spec(registry, 0)->port, 3306);
}

static void test_the_newest_policy_and_password_win(void **state) {
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
    assert_string_equal(dbp_registry_spec(registry, 0)->password, "pa55-rotated");
    assert_int_equal(atomic_load(&table->pools[0].count.max), 15);
    assert_int_equal(atomic_load(&table->pools[0].pool_size), 10);
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
    assert_refused(&spec, DBP_E_FULL, "16");
    spec = test_spec("pool7", 2, 0);
    assert_int_equal(put(&spec, &pool), 0); /* those that live can still be found */
    assert_int_equal(pool, 7);
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
        TEST(test_the_first_fixes_the_rest_find),      TEST(test_another_identity_is_a_conflict_that_names_the_field),
        TEST(test_the_newest_policy_and_password_win), TEST(test_I10_a_specification_out_of_range_is_refused),
        TEST(test_there_is_room_for_so_many_pools),    TEST(test_I9_the_password_is_not_in_shared_memory),
        TEST(test_I9_a_forked_child_has_no_password),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
