/* SPDX-License-Identifier: MIT
 * A death, and a stop, at every step of every operation. A child runs one operation under ptrace, instruction by
 * instruction, while this process watches the table. It is killed, or held while the others must go on and then
 * continued: after each change of the table, at the entry and exit of each system call, and asleep inside it; then at
 * random instructions until the time is over. Each time all sessions must be had again, none twice (I1, I2, I4;
 * DESIGN.md's crash matrix).
 * DBPOOL_SEED and DBPOOL_RACE_SECONDS steer it. DBPOOL_SWEEP=full tries every single instruction, K/N every N-th from
 * the K-th on. Exit code 77 where ptrace is not allowed.
 */
#include "../support/acts.h"

#include "attach.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CAP 2
#define ACTS_MAX 24
#ifndef THIN
#define THIN                                                                                                 \
    1u /* with a sanitizer more (CMake): many times the instructions, so each run takes a part of the points \
        */
#endif
#define HASTE 8u /* one stop in so many is not hurried, see hurry() */

static struct arena arena;
static struct act_report *report;
static uint64_t random_state;
static uint32_t lost, twice;

static struct {
    uint32_t met[STEP_KINDS]; /* points of each kind, in one run through */
    uint32_t kills, stops;
} tried[ACTS_MAX];

/* ---- this process's part ---- */

static struct dbp_lease held[CAP];
static uint32_t n_held;
static struct dbp_wait my_wait;
static struct dbp_lease slept_for;
static pthread_t sleeper;
static enum { NOT_WAITING, WAITING, SLEEPING } waiting;

static bool complain(const char *what, int got) {
    fprintf(stderr, "%s: %d\n", what, got);
    return false;
}

static bool is_lost(const char *what, int got) {
    lost++;
    return complain(what, got);
}

/* What a stopped process hides comes back with the broker's next sweep, at most a second later. A death makes it sweep
 * at once; that is for the speed of the many. */
static void hurry(void) {
    pid_t pid = fork_child();

    if (pid == 0) {
        struct dbp_client *client;
        _exit(dbp_client_attach(&arena.share, "bystander", in_seconds(WAIT_S), &client) != 0);
    }
    wait_child(pid);
}

static bool hold(uint32_t n, bool in_haste) {
    for (; n_held < n; n_held++) {
        int rc = dbp_acquire_now(arena.client, arena.pool, &held[n_held]);
        if (rc == 0)
            continue;
        if (in_haste)
            hurry();
        in_haste = false;
        rc = dbp_acquire(arena.client, arena.pool, in_seconds(WAIT_S), NULL, NULL, &held[n_held]);
        if (rc != 0)
            return is_lost("I2: a session cannot be had", rc);
    }
    for (uint32_t i = 0; i < n_held; i++) {
        twice += !dbp_lease_valid(arena.client, &held[i]);
        for (uint32_t j = 0; j < i; j++)
            twice += held[i].session == held[j].session;
    }
    return twice ? complain("I1: a session is lent twice", (int)twice) : true;
}

static bool give_back(uint32_t n, enum dbp_return how) {
    for (; n > 0 && n_held > 0; n--)
        if (dbp_release(arena.client, &held[--n_held], 2, how) != 0) {
            twice++;
            return complain("I1: a lease of ours is not ours", -1);
        }
    return true;
}

static void *sleep_for_one(void *arg) {
    int rc = dbp_acquire(arena.client, arena.pool, in_seconds(WAIT_S), NULL, NULL, &slept_for);

    (void)arg;
    return rc == 0 ? &slept_for : NULL;
}

static bool wait_behind(bool asleep) {
    int64_t before = atomic_load(&arena.count->waiting);

    waiting = asleep ? SLEEPING : WAITING;
    if (asleep)
        return pthread_create(&sleeper, NULL, sleep_for_one, NULL) == 0 &&
               eventually_equal(&arena.count->waiting, before + 1);
    return dbp_wait_begin(arena.client, arena.pool, DBP_WAIT_EVENT, &my_wait) == 0;
}

/* As an event loop: looks only when it was woken. */
static int woken_and_granted(void) {
    uint64_t deadline = in_seconds(WAIT_S), drain;
    int fd = dbp_wait_fd(arena.client), rc;

    while ((rc = dbp_wait_readable(fd, deadline)) == 0) {
        if (read(fd, &drain, sizeof drain) < 0 && errno != EAGAIN)
            return -errno;
        if ((rc = dbp_wait_poll(arena.client, &my_wait, &held[n_held])) != DBP_E_BUSY)
            break;
    }
    return rc;
}

