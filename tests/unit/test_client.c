/* SPDX-License-Identifier: MIT
 * The client against a fake broker: a thread that reads the control socket and the channels and answers as told. The
 * table is real; other processes are played by writing their slots into it. The client is attached once and kept, as in
 * a worker.
 */
#include "attach.h"
#include "handoff.h"
#include "share.h"

#include "../support/helpers.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#define SLOT 3u
#define ATTACH 9u
#define OTHER 5u

static struct dbp_share share;
static struct dbp_table *table;
static struct dbp_pool_counters *count;
static struct dbp_client *client;
static int broker_control = -1;

/* ---- the fake broker ---- */

enum answer { ANSWER, REFUSE, SILENT, HANG_UP, LATE, GARBAGE, WRONG_TYPE, TOO_LONG_FACTS };

static struct {
    pthread_t thread;
    int stop_fd;
    _Atomic uint32_t attach_mode, attach_result, slot, ask_mode, asked;
    _Atomic uint32_t label_ok;
    _Atomic uint64_t last_inode; /* of the channel that came last, this end */
    int session_fd;              /* given with each SESSION */
} broker;

static void reply(int channel, union dbp_wire_any *msg, int fd) {
    if (dbp_wire_send(channel, msg, fd) != 0)
        return; /* the test's assertion on the outcome fails then */
}

static void answer_ask(int channel, const union dbp_wire_any *ask, uint32_t serial, enum answer mode) {
    union dbp_wire_any msg;
    bool fetch = ask->head.type == DBP_WIRE_FETCH;

    memset(&msg, 0, sizeof msg);
    dbp_wire_head_init(&msg.head, fetch ? DBP_WIRE_SESSION : DBP_WIRE_REGISTERED, serial);
    if (mode == WRONG_TYPE)
        dbp_wire_head_init(&msg.head, DBP_WIRE_ATTACHED, serial);
    if (mode == REFUSE)
        msg.head.result = fetch ? DBP_E_STALE : DBP_E_INVALID;
    if (fetch) {
        msg.session.facts.connection_id = mode == LATE ? 41 : 42;
        msg.session.facts.greeting_len = mode == TOO_LONG_FACTS ? DBP_GREETING_MAX + 1 : 10;
    } else if (mode != WRONG_TYPE) {
        msg.registered.pool = 1;
        snprintf(msg.registered.text, sizeof msg.registered.text, "%s", mode == REFUSE ? "port differs" : "");
    }
    reply(channel, &msg, fetch && mode != REFUSE && mode != WRONG_TYPE ? broker.session_fd : -1);
}

/* False: hang up. */
static bool on_ask(int channel) {
    static union dbp_wire_any late;
    static bool have_late;
    union dbp_wire_any msg;
    int fd = -1;

    if (dbp_wire_recv(channel, &msg, &fd, NULL) != 0)
        return false;
    enum answer mode = (enum answer)atomic_load(&broker.ask_mode);
    atomic_fetch_add(&broker.asked, 1);
    switch (mode) {
    case SILENT:
        late = msg;
        have_late = true;
        return true;
    case HANG_UP:
        return false;
    case GARBAGE:
        return send(channel, "garbage", 7, MSG_NOSIGNAL) == 7;
    case LATE:
        /* First what the last request should have got, then this one's. */
        if (have_late)
            answer_ask(channel, &late, late.head.serial, LATE);
        have_late = false;
        answer_ask(channel, &msg, msg.head.serial, ANSWER);
        return true;
    default:
        answer_ask(channel, &msg, msg.head.serial, mode);
        return true;
    }
}

static void on_attach(int *channels, size_t n) {
    union dbp_wire_any msg;
    int fd = -1;
    int32_t pid = 0;

    if (dbp_wire_recv(broker_control, &msg, &fd, &pid) != 0 || msg.head.type != DBP_WIRE_ATTACH)
        return;
    atomic_store(&broker.last_inode, dbp_socket_inode(fd));
    if (pid > 0 && msg.attach.role == DBP_ROLE_CLIENT && strcmp(msg.attach.label, "worker 3") == 0)
        atomic_fetch_add(&broker.label_ok, 1);
    enum answer mode = (enum answer)atomic_load(&broker.attach_mode);
    memset(&msg, 0, sizeof msg);
    dbp_wire_head_init(&msg.head, mode == WRONG_TYPE ? DBP_WIRE_REGISTERED : DBP_WIRE_ATTACHED, 1);
    msg.head.result = mode == REFUSE ? (uint32_t)DBP_E_FULL : 0;
    if (mode != WRONG_TYPE) {
        msg.attached.slot = atomic_load(&broker.slot);
        msg.attached.attach = ATTACH;
    }
    if (mode == GARBAGE && send(fd, "garbage", 7, MSG_NOSIGNAL) < 0)
        abort();
    if (mode == ANSWER || mode == REFUSE || mode == WRONG_TYPE)
        reply(fd, &msg, -1);
    if (mode == HANG_UP) {
        close(fd);
        return;
    }
    for (size_t i = 0; i < n; i++)
        if (channels[i] < 0) {
            channels[i] = fd;
            return;
        }
    close(fd);
}

static void *broker_run(void *arg) {
    enum { N = 32 };
    int channels[N];

    (void)arg;
    memset(channels, -1, sizeof channels);
    for (;;) {
        struct pollfd p[N + 2] = {{.fd = broker.stop_fd, .events = POLLIN}, {.fd = broker_control, .events = POLLIN}};
        for (int i = 0; i < N; i++)
            p[i + 2] = (struct pollfd){.fd = channels[i], .events = POLLIN};
        poll(p, N + 2, -1);
        if (p[0].revents)
            break;
        for (int i = 0; i < N; i++)
            if (p[i + 2].revents && !on_ask(channels[i])) {
                close(channels[i]);
                channels[i] = -1;
            }
        if (p[1].revents)
            on_attach(channels, N);
    }
    for (int i = 0; i < N; i++)
        if (channels[i] >= 0)
            close(channels[i]);
    return NULL;
}

/* ---- fixtures ---- */

static pthread_mutex_t may_attach = PTHREAD_MUTEX_INITIALIZER;

static void make_idle(uint32_t session) {
    dbp_word word = atomic_load(&table->sessions[session].word);

    atomic_store(&table->sessions[session].incarnation, 7);
    if (!dbp_session_move(table, session, word, DBP_OPENING, 0, &word) || !dbp_idle_put(table, session, word))
        abort();
}

/* Runs in the middle of a fork, after core's own handler, which was installed later than this one. */
static _Atomic bool attach_now, attached, attached_within;

static void in_a_fork(void) {
    if (!atomic_exchange(&attach_now, false))
        return;
    atomic_store(&attached, false);
    pthread_mutex_unlock(&may_attach);
    for (int i = 0; i < 300 && !atomic_load(&attached); i++)
        poll(NULL, 0, 1);
    atomic_store(&attached_within, atomic_load(&attached));
}

