/* SPDX-License-Identifier: MIT
 * What an acquire and its release cost: alone, beside other processes, with many sessions, and that they make no
 * system call. Nobody waits here, so processor time is all there is, and others on the machine do not disturb it.
 */
#include "stage.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ITERATIONS 500000
#define ROUND_US 250000u /* of one number of processes */
#define PACE_NS 20000u   /* a turn of a worker, which would serve 50,000 a second */
#define LEASES_MAX 1024u

static bool pair(struct stage *stage, uint32_t pool) {
    struct dbp_lease lease;
    int rc;

    /* Busy: every session that it looked at was just then another's. */
    do
        rc = dbp_acquire_now(stage->client, stage->pools[pool], &lease);
    while (rc == DBP_E_BUSY);
    return rc == 0 && dbp_release(stage->client, &lease, 2, DBP_RETURN_CLEAN) == 0;
}

static bool pairs(struct stage *stage, double *nsp) {
    uint64_t began = stage_cpu_ns();

    for (int i = 0; i < ITERATIONS; i++)
        if (!pair(stage, STAGE_MANY))
            return false;
    *nsp = (double)(stage_cpu_ns() - began) / ITERATIONS;
    return true;
}

/* ---- alone, across processes: the table, the broker and the sessions are another's ---- */

static double two_swaps(void) {
    static _Atomic uint64_t word;
    uint64_t began = stage_cpu_ns();

    for (int i = 0; i < ITERATIONS; i++)
        for (int k = 0; k < 2; k++) {
            uint64_t seen = atomic_load(&word);
            atomic_compare_exchange_strong(&word, &seen, seen + 1);
        }
    return (double)(stage_cpu_ns() - began) / ITERATIONS;
}

static int alone(struct stage *stage, uint32_t number, void *arg) {
    double ns;

    (void)number;
    if (!pairs(stage, &ns)) /* warms up */
        return 1;
    for (long round = *(long *)arg; round > 0; round--) {
        if (!pairs(stage, &ns))
            return 1;
        printf("pair %.2f\nswaps %.2f\n", ns, two_swaps());
    }
    fflush(stdout);
    return 0;
}

/* From here on this process may do nothing but end: the kernel kills it (SIGSYS) at any other system call. */
static bool forbid_system_calls(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};

    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static int locked_in(struct stage *stage, uint32_t number, void *arg) {
    double ns;

    (void)number;
    if (!pairs(stage, &ns) || !forbid_system_calls())
        return 1;
    if (*(bool *)arg) /* the proof of the proof: this one must be killed */
        syscall(SYS_getppid);
    for (int i = 0; i < ITERATIONS; i++)
        if (!pair(stage, STAGE_MANY))
            return 1;
    return 0;
}

int bench_uncontended(struct stage *stage, long rounds) {
    bool make_one = false;

    if (!stage_workers(stage, 1, alone, &rounds, 0))
        return 1;
    printf("free_of_system_calls %d\n", stage_workers(stage, 1, locked_in, &make_one, 0));
    make_one = true;
    fprintf(stderr, "(the next worker is meant to be killed) ");
    if (stage_workers(stage, 1, locked_in, &make_one, 0)) {
        fprintf(stderr, "system calls are not noticed here\n");
        return 1;
    }
    return 0;
}

/* ---- beside others ---- */

struct pace {
    struct stage_times *acquire, *release, *clock;
    uint64_t leased_ns, ns; /* work with the session, and in all */
};

