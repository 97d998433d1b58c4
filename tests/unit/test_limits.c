/* SPDX-License-Identifier: MIT
 * The limits of dbpool.h, reached: waiters, sessions, processes, pools; the doorbell at its worst; and processes that
 * may not open another file, the broker's among them. The real broker, a fake connector and server. Nothing here is
 * timed: the work of a hand-off is counted in instructions.
 */
#include "../support/arena.h"
#include "../support/puppet.h"
#include "../support/stepper.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define WAITERS 10000u
#define SESSIONS 1000u
#ifdef DBP_SANITIZED
#define PROCESSES 128u /* five hundred that a sanitizer slows down are more than a loaded machine starts in a minute \
                        */
#else
#define PROCESSES DBP_PROCS_MAX
#endif

static struct arena arena;

static int open_arena(uint32_t n_procs, uint32_t pool_size) {
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return -1;
    if (limit.rlim_cur < 4096) { /* broker and fake server have 2,000 between them, 500 processes two each */
        limit.rlim_cur = limit.rlim_max < 4096 ? limit.rlim_max : 4096;
        if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
            return -1;
    }
    return arena_open(&arena, n_procs, pool_size, 0) ? 0 : -1;
}

static int setup(void **state) {
    (void)state;
    return open_arena(8, 2);
}

static int setup_sessions(void **state) {
    (void)state;
    return open_arena(8, SESSIONS);
}

static int setup_procs(void **state) {
    (void)state;
    return open_arena(PROCESSES, 2);
}

/* A child that is left is an error, as is an fd: each test kills its own. */
static int teardown(void **state) {
    (void)state;
    return arena_close(&arena) ? 0 : -1;
}

static struct dbp_lease acquire(void) {
    struct dbp_lease lease = {0};

    assert_int_equal(dbp_acquire(arena.client, arena.pool, in_seconds(WAIT_S), NULL, NULL, &lease), 0);
    return lease;
}

static void give_back(const struct dbp_lease *lease) {
    assert_int_equal(dbp_release(arena.client, lease, 2, DBP_RETURN_CLEAN), 0);
}

static struct puppet *client(void) {
    struct dbp_pool_spec spec = arena_spec(&arena);

    return puppet_ready(&arena.share, &spec);
}

static bool bell_is_quiet(void *arg) {
    (void)arg;
    return !dbp_attention(arena.share.table, arena.pool);
}

static bool all_are_idle(void *arg) {
    (void)arg;
    return atomic_load(&arena.count->state[DBP_IDLE]) == atomic_load(&arena.count->size) && bell_is_quiet(NULL);
}

/* ---- waiters ---- */

static void test_I4_ten_thousand_waiters_are_served_in_order(void **state) {
    static struct dbp_wait waits[WAITERS];
    struct dbp_lease lease = acquire(), other = acquire(), none;
    uint32_t served = 0, last = 0;

    (void)state;
    for (uint32_t i = 0; i < WAITERS; i++)
        assert_int_equal(dbp_wait_begin(arena.client, arena.pool, DBP_WAIT_EVENT, &waits[i]), 0);
    assert_int_equal(atomic_load(&arena.count->waiting), WAITERS);
    for (uint32_t i = 0; i < WAITERS; i++) /* a third gives up: the first, the last and a long run among them */
        if (i % 4 == 0 || i == WAITERS - 1 || (i > 3000 && i < 4000))
            assert_int_equal(dbp_wait_cancel(arena.client, &waits[i], &none), DBP_E_TIMEOUT);
    for (uint32_t i = 0; i < WAITERS; i++) {
        if (i % 4 == 0 || i == WAITERS - 1 || (i > 3000 && i < 4000))
            continue;
        assert_int_equal(dbp_wait_poll(arena.client, &waits[i], &none), DBP_E_BUSY);
        assert_int_equal(dbp_acquire_now(arena.client, arena.pool, &none), DBP_E_BUSY); /* nobody barges in */
        give_back(&lease);
        assert_int_equal(dbp_wait_poll(arena.client, &waits[i], &lease), 0);
        last = i;
        served++;
    }
    assert_int_equal(last, WAITERS - 2);
    assert_true(served > WAITERS / 2);
    assert_int_equal(atomic_load(&arena.count->waiting), 0);
    give_back(&lease);
    give_back(&other);
    lease = acquire();
    give_back(&lease);
}

