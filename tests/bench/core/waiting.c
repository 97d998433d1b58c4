/* SPDX-License-Identifier: MIT
 * Waiting: what a hand-off costs with many in the queue, how long it takes from one process to another beside a plain
 * wake-up by an eventfd, and how long each waits, and in what order, when four times as many want a session as there
 * are.
 */
#include "stage.h"

#include "../../../core/handoff.h"

#include <poll.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* ---- many in the queue ---- */

#define CYCLES 20000u
#define QUEUE_MAX 10000u

/* One worker has the session and all places of the queue: each cycle is a return, which serves the oldest, its claim,
 * and a new place at the end. */
static int in_queue(struct stage *stage, uint32_t number, void *arg) {
    static const uint32_t steps[] = {1, 10, 100, 1000, QUEUE_MAX};
    static struct dbp_wait waits[QUEUE_MAX];
    uint32_t pool = stage->pools[STAGE_ONE];
    struct dbp_lease lease;

    (void)number;
    if (dbp_acquire_now(stage->client, pool, &lease) != 0)
        return 1;
    for (long round = *(long *)arg; round >= 0; round--) { /* the first one warms up */
        for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
            uint32_t n = steps[i];
            for (uint32_t k = 0; k < n; k++)
                if (dbp_wait_begin(stage->client, pool, DBP_WAIT_EVENT, &waits[k]) != 0)
                    return 1;
            uint64_t began = stage_cpu_ns();
            for (uint32_t k = 0; k < CYCLES; k++) {
                if (dbp_release(stage->client, &lease, 2, DBP_RETURN_CLEAN) != 0 ||
                    dbp_wait_poll(stage->client, &waits[k % n], &lease) != 0 ||
                    dbp_wait_begin(stage->client, pool, DBP_WAIT_EVENT, &waits[k % n]) != 0)
                    return 1;
            }
            double ns = (double)(stage_cpu_ns() - began) / CYCLES;
            for (uint32_t k = 0; k < n; k++)
                if (dbp_wait_cancel(stage->client, &waits[(CYCLES + k) % n], &lease) != DBP_E_TIMEOUT)
                    return 1;
            if (round < *(long *)arg)
                printf("ns_%u %.1f\n", n, ns);
        }
    }
    fflush(stdout);
    return dbp_release(stage->client, &lease, 2, DBP_RETURN_CLEAN);
}

int bench_waiters(struct stage *stage, long rounds) {
    return !stage_workers(stage, 1, in_queue, &rounds, 0);
}

/* ---- from one process to another ---- */

#define HANDOFFS 1000u
#define ASLEEP_NS 50000u /* from saying that it goes to sleep until the waiter surely does */

enum handoff { PING_READ, PING_POLL, TO_THREAD, TO_LOOP, HANDOFF_KINDS };
static const char *const handoff_names[HANDOFF_KINDS] = {"ping_read", "ping_poll", "to_thread", "to_loop"};

struct handoff_job {
    enum handoff kind;
    int eventfd; /* of the pings, blocking */
    struct stage_times *times;
};

static bool eat(int fd) {
    uint64_t value;

    return read(fd, &value, sizeof value) == sizeof value;
}

static bool ready(int fd) {
    struct pollfd p = {.fd = fd, .events = POLLIN};

    return poll(&p, 1, 10000) == 1;
}

/* True when it was woken, and has the session where there is one. */
static bool be_woken(struct stage *stage, const struct handoff_job *job, struct dbp_lease *lease) {
    uint32_t pool = stage->pools[STAGE_ONE];
    struct dbp_wait wait;

    switch (job->kind) {
    case PING_READ:
        atomic_store(&stage->common->flags[0], 1);
        return eat(job->eventfd);
    case PING_POLL:
        atomic_store(&stage->common->flags[0], 1);
        return ready(job->eventfd) && eat(job->eventfd);
    case TO_THREAD:
        atomic_store(&stage->common->flags[0], 1);
        return dbp_acquire(stage->client, pool, dbp_now_us() + STAGE_PATIENCE_US, NULL, NULL, lease) == 0;
    default:
        if (dbp_wait_begin(stage->client, pool, DBP_WAIT_EVENT, &wait) != 0)
            return false;
        atomic_store(&stage->common->flags[0], 1);
        return ready(dbp_wait_fd(stage->client)) && eat(dbp_wait_fd(stage->client)) &&
               dbp_wait_poll(stage->client, &wait, lease) == 0;
    }
}

static int sleeper(struct stage *stage, const struct handoff_job *job) {
    struct dbp_lease lease;

    for (uint32_t i = 0; i < HANDOFFS; i++) {
        stage_spin_until(&stage->common->flags[1], 1); /* the other one has the session */
        atomic_store(&stage->common->flags[1], 0);
        if (!be_woken(stage, job, &lease))
            return 1;
        stage_times_add(job->times, (stage_now_ns() - atomic_load(&stage->common->stamp)) / 10);
        if (job->kind >= TO_THREAD && dbp_release(stage->client, &lease, 2, DBP_RETURN_CLEAN) != 0)
            return 1;
        atomic_store(&stage->common->flags[2], 1);
    }
    return 0;
}

static int waker(struct stage *stage, const struct handoff_job *job) {
    uint64_t one = 1;
    struct dbp_lease lease;

    for (uint32_t i = 0; i < HANDOFFS; i++) {
        if (job->kind >= TO_THREAD && dbp_acquire(stage->client, stage->pools[STAGE_ONE],
                                                  dbp_now_us() + STAGE_PATIENCE_US, NULL, NULL, &lease) != 0)
            return 1;
        atomic_store(&stage->common->flags[1], 1);
        stage_spin_until(&stage->common->flags[0], 1);
        atomic_store(&stage->common->flags[0], 0);
        stage_burn(ASLEEP_NS);
        atomic_store(&stage->common->stamp, stage_now_ns());
        if (job->kind >= TO_THREAD ? dbp_release(stage->client, &lease, 2, DBP_RETURN_CLEAN) != 0
                                   : write(job->eventfd, &one, sizeof one) != sizeof one)
            return 1;
        stage_spin_until(&stage->common->flags[2], 1);
        atomic_store(&stage->common->flags[2], 0);
    }
    return 0;
}

