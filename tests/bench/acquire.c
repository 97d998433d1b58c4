/* SPDX-License-Identifier: MIT
 * Benchmark: acquire + release in C, uncontended, from a client process against a real broker, connector and server.
 *   acquire HOST PORT USER PASSWORD DATABASE ROUNDS ITERATIONS
 * Prints one line a round: nanoseconds for one acquire and its release. Compared with a pair of compare-and-swaps on
 * memory of its own, in the same rounds, to tell what the machine is worth today.
 */
#include "../../core/broker.h"
#include "../../core/connector.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE_US 10000000u

static pid_t connector;

static void log_line(enum dbp_log_level level, const char *text) {
    if (level != DBP_LOG_INFO)
        fprintf(stderr, "[dbpool] %s\n", text);
}

static bool connector_is(void *arg, int32_t pid) {
    (void)arg;
    return pid == connector;
}

static pid_t spawn(int control) {
    pid_t pid = fork();

    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(control);
    }
    return pid;
}

static uint64_t now_ns(void) {
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static double two_swaps(long n) {
    static _Atomic uint64_t word;
    uint64_t began = now_ns();

    for (long i = 0; i < n; i++)
        for (int k = 0; k < 2; k++) {
            uint64_t seen = atomic_load(&word);
            atomic_compare_exchange_strong(&word, &seen, seen + 1);
        }
    return (double)(now_ns() - began) / (double)n;
}

static int measure(const struct dbp_share *share, char **argv) {
    struct dbp_client *client;
    struct dbp_pool_spec spec = {
        .port = (uint32_t)atoi(argv[2]), .autocommit = 1, .connect_timeout_s = 10, .pool_size = 4};
    struct dbp_lease lease;
    char why[DBP_TEXT_MAX];
    uint32_t pool;
    long rounds = atol(argv[6]), n = atol(argv[7]);

    snprintf(spec.alias, sizeof spec.alias, "bench");
    snprintf(spec.host, sizeof spec.host, "%s", argv[1]);
    snprintf(spec.user, sizeof spec.user, "%s", argv[3]);
    snprintf(spec.password, sizeof spec.password, "%s", argv[4]);
    snprintf(spec.database, sizeof spec.database, "%s", argv[5]);
    snprintf(spec.charset, sizeof spec.charset, "utf8mb4");
    if (dbp_client_attach(share, "bench", dbp_now_us() + PATIENCE_US, &client) != 0)
        return 1;
    if (dbp_client_register(client, &spec, dbp_now_us() + PATIENCE_US, why, sizeof why, &pool) != 0) {
        fprintf(stderr, "%s\n", why);
        return 1;
    }
    /* The first one waits for the login. */
    if (dbp_acquire(client, pool, dbp_now_us() + PATIENCE_US, NULL, NULL, &lease) != 0 ||
        dbp_release(client, &lease, 2, DBP_RETURN_CLEAN) != 0)
        return 1;
    for (long round = 0; round < rounds; round++) {
        uint64_t began = now_ns();
        for (long i = 0; i < n; i++)
            if (dbp_acquire_now(client, pool, &lease) != 0 || dbp_release(client, &lease, 2, DBP_RETURN_CLEAN) != 0)
                return 1;
        double ns = (double)(now_ns() - began) / (double)n;
        printf("%.2f %.2f\n", ns, two_swaps(n));
    }
    return 0;
}

int main(int argc, char **argv) {
    struct dbp_broker_ops ops = {.log = log_line, .connector_is = connector_is};
    struct dbp_broker *broker = NULL;
    struct dbp_share share;
    int control, status = 1;

    if (argc != 8) {
        fprintf(stderr, "usage: acquire HOST PORT USER PASSWORD DATABASE ROUNDS ITERATIONS\n");
        return 2;
    }
    if (dbp_share_new(8, &share, &control) != 0)
        return 1;
    connector = spawn(control);
    if (connector == 0) {
        /* Refused until the broker knows our pid, which it learns from main's fork below. */
        while (dbp_connector_main(&share, dbp_now_us() + PATIENCE_US, log_line) != 0)
            usleep(10000);
        _exit(0);
    }
    pid_t client = spawn(control);
    if (client == 0) {
        int rc = measure(&share, argv);
        fflush(stdout);
        _exit(rc);
    }
    if (dbp_broker_start(&share, control, &ops, &broker) == 0)
        waitpid(client, &status, 0);
    else
        kill(client, SIGKILL);
    broker = dbp_broker_stop(broker);
    kill(connector, SIGKILL);
    waitpid(connector, NULL, 0);
    close(control);
    dbp_share_free(&share);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