/* Instructions of one return that serves the oldest of so many. 0: they cannot be counted here. */
static uint64_t work_of_a_hand_off(uint32_t waiters) {
    _Atomic uint32_t *phase = shared_memory(sizeof *phase);
    struct stepper stepper = {.pid = fork_child(), .phase = phase};
    int code = 0;

    if (stepper.pid == 0) {
        struct dbp_client *me;
        struct dbp_lease leases[2];
        struct dbp_wait wait;
        if (!arena_client(&arena, "worker", &me))
            _exit(10);
        for (int i = 0; i < 2; i++)
            if (dbp_acquire(me, arena.pool, in_seconds(WAIT_S), NULL, NULL, &leases[i]) != 0)
                _exit(11);
        for (uint32_t i = 0; i < waiters; i++)
            if (dbp_wait_begin(me, arena.pool, DBP_WAIT_EVENT, &wait) != 0)
                _exit(12);
        /* Once unwatched: the dynamic linker looks the functions up. */
        if (dbp_release(me, &leases[0], 2, DBP_RETURN_CLEAN) != 0)
            _exit(13);
        if (!stepper_offer())
            _exit(77);
        atomic_store(phase, STEP_INSIDE);
        int rc = dbp_release(me, &leases[1], 2, DBP_RETURN_CLEAN);
        atomic_store(phase, rc == 0 ? STEP_AFTER : STEP_BEFORE);
        for (;;)
            pause();
    }
    bool taken = stepper_take(&stepper, &code);
    if (!taken && code == 77)
        return 0;
    assert_true(taken);
    assert_int_equal(stepper_go(&stepper, false, UINT32_MAX), STEPPED_THROUGH);
    kill_child(stepper.pid);
    return stepper.steps;
}

static void test_a_hand_off_costs_the_same_whoever_waits(void **state) {
    uint64_t few = work_of_a_hand_off(10), many = work_of_a_hand_off(WAITERS);

    (void)state;
    if (few == 0)
        skip(); /* no ptrace */
    print_message("a return that serves a waiter: %llu instructions with 10 waiting, %llu with %u\n",
                  (unsigned long long)few, (unsigned long long)many, WAITERS);
    assert_true(few > 50);
    /* Not equal to the last one: a clock that is just being set is read twice. */
    assert_true(many < 2 * few);
}

/* ---- sessions ---- */

/* No lease has to make room for the other pool (rationing.c). */
static bool unmarked(void *arg) {
    (void)arg;
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++)
        if (atomic_load(&arena.share.table->sessions[i].unfit) != DBP_FIT)
            return false;
    return true;
}

static void test_I3_a_thousand_sessions_and_then_a_full_table(void **state) {
    static struct dbp_lease leases[DBP_SESSIONS_MAX];
    static bool seen[DBP_SESSIONS_MAX];
    struct dbp_pool_spec spec = test_spec("another", 30, 0);
    struct dbp_session_facts facts;
    struct dbp_lease none;
    char text[128];
    uint32_t pool, room = DBP_SESSIONS_MAX - SESSIONS;

    (void)state;
    int census = fd_census(0);
    for (uint32_t i = 0; i < SESSIONS; i++) {
        uint64_t nonce = 0;
        int fd = -1;
        leases[i] = acquire();
        assert_false(seen[leases[i].session]);
        seen[leases[i].session] = true;
        assert_int_equal(dbp_session_fetch(arena.client, &leases[i], in_seconds(WAIT_S), &fd, &facts), 0);
        assert_int_equal(session_query(fd, "Q 4711", &nonce, NULL), 0);
        assert_int_equal(nonce, 4711);
        dbp_unguard_fd(arena.client, fd); /* else a later child would fence whatever has its number then */
        close(fd);
    }
    assert_int_equal(dbp_acquire(arena.client, arena.pool, 0, NULL, NULL, &none), DBP_E_TIMEOUT);
    assert_int_equal(atomic_load(&arena.fake->most), SESSIONS);
    assert_int_equal(fd_census(0), census + (int)SESSIONS); /* the broker's one copy of each */

    /* Another pool gets what is left of the table, and then waits for its own. */
    assert_int_equal(dbp_client_register(arena.client, &spec, in_seconds(WAIT_S), text, sizeof text, &pool), 0);
    for (uint32_t i = SESSIONS; i < DBP_SESSIONS_MAX; i++)
        assert_int_equal(dbp_acquire(arena.client, pool, in_seconds(WAIT_S), NULL, NULL, &leases[i]), 0);
    assert_int_equal(dbp_acquire(arena.client, pool, dbp_now_us() + 50000, NULL, NULL, &none), DBP_E_TIMEOUT);
    give_back(&leases[SESSIONS]);
    assert_int_equal(dbp_acquire(arena.client, pool, in_seconds(WAIT_S), NULL, NULL, &leases[SESSIONS]), 0);
    assert_int_equal(atomic_load(&arena.fake->most), SESSIONS + room);

    assert_true(eventually(unmarked, NULL)); /* the waiter is gone: nobody has to give up anything */
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++)
        give_back(&leases[i]);
    assert_true(eventually(all_are_idle, NULL));
    /* The pools share what there is: the one that waited may be given some of the other's. */
    assert_true(atomic_load(&arena.count->size) >= SESSIONS - 30);
    assert_true(atomic_load(&arena.fake->most) <= DBP_SESSIONS_MAX);
    assert_int_equal(atomic_load(&arena.fake->strange), 0);
}