static int group_setup(void **state) {
    (void)state;
    if (pthread_atfork(in_a_fork, NULL, NULL) != 0)
        return -1;
    if (dbp_share_new(8, &share, &broker_control) != 0)
        return -1;
    table = share.table;
    count = &table->pools[0].count;
    broker.stop_fd = eventfd(0, EFD_CLOEXEC);
    broker.session_fd = eventfd(0, EFD_CLOEXEC);
    atomic_store(&broker.slot, SLOT);
    if (pthread_create(&broker.thread, NULL, broker_run, NULL) != 0)
        return -1;
    uint64_t stale = 5; /* what the slot's previous process left */
    if (write(share.wake_fds[SLOT], &stale, sizeof stale) < 0)
        return -1;
    return dbp_client_attach(&share, "worker 3", in_seconds(WAIT_S), &client);
}

static int group_teardown(void **state) {
    uint64_t one = 1;

    (void)state;
    if (write(broker.stop_fd, &one, sizeof one) < 0)
        return -1;
    pthread_join(broker.thread, NULL);
    close(broker.stop_fd);
    close(broker.session_fd);
    close(broker_control);
    dbp_share_free(&share);
    return reap_all();
}

static int setup(void **state) {
    uint64_t drain;

    (void)state;
    memset((void *)table->sessions, 0, sizeof table->sessions);
    memset((void *)table->pools, 0, sizeof table->pools);
    memset((void *)table->attention, 0, sizeof table->attention);
    for (uint32_t pool = 0; pool < 2; pool++) {
        dbp_queue_init(&table->pools[pool].queue);
        atomic_store(&table->pools[pool].live, 1);
        atomic_store(&table->pools[pool].ring_above, 4);
        atomic_store(&table->pools[pool].count.max, 4);
    }
    atomic_store(&table->n_pools, 2);
    atomic_store(&table->broker_up, 1);
    atomic_store(&table->procs[SLOT].attached, ATTACH);
    atomic_store(&broker.attach_mode, ANSWER);
    atomic_store(&broker.ask_mode, ANSWER);
    atomic_store(&broker.slot, SLOT);
    dbp_set_wait(NULL);
    while (read(share.doorbell_fd, &drain, sizeof drain) > 0 || read(share.wake_fds[SLOT], &drain, sizeof drain) > 0)
        continue;
    return 0;
}

static int teardown(void **state) {
    (void)state;
    return reap_all();
}

static bool rang(void) {
    uint64_t n;

    return read(share.doorbell_fd, &n, sizeof n) > 0;
}

static enum dbp_state state_of(uint32_t session) {
    return dbp_word_state(atomic_load(&table->sessions[session].word));
}

static struct dbp_lease lease_one(void) {
    struct dbp_lease lease;

    assert_int_equal(dbp_acquire_now(client, 0, &lease), 0);
    return lease;
}

/* ---- attaching ---- */

static void test_attaching_gives_a_slot_and_a_clean_wakeup(void **state) {
    (void)state;
    assert_int_equal(atomic_load(&broker.label_ok), 1);
    assert_int_equal(dbp_wait_fd(client), share.wake_fds[SLOT]);
    uint64_t n;
    assert_int_equal(read(dbp_wait_fd(client), &n, sizeof n), -1);
    assert_int_equal(errno, EAGAIN);
}

static void assert_attach(int expected, uint64_t deadline_us) {
    struct dbp_client *other = NULL;
    int before = fd_census(0);

    assert_int_equal(dbp_client_attach(&share, "other", deadline_us, &other), expected);
    assert_null(other);
    /* The broker's ends may still be open for a moment; ours are closed, which is one per attempt at most. */
    assert_true(fd_census(0) <= before + 1);
}

static void test_attaching_fails_cleanly(void **state) {
    (void)state;
    atomic_store(&broker.attach_mode, REFUSE);
    assert_attach(DBP_E_FULL, in_seconds(WAIT_S));
    atomic_store(&broker.attach_mode, SILENT);
    assert_attach(DBP_E_TIMEOUT, dbp_now_us() + 20000);
    atomic_store(&broker.attach_mode, HANG_UP);
    assert_attach(-EPIPE, in_seconds(WAIT_S));
    atomic_store(&broker.attach_mode, GARBAGE);
    assert_attach(-EPROTO, in_seconds(WAIT_S));
    atomic_store(&broker.attach_mode, WRONG_TYPE);
    assert_attach(-EPROTO, in_seconds(WAIT_S));
    atomic_store(&broker.attach_mode, ANSWER);
    atomic_store(&broker.slot, DBP_PROCS_MAX);
    assert_attach(-EPROTO, in_seconds(WAIT_S));
    atomic_store(&broker.slot, share.n_wake_fds); /* a slot without a wake-up fd */
    assert_attach(DBP_E_FULL, in_seconds(WAIT_S));
}

static void test_I10_a_table_of_another_version_is_refused(void **state) {
    (void)state;
    table->version++;
    assert_attach(-EPROTO, in_seconds(WAIT_S));
    table->version--;
}

static int ask_register(uint64_t deadline_us, char *text, uint32_t *poolp) {
    struct dbp_pool_spec spec = test_spec("default", 4, 0);

    return dbp_client_register(client, &spec, deadline_us, text, DBP_TEXT_MAX, poolp);
}

/* A fork waits for the end of an attach, so that its child knows what it has to let go of. */

static void *attach_in_vain(void *arg) {
    struct dbp_client *other = NULL;

    *(int *)arg = dbp_client_attach(&share, "worker 3", dbp_now_us() + 500000, &other);
    return NULL;
}

/* SEQPACKET sockets of this process, by their inodes. */
static size_t channels(uint64_t inodes[64]) {
    size_t n = 0;
    int type;

    for (int fd = 0; fd < 256 && n < 64; fd++) {
        socklen_t size = sizeof type;
        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_SEQPACKET)
            inodes[n++] = dbp_socket_inode(fd);
    }
    return n;
}

/* Channels beyond those, and the fake broker's ends. */
static int more_channels(const uint64_t *before, size_t n_before) {
    uint64_t now[64];
    size_t n = channels(now);
    int more = 0;

    for (size_t i = 0; i < n; i++) {
        bool known = now[i] == atomic_load(&broker.last_inode);
        for (size_t k = 0; k < n_before; k++)
            known = known || now[i] == before[k];
        more += !known;
    }
    return more;
}

static void test_I11_a_child_forked_during_an_attach_has_no_channel(void **state) {
    uint32_t asked = atomic_load(&broker.label_ok);
    uint64_t before[64];
    size_t n = channels(before);
    pthread_t thread;
    int rc = 0;

    (void)state;
    atomic_store(&broker.attach_mode, SILENT);
    assert_int_equal(pthread_create(&thread, NULL, attach_in_vain, &rc), 0);
    assert_true(eventually_at_least(&broker.label_ok, asked + 1)); /* it waits for its answer */
    atomic_store(&broker.attach_mode, ANSWER);
    pid_t pid = fork_child();
    if (pid == 0) {
        struct dbp_client *own;
        int more = more_channels(before, n);
        if (more || under_valgrind()) /* which finds that the child has lost what its parent was making */
            _exit(more);
        /* That its parent attaches is nothing to wait for. */
        _exit(dbp_client_attach(&share, "child", in_seconds(WAIT_S), &own) == 0 ? 0 : 99);
    }
    pthread_join(thread, NULL);
    assert_int_equal(rc, DBP_E_TIMEOUT);
    assert_int_equal(wait_child(pid), 0);
}