static const struct act *current;

/* Our own wait must be served, by what the child returned or, if that cannot be, by what we return. Where the connector
 * died with the only login, a waiter is told so, and the next one is served. */
static bool be_served(void) {
    int rc = 0;
    void *got = NULL;

    if (waiting == SLEEPING) {
        pthread_join(sleeper, &got);
        held[n_held] = slept_for;
        rc = got ? 0 : DBP_E_TIMEOUT;
    } else if (waiting == WAITING) {
        rc = woken_and_granted();
        if (rc == DBP_E_FAILED && current->arrangement == CONNECT)
            rc = dbp_acquire(arena.client, arena.pool, in_seconds(WAIT_S), NULL, NULL, &held[n_held]);
    }
    n_held += waiting != NOT_WAITING && rc == 0;
    waiting = NOT_WAITING;
    return rc == 0 ? true : is_lost("I2: a waiter is not served", rc);
}

/* Nothing is under way; *idlep are idle. */
static bool is_settled(void *arg) {
    const struct dbp_table *table = arena.share.table;
    int64_t idle = dbp_pool_count(table, arena.pool, DBP_IDLE);

    *(int64_t *)arg = idle;
    return atomic_load(&arena.count->size) == idle && atomic_load(&arena.count->waiting) == 0 &&
           dbp_pool_count(table, arena.pool, DBP_GRANTED) == 0 && dbp_pool_count(table, arena.pool, DBP_LEASED) == 0;
}

/* A session that ends leaves its state's counter before the size: for a moment it looks idle. */
static bool is_empty(void *arg) {
    return is_settled(arg) && *(int64_t *)arg == 0;
}

static bool is_quiet(void *arg) {
    (void)arg;
    return !dbp_attention(arena.share.table, arena.pool);
}

static bool all_idle(void) {
    int64_t idle = 0;

    /* Again, where one had died in our hands unnoticed: then it goes when we return it. */
    for (int tries = 0; tries < 3 && idle != CAP; tries++)
        if (!hold(CAP, true) || !give_back(CAP, DBP_RETURN_CLEAN) || !eventually(is_settled, &idle))
            return is_lost("I2: not all come back to idle, but", (int)idle);
    if (idle != CAP || !dbp_idle_any(arena.share.table, arena.pool))
        return is_lost("I2: so many are left", (int)idle);
    if (!eventually(is_quiet, NULL))
        return is_lost("I2: the doorbell's flag stays, nobody rings again", 0);
    return eventually(arena_only_ours_are_attached, &arena) ? true : is_lost("I2: a dead process's slot", 0);
}

/* ---- around an operation ---- */

static struct stepper stepper;

static bool all_ended(void) {
    int64_t idle = -1;

    if (!hold(CAP, true) || !give_back(CAP, DBP_RETURN_DOOM) || !eventually(is_empty, &idle))
        return complain("ending all sessions", (int)idle);
    return true;
}

/* The child sleeps: what it waits for happens. */
static void feed(void) {
    arena_let_broker_go();
    if (current->arrangement == HOLD_ALL && n_held == CAP && !give_back(1, DBP_RETURN_CLEAN))
        complain("feeding", 0);
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
    MIX(dbp_attention(arena.share.table, arena.pool));
    MIX(atomic_load(&pool->queue.head));
    MIX(tail);
    for (uint32_t i = tail - 4; i != tail + 2; i++)
        MIX(dbp_queue_look(&pool->queue, i));
    for (int state = 0; state < DBP_STATES; state++)
        MIX(dbp_pool_count(arena.share.table, arena.pool, (enum dbp_state)state));
    MIX(atomic_load(&pool->count.waiting));
    MIX(atomic_load(&pool->count.waits));
    MIX(dbp_pool_acquires(arena.share.table, arena.pool));
    MIX(atomic_load(&pool->count.timeouts));
    MIX(atomic_load(&pool->count.wait_us));
#undef MIX
    return sum;
}