/* ---- processes ---- */

static void test_as_many_processes_as_there_are_slots(void **state) {
    static pid_t pids[PROCESSES];
    _Atomic uint32_t *done = shared_memory(sizeof *done), *waiting = shared_memory(sizeof *waiting);
    struct dbp_pool_spec spec = arena_spec(&arena);
    uint32_t n = PROCESSES - 2; /* the connector and this one */

    (void)state;
    for (uint32_t i = 0; i < n; i++) { /* all at the door at once */
        pids[i] = fork_child();
        if (pids[i] == 0) {
            struct dbp_client *me;
            struct dbp_lease lease;
            char text[DBP_TEXT_MAX];
            uint32_t pool;
            if (dbp_client_attach(&arena.share, "one of many", in_seconds(2 * WAIT_S), &me) != 0 ||
                dbp_client_register(me, &spec, in_seconds(2 * WAIT_S), text, sizeof text, &pool) != 0 ||
                dbp_acquire(me, arena.pool, in_seconds(2 * WAIT_S), NULL, NULL, &lease) != 0 ||
                dbp_release(me, &lease, 2, DBP_RETURN_CLEAN) != 0)
                _exit(1);
            atomic_fetch_add(done, 1);
            while (atomic_load(done) < n)
                usleep(50000);
            struct dbp_wait wait; /* nobody who waits gives his slot up */
            if (dbp_wait_begin(me, arena.pool, DBP_WAIT_EVENT, &wait) != 0)
                _exit(2);
            atomic_fetch_add(waiting, 1);
            for (;;)
                pause();
        }
    }
    for (uint64_t deadline = in_seconds(6 * WAIT_S); atomic_load(done) < n && dbp_now_us() < deadline;)
        usleep(1000);
    assert_int_equal(atomic_load(done), n);
    assert_true(atomic_load(&arena.fake->most) <= 2);

    struct puppet *late = puppet_new(&arena.share);
    assert_true(eventually_at_least(waiting, n));
    struct dbp_wait ours; /* and this one neither */
    struct dbp_lease lease;
    assert_int_equal(dbp_wait_begin(arena.client, arena.pool, DBP_WAIT_EVENT, &ours), 0);
    assert_int_equal(puppet_do(late, PUPPET_ATTACH_SOON), DBP_E_FULL);
    puppet_start(late, PUPPET_ATTACH);
    kill_child(pids[0]);
    assert_int_equal(puppet_result(late), 0);
    if (dbp_wait_cancel(arena.client, &ours, &lease) == 0)
        give_back(&lease);
    for (uint32_t i = 1; i < n; i++)
        kill_child(pids[i]);
    kill_child(late->pid);
    assert_true(eventually(arena_only_ours_are_attached, &arena));
    lease = acquire();
    give_back(&lease);
}

/* ---- pools ---- */

