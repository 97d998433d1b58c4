/* SPDX-License-Identifier: MIT
 * A death, and a stop, after every single store that a client makes to shared memory. A child runs one operation under
 * ptrace, instruction by instruction, while this process watches the table; after the n-th change of the table the
 * child is killed, or held while the others must go on. n = 0, 1, 2, ... until the operation is through: so each step
 * of acquire, release, hand-off, claim and cancel is met (DESIGN.md's crash matrix), whatever a signal's chances are.
 * Then at random, a few instructions further, until the time is over. I1, I2 and I4.
 * DBPOOL_SEED and DBPOOL_RACE_SECONDS steer it. Exit code 77 where ptrace is not allowed.
 */
#include "../support/arena.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#define CAP 2
#define STORES_MAX 64

static struct arena arena;
static uint64_t random_state;

/* ---- the operations: what the child does before, what this process arranges, what the child is watched doing ---- */

enum arrangement {
    ALL_IDLE,
    HOLD_ONE_AND_WAIT, /* the child has one, we have the other and wait */
    HOLD_ALL,          /* before the child begins */
    HOLD_ALL_GRANT,    /* the child waits; then we return one, which is granted to it */
    HOLD_ALL_WAIT      /* the child waits, we wait behind it */
};

struct child {
    struct dbp_client *client;
    struct dbp_lease lease;
    struct dbp_wait wait;
};

static void before_lease(struct child *c) {
    if (dbp_acquire(c->client, arena.pool, in_seconds(WAIT_S), NULL, NULL, &c->lease) != 0)
        _exit(11);
}

static void before_wait(struct child *c) {
    if (dbp_wait_begin(c->client, arena.pool, DBP_WAIT_EVENT, &c->wait) != 0)
        _exit(12);
}

static int act_take(struct child *c) {
    return dbp_acquire_now(c->client, arena.pool, &c->lease);
}

static int act_return(struct child *c) {
    return dbp_release(c->client, &c->lease, 2, DBP_RETURN_CLEAN);
}

static int act_reset(struct child *c) {
    return dbp_release(c->client, &c->lease, 3, DBP_RETURN_RESET);
}

static int act_doom(struct child *c) {
    return dbp_release(c->client, &c->lease, 2, DBP_RETURN_DOOM);
}

static int act_begin(struct child *c) {
    return dbp_wait_begin(c->client, arena.pool, DBP_WAIT_EVENT, &c->wait);
}

static int act_poll(struct child *c) {
    return dbp_wait_poll(c->client, &c->wait, &c->lease);
}

static int act_cancel(struct child *c) {
    return dbp_wait_cancel(c->client, &c->wait, &c->lease);
}

static const struct operation {
    const char *name;
    enum arrangement arrangement;
    void (*before)(struct child *c);
    int (*act)(struct child *c);
    int result;
} operations[] = {
    {"acquire_now", ALL_IDLE, NULL, act_take, 0},
    {"release", ALL_IDLE, before_lease, act_return, 0},
    {"release to a waiter", HOLD_ONE_AND_WAIT, before_lease, act_return, 0},
    {"release for reset", HOLD_ONE_AND_WAIT, before_lease, act_reset, 0},
    {"release doomed", HOLD_ONE_AND_WAIT, before_lease, act_doom, 0},
    {"wait_begin, one is idle", ALL_IDLE, NULL, act_begin, 0},
    {"wait_begin at the cap", HOLD_ALL, NULL, act_begin, 0},
    {"wait_poll of a grant", HOLD_ALL_GRANT, before_wait, act_poll, 0},
    {"wait_cancel of a grant", HOLD_ALL_GRANT, before_wait, act_cancel, 0},
    {"wait_cancel before another", HOLD_ALL_WAIT, before_wait, act_cancel, DBP_E_TIMEOUT},
};
#define OPERATIONS (sizeof operations / sizeof *operations)

static uint32_t deaths[OPERATIONS][STORES_MAX], stops[OPERATIONS][STORES_MAX];

/* ---- this process's part ---- */

static struct dbp_lease held[CAP];
static uint32_t n_held;
static struct dbp_wait my_wait;
static bool waiting;

static bool complain(const char *what, int got) {
    fprintf(stderr, "%s: %d\n", what, got);
    return false;
}

static bool hold(uint32_t n) {
    while (n_held < n) {
        int rc = dbp_acquire(arena.client, arena.pool, in_seconds(WAIT_S), NULL, NULL, &held[n_held]);
        if (rc != 0)
            return complain("I2: a session cannot be had", rc);
        n_held++;
    }
    return true;
}

static bool give_back(uint32_t n) {
    for (; n > 0 && n_held > 0; n--)
        if (dbp_release(arena.client, &held[--n_held], 2, DBP_RETURN_CLEAN) != 0)
            return complain("release", -1);
    return true;
}

