/* SPDX-License-Identifier: MIT
 * No memory, no fds, no threads: each call for one of them in turn fails, in everything that core starts. It must say
 * so (-errno), leave nothing open, and work when asked again. The linker puts the functions here in the place of the
 * real ones (-Wl,--wrap, in CMakeLists.txt).
 */
#include "attach.h"
#include "broker.h"
#include "failure.h"
#include "handshake.h"
#include "keeper.h"
#include "relay.h"
#include "replay.h"

#include "../support/helpers.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- calls that fail ---- */

static _Thread_local uint32_t fail_at, calls; /* the fail_at-th from now, of this thread; 0: none */

static bool fails(int error) {
    if (fail_at == 0 || ++calls != fail_at)
        return false;
    errno = error;
    return true;
}

#define WRAP(type, name, failed, error, parameters, arguments)    \
    type __real_##name parameters;                                \
    type __wrap_##name parameters;                                \
    type __wrap_##name parameters {                               \
        return fails(error) ? (failed) : __real_##name arguments; \
    }
WRAP(void *, malloc, NULL, ENOMEM, (size_t n), (n))
WRAP(void *, calloc, NULL, ENOMEM, (size_t n, size_t size), (n, size))
WRAP(void *, realloc, NULL, ENOMEM, (void *p, size_t n), (p, n))
WRAP(void *, mmap, MAP_FAILED, ENOMEM, (void *at, size_t n, int prot, int flags, int fd, off_t offset),
     (at, n, prot, flags, fd, offset))
WRAP(int, madvise, -1, EINVAL, (void *at, size_t n, int advice), (at, n, advice))
WRAP(int, memfd_create, -1, EMFILE, (const char *name, unsigned flags), (name, flags))
WRAP(int, ftruncate, -1, ENOSPC, (int fd, off_t n), (fd, n))
WRAP(int, eventfd, -1, EMFILE, (unsigned count, int flags), (count, flags))
WRAP(int, epoll_create1, -1, EMFILE, (int flags), (flags))
WRAP(int, epoll_ctl, -1, ENOSPC, (int epoll, int op, int fd, struct epoll_event *event), (epoll, op, fd, event))
WRAP(int, socket, -1, EMFILE, (int domain, int type, int protocol), (domain, type, protocol))
WRAP(int, socketpair, -1, ENFILE, (int domain, int type, int protocol, int *pair), (domain, type, protocol, pair))
WRAP(int, setsockopt, -1, ENOBUFS, (int fd, int level, int name, const void *value, socklen_t n),
     (fd, level, name, value, n))
WRAP(int, bind, -1, ENOBUFS, (int fd, const struct sockaddr *address, socklen_t n), (fd, address, n))
WRAP(int, listen, -1, ENOBUFS, (int fd, int backlog), (fd, backlog))
WRAP(int, getsockname, -1, ENOBUFS, (int fd, struct sockaddr *address, socklen_t *n), (fd, address, n))
WRAP(int, pthread_attr_init, ENOMEM, ENOMEM, (pthread_attr_t * attr), (attr))
WRAP(int, pthread_create, EAGAIN, EAGAIN,
     (pthread_t * thread, const pthread_attr_t *attr, void *(*run)(void *), void *arg), (thread, attr, run, arg))

/* Has `make` fail at its first call for something, at its second, ...; it must answer an error, with no fd more than
 * before, until it is through all of them. make undoes what it made. n_optional: so many it can do without. Returns how
 * many failures there were. */
static uint32_t fail_each(int (*make)(void), uint32_t n_optional) {
    uint32_t n = 1;

    assert_int_equal(make(), 0); /* what is made once and kept (atfork handlers, the library's own) is there now */
    for (;; n++) {
        int before = fd_census(0);
        calls = 0;
        fail_at = n;
        int rc = make();
        fail_at = 0;
        assert_int_equal(fd_census(0), before);
        if (calls < n) {
            assert_int_equal(rc, 0);
            assert_int_equal(n_optional, 0);
            return n - 1;
        }
        if (rc == 0 && n_optional > 0) {
            n_optional--;
            continue;
        }
        assert_true(rc < 0);
        assert_int_equal(make(), 0);
    }
}

/* ---- what is started in the master ---- */

/* What could not be made, and why, is said. */
static void check_named(int rc) {
    const char *text = dbp_failure();

    if (rc == 0)
        return;
    assert_non_null(strstr(text, strerror(-rc)));
    assert_true(strstr(text, ": ") > text + 5);
}

static int make_share(void) {
    struct dbp_share share;
    int control;

    (void)dbp_failed("", 0); /* what is there afterwards was noted by this one */
    int rc = dbp_share_new(5, &share, &control);
    check_named(rc);
    if (rc == 0) {
        close(control);
        dbp_share_free(&share);
    }
    return rc;
}