static void test_as_many_pools_as_there_is_room_for(void **state) {
    struct dbp_lease leases[DBP_POOLS_MAX];
    char alias[DBP_ALIAS_MAX], text[128];
    struct dbp_pool_spec spec;
    uint32_t pool = DBP_POOLS_MAX;

    (void)state;
    for (uint32_t i = 0; i < DBP_POOLS_MAX; i++) {
        if (i > 0) { /* the arena has the first */
            snprintf(alias, sizeof alias, "pool%u", i);
            spec = test_spec(alias, 1, 0);
            assert_int_equal(dbp_client_register(arena.client, &spec, in_seconds(WAIT_S), text, sizeof text, &pool), 0);
            assert_int_equal(pool, i);
        }
        assert_int_equal(dbp_acquire(arena.client, i, in_seconds(WAIT_S), NULL, NULL, &leases[i]), 0);
    }
    spec = test_spec("one too many", 1, 0);
    assert_int_equal(dbp_client_register(arena.client, &spec, in_seconds(WAIT_S), text, sizeof text, &pool),
                     DBP_E_FULL);
    assert_non_null(strstr(text, "256"));
    assert_int_equal(pool, DBP_POOLS_MAX - 1); /* untouched */
    give_back(&leases[7]);                     /* the only one now that is in nobody's use */
    assert_int_equal(dbp_client_register(arena.client, &spec, in_seconds(WAIT_S), text, sizeof text, &pool), 0);
    assert_int_equal(dbp_pool_place(pool), 7);
    assert_int_equal(dbp_acquire(arena.client, 7, in_seconds(WAIT_S), NULL, NULL, &leases[7]), DBP_E_INVALID);
    assert_int_equal(dbp_acquire(arena.client, pool, in_seconds(WAIT_S), NULL, NULL, &leases[7]), 0);
    for (uint32_t i = 0; i < DBP_POOLS_MAX; i++)
        give_back(&leases[i]);
}

/* ---- the doorbell ---- */

static void test_I2_a_storm_at_the_doorbell(void **state) {
    _Atomic uint32_t *rings = shared_memory(sizeof *rings);
    pid_t pids[3];

    (void)state;
    for (int i = 0; i < 3; i++) {
        pids[i] = fork_child();
        if (pids[i] == 0)
            for (uint64_t one = 1;; atomic_fetch_add(rings, 1))
                if (write(arena.share.doorbell_fd, &one, sizeof one) < 0 && errno != EAGAIN)
                    _exit(1);
    }
    for (int i = 0; i < 200; i++) { /* each of these needs the broker */
        struct dbp_lease lease = acquire();
        assert_int_equal(dbp_release(arena.client, &lease, 3, DBP_RETURN_RESET), 0);
    }
    assert_true(eventually_at_least(rings, 10000));
    for (int i = 0; i < 3; i++)
        assert_int_equal(WTERMSIG(kill_child(pids[i])), SIGKILL);
    assert_true(eventually(all_are_idle, NULL));
    assert_int_equal(atomic_load(&arena.count->resets), 200);
}

static void test_I2_a_doorbell_that_takes_no_more_is_heard(void **state) {
    uint64_t most = UINT64_MAX - 1, one = 1;
    struct dbp_lease lease = acquire();

    (void)state;
    assert_true(arena_hold_broker(&arena));
    assert_int_equal(write(arena.share.doorbell_fd, &most, sizeof most), sizeof most);
    assert_int_equal(write(arena.share.doorbell_fd, &one, sizeof one), -1);
    assert_int_equal(errno, EAGAIN);
    assert_int_equal(dbp_release(arena.client, &lease, 3, DBP_RETURN_RESET), 0);
    arena_let_broker_go();
    assert_true(eventually(all_are_idle, NULL));
    assert_int_equal(atomic_load(&arena.count->resets), 1);
}

/* ---- as many files open as may be ---- */