/* ---- a client that the broker has let go of ---- */

static void test_a_client_that_was_let_go_of_takes_nothing(void **state) {
    struct dbp_lease lease = {0}, before;
    struct dbp_wait wait;

    (void)state;
    make_idle(0);
    make_idle(1);
    before = lease_one();
    atomic_store(&table->procs[SLOT].attached, ATTACH + 1); /* the slot has another process */
    assert_int_equal(dbp_acquire_now(client, 0, &lease), DBP_E_CLOSED);
    assert_int_equal(dbp_acquire(client, 0, in_seconds(WAIT_S), NULL, NULL, &lease), DBP_E_CLOSED);
    assert_int_equal(dbp_wait_begin(client, 0, DBP_WAIT_EVENT, &wait), DBP_E_CLOSED);
    assert_true(dbp_queue_quiet(&table->pools[0].queue));
    assert_int_equal(state_of(1), DBP_IDLE);
    /* The slot's next process has the same slot, and not the lease. */
    dbp_word word = atomic_load(&table->sessions[before.session].word);
    assert_int_equal(dbp_holder_slot(dbp_word_owner(word)), SLOT);
    assert_int_not_equal(dbp_word_owner(word), dbp_holder(SLOT, ATTACH + 1));
}

static void test_a_client_that_was_let_go_of_attaches_anew(void **state) {
    struct dbp_lease before, lease;
    char text[DBP_TEXT_MAX];
    uint32_t pool;

    (void)state;
    make_idle(0);
    make_idle(1);
    before = lease_one();
    atomic_store(&table->procs[SLOT].attached, 0);
    atomic_store(&table->procs[OTHER].attached, ATTACH);
    atomic_store(&broker.slot, OTHER);
    int fds = fd_census(0);
    assert_int_equal(ask_register(in_seconds(WAIT_S), text, &pool), 0);
    assert_true(fd_census(0) <= fds + 1); /* the fake broker keeps its end of the old channel for a moment */
    assert_false(dbp_lease_valid(client, &before));
    assert_int_equal(dbp_release(client, &before, 2, DBP_RETURN_CLEAN), DBP_E_STALE);
    assert_int_equal(dbp_acquire_now(client, 0, &lease), 0);
    assert_int_equal(dbp_word_owner(atomic_load(&table->sessions[lease.session].word)), dbp_holder(OTHER, ATTACH));
    assert_int_equal(dbp_wait_fd(client), share.wake_fds[OTHER]);
    assert_int_equal(dbp_release(client, &lease, 2, DBP_RETURN_CLEAN), 0);
    /* And back, for the tests to come. */
    atomic_store(&table->procs[OTHER].attached, 0);
    atomic_store(&table->procs[SLOT].attached, ATTACH);
    atomic_store(&broker.slot, SLOT);
    assert_int_equal(ask_register(in_seconds(WAIT_S), text, &pool), 0);
}

/* The broker has not seen it yet. */
static void test_a_client_whose_channel_was_closed_attaches_anew_at_once(void **state) {
    int type = 0, channel = -1;
    char text[DBP_TEXT_MAX];
    uint32_t pool;

    (void)state;
    for (int fd = 0; fd < 256 && channel < 0; fd++) { /* its own end is the first; the other one is the fake broker's */
        socklen_t size = sizeof type;
        if (fd != share.control_fd && fd != broker_control && getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 &&
            type == SOCK_SEQPACKET)
            channel = fd;
    }
    close(channel);
    assert_int_equal(ask_register(in_seconds(WAIT_S), text, &pool), 0);
    int file = open("/dev/null", O_RDONLY | O_CLOEXEC); /* and one whose number is somebody else's */
    assert_int_equal(dup2(file, channel), channel);
    assert_int_equal(ask_register(in_seconds(WAIT_S), text, &pool), 0);
    assert_int_equal(fcntl(channel, F_GETFD), 0); /* is there still */
    close(channel);
    close(file);
}

/* ---- asking ---- */

static void test_registering(void **state) {
    char text[DBP_TEXT_MAX] = "";
    uint32_t pool = 9;

    (void)state;
    atomic_store(&broker.ask_mode, REFUSE);
    assert_int_equal(ask_register(in_seconds(WAIT_S), text, &pool), DBP_E_INVALID);
    assert_string_equal(text, "port differs");
    assert_int_equal(pool, 9);
    atomic_store(&broker.ask_mode, ANSWER);
    assert_int_equal(ask_register(in_seconds(WAIT_S), text, &pool), 0);
    assert_int_equal(pool, 1);
}

static void test_fetching_gives_a_private_fd(void **state) {
    struct dbp_session_facts facts = {0};
    struct dbp_lease lease = {0};
    int fd = -7, before = fd_census(0);

    (void)state;
    atomic_store(&broker.ask_mode, REFUSE);
    assert_int_equal(dbp_session_fetch(client, &lease, in_seconds(WAIT_S), &fd, &facts), DBP_E_STALE);
    atomic_store(&broker.ask_mode, TOO_LONG_FACTS);
    assert_int_equal(dbp_session_fetch(client, &lease, in_seconds(WAIT_S), &fd, &facts), -EPROTO);
    assert_int_equal(fd, -7);
    assert_int_equal(facts.connection_id, 0);
    assert_true(fd_census(0) <= before);
    atomic_store(&broker.ask_mode, ANSWER);
    assert_int_equal(dbp_session_fetch(client, &lease, in_seconds(WAIT_S), &fd, &facts), 0);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    assert_int_equal(facts.connection_id, 42);
    dbp_unguard_fd(client, fd);
    close(fd);
}

static void test_I2_an_answer_that_comes_late_is_not_taken_for_the_next(void **state) {
    struct dbp_session_facts facts;
    struct dbp_lease lease = {0};
    uint32_t pool = 9;
    char text[DBP_TEXT_MAX] = "";
    int fd = -7, before = fd_census(0);

    (void)state;
    atomic_store(&broker.ask_mode, SILENT);
    uint32_t asked = atomic_load(&broker.asked);
    assert_int_equal(dbp_session_fetch(client, &lease, dbp_now_us() + 20000, &fd, &facts), DBP_E_TIMEOUT);
    assert_true(eventually_at_least(&broker.asked, asked + 1));
    atomic_store(&broker.ask_mode, LATE);
    assert_int_equal(ask_register(in_seconds(WAIT_S), text, &pool), 0);
    assert_int_equal(pool, 1);
    assert_int_equal(fd, -7);
    assert_true(fd_census(0) <= before); /* the late answer brought an fd, which nobody wanted any more */
    /* The same when it is an answer of the kind that the next one waits for. */
    atomic_store(&broker.ask_mode, SILENT);
    asked = atomic_load(&broker.asked);
    assert_int_equal(dbp_session_fetch(client, &lease, dbp_now_us() + 20000, &fd, &facts), DBP_E_TIMEOUT);
    assert_true(eventually_at_least(&broker.asked, asked + 1));
    atomic_store(&broker.ask_mode, LATE);
    assert_int_equal(dbp_session_fetch(client, &lease, in_seconds(WAIT_S), &fd, &facts), 0);
    assert_int_equal(facts.connection_id, 42);
    dbp_unguard_fd(client, fd);
    close(fd);
    assert_true(fd_census(0) <= before);
    atomic_store(&broker.ask_mode, SILENT);
    assert_int_equal(ask_register(dbp_now_us() + 20000, text, &pool), DBP_E_TIMEOUT);
    assert_string_equal(text, "the broker did not answer");
}

