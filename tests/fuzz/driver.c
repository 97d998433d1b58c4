/* SPDX-License-Identifier: MIT
 * A harness as a plain program, for where there is no libFuzzer.
 *
 *   fuzz_x [-t SECONDS]     runs the seeds, then random mutations of them (5 s; DBPOOL_FUZZ_SECONDS)
 *   fuzz_x FILE...          replays inputs
 *   fuzz_x -w DIR           writes the seeds as files, and their names as DIR/list: what libFuzzer begins with
 *
 * The same DBPOOL_SEED (default 1) makes the same inputs. They run in a child: when it dies, or is at one input for
 * longer than HANG_S, that input is written to ./crash-NAME and the program fails.
 */
#include "fuzz.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define HANG_S 30 /* an input takes microseconds; a sanitizer on a loaded machine, milliseconds */
#define POOL 512u /* inputs that later ones are made from */

struct stage {
    _Atomic uint64_t runs;
    _Atomic uint64_t done;
    _Atomic size_t size;
    uint8_t data[FUZZ_INPUT_MAX];
};

static struct stage *stage;

static uint64_t now_ms(void) {
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000u + (uint64_t)ts.tv_nsec / 1000000u;
}

static uint64_t random_state;

static uint32_t random_below(uint32_t n) {
    /* splitmix64 (public domain, S. Vigna). */
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ (z >> 31)) >> 16) % n;
}

static void run_one(const uint8_t *data, size_t size) {
    memcpy(stage->data, data, size);
    atomic_store(&stage->size, size);
    atomic_fetch_add(&stage->runs, 1);
    /* A copy of exactly this size, so that a sanitizer sees a read behind it. */
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy)
        _exit(2);
    memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

struct text {
    size_t n;
    uint8_t bytes[FUZZ_INPUT_MAX];
};

static struct text pool[POOL];
static uint32_t n_pool;

static void mutate(struct text *t) {
    static const uint64_t odd[] = {0,      1,      0x7f,       0x80,       0xff,       0x100,
                                   0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, 0xffffffffffffffffu};
    uint32_t at = t->n ? random_below((uint32_t)t->n) : 0;
    size_t left = t->n - at, width = (size_t)1 << random_below(4);

    switch (random_below(7)) {
    case 0: /* a bit */
        if (t->n)
            t->bytes[at] ^= (uint8_t)(1u << random_below(8));
        break;
    case 1: /* a byte */
        if (t->n)
            t->bytes[at] = (uint8_t)random_below(256);
        break;
    case 2: { /* a number that somebody may have forgotten */
        uint64_t v = odd[random_below(sizeof odd / sizeof *odd)];
        memcpy(t->bytes + at, &v, width < left ? width : left);
        break;
    }
    case 3: { /* cut */
        size_t n = left ? 1 + random_below((uint32_t)left) : 0;
        memmove(t->bytes + at, t->bytes + at + n, left - n);
        t->n -= n;
        break;
    }
    case 4: /* end here */
        t->n = at;
        break;
    default: { /* a piece of another, put in or over */
        const struct text *from = &pool[random_below(n_pool)];
        if (from->n == 0)
            break;
        size_t start = random_below((uint32_t)from->n), n = 1 + random_below((uint32_t)(from->n - start));
        if (n > FUZZ_INPUT_MAX - t->n)
            n = FUZZ_INPUT_MAX - t->n;
        memmove(t->bytes + at + n, t->bytes + at, left);
        memcpy(t->bytes + at, from->bytes + start, n);
        t->n += n;
        break;
    }
    }
}