static int make_registry(void) {
    struct dbp_registry *registry;

    int rc = dbp_registry_new(&registry);
    if (rc == 0)
        dbp_registry_free(registry);
    return rc;
}

static struct dbp_share share;
static int control;

static bool nobody(void *arg, int32_t pid) {
    (void)arg;
    (void)pid;
    return false;
}

static int make_broker(void) {
    struct dbp_broker_ops ops = {.log = test_log, .connector_is = nobody};
    struct dbp_broker *broker = NULL;

    (void)dbp_failed("", 0);
    int rc = dbp_broker_start(&share, fcntl(control, F_DUPFD_CLOEXEC, 0), &ops, &broker); /* consumed */
    check_named(rc);
    if (rc != 0)
        assert_int_equal(atomic_load(&share.table->broker_up), 0);
    dbp_broker_stop(broker);
    return rc;
}

static void test_the_master_is_told(void **state) {
    (void)state;
    assert_true(fail_each(make_share, 0) >= 11);
    assert_true(fail_each(make_registry, 1) == 4); /* without MADV_WIPEONFORK it wipes by hand */
    assert_int_equal(dbp_share_new(2, &share, &control), 0);
    assert_true(fail_each(make_broker, 1) >= 10);
    close(control);
    dbp_share_free(&share);
}

/* Where the kernel does not wipe the passwords in a child, we do (I9). */
static void test_I9_a_forked_child_has_no_password_without_the_kernels_help(void **state) {
    struct dbp_pool_spec spec = test_spec("default", 1, 0);
    struct dbp_registry *registry;
    char text[DBP_TEXT_MAX];
    uint32_t pool;
    bool changed;

    (void)state;
    assert_int_equal(dbp_share_new(2, &share, &control), 0);
    calls = 0;
    fail_at = 3; /* the first madvise, after calloc and mmap */
    assert_int_equal(dbp_registry_new(&registry), 0);
    fail_at = 0;
    assert_int_equal(dbp_registry_put(registry, share.table, &spec, text, &pool, &changed), 0);
    pid_t pid = fork_child();
    if (pid == 0) {
        const char *password = dbp_registry_spec(registry, pool)->password;
        bool there = strcmp(password, spec.password) == 0; /* else the kernel's help was not refused */
        dbp_registry_fork_child(registry);
        _exit(there && password[0] == '\0' ? 0 : 1);
    }
    assert_int_equal(wait_child(pid), 0);
    dbp_registry_free(registry);
    close(control);
    dbp_share_free(&share);
}

/* ---- in the workers ---- */

static struct dbp_session_facts facts;

static void make_facts(void) {
    static const uint8_t greeting[] = "\n8.0\0\1\0\0\0abcdefgh\0\0\x82\x2d\2\0\x08\0\x15\0\0\0\0\0\0\0\0\0\0"
                                      "ijklmnopqrst";

    memset(&facts, 0, sizeof facts);
    facts.greeting_len = sizeof greeting;
    memcpy(facts.greeting, greeting, sizeof greeting);
    facts.capabilities = DBP_CAP_PROTOCOL_41 | DBP_CAP_SECURE_CONNECTION;
}

static int make_replay(void) {
    struct dbp_replay *replay = NULL;

    int rc = dbp_replay_new(&facts, "utf8mb4", 2, &replay);
    dbp_replay_free(replay);
    return rc;
}

static int make_replay_server(void) {
    struct dbp_replay_server *server = NULL;
    char name[64], refusal[64];

    int rc = dbp_replay_server_start(&facts, "utf8mb4", 2, in_seconds(WAIT_S), name, sizeof name, &server);
    return rc == 0 ? dbp_replay_server_stop(server, refusal, sizeof refusal) : rc;
}

static int fence(void) {
    int fd = dup(STDERR_FILENO);

    int rc = dbp_fence_fd(fd);
    close(fd);
    return rc;
}

static void test_a_worker_is_told(void **state) {
    (void)state;
    make_facts();
    assert_int_equal(fail_each(make_replay, 0), 1);
    assert_true(fail_each(make_replay_server, 0) >= 7);
    assert_int_equal(fail_each(fence, 1), 1); /* /dev/null needs one number less */
}

/* A client beside a broker in this process: attaching, and guarding more fds than there was room for. */
static struct dbp_broker *broker;

static int attach(void) {
    uint32_t slot;
    int channel;

    int rc = dbp_attach(&share, DBP_ROLE_CLIENT, "limited", in_seconds(WAIT_S), &channel, &slot);
    if (rc == 0) {
        close(channel);
        for (uint32_t i = 0; i < 2; i++) /* the broker's own fds of it are gone, too: the census is of this process */
            while (atomic_load(&share.table->procs[i].pid) != 0)
                sched_yield();
    }
    return rc;
}