static void test_I10_garbage_and_strange_answers_are_survived(void **state) {
    char text[DBP_TEXT_MAX];
    uint32_t pool = 9;

    (void)state;
    atomic_store(&broker.ask_mode, GARBAGE);
    assert_int_not_equal(ask_register(in_seconds(WAIT_S), text, &pool), 0);
    atomic_store(&broker.ask_mode, WRONG_TYPE);
    assert_int_equal(ask_register(dbp_now_us() + 20000, text, &pool), DBP_E_TIMEOUT);
    assert_int_equal(pool, 9);
    atomic_store(&broker.ask_mode, ANSWER);
    assert_int_equal(ask_register(in_seconds(WAIT_S), text, &pool), 0);
}

/* ---- acquiring and releasing ---- */

static void test_a_lease_from_taking_to_return(void **state) {
    (void)state;
    make_idle(0);
    atomic_store(&table->sessions[0].status, 2);
    struct dbp_lease lease = lease_one(), again;
    assert_int_equal(lease.session, 0);
    assert_int_equal(lease.incarnation, 7);
    assert_true(dbp_lease_valid(client, &lease));
    assert_int_equal(dbp_lease_status(client, &lease), 2);
    assert_int_equal(dbp_word_owner(atomic_load(&table->sessions[0].word)), dbp_holder(SLOT, ATTACH));
    assert_int_equal(dbp_acquire_now(client, 0, &again), DBP_E_BUSY);
    /* IN_TRANS | AUTOCOMMIT | MORE_RESULTS | SESSION_STATE_CHANGED: only what lasts goes on to the next */
    assert_int_equal(dbp_release(client, &lease, 0x400b, DBP_RETURN_CLEAN), 0);
    assert_false(dbp_lease_valid(client, &lease));
    assert_false(rang()); /* nothing for the broker to do */
    again = lease_one();
    assert_int_equal(dbp_lease_status(client, &again), 3);
    assert_int_not_equal(again.generation, lease.generation);
    assert_int_equal(dbp_pool_acquires(table, 0), 2);
    assert_true(atomic_load(&table->sessions[0].users) & (1u << SLOT));
}

/* Sessions 0 and 1, of which this process had 1 last: another one had 0 at that time, and has given it back. */
static void had_the_second_of_two(void) {
    uint32_t session;
    dbp_word word;

    make_idle(0);
    make_idle(1);
    assert_true(dbp_idle_take(table, 0, DBP_LEASED, OTHER, &session, &word));
    struct dbp_lease lease = lease_one();
    assert_int_equal(lease.session, 1);
    assert_true(dbp_idle_put(table, session, word));
    assert_int_equal(dbp_release(client, &lease, 2, DBP_RETURN_CLEAN), 0);
}

static uint32_t use_one(void) {
    struct dbp_lease lease = lease_one();

    assert_int_equal(dbp_release(client, &lease, 2, DBP_RETURN_CLEAN), 0);
    return lease.session;
}

static void test_a_process_takes_the_session_that_it_had_last(void **state) {
    uint32_t session;
    dbp_word word;

    (void)state;
    had_the_second_of_two();
    struct dbp_lease lease = lease_one();
    assert_int_equal(lease.session, 1);
    assert_int_equal(atomic_load(&table->pools[0].idle[0]), 3); /* nothing was written there */
    /* Its bit makes nobody else lend it, and its return makes everybody see it again. */
    assert_true(dbp_idle_take(table, 0, DBP_LEASED, OTHER, &session, &word));
    assert_int_equal(session, 0);
    assert_false(dbp_idle_take(table, 0, DBP_LEASED, OTHER, &session, &word));
    assert_int_equal(dbp_release(client, &lease, 2, DBP_RETURN_CLEAN), 0);
    assert_true(dbp_idle_take(table, 0, DBP_LEASED, OTHER, &session, &word));
    assert_int_equal(session, 1);
    /* What another has now is not missed for long. */
    assert_int_equal(dbp_acquire_now(client, 0, &lease), DBP_E_BUSY);
    make_idle(2);
    assert_int_equal(use_one(), 2);
}

static void test_a_low_load_comes_back_to_few_sessions(void **state) {
    uint32_t uses = 0;

    (void)state;
    had_the_second_of_two();
    while (use_one() != 0)
        assert_true(++uses < 100);
    for (uint32_t i = 0; i < 100; i++)
        assert_int_equal(use_one(), 0);
}

static void test_I1_a_lease_kept_past_its_return_can_do_nothing(void **state) {
    (void)state;
    make_idle(0);
    struct dbp_lease old = lease_one();
    assert_int_equal(dbp_release(client, &old, 2, DBP_RETURN_CLEAN), 0);
    for (int how = DBP_RETURN_CLEAN; how <= DBP_RETURN_DOOM; how++)
        assert_int_equal(dbp_release(client, &old, 0, (enum dbp_return)how), DBP_E_STALE);
    struct dbp_lease lease = lease_one(); /* the same session, the same process */
    for (int how = DBP_RETURN_CLEAN; how <= DBP_RETURN_DOOM; how++)
        assert_int_equal(dbp_release(client, &old, 0, (enum dbp_return)how), DBP_E_STALE);
    assert_true(dbp_lease_valid(client, &lease));
    assert_int_equal(dbp_lease_status(client, &lease), 2);
    struct dbp_lease wild = {.session = UINT32_MAX};
    assert_int_equal(dbp_release(client, &wild, 0, DBP_RETURN_CLEAN), DBP_E_STALE);
}

static void test_I1_another_processs_lease_cannot_be_returned(void **state) {
    uint32_t session;
    dbp_word word;

    (void)state;
    make_idle(0);
    assert_true(dbp_idle_take(table, 0, DBP_LEASED, OTHER, &session, &word));
    struct dbp_lease lease = {.session = session, .generation = dbp_word_generation(word), .incarnation = 7};
    assert_false(dbp_lease_valid(client, &lease));
    assert_int_equal(dbp_release(client, &lease, 0, DBP_RETURN_CLEAN), DBP_E_STALE);
    assert_true(atomic_load(&table->sessions[0].word) == word);
}