static void run_all(uint32_t seconds) {
    static struct text t;
    uint64_t end = now_ms() + seconds * 1000u;

    while (n_pool < POOL && (pool[n_pool].n = fuzz_seed(n_pool, pool[n_pool].bytes)) > 0)
        n_pool++;
    uint32_t n_seeds = n_pool;
    if (n_seeds == 0)
        _exit(2);
    for (uint32_t i = 0; i < n_seeds; i++)
        run_one(pool[i].bytes, pool[i].n);
    while (now_ms() < end) {
        t = pool[random_below(n_pool)];
        for (uint32_t n = 1 + random_below(8); n > 0; n--)
            mutate(&t);
        run_one(t.bytes, t.n);
        /* Without coverage nobody knows which ones are worth keeping: some, so that mutations pile up. */
        if (random_below(16) == 0)
            pool[n_pool < POOL ? n_pool++ : n_seeds + random_below(POOL - n_seeds)] = t;
    }
    atomic_store(&stage->done, 1);
}

static void keep_crash(const char *name) {
    char path[256];

    snprintf(path, sizeof path, "crash-%s", name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(stage->data, 1, atomic_load(&stage->size), f) != atomic_load(&stage->size))
        fprintf(stderr, "cannot write %s\n", path);
    else
        fprintf(stderr, "run %llu, %zu bytes, kept in %s\n", (unsigned long long)atomic_load(&stage->runs),
                (size_t)atomic_load(&stage->size), path);
    if (f)
        fclose(f);
}

/* The child's exit status, or that it hangs. */
static int watch(pid_t pid, const char *name) {
    uint64_t seen = 0, since = now_ms();
    int status = 0;

    while (waitpid(pid, &status, WNOHANG) == 0) {
        struct timespec nap = {.tv_nsec = 20000000};
        nanosleep(&nap, NULL);
        if (atomic_load(&stage->runs) != seen) {
            seen = atomic_load(&stage->runs);
            since = now_ms();
        } else if (now_ms() - since > HANG_S * 1000u) {
            fprintf(stderr, "%s: hangs\n", name);
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            break;
        }
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && atomic_load(&stage->done)) {
        printf("%s: %llu runs\n", name, (unsigned long long)atomic_load(&stage->runs));
        return 0;
    }
    keep_crash(name);
    return 1;
}

static int write_seeds(const char *dir) {
    static uint8_t buf[FUZZ_INPUT_MAX];
    char path[512];
    size_t n;

    snprintf(path, sizeof path, "%s/list", dir);
    FILE *list = fopen(path, "w");
    for (unsigned i = 0; (n = fuzz_seed(i, buf)) > 0; i++) {
        snprintf(path, sizeof path, "%s/seed-%02u", dir, i);
        FILE *f = fopen(path, "wb");
        if (!list || fprintf(list, "%s%s", i ? "," : "", path) < 0 || !f || fwrite(buf, 1, n, f) != n ||
            fclose(f) != 0) {
            perror(path);
            return 1;
        }
    }
    return list && fclose(list) == 0 ? 0 : 1;
}

static int replay(const char *path) {
    static uint8_t buf[FUZZ_INPUT_MAX];
    FILE *f = fopen(path, "rb");

    if (!f) {
        perror(path);
        return 1;
    }
    size_t n = fread(buf, 1, sizeof buf, f);
    fclose(f);
    run_one(buf, n);
    return 0;
}

int main(int argc, char **argv) {
    const char *slash = strrchr(argv[0], '/'), *name = slash ? slash + 1 : argv[0];
    const char *seed = getenv("DBPOOL_SEED"), *seconds = getenv("DBPOOL_FUZZ_SECONDS");

    stage = mmap(NULL, sizeof *stage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (stage == MAP_FAILED)
        return 2;
    if (argc == 3 && strcmp(argv[1], "-w") == 0)
        return write_seeds(argv[2]);
    if (argc == 3 && strcmp(argv[1], "-t") == 0) {
        seconds = argv[2];
    } else if (argc > 1) {
        int rc = 0;
        for (int i = 1; i < argc; i++)
            rc |= replay(argv[i]);
        return rc;
    }
    random_state = seed ? strtoull(seed, NULL, 0) : 1;
    printf("DBPOOL_SEED=%llu\n", (unsigned long long)random_state);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        run_all(seconds ? (uint32_t)strtoul(seconds, NULL, 0) : 5u);
        exit(0); /* a leak checker speaks here */
    }
    return pid < 0 ? 2 : watch(pid, name);
}
