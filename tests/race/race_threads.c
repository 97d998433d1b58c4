/* SPDX-License-Identifier: MIT
 * Many threads on one table in one process, through several clients, with the real broker: what TSan can see. Some
 * threads share a client and sleep in dbp_acquire, others are event loops with a client each. Checks I1 (owner stamps),
 * I3 (the server's own count), I4 (order of tickets), I5 and I6 (answers), and I2 at the end.
 * DBPOOL_SEED and DBPOOL_RACE_SECONDS steer it.
 */
#include "../support/arena.h"
#include "../support/racer.h"

#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define CLIENTS 4u
#define SLEEPERS 3u /* threads of each of the first two clients; the others are event loops */
#define THREADS (2 * SLEEPERS + CLIENTS - 2)

static struct arena arena;
static struct race race;

struct thread {
    pthread_t thread;
    struct dbp_client *client;
    uint32_t number;
    uint64_t seed;
    bool events;
};

static void *run(void *arg) {
    struct thread *t = arg;

    racer_run(&race, &arena.share, t->client, arena.pool, t->number, t->seed, t->events);
    return NULL;
}

int main(void) {
    static struct thread threads[THREADS];
    static struct dbp_client *clients[CLIENTS];
    uint64_t seed = test_seed();
    uint32_t n = 0, seconds = test_seconds();

    atomic_store(&race.may_fail, true);
    if (!arena_open(&arena, 16, 2, 2))
        return 1;
    for (uint32_t c = 0; c < CLIENTS; c++)
        if (!arena_client(&arena, "racer", &clients[c]))
            return 1;
    arena.fds_before += (int)CLIENTS;
    for (uint32_t c = 0; c < CLIENTS; c++)
        for (uint32_t i = 0; i < (c < 2 ? SLEEPERS : 1); i++, n++) {
            threads[n] = (struct thread){.client = clients[c], .number = n, .seed = seed + n, .events = c >= 2};
            if (pthread_create(&threads[n].thread, NULL, run, &threads[n]) != 0)
                return 1;
        }
    for (uint64_t end = in_seconds(seconds); dbp_now_us() < end;) {
        poll(NULL, 0, 50);
        atomic_store(&race.rush, !atomic_load(&race.rush));
        /* Now and then the server refuses logins, each time for another reason. */
        atomic_store(&arena.fake->fail_code, FAKE_LONG_TEXT + (uint32_t)(test_random(&seed) % 100));
        atomic_store(&arena.fake->open_mode, test_random(&seed) % 4 == 0 ? FAKE_OPEN_FAIL : FAKE_OPEN_DO);
    }
    atomic_store(&arena.fake->open_mode, FAKE_OPEN_DO);
    atomic_store(&race.stop, true);
    for (uint32_t i = 0; i < n; i++)
        pthread_join(threads[i].thread, NULL);

    uint32_t seen = race_report(&race), wrong = 0;
    for (uint32_t i = 0; i < n; i++)
        if (atomic_load(&race.rounds[i]) < 10) {
            fprintf(stderr, "thread %u got nowhere: %llu rounds\n", i, (unsigned long long)race.rounds[i]);
            wrong++;
        }
    wrong += !arena_is_whole(&arena);
    wrong += !arena_close(&arena);
    race_sum(&race, "threads", 0, wrong);
    wrong += seen;
    printf("%s\n", wrong ? "FAILED" : "PASSED");
    return wrong ? 1 : 0;
}