static void test_I5_what_is_not_clean_goes_to_the_broker(void **state) {
    (void)state;
    make_idle(0);
    make_idle(1);
    struct dbp_lease a = lease_one(), b = lease_one();
    assert_int_equal(dbp_release(client, &a, 1, DBP_RETURN_RESET), 0);
    assert_int_equal(state_of(0), DBP_RESETTING);
    assert_true(rang());
    dbp_attention_take(table, 0); /* taken by the broker */
    assert_int_equal(dbp_release(client, &b, 0, DBP_RETURN_DOOM), 0);
    assert_int_equal(state_of(1), DBP_CLOSING);
    assert_int_equal(dbp_word_owner(atomic_load(&table->sessions[1].word)), 1); /* with KILL */
    assert_true(rang());
    struct dbp_lease lease;
    assert_int_equal(dbp_acquire_now(client, 0, &lease), DBP_E_BUSY);
}

static void test_the_doorbell_rings_once_until_it_is_answered(void **state) {
    (void)state;
    make_idle(0);
    make_idle(1);
    struct dbp_lease a = lease_one(), b = lease_one();
    assert_int_equal(dbp_release(client, &a, 0, DBP_RETURN_RESET), 0);
    assert_true(rang());
    assert_int_equal(dbp_release(client, &b, 0, DBP_RETURN_RESET), 0);
    assert_false(rang()); /* the broker has not looked yet: it will see both */
}

static void test_an_overflow_session_is_told_to_the_broker(void **state) {
    (void)state;
    atomic_store(&table->pools[0].ring_above, 1);
    make_idle(0);
    make_idle(1);
    struct dbp_lease lease = lease_one();
    assert_int_equal(dbp_release(client, &lease, 0, DBP_RETURN_CLEAN), 0);
    assert_true(rang());
}

static void test_I5_an_unfit_session_is_not_handed_out(void **state) {
    struct dbp_lease lease;

    (void)state;
    make_idle(0);
    make_idle(1);
    atomic_store(&table->sessions[0].unfit, 1);
    lease = lease_one();
    assert_int_equal(lease.session, 1);
    /* One that becomes unfit while it is leased is not offered again. */
    atomic_store(&table->sessions[1].unfit, 1);
    assert_int_equal(dbp_release(client, &lease, 0, DBP_RETURN_CLEAN), 0);
    assert_int_equal(state_of(1), DBP_CLOSING);
    assert_int_equal(dbp_word_owner(atomic_load(&table->sessions[1].word)), 0); /* its wire is idle: no KILL */
    assert_true(rang());
    assert_int_equal(dbp_acquire_now(client, 0, &lease), DBP_E_BUSY);
}

static void test_pools_that_are_not_there(void **state) {
    static const uint32_t wrong[] = {2, DBP_POOLS_MAX - 1, DBP_POOLS_MAX, 7 * DBP_POOLS_MAX + 1, UINT32_MAX};
    struct dbp_lease lease;
    struct dbp_wait wait;

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(dbp_acquire_now(client, wrong[i], &lease), DBP_E_INVALID);
        assert_int_equal(dbp_wait_begin(client, wrong[i], DBP_WAIT_EVENT, &wait), DBP_E_INVALID);
        assert_int_equal(dbp_acquire(client, wrong[i], in_seconds(1), NULL, NULL, &lease), DBP_E_INVALID);
    }
}

/* ---- waiting ---- */

static void test_I4_a_newcomer_does_not_overtake_the_queue(void **state) {
    struct dbp_wait wait;
    struct dbp_lease lease;

    (void)state;
    assert_int_equal(dbp_wait_begin(client, 0, DBP_WAIT_EVENT, &wait), 0);
    make_idle(0); /* returned by a process that is stopped before it looks for waiters */
    assert_int_equal(dbp_acquire_now(client, 0, &lease), DBP_E_BUSY);
    dbp_handoff_match(&share, 0);
    assert_int_equal(dbp_acquire_now(client, 0, &lease), DBP_E_BUSY);
    assert_int_equal(dbp_wait_poll(client, &wait, &lease), 0);
}

static void test_a_return_wakes_an_event_loop(void **state) {
    struct dbp_wait first, second;
    struct dbp_lease lease, next;
    uint64_t n;

    (void)state;
    make_idle(0);
    lease = lease_one();
    assert_int_equal(dbp_wait_begin(client, 0, DBP_WAIT_EVENT, &first), 0);
    assert_int_equal(dbp_wait_begin(client, 0, DBP_WAIT_EVENT, &second), 0);
    assert_int_equal(dbp_wait_poll(client, &first, &next), DBP_E_BUSY);
    assert_int_equal(read(dbp_wait_fd(client), &n, sizeof n), -1);
    assert_int_equal(dbp_release(client, &lease, 2, DBP_RETURN_CLEAN), 0);
    assert_int_equal(read(dbp_wait_fd(client), &n, sizeof n), sizeof n);
    assert_int_equal(dbp_wait_poll(client, &first, &next), 0);
    assert_int_equal(next.session, 0);
    assert_int_equal(dbp_wait_poll(client, &second, &next), DBP_E_BUSY);
    assert_int_equal(dbp_wait_cancel(client, &second, &next), DBP_E_TIMEOUT);
    struct dbp_stats stats;
    dbp_pool_stats(client, 0, &stats);
    assert_int_equal(stats.waiting, 0);
    assert_int_equal(stats.waits, 2);
    assert_int_equal(stats.timeouts, 1);
    assert_int_equal(stats.leased, 1);
}

static void test_waiting_rings_only_where_the_broker_can_open_one(void **state) {
    struct dbp_wait wait;
    struct dbp_lease lease;

    (void)state;
    assert_int_equal(dbp_wait_begin(client, 0, DBP_WAIT_EVENT, &wait), 0);
    assert_true(rang());
    dbp_attention_take(table, 0);
    assert_int_equal(dbp_wait_cancel(client, &wait, &lease), DBP_E_TIMEOUT);
    atomic_store(&count->max, 0);
    assert_int_equal(dbp_wait_begin(client, 0, DBP_WAIT_EVENT, &wait), 0);
    assert_false(rang());
    assert_int_equal(dbp_wait_cancel(client, &wait, &lease), DBP_E_TIMEOUT);
}

static void test_I2_a_session_that_came_just_before_the_wait_is_granted(void **state) {
    struct dbp_wait wait;
    struct dbp_lease lease;

    (void)state;
    make_idle(0);
    assert_int_equal(dbp_wait_begin(client, 0, DBP_WAIT_FUTEX, &wait), 0);
    assert_int_equal(dbp_wait_poll(client, &wait, &lease), 0);
    assert_false(rang());
}

static void test_a_full_queue_says_so(void **state) {
    static struct dbp_wait waits[DBP_WAITERS_MAX];
    struct dbp_wait wait = {.pool = 77, .ticket = 77};
    struct dbp_lease lease;

    (void)state;
    for (uint32_t i = 0; i < DBP_WAITERS_MAX; i++)
        assert_int_equal(dbp_wait_begin(client, 0, DBP_WAIT_EVENT, &waits[i]), 0);
    assert_int_equal(dbp_wait_begin(client, 0, DBP_WAIT_EVENT, &wait), DBP_E_FULL);
    assert_int_equal(wait.ticket, 77);
    assert_int_equal(dbp_acquire(client, 0, in_seconds(WAIT_S), NULL, NULL, &lease), DBP_E_FULL);
    assert_int_equal(atomic_load(&count->waiting), DBP_WAITERS_MAX);
    assert_int_equal(dbp_wait_cancel(client, &waits[0], &lease), DBP_E_TIMEOUT);
    assert_int_equal(dbp_wait_begin(client, 0, DBP_WAIT_EVENT, &wait), 0);
}

