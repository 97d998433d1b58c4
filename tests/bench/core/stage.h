/* SPDX-License-Identifier: MIT
 * The stage of the C benchmarks: a broker in this process, a connector in a child, three pools of a real server, and
 * workers, forked as a uWSGI master forks them. What workers tell each other is in memory that all of them share.
 */
#ifndef DBPOOL_BENCH_STAGE_H
#define DBPOOL_BENCH_STAGE_H

#include "../../../core/share.h"

#include <stdatomic.h>

#define STAGE_PATIENCE_US 60000000u
#define STAGE_WORKERS_MAX 256u

/* ONE: hand-offs. FEW: overload. MANY: as many sessions as the benchmark wants. */
enum stage_pool { STAGE_ONE, STAGE_FEW, STAGE_MANY, STAGE_POOLS };
#define STAGE_FEW_SESSIONS 8u

struct stage_common {
    _Atomic uint32_t ready, go, stop;
    _Atomic uint32_t flags[4]; /* the benchmark's own */
    _Atomic uint64_t stamp;
    _Atomic uint64_t counts[STAGE_WORKERS_MAX];
    _Atomic uint64_t nanoseconds[STAGE_WORKERS_MAX];
};

struct stage {
    const struct dbp_share *share;
    uint32_t many; /* sessions of STAGE_MANY */
    struct stage_common *common;
    struct dbp_client *client;   /* in a worker */
    uint32_t pools[STAGE_POOLS]; /* in a worker */
};

/* What one worker does; number counts from 0. Returns 0, or what it failed with. */
typedef int (*stage_work)(struct stage *stage, uint32_t number, void *arg);

/* One benchmark: prints lines "name value". 0 or not. */
typedef int (*stage_bench)(struct stage *stage, long rounds);

/* server: host, port, user, password, database. Opens all sessions, runs bench, takes all away. The exit status. */
int stage_run(char **server, uint32_t many, stage_bench bench, long rounds);

/* n workers do work; they start it together, when all are attached. With run_us above 0 common->stop is set after that
 * time. True when all returned 0. */
bool stage_workers(struct stage *stage, uint32_t n, stage_work work, void *arg, uint64_t run_us);

uint64_t stage_now_ns(void);
uint64_t stage_cpu_ns(void); /* processor time of this process */
/* Binds the caller to the number-th of its processors, where it has that many. */
void stage_pin(uint32_t number);
/* Waits busily until *flag is value. */
void stage_spin_until(const _Atomic uint32_t *flag, uint32_t value);
/* Keeps the processor busy for about ns. */
void stage_burn(uint64_t ns);

/* A histogram of durations, one bucket per nanosecond or microsecond; what does not fit counts as the last. */
#define STAGE_BUCKETS 65536u
struct stage_times {
    _Atomic uint32_t buckets[STAGE_BUCKETS];
};
struct stage_times *stage_times_new(void); /* shared, all zero */
void stage_times_free(struct stage_times *times);
void stage_times_add(struct stage_times *times, uint64_t value);
/* The value that `share` (0..1) of all lie at or below. */
double stage_times_at(const struct stage_times *times, double share);
double stage_times_mean(const struct stage_times *times);

/* The benchmarks. */
int bench_uncontended(struct stage *stage, long rounds);
int bench_processes(struct stage *stage, long rounds);
int bench_sessions(struct stage *stage, long rounds);
int bench_waiters(struct stage *stage, long rounds);
int bench_handoff(struct stage *stage, long rounds);
int bench_overload(struct stage *stage, long rounds);

#endif
