/* SPDX-License-Identifier: MIT
 * Many processes on one pool with the real broker; at random moments one is stopped (SIGSTOP), looked at, and either
 * killed and replaced, or, after the others have gone on without it, continued. Goes on until the time is over and
 * every state of a lease and of a wait was met at a death (counts printed). At the end all must be whole: capacity,
 * counters, fds, processes (I1 to I5). Where exactly between two instructions a death falls is race_steps.c's part.
 * DBPOOL_SEED and DBPOOL_RACE_SECONDS steer it.
 */
#include "../support/arena.h"
#include "../support/racer.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define RACERS 7u
#define SLOTS 32u /* many more: the broker may still be burying the dead when their successors come */
#define CAP 6u    /* more than one stopped racer can hold (2) and be granted (3), so that the others can go on */

static struct arena arena;
static struct race *race;
static pid_t pids[RACERS];
static uint64_t random_state;

/* What a stopped process had at that moment. */
enum sight { HELD, HELD_MID_QUERY, WAITED, GRANTED, NOTHING, SIGHTS };
static const char *const sights[SIGHTS] = {"lease held", "lease held, command under way", "waiting",
                                           "granted, not taken", "nothing"};
static uint32_t at_death[SIGHTS], at_stop[SIGHTS], steps_at_death[RACER_STEPS], states_at_death[DBP_STATES];

static void start(uint32_t number) {
    uint64_t seed = test_random(&random_state);
    pid_t pid = fork_child();

    if (pid == 0) {
        struct dbp_client *client;
        atomic_store(&race->step[number], RACER_ATTACHING);
        if (!arena_client(&arena, "racer", &client))
            _exit(1);
        atomic_store(&race->step[number], RACER_IDLE);
        racer_run(race, &arena.share, client, arena.pool, number, seed, number % 2 == 0);
        _exit(0);
    }
    pids[number] = pid;
}

static void look(uint32_t number, uint32_t *counts) {
    const struct dbp_table *table = arena.share.table;
    const struct dbp_queue *queue = &table->pools[arena.pool].queue;
    uint32_t slot = DBP_PROCS_MAX, held = 0, waits = 0, grants = 0;

    for (uint32_t i = 0; i < DBP_PROCS_MAX; i++)
        if (atomic_load(&table->procs[i].pid) == (uint32_t)pids[number])
            slot = i;
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX && slot < DBP_PROCS_MAX; i++) {
        dbp_word word = atomic_load(&table->sessions[i].word);
        held += dbp_word_state(word) == DBP_LEASED && dbp_holder_slot(dbp_word_owner(word)) == slot;
    }
    for (uint32_t i = 0; i < DBP_WAITERS_MAX && slot < DBP_PROCS_MAX; i++) {
        dbp_place place = dbp_queue_look(queue, i);
        if (dbp_place_proc(place) != slot)
            continue;
        waits += dbp_place_state(place) == DBP_PLACE_WAITING;
        grants += dbp_place_state(place) == DBP_PLACE_GRANTED;
    }
    if (held)
        counts[atomic_load(&race->step[number]) == RACER_QUERYING ? HELD_MID_QUERY : HELD]++;
    if (waits)
        counts[WAITED]++;
    if (grants)
        counts[GRANTED]++;
    if (!held && !waits && !grants)
        counts[NOTHING]++;
}

static void note_death(uint32_t number) {
    bool seen[DBP_STATES] = {false};

    look(number, at_death);
    steps_at_death[atomic_load(&race->step[number])]++;
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++)
        seen[dbp_word_state(atomic_load(&arena.share.table->sessions[i].word))] = true;
    for (int state = 0; state < DBP_STATES; state++)
        states_at_death[state] += seen[state];
}

struct progress {
    uint32_t stopped;
    uint64_t rounds[RACERS];
};

static bool others_went_on(void *arg) {
    const struct progress *p = arg;

    for (uint32_t i = 0; i < RACERS; i++)
        if (i != p->stopped && atomic_load(&race->rounds[i]) < p->rounds[i] + 3)
            return false;
    return true;
}

/* True unless the others were held up. The racer is stopped already. */
static bool go_on_without(uint32_t number) {
    struct progress p = {.stopped = number};

    look(number, at_stop);
    for (uint32_t i = 0; i < RACERS; i++)
        p.rounds[i] = atomic_load(&race->rounds[i]);
    atomic_store(&race->pause, false);
    atomic_store(&race->rush, false);
    bool went = eventually(others_went_on, &p);
    if (!went)
        fprintf(stderr, "racer %u, stopped in %s, holds others up\n", number,
                racer_steps[atomic_load(&race->step[number])]);
    kill(pids[number], SIGCONT);
    return went;
}