struct sleeper {
    pthread_t thread;
    uint64_t deadline_us;
    _Atomic bool interrupt, done;
    int rc;
    struct dbp_lease lease;
};

static bool interrupted(void *arg) {
    return atomic_load(&((struct sleeper *)arg)->interrupt);
}

static void *sleep_in_acquire(void *arg) {
    struct sleeper *s = arg;

    s->rc = dbp_acquire(client, 0, s->deadline_us, interrupted, s, &s->lease);
    atomic_store(&s->done, true);
    return NULL;
}

static void start_sleeper(struct sleeper *s) {
    memset(s, 0, sizeof *s);
    s->deadline_us = in_seconds(WAIT_S);
    int64_t waiting = atomic_load(&count->waiting);
    assert_int_equal(pthread_create(&s->thread, NULL, sleep_in_acquire, s), 0);
    assert_true(eventually_equal(&count->waiting, waiting + 1));
}

static void test_a_return_wakes_sleeping_threads_in_order(void **state) {
    struct sleeper sleepers[3];

    (void)state;
    make_idle(0);
    struct dbp_lease lease = lease_one();
    for (int i = 0; i < 3; i++)
        start_sleeper(&sleepers[i]);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(dbp_release(client, &lease, 2, DBP_RETURN_CLEAN), 0);
        pthread_join(sleepers[i].thread, NULL);
        assert_int_equal(sleepers[i].rc, 0);
        lease = sleepers[i].lease;
        for (int later = i + 1; later < 3; later++)
            assert_false(atomic_load(&sleepers[later].done));
    }
}

static void test_a_deadline_ends_the_wait(void **state) {
    struct dbp_lease lease = {9, 9, 9, 9};

    (void)state;
    assert_int_equal(dbp_acquire(client, 0, dbp_now_us() + 2000, NULL, NULL, &lease), DBP_E_TIMEOUT);
    assert_int_equal(dbp_acquire(client, 0, 0, NULL, NULL, &lease), DBP_E_TIMEOUT);
    assert_int_equal(lease.session, 9);
    assert_int_equal(atomic_load(&count->timeouts), 2);
    assert_int_equal(atomic_load(&count->waiting), 0);
    assert_true(atomic_load(&count->wait_us) > 0);
    assert_true(dbp_queue_quiet(&table->pools[0].queue));
}

static void on_signal(int number) {
    (void)number;
}

static bool signalled_to_the_end(void *arg) {
    struct sleeper *s = arg;

    if (!atomic_load(&s->done))
        pthread_kill(s->thread, SIGUSR1);
    return atomic_load(&s->done);
}

static void test_a_signal_interrupts_if_the_caller_says_so(void **state) {
    struct sigaction action = {.sa_handler = on_signal};
    struct sleeper sleeper;

    (void)state;
    sigaction(SIGUSR1, &action, NULL);
    make_idle(0);
    struct dbp_lease lease = lease_one();
    start_sleeper(&sleeper);
    for (int i = 0; i < 20; i++)
        pthread_kill(sleeper.thread, SIGUSR1); /* not asked to stop: sleeps on */
    assert_int_equal(dbp_release(client, &lease, 2, DBP_RETURN_CLEAN), 0);
    pthread_join(sleeper.thread, NULL);
    assert_int_equal(sleeper.rc, 0);

    start_sleeper(&sleeper);
    atomic_store(&sleeper.interrupt, true);
    assert_true(eventually(signalled_to_the_end, &sleeper));
    pthread_join(sleeper.thread, NULL);
    assert_int_equal(sleeper.rc, DBP_E_INTERRUPTED);
    assert_int_equal(atomic_load(&count->waiting), 0);
}

static void test_an_interruption_just_before_the_sleep_is_noticed(void **state) {
    struct sleeper sleeper;

    (void)state;
    start_sleeper(&sleeper);
    atomic_store(&sleeper.interrupt, true); /* its signal came before the futex slept: there will be no EINTR */
    pthread_join(sleeper.thread, NULL);
    assert_int_equal(sleeper.rc, DBP_E_INTERRUPTED);
}

static void test_a_failed_login_ends_the_wait(void **state) {
    struct sleeper sleeper;
    struct dbp_wait wait;
    struct dbp_lease lease;

    (void)state;
    start_sleeper(&sleeper);
    assert_int_equal(dbp_wait_begin(client, 0, DBP_WAIT_EVENT, &wait), 0);
    dbp_handoff_fail(&share, 0, wait.ticket + 1);
    pthread_join(sleeper.thread, NULL);
    assert_int_equal(sleeper.rc, DBP_E_FAILED);
    assert_int_equal(dbp_wait_poll(client, &wait, &lease), DBP_E_FAILED);
}

static void test_a_broker_that_is_gone_ends_waits_but_not_leases(void **state) {
    struct dbp_lease lease, other;
    struct dbp_wait wait;
    char text[DBP_TEXT_MAX];
    uint32_t pool;

    (void)state;
    make_idle(0);
    lease = lease_one();
    assert_int_equal(dbp_wait_begin(client, 0, DBP_WAIT_EVENT, &wait), 0);
    atomic_store(&table->broker_up, 0);
    assert_int_equal(dbp_wait_poll(client, &wait, &other), DBP_E_CLOSED);
    assert_int_equal(atomic_load(&count->waiting), 0);
    assert_int_equal(dbp_acquire_now(client, 0, &other), DBP_E_CLOSED);
    assert_int_equal(dbp_acquire(client, 0, in_seconds(1), NULL, NULL, &other), DBP_E_CLOSED);
    assert_int_equal(ask_register(in_seconds(1), text, &pool), DBP_E_CLOSED);
    assert_true(dbp_lease_valid(client, &lease)); /* the session works on */
    assert_int_equal(dbp_release(client, &lease, 2, DBP_RETURN_CLEAN), 0);
}

/* ---- looking ---- */

static void test_holders_are_listed_by_what_they_hold(void **state) {
    struct dbp_holder holders[2];
    uint32_t session;
    dbp_word word;

    (void)state;
    for (uint32_t i = 0; i < 4; i++)
        make_idle(i);
    struct dbp_lease lease = lease_one();
    (void)lease;
    for (int i = 0; i < 2; i++)
        assert_true(dbp_idle_take(table, 0, DBP_LEASED, OTHER, &session, &word));
    assert_true(dbp_idle_take(table, 0, DBP_LEASED, 0, &session, &word));
    snprintf(table->procs[OTHER].label, sizeof table->procs[OTHER].label, "mule 1");
    atomic_store(&table->procs[OTHER].pid, 4711);
    assert_int_equal(dbp_pool_holders(client, 0, 2, holders), 3); /* more than there is room for */
    assert_int_equal(holders[0].leases, 2);
    assert_int_equal(holders[0].pid, 4711);
    assert_string_equal(holders[0].label, "mule 1");
    assert_int_equal(holders[1].leases, 1);
    assert_int_equal(dbp_pool_holders(client, 1, 2, holders), 0);
}