static void test_a_process_out_of_files_is_told_and_recovers(void **state) {
    (void)state;
    if (under_valgrind())
        skip();
    struct puppet *p = client();
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_do(p, PUPPET_NO_FILES), 0);
    for (int i = 0; i < 3; i++) /* and no answer is taken for the next one's */
        assert_int_equal(puppet_do(p, PUPPET_FETCH), -EMFILE);
    /* The session is as it was: its lease can be returned, or used when there is room again. */
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_do(p, PUPPET_FILES), 0);
    assert_int_equal(puppet_query(p, 0, "Q 4711"), 0);
    assert_int_equal(p->nonce, 4711);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(atomic_load(&arena.fake->opens), 1);
    assert_int_equal(atomic_load(&arena.fake->kills), 0);

    struct puppet *late = puppet_new(&arena.share);
    assert_int_equal(puppet_do(late, PUPPET_NO_FILES), 0);
    assert_int_equal(puppet_do(late, PUPPET_ATTACH), -EMFILE);
    assert_int_equal(puppet_do(late, PUPPET_FILES), 0);
    assert_int_equal(puppet_do(late, PUPPET_ATTACH), 0);
    kill_child(p->pid);
    kill_child(late->pid);
}

static bool as_many_at_the_server(void *arg) {
    (void)arg;
    return atomic_load(&arena.fake->alive) == (uint32_t)atomic_load(&arena.count->size);
}

static void test_I2_a_broker_out_of_files_loses_no_place(void **state) {
    struct dbp_lease lease;
    int rc;

    (void)state;
    if (under_valgrind())
        skip();
    struct puppet *p = client(), *waiter = client();
    assert_int_equal(allow_files(false), 0);
    /* The session is opened, and cannot be taken over: who waited for it is told, in the words of the cause. */
    rc = puppet_acquire(p, 0);
    int told = puppet_do(p, PUPPET_ERROR);
    uint32_t opens = atomic_load(&arena.fake->opens);
    assert_int_equal(allow_files(true), 0);
    assert_int_equal(rc, DBP_E_FAILED);
    assert_int_equal(told, 0);
    assert_int_equal(p->error.code, 2004);
    assert_non_null(strstr(p->error.text, "RLIMIT_NOFILE"));
    assert_true(opens >= 1);
    /* All places are there again, and every session at the server is one of them. */
    for (int tries = 0; (rc = dbp_acquire(arena.client, arena.pool, in_seconds(WAIT_S), NULL, NULL, &lease)) != 0;
         tries++)
        assert_true(rc == DBP_E_FAILED && tries < 100); /* one may have failed meanwhile */
    assert_int_equal(puppet_acquire(waiter, 0), 0);
    assert_int_equal(puppet_query(waiter, 0, "Q 4711"), 0);
    assert_true(eventually(as_many_at_the_server, NULL));
    give_back(&lease);
    kill_child(p->pid);
    kill_child(waiter->pid);
}

static void test_a_broker_out_of_files_serves_whom_it_has(void **state) {
    (void)state;
    if (under_valgrind())
        skip();
    struct puppet *p = client(), *late = puppet_new(&arena.share);
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(allow_files(false), 0);
    int attached = puppet_do(late, PUPPET_ATTACH);
    int fetched = puppet_query(p, 0, "Q 4711");
    int released = puppet_release(p, 0, DBP_RETURN_RESET);
    int again = puppet_acquire(p, 0);
    assert_int_equal(allow_files(true), 0);
    assert_true(attached < 0 || attached == DBP_E_CLOSED); /* cannot be: but it is told so, and at once */
    assert_int_equal(fetched, 0);
    assert_int_equal(released, 0);
    assert_int_equal(again, 0);
    assert_int_equal(puppet_do(late, PUPPET_ATTACH), 0);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    kill_child(p->pid);
    kill_child(late->pid);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_I4_ten_thousand_waiters_are_served_in_order),
        TEST(test_a_hand_off_costs_the_same_whoever_waits),
        cmocka_unit_test_setup_teardown(test_I3_a_thousand_sessions_and_then_a_full_table, setup_sessions, teardown),
        cmocka_unit_test_setup_teardown(test_as_many_processes_as_there_are_slots, setup_procs, teardown),
        TEST(test_as_many_pools_as_there_is_room_for),
        TEST(test_I2_a_storm_at_the_doorbell),
        TEST(test_I2_a_doorbell_that_takes_no_more_is_heard),
        TEST(test_a_process_out_of_files_is_told_and_recovers),
        TEST(test_I2_a_broker_out_of_files_loses_no_place),
        TEST(test_a_broker_out_of_files_serves_whom_it_has),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