/* A child that is ready to act, and what has to be around it. */
static bool arrange(void) {
    enum arrangement how = current->arrangement;
    int code = 0;

    if ((how == HOLD_ALL || how == HOLD_ALL_GRANT || how == HOLD_ALL_WAIT) && !hold(CAP, true))
        return false;
    if ((how == NONE_OPEN || how == CONNECT) && !all_ended())
        return false;
    if (how == CONNECT && !arena_connector_away(&arena))
        return complain("the connector does not go away", 0);
    memset(report, 0, sizeof *report);
    pid_t pid = fork_child();
    if (pid == 0)
        act_out(current, &arena, report);
    stepper.pid = pid;
    if (!stepper_take(&stepper, &code)) {
        if (code == 77)
            exit(77);
        return complain("the child could not prepare", code);
    }
    switch (how) {
    case HOLD_ONE_AND_WAIT:
    case HOLD_ONE_AND_SLEEP:
        return hold(1, true) && wait_behind(how == HOLD_ONE_AND_SLEEP);
    case HOLD_ALL_GRANT:
        return give_back(1, DBP_RETURN_CLEAN);
    case HOLD_ALL_WAIT:
    case CONNECT:
        return wait_behind(false);
    case HOLD_BROKER:
        return arena_hold_broker(&arena) ? true : complain("the broker cannot be held", 0);
    default:
        return true;
    }
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
        n += dbp_word_state(word) == DBP_LEASED && dbp_holder_slot(dbp_word_owner(word)) == slot;
    }
    for (uint32_t i = 0; i < DBP_WAITERS_MAX; i++) {
        dbp_place place = dbp_queue_look(&table->pools[arena.pool].queue, i);
        if (dbp_place_state(place) == DBP_PLACE_FREE || dbp_place_proc(place) != slot)
            continue;
        dbp_word word = atomic_load(&table->sessions[dbp_place_session(place)].word);
        bool claimed = dbp_place_state(place) == DBP_PLACE_GRANTED && dbp_word_state(word) == DBP_LEASED &&
                       dbp_holder_slot(dbp_word_owner(word)) == slot; /* counted above */
        n += !claimed;
    }
    return n;
}

/* ---- the end of a trial ---- */

static bool is_over(void *arg) {
    (void)arg;
    if (atomic_load(&report->phase) == STEP_AFTER)
        return true;
    if (n_held == CAP && stepper_asleep(stepper.pid) && !give_back(1, DBP_RETURN_CLEAN))
        return true; /* it waits for one of ours */
    return false;
}

/* It is stopped; nobody else is held up by that. Then it goes on, and takes nothing that is ours. */
static bool go_on_without(void) {
    arena_let_broker_go();
    if (!give_back(CAP, DBP_RETURN_CLEAN))
        return false;
    if (out_of_reach(stepper.pid) < CAP && !be_served())
        return false;
    uint32_t out = out_of_reach(stepper.pid);
    if (out < CAP && !hold(CAP - out, test_random(&random_state) % HASTE != 0))
        return complain("held up by a stopped process, of so many out of reach", (int)out);
    if (!stepper_let_go(&stepper))
        return complain("detach", errno);
    if (!eventually(is_over, NULL) || atomic_load(&report->phase) != STEP_AFTER)
        return is_lost("I2: a continued process does not come to its end", 0);
    if (report->rc != current->result && report->rc != current->late)
        return complain("the operation's result after a stop", report->rc);
    for (uint32_t i = 0; i < n_held; i++)
        twice +=
            !dbp_lease_valid(arena.client, &held[i]) || (report->leased && report->lease.session == held[i].session);
    return twice ? complain("I1: a continued process has what is ours", (int)twice) : true;
}

static bool clean_up(void) {
    kill_child(stepper.pid);
    arena_let_broker_go();
    if (current->arrangement == CONNECT && !arena_connector_back(&arena))
        return is_lost("the connector is not taken back", 0);
    if (current->arrangement == HOLD_ALL_WAIT && waiting && !give_back(1, DBP_RETURN_CLEAN))
        return false;
    return be_served() && give_back(CAP, DBP_RETURN_CLEAN) && all_idle();
}