/* ---- forks ---- */

/* A child must neither use nor keep what its parent had: every call says so, guarded fds lead nowhere. */
static void test_I11_a_forked_child_can_do_nothing_with_its_parents_session(void **state) {
    int wire[2], kept[2], fetched = -1;
    struct dbp_session_facts fetched_facts;
    struct dbp_wait wait;

    (void)state;
    make_idle(0);
    struct dbp_lease lease = lease_one();
    atomic_store(&broker.ask_mode, ANSWER);
    assert_int_equal(dbp_session_fetch(client, &lease, in_seconds(WAIT_S), &fetched, &fetched_facts), 0);
    assert_int_equal(dbp_wait_begin(client, 0, DBP_WAIT_EVENT, &wait), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, wire), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, kept), 0);
    assert_int_equal(dbp_guard_fd(client, wire[0]), 0);
    assert_int_equal(dbp_guard_fd(client, wire[0]), 0); /* twice is once */
    assert_int_equal(dbp_guard_fd(client, kept[0]), 0);
    dbp_unguard_fd(client, kept[0]);
    for (int fd = 100; fd < 140; fd++) { /* the list grows and shrinks */
        assert_int_equal(dbp_guard_fd(client, fd), 0);
        dbp_unguard_fd(client, fd);
    }
    pid_t pid = fork_child();
    if (pid == 0) {
        struct dbp_lease other;
        struct dbp_session_facts facts;
        struct dbp_wait another;
        char text[DBP_TEXT_MAX], byte;
        uint32_t pool;
        int fd;
        close(wire[1]);
        if (dbp_acquire_now(client, 0, &other) != DBP_E_CLOSED)
            _exit(1);
        if (dbp_wait_begin(client, 0, DBP_WAIT_EVENT, &another) != DBP_E_CLOSED)
            _exit(2);
        if (dbp_wait_poll(client, &wait, &other) != DBP_E_CLOSED || dbp_wait_cancel(client, &wait, &other) == 0)
            _exit(3);
        if (dbp_release(client, &lease, 0, DBP_RETURN_DOOM) != DBP_E_CLOSED || dbp_lease_valid(client, &lease))
            _exit(4);
        if (dbp_session_fetch(client, &lease, in_seconds(1), &fd, &facts) != DBP_E_CLOSED)
            _exit(5);
        if (ask_register(in_seconds(1), text, &pool) != DBP_E_CLOSED)
            _exit(6);
        if (send(wire[0], "x", 1, MSG_NOSIGNAL) != -1 || errno != EPIPE)
            _exit(7);
        if (recv(wire[0], &byte, 1, 0) != 0)
            _exit(8);
        if (send(kept[0], "k", 1, MSG_NOSIGNAL) != 1)
            _exit(9);
        if (!(fcntl(wire[0], F_GETFD) & FD_CLOEXEC))
            _exit(10);
        struct dbp_client *own; /* and it may attach on its own */
        if (dbp_client_attach(&share, "child", in_seconds(WAIT_S), &own) != 0)
            _exit(11);
        if (recv(fetched, &byte, 1, MSG_DONTWAIT) != 0) /* was guarded before anybody else could fork */
            _exit(12);
        _exit(0);
    }
    atomic_store(&broker.slot, SLOT); /* whatever the child does with it */
    assert_int_equal(wait_child(pid), 0);
    /* The parent's is as it was. */
    char got[8];
    assert_int_equal(send(wire[0], "p", 1, MSG_NOSIGNAL), 1);
    assert_int_equal(recv(wire[1], got, sizeof got, 0), 1);
    assert_int_equal(got[0], 'p');
    assert_int_equal(recv(kept[1], got, sizeof got, 0), 1);
    assert_true(dbp_lease_valid(client, &lease));
    assert_int_equal(dbp_release(client, &lease, 2, DBP_RETURN_CLEAN), 0);
    struct dbp_lease next;
    assert_int_equal(dbp_wait_poll(client, &wait, &next), 0);
    dbp_unguard_fd(client, wire[0]);
    dbp_unguard_fd(client, fetched);
    close(fetched);
    for (int i = 0; i < 2; i++) {
        close(wire[i]);
        close(kept[i]);
    }
}

/* Waits for the broker until the test lets it go: it stands still. */
static _Atomic uint32_t standing;
static _Atomic bool let_go, over;

static int stand_still(int fd, uint64_t deadline_us) {
    (void)fd;
    atomic_fetch_add(&standing, 1);
    while (!atomic_load(&let_go) && dbp_now_us() < deadline_us)
        poll(NULL, 0, 1);
    return DBP_E_INTERRUPTED;
}

static void *register_slowly(void *arg) {
    uint32_t pool;
    char text[DBP_TEXT_MAX];

    *(int *)arg = ask_register(in_seconds(WAIT_S), text, &pool);
    atomic_store(&over, true);
    return NULL;
}

static void *attach_slowly(void *arg) {
    struct dbp_client *other;

    *(int *)arg = dbp_client_attach(&share, "worker 3", in_seconds(WAIT_S), &other);
    atomic_store(&over, true);
    return NULL;
}

/* What other threads do meanwhile: none of it waits as well, and a child has no channel, nor what wakes those who wait.
 */
static void assert_others_go_on(void *(*slowly)(void *), uint32_t n, const _Atomic uint32_t *came, int private_fds) {
    uint32_t before_it = atomic_load(came);
    pthread_t threads[2];
    int rc[2] = {-1, -1};

    atomic_store(&standing, 0);
    atomic_store(&let_go, false);
    atomic_store(&over, false);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, slowly, &rc[i]), 0);
    assert_true(eventually_at_least(&standing, n));
    assert_true(eventually_at_least(came, before_it + n)); /* with its fd, which is counted below */
    assert_int_equal(dbp_guard_fd(client, 100), 0);
    dbp_unguard_fd(client, 100);
    int before = fd_census(0);
    pid_t pid = fork_child();
    if (pid == 0)
        _exit(under_valgrind() || fd_census(0) == before - private_fds ? 0 : 1);
    assert_int_equal(wait_child(pid), 0);
    assert_false(atomic_load(&over));
    atomic_store(&let_go, true);
    for (uint32_t i = 0; i < n; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(rc[i], DBP_E_INTERRUPTED);
    }
}

static void test_nobody_else_waits_for_a_broker_that_stands_still(void **state) {
    (void)state;
    dbp_set_wait(stand_still);
    atomic_store(&broker.ask_mode, SILENT);
    assert_others_go_on(register_slowly, 2, &broker.asked, 2);
    atomic_store(&broker.attach_mode, SILENT);
    assert_others_go_on(attach_slowly, 1, &broker.label_ok, 2);
}

/* One thread's first wait ends only when the test says so, and by itself. */
static _Thread_local bool held_up;