static int hand_off(struct stage *stage, uint32_t number, void *arg) {
    stage_pin(number);
    return number == 0 ? waker(stage, arg) : sleeper(stage, arg);
}

int bench_handoff(struct stage *stage, long rounds) {
    for (; rounds > 0; rounds--)
        for (int kind = 0; kind < HANDOFF_KINDS; kind++) {
            struct handoff_job job = {(enum handoff)kind, eventfd(0, EFD_CLOEXEC), stage_times_new()};
            if (!stage_workers(stage, 2, hand_off, &job, 0))
                return 1;
            printf("%s %.2f\n", handoff_names[kind], stage_times_at(job.times, 0.5) / 100);
            stage_times_free(job.times);
            close(job.eventfd);
        }
    return 0;
}

/* ---- more than there is ---- */

#define HOLD_US 1000
#define OVERLOAD_US 1500000u

struct overload_job {
    sem_t *semaphore;          /* of as many sessions, in place of the pool; NULL: the pool */
    struct stage_times *waits; /* in units of 10 us */
    _Atomic uint64_t *inversions;
};

/* Places before ours that still wait although we were served: each is one that was overtaken. */
static uint64_t overtaken(struct stage *stage, const struct dbp_wait *wait) {
    struct dbp_queue *queue = &stage->share->table->pools[wait->pool].queue;
    uint64_t n = 0;

    for (uint32_t ticket = atomic_load(&queue->head); (int32_t)(wait->ticket - ticket) > 0; ticket++) {
        dbp_place place = dbp_queue_look(queue, ticket);
        n += dbp_place_ticket(place) == ticket && dbp_place_state(place) == DBP_PLACE_WAITING;
    }
    return n;
}

static bool take(struct stage *stage, const struct overload_job *job, struct dbp_lease *lease) {
    uint32_t pool = stage->pools[STAGE_FEW];
    struct dbp_queue *queue = &stage->share->table->pools[pool].queue;
    uint32_t first = atomic_load(&queue->head);
    dbp_place before = 0;
    struct dbp_wait wait;
    int rc;

    if (job->semaphore)
        return sem_wait(job->semaphore) == 0;
    bool others = dbp_queue_next(queue, &first, &before);
    if (dbp_acquire_now(stage->client, pool, lease) == 0) {
        /* Waited before we came, and still does: overtaken by a newcomer. */
        dbp_place now = dbp_queue_look(queue, dbp_place_ticket(before));
        if (others && dbp_place_ticket(now) == dbp_place_ticket(before) && dbp_place_state(now) == DBP_PLACE_WAITING)
            atomic_fetch_add(job->inversions, 1);
        return true;
    }
    if (dbp_wait_begin(stage->client, pool, DBP_WAIT_EVENT, &wait) != 0)
        return false;
    while ((rc = dbp_wait_poll(stage->client, &wait, lease)) == DBP_E_BUSY)
        if (!ready(dbp_wait_fd(stage->client)) || !eat(dbp_wait_fd(stage->client)))
            return false;
    atomic_fetch_add(job->inversions, overtaken(stage, &wait));
    return rc == 0;
}

static int crowd(struct stage *stage, uint32_t number, void *arg) {
    const struct overload_job *job = arg;
    struct timespec hold = {.tv_nsec = HOLD_US * 1000};
    struct dbp_lease lease;

    (void)number;
    while (!atomic_load(&stage->common->stop)) {
        uint64_t began = stage_now_ns();
        if (!take(stage, job, &lease))
            return 1;
        stage_times_add(job->waits, (stage_now_ns() - began) / 10000);
        nanosleep(&hold, NULL);
        if (job->semaphore ? sem_post(job->semaphore) != 0
                           : dbp_release(stage->client, &lease, 2, DBP_RETURN_CLEAN) != 0)
            return 1;
    }
    return 0;
}

int bench_overload(struct stage *stage, long rounds) {
    sem_t *semaphore = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (semaphore == MAP_FAILED)
        return 1;
    _Atomic uint64_t *inversions = (_Atomic uint64_t *)(semaphore + 1);
    for (; rounds > 0; rounds--)
        for (uint32_t load = 1; load <= 8; load *= 2)
            for (int peer = 0; peer < 2; peer++) {
                struct overload_job job = {peer ? semaphore : NULL, stage_times_new(), inversions};
                const char *name = peer ? "semaphore" : "pool";
                atomic_store(inversions, 0);
                sem_init(semaphore, 1, STAGE_FEW_SESSIONS);
                if (!stage_workers(stage, STAGE_FEW_SESSIONS * load, crowd, &job, OVERLOAD_US / 2))
                    return 1;
                printf("%s_mean_ms_%u %.3f\n", name, load, stage_times_mean(job.waits) / 100);
                printf("%s_p50_ms_%u %.3f\n", name, load, stage_times_at(job.waits, 0.5) / 100);
                printf("%s_p99.9_ms_%u %.3f\n", name, load, stage_times_at(job.waits, 0.999) / 100);
                if (!peer)
                    printf("inversions_%u %llu\n", load, (unsigned long long)atomic_load(inversions));
                stage_times_free(job.waits);
            }
    munmap(semaphore, 4096);
    return 0;
}