/* One child, to its n-th event or instruction; *throughp: its operation was over before. */
static bool play(size_t number, bool events, uint32_t n, bool stop, bool *throughp) {
    current = &acts[number];
    if (!arrange())
        return false;
    enum stepped result = stepper_go(&stepper, events, n);
    *throughp = result == STEPPED_THROUGH;
    bool fine = result != STEPPED_WRONG || complain("stepping failed", (int)stepper.at);
    if (fine && result == STEPPED && n > 0 && stepper.at == STEP_ASLEEP && stop)
        fine = stepper_hold(&stepper);
    if (fine && result == STEPPED_THROUGH && report->rc != current->result)
        fine = complain("the operation's result", report->rc);
    (*(stop ? &tried[number].stops : &tried[number].kills))++;
    if (result == STEPPED_THROUGH)
        for (int kind = 0; kind < STEP_KINDS; kind++)
            if (stepper.met[kind] > tried[number].met[kind])
                tried[number].met[kind] = stepper.met[kind];
    if (fine && stop)
        fine = go_on_without();
    fine = fine && clean_up();
    if (!fine)
        fprintf(stderr, "in %s, %s at %s %u\n", current->name, stop ? "stopped" : "killed",
                events ? "event" : "instruction", n);
    return fine;
}

/* A stopped connector is waited for like a slow server; a minute is too long here. */
static bool may_stop(size_t number) {
    return acts[number].arrangement != CONNECT;
}

/* ---- which points ---- */

static bool all_events(void) {
    for (int stop = 0; stop < 2; stop++)
        for (size_t number = 0; number < n_acts; number++) {
            bool through = false;
            for (uint32_t n = (uint32_t)test_random(&random_state) % THIN; !through && (!stop || may_stop(number));
                 n += THIN)
                if (!play(number, true, n, stop, &through))
                    return false;
        }
    return true;
}

static bool sweep(const char *which) {
    unsigned first = 0, each = 1;

    if (strcmp(which, "full") != 0 && (sscanf(which, "%u/%u", &first, &each) != 2 || each == 0))
        return complain("DBPOOL_SWEEP is neither full nor K/N", 0);
    for (size_t number = 0; number < n_acts; number++)
        for (int stop = 0; stop < 2; stop++) {
            bool through = false;
            for (uint32_t n = first % each; !through && (!stop || may_stop(number)); n += each)
                if (!play(number, false, n, stop, &through))
                    return false;
        }
    return true;
}

static bool at_random(uint64_t end) {
    while (dbp_now_us() < end) {
        size_t number = test_random(&random_state) % n_acts;
        uint32_t n = (uint32_t)test_random(&random_state) % (tried[number].met[STEP_INSTRUCTION] + 1);
        bool through, stop = may_stop(number) && test_random(&random_state) % 4 == 0;
        if (!play(number, false, n, stop, &through))
            return false;
    }
    return true;
}

static void print_table(void) {
    uint32_t points = 0, kills = 0, stops = 0, instructions = 0;

    printf("%-28s %6s %6s %6s %6s %6s | %6s %6s\n", "operation: points of a run", "stores", "entry", "exit", "asleep",
           "instr.", "killed", "stopped");
    for (size_t i = 0; i < n_acts; i++) {
        printf("%-28s", acts[i].name);
        for (int kind = 0; kind < STEP_KINDS; kind++)
            printf(" %6u", tried[i].met[kind]);
        printf(" | %6u %6u\n", tried[i].kills, tried[i].stops);
        for (int kind = 0; kind < STEP_EVENTS; kind++)
            points += tried[i].met[kind];
        instructions += tried[i].met[STEP_INSTRUCTION];
        kills += tried[i].kills;
        stops += tried[i].stops;
    }
    printf("%u events and %u instructions in %zu operations\n", points, instructions, n_acts);
    printf("steps: points=%u kills=%u stops=%u lost=%u double=%u\n", kills + stops, kills, stops, lost, twice);
    fflush(stdout);
}

int main(void) {
    uint64_t seed = test_seed();
    uint32_t seconds = test_seconds();
    const char *which = getenv("DBPOOL_SWEEP");

    random_state = seed;
    report = shared_memory(sizeof *report);
    stepper.phase = &report->phase;
    stepper.look = fingerprint;
    stepper.feed = feed;
    bool fine = n_acts <= ACTS_MAX && arena_open(&arena, 8, CAP, 0) && all_idle() && all_events();
    fine = fine && (which ? sweep(which) : at_random(in_seconds(seconds)));
    arena_let_broker_go();
    if (fine && !arena_is_whole(&arena))
        fine = is_lost("at the end", 0);
    print_table();
    fine = arena_close(&arena) && fine;
    printf("%s\n", fine ? "PASSED" : "FAILED");
    return fine ? 0 : 1;
}