static bool all_met(void) {
    for (int i = 0; i < SIGHTS; i++)
        if (!at_death[i])
            return false;
    /* The others are a few instructions long, which a signal seldom meets: race_steps.c. */
    static const enum racer_step steps[] = {RACER_ATTACHING, RACER_ACQUIRING, RACER_POLLING,
                                            RACER_FETCHING,  RACER_QUERYING,  RACER_RELEASING};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        if (!steps_at_death[steps[i]])
            return false;
    for (int i = DBP_OPENING; i < DBP_STATES; i++)
        if (!states_at_death[i])
            return false;
    return true;
}

static void print_counts(uint32_t deaths, uint32_t stops) {
    printf("%u deaths. The dead had:", deaths);
    for (int i = 0; i < SIGHTS; i++)
        printf(" %s %u;", sights[i], at_death[i]);
    printf("\nthey were in:");
    for (int i = 0; i < RACER_STEPS; i++)
        printf(" %s %u;", racer_steps[i], steps_at_death[i]);
    printf("\nsessions were then:");
    static const char *const names[DBP_STATES] = {"empty",  "opening",   "idle",   "granted",
                                                  "leased", "resetting", "closing"};
    for (int i = 0; i < DBP_STATES; i++)
        printf(" %s %u;", names[i], states_at_death[i]);
    printf("\n%u stops and continuations. The stopped had:", stops);
    for (int i = 0; i < SIGHTS; i++)
        printf(" %s %u;", sights[i], at_stop[i]);
    printf("\n");
    fflush(stdout);
}

int main(void) {
    uint32_t seconds = test_seconds(), deaths = 0, stops = 0, wrong = 0;

    random_state = test_seed();
    race = shared_memory(sizeof *race);
    if (!arena_open(&arena, SLOTS, CAP - 2, 2) || !arena_is_whole(&arena))
        return 1;
    /* What this process has with all its sessions open; each session is one fd. */
    int census = fd_census(0) - (int)atomic_load(&arena.count->size);
    for (uint32_t i = 0; i < RACERS; i++)
        start(i);

    uint64_t end = in_seconds(seconds), last = in_seconds(seconds + 6 * WAIT_S);
    while (wrong == 0 && (dbp_now_us() < end || (!all_met() && dbp_now_us() < last))) {
        uint32_t number = (uint32_t)(test_random(&random_state) % RACERS);
        int status;
        atomic_store(&race->pause, test_random(&random_state) % 8 == 0);
        atomic_store(&race->rush, test_random(&random_state) % 8 == 0);
        poll(NULL, 0, (int)(test_random(&random_state) % 8));
        kill(pids[number], SIGSTOP);
        if (waitpid(pids[number], &status, WUNTRACED) != pids[number] || !WIFSTOPPED(status)) {
            fprintf(stderr, "racer %u ended by itself: status %x\n", number, status);
            wrong++;
            break;
        }
        if (test_random(&random_state) % 8 == 0) {
            wrong += !go_on_without(number);
            stops++;
            continue;
        }
        note_death(number);
        kill_child(pids[number]);
        deaths++;
        start(number);
    }

    atomic_store(&race->stop, true);
    for (uint32_t i = 0; i < RACERS; i++) {
        int code = wait_child(pids[i]);
        if (code != 0) {
            fprintf(stderr, "racer %u ended with %d\n", i, code);
            wrong++;
        }
    }
    print_counts(deaths, stops);
    uint32_t seen = race_report(race);
    if (!all_met()) {
        fprintf(stderr, "some state was never met at a death\n");
        wrong++;
    }
    wrong += !arena_is_whole(&arena);
    int now = fd_census(0) - (int)atomic_load(&arena.count->size);
    if (now != census) {
        fprintf(stderr, "NOT WHOLE: the broker's process has %d fds beside its sessions, had %d\n", now, census);
        wrong++;
    }
    wrong += !arena_close(&arena);
    race_sum(race, "procs", deaths, wrong);
    wrong += seen;
    printf("%s\n", wrong ? "FAILED" : "PASSED");
    return wrong ? 1 : 0;
}