static int paced(struct stage *stage, uint32_t number, void *arg) {
    const struct pace *pace = arg;
    struct dbp_lease lease;

    (void)number;
    while (!atomic_load_explicit(&stage->common->stop, memory_order_relaxed)) {
        uint64_t t0 = stage_now_ns(), t1 = stage_now_ns();
        int rc = dbp_acquire_now(stage->client, stage->pools[STAGE_MANY], &lease);
        uint64_t t2 = stage_now_ns();
        if (rc != 0 && rc != DBP_E_BUSY)
            return 1;
        if (rc == 0) {
            stage_burn(pace->leased_ns);
            uint64_t t3 = stage_now_ns();
            if (dbp_release(stage->client, &lease, 2, DBP_RETURN_CLEAN) != 0)
                return 1;
            stage_times_add(pace->release, stage_now_ns() - t3);
            stage_times_add(pace->acquire, t2 - t1);
            stage_times_add(pace->clock, t1 - t0);
        }
        stage_burn(pace->ns - pace->leased_ns);
    }
    return 0;
}

static bool print_paced(struct stage *stage, uint32_t n, uint64_t leased_ns, const char *name) {
    struct pace pace = {stage_times_new(), stage_times_new(), stage_times_new(), leased_ns, PACE_NS};
    bool good = stage_workers(stage, n, paced, &pace, ROUND_US);

    printf("%s_ns_%u %.1f\n", name, n,
           stage_times_at(pace.acquire, 0.5) + stage_times_at(pace.release, 0.5) - 2 * stage_times_at(pace.clock, 0.5));
    stage_times_free(pace.acquire);
    stage_times_free(pace.release);
    stage_times_free(pace.clock);
    return good;
}

static int flat_out(struct stage *stage, uint32_t number, void *arg) {
    uint64_t began = stage_cpu_ns(), n = 0;

    (void)arg;
    for (; !atomic_load_explicit(&stage->common->stop, memory_order_relaxed); n++)
        if (!pair(stage, STAGE_MANY))
            return 1;
    atomic_store(&stage->common->counts[number], n);
    atomic_store(&stage->common->nanoseconds[number], stage_cpu_ns() - began);
    return 0;
}

static void sum(const struct stage *stage, uint32_t n, double *countp, double *nsp) {
    *countp = *nsp = 0;
    for (uint32_t i = 0; i < n; i++) {
        *countp += (double)atomic_load(&stage->common->counts[i]);
        *nsp += (double)atomic_load(&stage->common->nanoseconds[i]);
    }
}

int bench_processes(struct stage *stage, long rounds) {
    for (; rounds > 0; rounds--)
        for (uint32_t n = 1; n <= 16; n *= 2) {
            double count, ns;

            if (!print_paced(stage, n, PACE_NS / 2, "paced") || !print_paced(stage, n, 0, "instant") ||
                !stage_workers(stage, n, flat_out, NULL, ROUND_US))
                return 1;
            sum(stage, n, &count, &ns);
            printf("cpu_ns_%u %.1f\nper_second_%u %.0f\n", n, ns / count, n, count / (ROUND_US / 1e6));
        }
    return 0;
}

/* ---- with many sessions: the k-th, while all before it are leased ---- */

static int kth(struct stage *stage, uint32_t number, void *arg) {
    static const uint32_t steps[] = {1, 10, 100, 1000};
    static struct dbp_lease leases[LEASES_MAX];
    uint32_t pool = stage->pools[STAGE_MANY];
    double ns;

    (void)number;
    if (!pairs(stage, &ns))
        return 1;
    for (long round = *(long *)arg; round > 0; round--) {
        uint32_t held = 0;
        for (size_t i = 0; i < sizeof steps / sizeof *steps && steps[i] <= stage->many; i++) {
            for (; held + 1 < steps[i]; held++)
                if (dbp_acquire_now(stage->client, pool, &leases[held]) != 0)
                    return 1;
            if (!pairs(stage, &ns))
                return 1;
            printf("ns_%u %.2f\n", steps[i], ns);
        }
        while (held > 0)
            if (dbp_release(stage->client, &leases[--held], 2, DBP_RETURN_CLEAN) != 0)
                return 1;
    }
    fflush(stdout);
    return 0;
}

int bench_sessions(struct stage *stage, long rounds) {
    return !stage_workers(stage, 1, kth, &rounds, 0);
}
