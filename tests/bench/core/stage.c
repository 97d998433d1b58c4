/* SPDX-License-Identifier: MIT
 * The stage of the C benchmarks: see stage.h.
 */
#include "stage.h"

#include "../../../core/broker.h"
#include "../../../core/connector.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static pid_t connector;
static struct dbp_pool_spec specs[STAGE_POOLS];

static void log_line(enum dbp_log_level level, const char *text) {
    if (level != DBP_LOG_INFO)
        fprintf(stderr, "[dbpool] %s\n", text);
}

static bool connector_is(void *arg, int32_t pid) {
    (void)arg;
    return pid == connector;
}

static pid_t spawn(void) {
    fflush(stdout);
    pid_t pid = fork();

    if (pid == 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    return pid;
}

static void *shared(size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        abort();
    return memory;
}

static uint64_t read_clock(clockid_t clock) {
    struct timespec ts;

    clock_gettime(clock, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t stage_now_ns(void) {
    return read_clock(CLOCK_MONOTONIC);
}

uint64_t stage_cpu_ns(void) {
    return read_clock(CLOCK_PROCESS_CPUTIME_ID);
}

void stage_pin(uint32_t number) {
    cpu_set_t all, one;

    if (sched_getaffinity(0, sizeof all, &all) != 0)
        return;
    for (uint32_t cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all) && number-- == 0) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            sched_setaffinity(0, sizeof one, &one);
            return;
        }
}

void stage_spin_until(const _Atomic uint32_t *flag, uint32_t value) {
    while (atomic_load(flag) != value)
        sched_yield();
}

void stage_burn(uint64_t ns) {
    for (uint64_t until = stage_now_ns() + ns; stage_now_ns() < until;)
        ;
}

/* ---- workers ---- */

static bool attach(struct stage *stage, uint32_t number) {
    char label[24], why[DBP_TEXT_MAX];

    snprintf(label, sizeof label, "worker %u", number);
    if (dbp_client_attach(stage->share, label, dbp_now_us() + STAGE_PATIENCE_US, &stage->client) != 0)
        return false;
    for (int i = 0; i < STAGE_POOLS; i++)
        if (dbp_client_register(stage->client, &specs[i], dbp_now_us() + STAGE_PATIENCE_US, why, sizeof why,
                                &stage->pools[i]) != 0) {
            fprintf(stderr, "%s\n", why);
            return false;
        }
    return true;
}

bool stage_workers(struct stage *stage, uint32_t n, stage_work work, void *arg, uint64_t run_us) {
    pid_t pids[STAGE_WORKERS_MAX];
    bool well = true;

    memset(stage->common, 0, sizeof *stage->common);
    for (uint32_t i = 0; i < n; i++) {
        pids[i] = spawn();
        if (pids[i] == 0) {
            bool attached = attach(stage, i);
            atomic_fetch_add(&stage->common->ready, 1);
            if (!attached)
                _exit(1);
            while (!atomic_load(&stage->common->go))
                usleep(500);
            _exit(work(stage, i, arg));
        }
    }
    while (atomic_load(&stage->common->ready) < n)
        usleep(500);
    atomic_store(&stage->common->go, 1);
    if (run_us) {
        usleep((useconds_t)run_us);
        atomic_store(&stage->common->stop, 1);
    }
    for (uint32_t i = 0; i < n; i++) {
        int status = 1;
        waitpid(pids[i], &status, 0);
        if (status != 0) {
            fprintf(stderr, "worker %u ended with status %#x\n", i, (unsigned)status);
            well = false;
        }
    }
    return well;
}

/* ---- times ---- */

struct stage_times *stage_times_new(void) {
    return shared(sizeof(struct stage_times));
}

void stage_times_free(struct stage_times *times) {
    munmap(times, sizeof *times);
}

void stage_times_add(struct stage_times *times, uint64_t value) {
    atomic_fetch_add_explicit(&times->buckets[value < STAGE_BUCKETS ? value : STAGE_BUCKETS - 1], 1,
                              memory_order_relaxed);
}

double stage_times_at(const struct stage_times *times, double share) {
    uint64_t all = 0, seen = 0;

    for (uint32_t i = 0; i < STAGE_BUCKETS; i++)
        all += atomic_load(&times->buckets[i]);
    for (uint32_t i = 0; i < STAGE_BUCKETS; i++) {
        seen += atomic_load(&times->buckets[i]);
        if (all > 0 && (double)seen >= share * (double)all)
            return i;
    }
    return 0;
}

double stage_times_mean(const struct stage_times *times) {
    double sum = 0, all = 0;

    for (uint32_t i = 0; i < STAGE_BUCKETS; i++) {
        double n = atomic_load(&times->buckets[i]);
        sum += n * i;
        all += n;
    }
    return all > 0 ? sum / all : 0;
}

/* ---- the master ---- */

static void fill_specs(char **server, uint32_t many) {
    static const char *const aliases[STAGE_POOLS] = {"one", "few", "many"};
    const uint32_t sizes[STAGE_POOLS] = {1, STAGE_FEW_SESSIONS, many};

    for (int i = 0; i < STAGE_POOLS; i++) {
        struct dbp_pool_spec *spec = &specs[i];
        *spec = (struct dbp_pool_spec){.port = (uint32_t)atoi(server[1]), .autocommit = 1, .connect_timeout_s = 10};
        spec->pool_size = spec->min_size = sizes[i];
        snprintf(spec->alias, sizeof spec->alias, "%s", aliases[i]);
        snprintf(spec->host, sizeof spec->host, "%s", server[0]);
        snprintf(spec->user, sizeof spec->user, "%s", server[2]);
        snprintf(spec->password, sizeof spec->password, "%s", server[3]);
        snprintf(spec->database, sizeof spec->database, "%s", server[4]);
        snprintf(spec->charset, sizeof spec->charset, "utf8mb4");
    }
}

static bool open_pools(struct dbp_broker *broker, const struct dbp_table *table) {
    char why[DBP_TEXT_MAX];
    uint64_t deadline = dbp_now_us() + STAGE_PATIENCE_US;
    int64_t wanted = 0, idle;

    for (int i = 0; i < STAGE_POOLS; i++) {
        wanted += specs[i].pool_size;
        if (dbp_broker_register(broker, &specs[i], why) != 0) {
            fprintf(stderr, "%s\n", why);
            return false;
        }
    }
    do {
        usleep(10000);
        idle = 0;
        for (int i = 0; i < STAGE_POOLS; i++)
            idle += dbp_pool_count(table, (uint32_t)i, DBP_IDLE);
    } while (idle < wanted && dbp_now_us() < deadline);
    if (idle < wanted)
        fprintf(stderr, "only %lld of %lld sessions came\n", (long long)idle, (long long)wanted);
    return idle >= wanted;
}

int stage_run(char **server, uint32_t many, stage_bench bench, long rounds) {
    struct dbp_broker_ops ops = {.log = log_line, .connector_is = connector_is};
    struct dbp_broker *broker = NULL;
    struct dbp_share share;
    int control, status = 1;

    fill_specs(server, many);
    if (dbp_share_new(STAGE_WORKERS_MAX + 1, &share, &control) != 0)
        return 1;
    connector = spawn();
    if (connector == 0) {
        close(control);
        /* Refused until the broker knows our pid, which it learns from the fork above. */
        while (dbp_connector_main(&share, dbp_now_us() + STAGE_PATIENCE_US, log_line) != 0)
            usleep(10000);
        _exit(0);
    }
    struct stage stage = {.share = &share, .many = many, .common = shared(sizeof(struct stage_common))};
    if (dbp_broker_start(&share, control, &ops, &broker) == 0 && open_pools(broker, share.table))
        status = bench(&stage, rounds);
    broker = dbp_broker_stop(broker);
    kill(connector, SIGKILL);
    waitpid(connector, NULL, 0);
    munmap(stage.common, sizeof *stage.common);
    dbp_share_free(&share);
    return status;
}