static bool wait_behind(void) {
    waiting = dbp_wait_begin(arena.client, arena.pool, DBP_WAIT_EVENT, &my_wait) == 0;
    return waiting ? true : complain("wait_begin", -1);
}

static bool granted(void *arg) {
    int *rc = arg;

    return (*rc = dbp_wait_poll(arena.client, &my_wait, &held[n_held])) != DBP_E_BUSY;
}

/* Our own wait must be served, by what the child returned or, if that cannot be, by what we return. */
static bool be_served(void) {
    int rc = DBP_E_BUSY;

    if (!waiting)
        return true;
    waiting = false;
    if (!eventually(granted, &rc) || rc != 0)
        return complain("I2: a waiter is not served", rc);
    n_held++;
    return true;
}

static bool is_idle(void *arg) {
    (void)arg;
    return atomic_load(&arena.count->state[DBP_IDLE]) == CAP && atomic_load(&arena.count->waiting) == 0 &&
           dbp_idle_any(arena.share.table, arena.pool);
}

static bool all_idle(void) {
    return hold(CAP) && give_back(CAP) && eventually(is_idle, NULL) ? true
                                                                    : complain("I2: not all come back to idle", 0);
}

/* ---- the child ---- */

static bool next_stop(pid_t pid, int *statusp) {
    while (waitpid(pid, statusp, WUNTRACED) < 0)
        if (errno != EINTR)
            return false;
    return WIFSTOPPED(*statusp);
}

static pid_t start(const struct operation *op) {
    pid_t pid = fork_child();

    if (pid == 0) {
        struct child c;
        memset(&c, 0, sizeof c);
        if (!arena_client(&arena, "stepped", &c.client))
            _exit(10);
        if (op->before)
            op->before(&c);
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
            _exit(77);
        raise(SIGSTOP);
        int rc = op->act(&c);
        if (rc != op->result && rc != 0) /* stopped before a cancel, it may be granted one meanwhile */
            _exit(13);
        raise(SIGSTOP);
        _exit(0);
    }
    return pid;
}

/* All of the table that an operation on this pool may write; the broker is quiet meanwhile, or nearly. */
static uint64_t fingerprint(void) {
    const struct dbp_pool *pool = &arena.share.table->pools[arena.pool];
    uint64_t sum = 0xcbf29ce484222325u;
    uint32_t tail = atomic_load(&pool->queue.tail);

#define MIX(value) (sum = (sum ^ (uint64_t)(value)) * 0x100000001b3u)
    for (uint32_t i = 0; i < CAP + 1; i++) {
        MIX(atomic_load(&arena.share.table->sessions[i].word));
        MIX(atomic_load(&arena.share.table->sessions[i].status));
        MIX(atomic_load(&arena.share.table->sessions[i].returned_us));
    }
    MIX(atomic_load(&pool->idle[0]));
    MIX(atomic_load(&pool->attention));
    MIX(atomic_load(&pool->queue.head));
    MIX(tail);
    for (uint32_t i = tail - 4; i != tail + 2; i++)
        MIX(dbp_queue_look(&pool->queue, i));
    for (int state = 0; state < DBP_STATES; state++)
        MIX(atomic_load(&pool->count.state[state]));
    MIX(atomic_load(&pool->count.waiting));
    MIX(atomic_load(&pool->count.waits));
    MIX(atomic_load(&pool->count.acquires));
    MIX(atomic_load(&pool->count.timeouts));
#undef MIX
    return sum;
}

enum stepped { STEPPED, STEPPED_THROUGH, STEPPED_WRONG };

/* Lets the child make `stores` changes of the table, and `further` instructions. */
static enum stepped step(pid_t pid, uint32_t stores, uint32_t further) {
    uint64_t before = fingerprint();
    uint32_t n = 0;
    int status;

    while (n < stores || further > 0) {
        if (n == stores)
            further--;
        if (ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) != 0 || !next_stop(pid, &status))
            return STEPPED_WRONG;
        if (WSTOPSIG(status) == SIGSTOP)
            return STEPPED_THROUGH;
        if (WSTOPSIG(status) != SIGTRAP)
            return STEPPED_WRONG;
        uint64_t now = fingerprint();
        if (n < stores && now != before)
            n++;
        before = now;
    }
    return STEPPED;
}

/* How many sessions the stopped child has, or may be granted while it is stopped. */
static uint32_t out_of_reach(pid_t pid) {
    const struct dbp_table *table = arena.share.table;
    uint32_t slot = DBP_PROCS_MAX, n = 0;

    for (uint32_t i = 0; i < DBP_PROCS_MAX; i++)
        if (atomic_load(&table->procs[i].pid) == (uint32_t)pid)
            slot = i;
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        dbp_word word = atomic_load(&table->sessions[i].word);
        n += dbp_word_state(word) == DBP_LEASED && dbp_word_owner(word) == slot;
    }
    for (uint32_t i = 0; i < DBP_WAITERS_MAX; i++) {
        dbp_place place = atomic_load(&table->pools[arena.pool].queue.places[i]);
        if (dbp_place_state(place) == DBP_PLACE_FREE || dbp_place_proc(place) != slot)
            continue;
        dbp_word word = atomic_load(&table->sessions[dbp_place_session(place)].word);
        bool claimed = dbp_place_state(place) == DBP_PLACE_GRANTED && dbp_word_state(word) == DBP_LEASED &&
                       dbp_word_owner(word) == slot; /* counted above */
        n += !claimed;
    }
    return n;
}

