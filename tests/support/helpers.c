/* SPDX-License-Identifier: MIT
 * What the C tests share: see helpers.h.
 */
#include "helpers.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

uint64_t in_seconds(uint32_t seconds) {
    return dbp_now_us() + (uint64_t)seconds * 1000000u;
}

bool eventually(bool (*condition)(void *arg), void *arg) {
    uint64_t deadline = in_seconds(WAIT_S);

    while (!condition(arg)) {
        if (dbp_now_us() > deadline)
            return false;
        poll(NULL, 0, 1);
    }
    return true;
}

struct equal {
    const _Atomic int64_t *counter;
    int64_t value;
};

static bool is_equal(void *arg) {
    const struct equal *e = arg;

    return atomic_load(e->counter) == e->value;
}

bool eventually_equal(const _Atomic int64_t *counter, int64_t value) {
    struct equal e = {counter, value};

    return eventually(is_equal, &e);
}

struct least {
    const _Atomic uint32_t *counter;
    uint32_t value;
};

static bool is_at_least(void *arg) {
    const struct least *l = arg;

    return atomic_load(l->counter) >= l->value;
}

bool eventually_at_least(const _Atomic uint32_t *counter, uint32_t value) {
    struct least l = {counter, value};

    return eventually(is_at_least, &l);
}

/* ---- children ---- */

#define CHILDREN_MAX 600
static pid_t children[CHILDREN_MAX];

static void forget(pid_t pid) {
    for (int i = 0; i < CHILDREN_MAX; i++)
        if (children[i] == pid)
            children[i] = 0;
}