static struct dbp_client *client;

static int guard_many(void) {
    int rc = 0;

    for (int fd = 0; fd < 40 && rc == 0; fd++)
        rc = dbp_guard_fd(client, 1000 + fd);
    for (int fd = 0; fd < 40; fd++)
        dbp_unguard_fd(client, 1000 + fd);
    return rc;
}

static void test_a_client_is_told(void **state) {
    struct dbp_broker_ops ops = {.log = test_log, .connector_is = nobody};

    (void)state;
    assert_int_equal(dbp_share_new(2, &share, &control), 0);
    assert_int_equal(dbp_broker_start(&share, control, &ops, &broker), 0);
    assert_int_equal(fail_each(attach, 0), 1);
    for (fail_at = 1; fail_at <= 2; fail_at++) { /* the client's own memory, its channel */
        calls = 0;
        assert_true(dbp_client_attach(&share, "limited", in_seconds(WAIT_S), &client) < 0);
    }
    fail_at = 0;
    assert_int_equal(dbp_client_attach(&share, "limited", in_seconds(WAIT_S), &client), 0);
    calls = 0;
    fail_at = 1;
    assert_int_equal(guard_many(), -ENOMEM);
    fail_at = 0;
    assert_int_equal(guard_many(), 0);
    broker = dbp_broker_stop(broker);
    dbp_share_free(&share);
}

/* ---- in the connector ---- */

static char server_name[DBP_DOOR_NAME_MAX];
static bool tcp;
static uint16_t server_port;
static int server_door = -1;

static int make_relay(void) {
    struct dbp_relay_route route = {.host = "127.0.0.1",
                                    .port = server_port,
                                    .unix_socket = tcp ? "" : server_name,
                                    .connect_deadline_us = in_seconds(WAIT_S),
                                    .deadline_us = in_seconds(WAIT_S),
                                    .stop_fd = -1};
    struct dbp_relay *relay = NULL;
    struct dbp_error error;
    int fd;

    int rc = dbp_relay_start(&route, &error, &relay);
    dbp_relay_free(relay);
    while ((fd = accept(server_door, NULL, NULL)) >= 0) /* its queue is short */
        close(fd);
    return rc == DBP_E_FAILED ? -ECONNREFUSED : rc;
}

static void test_the_connector_is_told(void **state) {
    int before = fd_census(0);

    (void)state;
    assert_int_equal(dbp_door_open_unix(server_name, &server_door), 0);
    assert_true(fail_each(make_relay, 0) >= 7);
    close(server_door);
    tcp = true;
    assert_int_equal(dbp_door_open_tcp(&server_port, &server_door), 0);
    assert_true(fail_each(make_relay, 5 /* keepalive and the like */) >= 8);
    close(server_door);
    assert_int_equal(fd_census(0), before);
}

/* ---- the same with the kernel's own no ---- */

static void test_memory_that_the_kernel_refuses(void **state) {
    (void)state;
#ifdef DBP_SANITIZED
    skip(); /* their shadow memory is terabytes */
#else
    pid_t pid = fork_child();
    if (pid == 0) {
        struct rlimit limit = {.rlim_cur = 1, .rlim_max = RLIM_INFINITY};
        struct dbp_keeper_ops keeper_ops = {.log = test_keeper_log};
        struct dbp_registry *registry = NULL;
        struct dbp_keeper *keeper = NULL;
        struct dbp_share s;
        int c;
        if (dbp_share_new(2, &share, &control) != 0 || dbp_registry_new(&registry) != 0)
            _exit(1);
        setrlimit(RLIMIT_AS, &limit);
        if (dbp_share_new(5, &s, &c) != -ENOMEM)
            _exit(2);
        if (dbp_registry_new(&registry) != -ENOMEM)
            _exit(3);
        int rc = 0;
        for (int i = 0; i < 64 && rc == 0; i++) /* megabytes each; a few may still lie in the heap */
            rc = dbp_keeper_new(&share, registry, &keeper_ops, DBP_SESSIONS_MAX, &keeper);
        if (rc != -ENOMEM)
            _exit(4);
        limit.rlim_cur = RLIM_INFINITY;
        setrlimit(RLIMIT_AS, &limit);
        _exit(dbp_keeper_new(&share, registry, &keeper_ops, DBP_SESSIONS_MAX, &keeper) == 0 ? 0 : 5);
    }
    assert_int_equal(wait_child(pid), 0);
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_master_is_told),
        cmocka_unit_test(test_a_worker_is_told),
        cmocka_unit_test(test_a_client_is_told),
        cmocka_unit_test(test_I9_a_forked_child_has_no_password_without_the_kernels_help),
        cmocka_unit_test(test_the_connector_is_told),
        cmocka_unit_test(test_memory_that_the_kernel_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