static bool arrange(const struct operation *op, pid_t *pidp) {
    int status;

    if ((op->arrangement == HOLD_ALL || op->arrangement == HOLD_ALL_GRANT || op->arrangement == HOLD_ALL_WAIT) &&
        !hold(CAP))
        return false;
    *pidp = start(op);
    if (!next_stop(*pidp, &status))
        return WIFEXITED(status) && WEXITSTATUS(status) == 77 ? (exit(77), false) : complain("the child", status);
    switch (op->arrangement) {
    case HOLD_ONE_AND_WAIT:
        return hold(1) && wait_behind();
    case HOLD_ALL_GRANT:
        return give_back(1);
    case HOLD_ALL_WAIT:
        return wait_behind();
    default:
        return true;
    }
}

/* One child, stopped after `stores` stores; *throughp: its operation was over before. */
static bool play(size_t number, uint32_t stores, uint32_t further, bool stop, bool *throughp) {
    const struct operation *op = &operations[number];
    int status;
    pid_t pid;

    if (!arrange(op, &pid))
        return false;
    enum stepped result = step(pid, stores, further);
    *throughp = result == STEPPED_THROUGH;
    if (result == STEPPED_WRONG)
        return complain("stepping failed", (int)stores);
    (stop ? stops : deaths)[number][stores < STORES_MAX ? stores : STORES_MAX - 1]++;

    if (stop) {
        /* Nobody else is held up: we have all that the child does not. */
        if (op->arrangement == HOLD_ONE_AND_WAIT && out_of_reach(pid) > 0 && !give_back(1))
            return false;
        if (op->arrangement == HOLD_ALL_WAIT && !give_back(CAP))
            return false;
        uint32_t out = out_of_reach(pid);
        if (out < CAP && !be_served())
            return false;
        if (out < CAP && !hold(CAP - out))
            return complain("held up by a stopped process, of so many out of reach", (int)out);
        if (!give_back(CAP) || ptrace(PTRACE_DETACH, pid, NULL, NULL) != 0)
            return complain("detach", errno);
        if (result != STEPPED_THROUGH && !next_stop(pid, &status))
            return complain("the operation's result after a stop", status);
    }
    kill_child(pid);
    if (op->arrangement == HOLD_ALL_WAIT && waiting && !give_back(1))
        return false;
    return be_served() && give_back(CAP) && all_idle();
}

int main(void) {
    uint64_t end = in_seconds(test_seconds()), seed = test_seed();
    uint32_t plays = 0;
    bool fine;

    random_state = seed;
    fine = arena_open(&arena, 8, CAP, 0) && all_idle();
    for (int stop = 0; stop < 2 && fine; stop++)
        for (size_t number = 0; number < OPERATIONS && fine; number++) {
            bool through = false;
            for (uint32_t stores = 0; fine && !through && stores < STORES_MAX; stores++) {
                /* What a stop hides comes back with the broker's sweep, a second later: a third of them in each run. */
                if (stop && (stores + number + seed) % 3 != 0)
                    continue;
                plays++;
                fine = play(number, stores, 0, stop, &through);
                if (!fine)
                    fprintf(stderr, "in %s, %s after store %u\n", operations[number].name, stop ? "stopped" : "killed",
                            stores);
            }
        }
    for (; fine && dbp_now_us() < end; plays++) {
        size_t number = test_random(&random_state) % OPERATIONS;
        uint32_t stores = (uint32_t)test_random(&random_state) % 12,
                 further = (uint32_t)test_random(&random_state) % 60;
        bool through, stop = test_random(&random_state) % 16 == 0;
        fine = play(number, stores, further, stop, &through);
        if (!fine)
            fprintf(stderr, "in %s, %s after store %u and %u instructions\n", operations[number].name,
                    stop ? "stopped" : "killed", stores, further);
    }
    printf("%u children; deaths/stops after store 0, 1, 2 ...\n", plays);
    for (size_t number = 0; number < OPERATIONS; number++) {
        printf("  %-28s", operations[number].name);
        for (int i = 0; i < STORES_MAX; i++)
            if (deaths[number][i] || stops[number][i])
                printf(" %u/%u", deaths[number][i], stops[number][i]);
        printf("\n");
    }
    fflush(stdout);
    fine = fine && arena_is_whole(&arena);
    fine = arena_close(&arena) && fine;
    printf("%s\n", fine ? "PASSED" : "FAILED");
    return fine ? 0 : 1;
}