pid_t fork_child(void) {
    pid_t parent = getpid();
    int free_place = -1;

    for (int i = 0; i < CHILDREN_MAX && free_place < 0; i++)
        if (children[i] == 0)
            free_place = i;
    if (free_place < 0)
        abort();
    pid_t pid = fork();
    if (pid == 0) {
        memset(children, 0, sizeof children);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(99);
        /* cmocka's handlers would make a child that crashes go on as the runner of the remaining tests. */
        static const int deadly[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
        for (size_t i = 0; i < sizeof deadly / sizeof *deadly; i++)
            signal(deadly[i], SIG_DFL);
    } else if (pid > 0) {
        children[free_place] = pid;
    }
    return pid;
}

int kill_child(pid_t pid) {
    int status = 0;

    kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    forget(pid);
    return status;
}

int wait_child(pid_t pid) {
    uint64_t deadline = in_seconds(2 * WAIT_S);
    int status = 0;
    pid_t got;

    while ((got = waitpid(pid, &status, WNOHANG)) == 0) {
        if (dbp_now_us() > deadline) {
            status = kill_child(pid);
            return -SIGKILL;
        }
        poll(NULL, 0, 1);
    }
    forget(pid);
    if (got < 0)
        return -1000;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

int reap_all(void) {
    int n = 0;

    for (int i = 0; i < CHILDREN_MAX; i++)
        if (children[i] > 0) {
            kill_child(children[i]);
            n++;
        }
    return n;
}

/* ---- fds ---- */

static DIR *open_fds(pid_t pid) {
    char path[64];

    if (pid == 0)
        snprintf(path, sizeof path, "/proc/self/fd");
    else
        snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    return opendir(path);
}

int fd_census(pid_t pid) {
    DIR *dir = open_fds(pid);
    int n = 0;

    if (!dir)
        return -1;
    while (readdir(dir))
        n++;
    closedir(dir);
    return n - 2 - (pid == 0); /* ., .. and the directory itself */
}

bool has_inode(pid_t pid, ino_t inode) {
    DIR *dir = open_fds(pid);
    bool found = false;
    struct dirent *entry;

    if (!dir)
        return false;
    while ((entry = readdir(dir))) {
        struct stat st;
        if (fstatat(dirfd(dir), entry->d_name, &st, 0) == 0 && S_ISSOCK(st.st_mode) && st.st_ino == inode)
            found = true;
    }
    closedir(dir);
    return found;
}

bool under_valgrind(void) {
    const char *preload = getenv("LD_PRELOAD");

    return preload && strstr(preload, "valgrind");
}

int allow_files(bool more) {
    static rlim_t before;
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return -errno;
    if (before == 0)
        before = limit.rlim_cur;
    int lowest_free = more ? -1 : dup(STDERR_FILENO);
    if (lowest_free >= 0)
        close(lowest_free);
    limit.rlim_cur = more ? before : (rlim_t)lowest_free;
    return (more || lowest_free >= 0) && setrlimit(RLIMIT_NOFILE, &limit) == 0 ? 0 : -errno;
}

/* ---- the rest ---- */

uint64_t test_seed(void) {
    const char *text = getenv("DBPOOL_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 0) : dbp_now_us();

    printf("DBPOOL_SEED=%llu\n", (unsigned long long)seed);
    fflush(stdout);
    return seed;
}

uint32_t test_seconds(void) {
    const char *text = getenv("DBPOOL_RACE_SECONDS");

    return text ? (uint32_t)strtoul(text, NULL, 0) : 10u;
}

uint64_t test_random(uint64_t *state) {
    /* splitmix64 (public domain, S. Vigna): any seed will do, zero too. */
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

struct dbp_pool_spec test_spec(const char *alias, uint32_t pool_size, uint32_t max_overflow) {
    struct dbp_pool_spec spec;

    memset(&spec, 0, sizeof spec);
    snprintf(spec.alias, sizeof spec.alias, "%s", alias);
    snprintf(spec.host, sizeof spec.host, "127.0.0.1");
    snprintf(spec.user, sizeof spec.user, "app");
    snprintf(spec.password, sizeof spec.password, "pa55-Of-TheTest");
    snprintf(spec.database, sizeof spec.database, "shop");
    snprintf(spec.charset, sizeof spec.charset, "utf8mb4");
    spec.port = 3306;
    spec.autocommit = 1;
    spec.connect_timeout_s = 5;
    spec.pool_size = pool_size;
    spec.max_overflow = max_overflow;
    return spec;
}

void *shared_memory(size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        abort();
    return memory;
}

int session_send(int fd, const char *sql) {
    uint8_t packet[256] = {0};
    size_t n = strlen(sql);

    packet[0] = (uint8_t)(n + 1);
    packet[4] = 3; /* COM_QUERY */
    memcpy(packet + 5, sql, n);
    return send(fd, packet, n + 5, MSG_NOSIGNAL) == (ssize_t)(n + 5) ? 0 : -errno;
}

int session_query(int fd, const char *sql, uint64_t *noncep, uint16_t *statusp) {
    uint8_t in[64];
    size_t have = 0, want = 4;

    int rc = session_send(fd, sql);
    if (rc != 0)
        return rc;
    while (have < want) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, (int)(WAIT_S * 1000)) == 0)
            return -ETIMEDOUT;
        ssize_t n = recv(fd, in + have, want - have, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (n <= 0)
            return n == 0 ? -EPIPE : -errno;
        have += (size_t)n;
        if (have == 4)
            want = 4 + in[0];
        if (want > sizeof in)
            return DBP_E_INVALID;
    }
    /* The fake server's OK: 00, affected 0, insert id fe + 8 bytes, status, warnings. */
    if (want != 4 + 15 || in[3] != 1 || in[4] != 0 || in[6] != 0xfe)
        return DBP_E_INVALID;
    if (noncep)
        memcpy(noncep, in + 7, 8);
    if (statusp)
        *statusp = (uint16_t)(in[15] | in[16] << 8);
    return 0;
}

_Atomic uint32_t log_lines, log_warnings;

void test_log(enum dbp_log_level level, const char *text) {
    atomic_fetch_add(&log_lines, 1);
    if (level != DBP_LOG_INFO)
        atomic_fetch_add(&log_warnings, 1);
    if (getenv("DBPOOL_TEST_VERBOSE"))
        fprintf(stderr, "log: %s\n", text);
}

void test_keeper_log(void *arg, enum dbp_log_level level, const char *text) {
    (void)arg;
    test_log(level, text);
}
