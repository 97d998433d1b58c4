/* SPDX-License-Identifier: MIT
 * The full reset, driven by the broker: what it says to which session, when a session is replaced instead, and what the
 * log is told, once. The real broker, a fake connector and server, puppets as clients.
 */
#include "broker.h"
#include "table.h"

#include "../support/puppet.h"
#include "../support/stage.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static struct dbp_pool_counters *count;
static struct dbp_pool_spec spec;
static _Atomic uint32_t untracked, replaced, undone;

static void on_log(enum dbp_log_level level, const char *text) {
    test_log(level, text);
    if (strstr(text, "does not report"))
        atomic_fetch_add(&untracked, 1);
    if (strstr(text, "are replaced"))
        atomic_fetch_add(&replaced, 1);
    if (strstr(text, "'undone'"))
        atomic_fetch_add(&undone, 1);
}

static int setup(void **state) {
    (void)state;
    atomic_store(&untracked, 0);
    atomic_store(&replaced, 0);
    atomic_store(&undone, 0);
    spec = test_spec("default", 3, 0);
    if (stage_open(6, (struct dbp_broker_ops){.log = on_log}) != 0)
        return -1;
    count = &share.table->pools[0].count;
    return 0;
}

static int teardown(void **state) {
    (void)state;
    return stage_close();
}

/* The log has a thread of its own, and may come later than what it tells of. */
static bool told_once(const _Atomic uint32_t *lines) {
    return eventually_at_least(lines, 1) && atomic_load(lines) == 1;
}

/* A client whose first session will have these facts. */
static struct puppet *client(uint32_t facts) {
    atomic_store(&fake->facts, facts);
    return puppet_ready(&share, &spec);
}

static void test_I6_a_full_reset_and_the_same_session_again(void **state) {
    struct puppet *p = client(DBP_FACT_TRACKED | DBP_FACT_ROLE_NONE);

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_query(p, 0, "BEGIN"), 0);
    assert_int_equal(puppet_query(p, 0, "SET autocommit=0"), 0);
    uint32_t id = p->facts.connection_id;
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_FULL), 0);
    assert_true(eventually_equal(&count->resets, 1));
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_query(p, 0, "Q 1"), 0);
    assert_int_equal(p->facts.connection_id, id);
    assert_int_equal(p->status & 3, 2);
    assert_int_equal(atomic_load(&fake->empties), 1);
    assert_int_equal(atomic_load(&fake->databases), 1);
    assert_int_equal(atomic_load(&fake->roles), 1);
    assert_int_equal(atomic_load(&fake->trackings), 1);
    assert_int_equal(atomic_load(&fake->rollbacks), 1); /* it was in a transaction */
    assert_int_equal(atomic_load(&fake->strange), 0);
    assert_int_equal(atomic_load(&untracked) + atomic_load(&replaced), 0);
}

static void test_a_session_that_no_reset_leads_back_is_replaced(void **state) {
    struct puppet *p = client(DBP_FACT_TRACKED | DBP_FACT_NO_RESET);

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_query(p, 0, "Q 1"), 0);
    uint32_t id = p->facts.connection_id;
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_FULL), 0);
    assert_true(eventually_equal(&count->closed, 1));
    assert_int_equal(atomic_load(&fake->quits), 1); /* politely: its wire is idle */
    assert_int_equal(atomic_load(&fake->kills), 0);
    assert_int_equal(atomic_load(&fake->empties), 0);
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_query(p, 0, "Q 1"), 0);
    assert_int_not_equal(p->facts.connection_id, id);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_RESET), 0); /* a rollback it can do */
    assert_true(eventually_equal(&count->resets, 1));
    assert_true(told_once(&replaced));
}

static void test_a_server_that_reports_no_changes_is_told_of_once(void **state) {
    struct puppet *p = client(0);

    (void)state;
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(puppet_acquire(p, i), 0);
    assert_true(told_once(&untracked));
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_FULL), 0);
    assert_true(eventually_equal(&count->resets, 1));
    assert_int_equal(atomic_load(&fake->trackings), 0);
    assert_int_equal(atomic_load(&fake->roles), 0);
}

static void test_rows_that_a_rollback_takes_back_are_counted_and_told_of_once(void **state) {
    static const struct {
        enum dbp_return how;
        bool wrote;
        int64_t undone;
    } leases[] = {{DBP_RETURN_RESET, false, 0}, {DBP_RETURN_RESET, true, 1}, {DBP_RETURN_COMMIT, true, 1},
                  {DBP_RETURN_FULL, false, 1},  {DBP_RETURN_FULL, true, 2},  {DBP_RETURN_RESET, false, 2}};
    struct puppet *p = client(DBP_FACT_TRACKED);

    (void)state;
    for (size_t i = 0; i < sizeof leases / sizeof *leases; i++) {
        assert_int_equal(puppet_acquire(p, 0), 0);
        assert_int_equal(puppet_query(p, 0, "BEGIN"), 0);
        if (leases[i].wrote)
            p->status |= DBP_STATUS_WROTE;
        assert_int_equal(puppet_release(p, 0, leases[i].how), 0);
        assert_true(eventually_equal(&count->resets, (int64_t)i + 1));
        assert_int_equal(atomic_load(&count->undone), leases[i].undone);
    }
    assert_true(told_once(&undone));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_I6_a_full_reset_and_the_same_session_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_session_that_no_reset_leads_back_is_replaced, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_server_that_reports_no_changes_is_told_of_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rows_that_a_rollback_takes_back_are_counted_and_told_of_once, setup,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