static int hold_up(int fd, uint64_t deadline_us) {
    if (held_up) {
        held_up = false;
        atomic_fetch_add(&standing, 1);
        while (!atomic_load(&let_go) && dbp_now_us() < deadline_us)
            poll(NULL, 0, 1);
        return 0;
    }
    return dbp_wait_readable(fd, deadline_us);
}

struct held_fetch {
    struct dbp_lease lease;
    int rc;
};

static void *fetch_held_up(void *arg) {
    struct held_fetch *fetch = arg;
    struct dbp_session_facts facts;
    int fd = -1;

    held_up = true;
    fetch->rc = dbp_session_fetch(client, &fetch->lease, in_seconds(WAIT_S), &fd, &facts);
    return NULL;
}

static void test_who_waits_for_an_answer_hears_that_the_client_attaches_anew(void **state) {
    uint32_t asked = atomic_load(&broker.asked), pool;
    struct held_fetch fetch = {.rc = 0};
    char text[DBP_TEXT_MAX];
    pthread_t thread;

    (void)state;
    make_idle(0);
    fetch.lease = lease_one();
    atomic_store(&standing, 0);
    atomic_store(&let_go, false);
    dbp_set_wait(hold_up);
    atomic_store(&broker.ask_mode, SILENT);
    assert_int_equal(pthread_create(&thread, NULL, fetch_held_up, &fetch), 0);
    assert_true(eventually_at_least(&standing, 1));
    assert_true(eventually_at_least(&broker.asked, asked + 1));
    atomic_store(&broker.ask_mode, ANSWER);
    atomic_store(&table->procs[SLOT].attached, 0);
    atomic_store(&table->procs[OTHER].attached, ATTACH);
    atomic_store(&broker.slot, OTHER);
    assert_int_equal(ask_register(in_seconds(WAIT_S), text, &pool), 0);
    atomic_store(&let_go, true);
    pthread_join(thread, NULL);
    assert_int_equal(fetch.rc, DBP_E_CLOSED);
    atomic_store(&table->procs[OTHER].attached, 0);
    atomic_store(&table->procs[SLOT].attached, ATTACH);
    atomic_store(&broker.slot, SLOT);
    assert_int_equal(ask_register(in_seconds(WAIT_S), text, &pool), 0);
}

static void test_fencing_replaces_what_is_there(void **state) {
    int wire[2], before = fd_census(0);
    char byte;

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, wire), 0);
    assert_int_equal(dbp_fence_fd(wire[0]), 0);
    assert_int_equal(recv(wire[1], &byte, 1, 0), 0); /* the real one is closed */
    assert_int_equal(send(wire[0], "\1\0\0\0\1", 5, MSG_NOSIGNAL), -1);
    close(wire[0]);
    close(wire[1]);
    assert_true(fd_census(0) <= before);
    assert_true(dbp_fence_fd(-1) < 0);
}

/* Last: the channel is gone afterwards. */
static void test_a_channel_that_is_hung_up_says_closed(void **state) {
    struct dbp_session_facts facts;
    struct dbp_lease lease = {0};
    uint32_t pool;
    char text[DBP_TEXT_MAX];
    int fd;

    (void)state;
    atomic_store(&broker.ask_mode, HANG_UP);
    assert_int_equal(ask_register(in_seconds(WAIT_S), text, &pool), DBP_E_CLOSED);
    assert_int_equal(dbp_session_fetch(client, &lease, in_seconds(WAIT_S), &fd, &facts), DBP_E_CLOSED);
}

static void *attach_beside(void *arg) {
    struct dbp_client *other;

    pthread_mutex_lock(&may_attach);
    *(int *)arg = dbp_client_attach(&share, "worker 3", in_seconds(WAIT_S), &other);
    atomic_store(&attached, true);
    pthread_mutex_unlock(&may_attach);
    return NULL;
}

/* Last: this process has another client then. A fork must not meet one that it has not locked, nor half a channel. */
static void test_attaching_waits_for_a_fork_of_another_thread(void **state) {
    pthread_t thread;
    int rc = -1;

    (void)state;
    atomic_store(&broker.attach_mode, ANSWER);
    pthread_mutex_lock(&may_attach);
    assert_int_equal(pthread_create(&thread, NULL, attach_beside, &rc), 0);
    atomic_store(&attach_now, true);
    pid_t pid = fork_child();
    if (pid == 0)
        _exit(0);
    assert_int_equal(wait_child(pid), 0);
    pthread_join(thread, NULL);
    assert_int_equal(rc, 0);
    assert_false(atomic_load(&attached_within));
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_attaching_gives_a_slot_and_a_clean_wakeup),
        TEST(test_attaching_fails_cleanly),
        TEST(test_I10_a_table_of_another_version_is_refused),
        TEST(test_I11_a_child_forked_during_an_attach_has_no_channel),
        TEST(test_a_client_that_was_let_go_of_takes_nothing),
        TEST(test_a_client_that_was_let_go_of_attaches_anew),
        TEST(test_a_client_whose_channel_was_closed_attaches_anew_at_once),
        TEST(test_registering),
        TEST(test_fetching_gives_a_private_fd),
        TEST(test_I2_an_answer_that_comes_late_is_not_taken_for_the_next),
        TEST(test_I10_garbage_and_strange_answers_are_survived),
        TEST(test_a_lease_from_taking_to_return),
        TEST(test_a_process_takes_the_session_that_it_had_last),
        TEST(test_a_low_load_comes_back_to_few_sessions),
        TEST(test_I1_a_lease_kept_past_its_return_can_do_nothing),
        TEST(test_I1_another_processs_lease_cannot_be_returned),
        TEST(test_I5_what_is_not_clean_goes_to_the_broker),
        TEST(test_the_doorbell_rings_once_until_it_is_answered),
        TEST(test_an_overflow_session_is_told_to_the_broker),
        TEST(test_I5_an_unfit_session_is_not_handed_out),
        TEST(test_pools_that_are_not_there),
        TEST(test_I4_a_newcomer_does_not_overtake_the_queue),
        TEST(test_a_return_wakes_an_event_loop),
        TEST(test_waiting_rings_only_where_the_broker_can_open_one),
        TEST(test_I2_a_session_that_came_just_before_the_wait_is_granted),
        TEST(test_a_full_queue_says_so),
        TEST(test_a_return_wakes_sleeping_threads_in_order),
        TEST(test_a_deadline_ends_the_wait),
        TEST(test_a_signal_interrupts_if_the_caller_says_so),
        TEST(test_an_interruption_just_before_the_sleep_is_noticed),
        TEST(test_a_failed_login_ends_the_wait),
        TEST(test_a_broker_that_is_gone_ends_waits_but_not_leases),
        TEST(test_holders_are_listed_by_what_they_hold),
        TEST(test_I11_a_forked_child_can_do_nothing_with_its_parents_session),
        TEST(test_nobody_else_waits_for_a_broker_that_stands_still),
        TEST(test_who_waits_for_an_answer_hears_that_the_client_attaches_anew),
        TEST(test_fencing_replaces_what_is_there),
        TEST(test_a_channel_that_is_hung_up_says_closed),
        TEST(test_attaching_waits_for_a_fork_of_another_thread),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
