/* SPDX-License-Identifier: MIT
 * Hostile and broken peers of the broker: a client that floods, never reads, sends what it may not or writes all over
 * the shared table; a connector that lies. The broker runs in this process: that the test goes on is what is shown,
 * and that it serves the others and is whole again afterwards.
 */
#include "attach.h"
#include "broker.h"

#include "../support/fake_connector.h"
#include "../support/puppet.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#define SLOTS 6u
#define CAP 2
#define ANYBODY (-1) /* a connector started now may attach before its pid is known here */

static struct dbp_share share;
static struct dbp_table *table;
static struct dbp_broker *broker;
static struct fake *fake;
static struct dbp_pool_counters *count;
static struct dbp_pool_spec spec;
static int control = -1, fds_before;
static _Atomic int32_t connector_pid;

static bool connector_is(void *arg, int32_t pid) {
    int32_t expected = atomic_load(&connector_pid);

    (void)arg;
    return expected == ANYBODY || pid == expected;
}

static int start(bool with_connector) {
    struct dbp_broker_ops ops = {.log = test_log, .connector_is = connector_is};

    fds_before = fd_census(0);
    spec = test_spec("default", CAP, 0);
    atomic_store(&log_warnings, 0);
    fake = NULL;
    if (dbp_share_new(SLOTS, &share, &control) != 0)
        return -1;
    table = share.table;
    count = &table->pools[0].count;
    atomic_store(&connector_pid, with_connector ? fake_start(&share, &fake) : getpid());
    return dbp_broker_start(&share, control, &ops, &broker);
}

static int setup(void **state) {
    (void)state;
    return start(true);
}

/* This process plays the connector itself. */
static int setup_without_connector(void **state) {
    (void)state;
    return start(false);
}

static int teardown(void **state) {
    (void)state;
    reap_all();
    broker = dbp_broker_stop(broker);
    if (fake) {
        close(fake->poke_fd);
        munmap(fake, sizeof *fake);
    }
    dbp_share_free(&share);
    return fd_census(0) == fds_before ? 0 : -1;
}

static struct puppet *client(void) {
    return puppet_ready(&share, &spec);
}

/* Every session of the cap can be had by one process and answers. */
static void assert_whole(void) {
    struct puppet *p = client();

    for (uint32_t i = 0; i < CAP; i++) {
        assert_int_equal(puppet_acquire(p, i), 0);
        assert_int_equal(puppet_query(p, i, "Q 7"), 0);
    }
    for (uint32_t i = 0; i < CAP; i++)
        assert_int_equal(puppet_release(p, i, DBP_RETURN_CLEAN), 0);
    kill_child(p->pid);
}

static int attach_rude(void) {
    uint32_t slot;
    int channel = -1;

    assert_int_equal(dbp_attach(&share, DBP_ROLE_CLIENT, "rude", in_seconds(WAIT_S), &channel, &slot), 0);
    return channel;
}

static void message(union dbp_wire_any *msg, enum dbp_wire_type type, uint32_t serial) {
    memset(msg, 0, sizeof *msg);
    dbp_wire_head_init(&msg->head, type, serial);
}

/* Asks something; when it is answered, all that was sent before on this channel has been read. */
static void assert_answered(int channel, uint32_t serial) {
    union dbp_wire_any msg;
    int fd = -1;

    message(&msg, DBP_WIRE_FETCH, serial);
    msg.fetch.session = UINT32_MAX;
    assert_int_equal(dbp_wire_send(channel, &msg, -1), 0);
    do {
        assert_int_equal(dbp_wait_readable(channel, in_seconds(WAIT_S)), 0);
        assert_int_equal(dbp_wire_recv(channel, &msg, &fd, NULL), 0);
        if (fd >= 0)
            close(fd);
    } while (msg.head.serial != serial);
    assert_int_equal(msg.head.result, DBP_E_STALE);
}

/* ---- clients ---- */

/* Its channel fills up; nothing waits for it, nothing is kept for it but the kernel's buffer, nothing fills the log. */
static void test_a_client_that_never_reads_blocks_nobody(void **state) {
    struct puppet *p = client();
    union dbp_wire_any msg;
    int channel = attach_rude(), sent = 0;

    (void)state;
    message(&msg, DBP_WIRE_FETCH, 1);
    for (int i = 0; i < 20000; i++)
        sent += dbp_wire_send(channel, &msg, -1) == 0;
    assert_true(sent > 0);
    assert_int_equal(puppet_acquire(p, 0), 0);
    assert_int_equal(puppet_query(p, 0, "Q 1"), 0);
    assert_true(atomic_load(&log_warnings) < 32);
    close(channel);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    assert_whole();
}

static void test_a_client_that_floods_starves_nobody(void **state) {
    struct puppet *p = client();

    (void)state;
    pid_t pid = fork_child();
    if (pid == 0) {
        union dbp_wire_any msg, in;
        uint32_t slot;
        int channel, fd;
        if (dbp_attach(&share, DBP_ROLE_CLIENT, "flood", in_seconds(WAIT_S), &channel, &slot) != 0)
            _exit(1);
        message(&msg, DBP_WIRE_REGISTER, 1);
        msg.reg.spec = spec;
        for (uint32_t n = 0;; n++) {
            (void)!dbp_wire_send(channel, &msg, -1);
            (void)!send(channel, "garbage", 7, MSG_NOSIGNAL | MSG_DONTWAIT);
            (void)!send(share.control_fd, "garbage", 7, MSG_NOSIGNAL | MSG_DONTWAIT);
            while (n % 4 && dbp_wire_recv(channel, &in, &fd, NULL) == 0)
                continue;
        }
    }
    for (int i = 0; i < 200; i++) {
        assert_int_equal(puppet_acquire(p, 0), 0);
        assert_int_equal(puppet_query(p, 0, "Q 1"), 0);
        assert_int_equal(puppet_release(p, 0, i % 2 ? DBP_RETURN_RESET : DBP_RETURN_CLEAN), 0);
    }
    assert_true(atomic_load(&log_warnings) < 64);
    kill_child(pid);
    assert_whole();
}

/* 253 is the kernel's own limit for one message. */
static void test_I10_as_many_fds_as_the_kernel_takes_are_all_closed(void **state) {
    struct puppet *late = puppet_new(&share);
    int channel = attach_rude(), before, fds[253];
    union dbp_wire_any msg;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof fds)];
    } space;

    (void)state;
    assert_true(eventually_at_least(&fake->attached, 1));
    before = fd_census(0);
    for (size_t i = 0; i < 253; i++)
        fds[i] = channel;
    for (uint32_t type = 0; type <= DBP_WIRE_TYPES; type++) {
        message(&msg, (enum dbp_wire_type)type, 1);
        struct iovec iov = {.iov_base = &msg, .iov_len = type % 2 ? sizeof msg : sizeof msg.attach};
        struct msghdr mh = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = space.bytes, .msg_controllen = sizeof space.bytes};
        memset(&space, 0, sizeof space);
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&mh);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof fds);
        memcpy(CMSG_DATA(cmsg), fds, sizeof fds);
        assert_true(sendmsg(channel, &mh, MSG_NOSIGNAL) > 0);
        assert_true(sendmsg(share.control_fd, &mh, MSG_NOSIGNAL) > 0);
    }
    assert_answered(channel, 5);
    assert_int_equal(puppet_do(late, PUPPET_ATTACH), 0); /* the control socket has been read too */
    assert_int_equal(fd_census(0), before + 2);          /* the late one's channel and pidfd */
    close(channel);
    assert_whole();
}

/* An fd that this process has no room for is cut off by the kernel: the message is refused, nobody dies. */
static void test_no_fd_left_in_the_master(void **state) {
    struct puppet *early = puppet_new(&share), *late = puppet_new(&share);
    struct rlimit limit, none;

    (void)state;
    assert_whole(); /* the connector is there */
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    none = limit;
    none.rlim_cur = 3; /* every new fd is refused, those that are open go on */
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    int rc = puppet_do(early, PUPPET_ATTACH);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_int_not_equal(rc, 0);
    assert_int_equal(puppet_do(late, PUPPET_ATTACH), 0);
    assert_whole();
}

/* What was sent once and answered means nothing the second time: requests carry no right, the table does. */
static void test_replayed_messages_take_nothing(void **state) {
    struct puppet *p = client();
    union dbp_wire_any msg;
    int channel = attach_rude(), fd = -1;

    (void)state;
    assert_int_equal(puppet_acquire(p, 0), 0);
    for (int i = 0; i < 3; i++) { /* the holder's own request, from somebody else */
        message(&msg, DBP_WIRE_FETCH, 1);
        msg.fetch.session = p->leases[0].session;
        msg.fetch.generation = p->leases[0].generation;
        assert_int_equal(dbp_wire_send(channel, &msg, -1), 0);
        assert_int_equal(dbp_wait_readable(channel, in_seconds(WAIT_S)), 0);
        assert_int_equal(dbp_wire_recv(channel, &msg, &fd, NULL), 0);
        assert_int_equal(msg.head.result, DBP_E_STALE);
        assert_int_equal(fd, -1);
    }
    for (size_t n = 1; n < sizeof msg.reg; n += 61) { /* truncated anywhere */
        struct pollfd room = {.fd = channel, .events = POLLOUT};
        message(&msg, DBP_WIRE_REGISTER, 2);
        msg.reg.spec = spec;
        assert_int_equal(poll(&room, 1, (int)(WAIT_S * 1000)), 1);
        assert_true(send(channel, &msg, n, MSG_NOSIGNAL) == (ssize_t)n);
    }
    close(channel);
    assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
    assert_whole();
}

/* ---- a connector that lies ---- */

static int attach_connector(void) {
    uint32_t slot;
    int channel = -1;

    assert_int_equal(dbp_attach(&share, DBP_ROLE_CONNECTOR, "liar", in_seconds(WAIT_S), &channel, &slot), 0);
    return channel;
}

static void next_open(int channel, struct dbp_wire_open *openp) {
    union dbp_wire_any msg;
    int fd = -1;

    do {
        assert_int_equal(dbp_wait_readable(channel, in_seconds(WAIT_S)), 0);
        assert_int_equal(dbp_wire_recv(channel, &msg, &fd, NULL), 0);
    } while (msg.head.type != DBP_WIRE_OPEN);
    *openp = msg.open;
}

static void deliver(int channel, uint32_t session, uint32_t incarnation, int fd) {
    union dbp_wire_any msg;

    message(&msg, DBP_WIRE_OPENED, 0);
    msg.opened.session = session;
    msg.opened.incarnation = incarnation;
    msg.opened.facts.status = 2;
    assert_int_equal(dbp_wire_send(channel, &msg, fd), 0);
}

static void test_I10_what_is_no_session_is_not_lent(void **state) {
    static const char *const lies[] = {"a regular file", "a device", "an eventfd", "the wrong kind of socket",
                                       "the listening end"};
    struct puppet *p = client();
    struct dbp_wire_open open_msg;
    int channel = attach_connector(), good[2];

    (void)state;
    for (size_t lie = 0; lie < sizeof lies / sizeof *lies; lie++) {
        int fd = lie == 0   ? memfd_create("lie", MFD_CLOEXEC)
                 : lie == 1 ? open("/dev/null", O_RDWR | O_CLOEXEC)
                 : lie == 2 ? eventfd(0, EFD_CLOEXEC)
                            : socket(AF_UNIX, (lie == 3 ? SOCK_DGRAM : SOCK_SEQPACKET) | SOCK_CLOEXEC, 0);
        assert_true(fd >= 0);
        puppet_start(p, PUPPET_ACQUIRE);
        next_open(channel, &open_msg);
        deliver(channel, open_msg.session, open_msg.incarnation, fd);
        close(fd);
        assert_int_equal(puppet_result(p), DBP_E_FAILED);
        assert_int_equal(puppet_do(p, PUPPET_ERROR), 0);
        assert_int_equal(p->error.code, 2027);
        assert_int_equal(atomic_load(&count->size), 0); /* I2: its place is free again */
    }
    /* The truth at last. */
    puppet_start(p, PUPPET_ACQUIRE);
    next_open(channel, &open_msg);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, good), 0);
    deliver(channel, open_msg.session, open_msg.incarnation, good[0]);
    assert_int_equal(puppet_result(p), 0);
    close(good[0]);
    close(good[1]);
    close(channel);
}

static void test_I3_sessions_that_nobody_asked_for_are_closed(void **state) {
    struct puppet *p = client();
    struct dbp_wire_open open_msg;
    union dbp_wire_any msg;
    int channel = attach_connector(), pair[2];
    char byte;

    (void)state;
    puppet_start(p, PUPPET_ACQUIRE);
    next_open(channel, &open_msg);
    const uint32_t wrong[][2] = {
        {open_msg.session, open_msg.incarnation + 1}, {open_msg.session, open_msg.incarnation - 1},
        {open_msg.session + 1, open_msg.incarnation}, {DBP_SESSIONS_MAX - 1, 0},
        {DBP_SESSIONS_MAX, open_msg.incarnation},     {UINT32_MAX, UINT32_MAX}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
        deliver(channel, wrong[i][0], wrong[i][1], pair[0]);
        close(pair[0]);
        assert_int_equal(dbp_wait_readable(pair[1], in_seconds(WAIT_S)), 0);
        assert_int_equal(recv(pair[1], &byte, 1, 0), 0); /* the broker's copy is closed */
        close(pair[1]);
        message(&msg, DBP_WIRE_FAILED, 0);
        msg.failed.session = wrong[i][0];
        msg.failed.incarnation = wrong[i][1];
        memset(msg.failed.error.text, '%', sizeof msg.failed.error.text); /* no end, and a format */
        assert_int_equal(dbp_wire_send(channel, &msg, -1), 0);
        message(&msg, DBP_WIRE_KILLED, 0);
        msg.killed.session = wrong[i][0];
        msg.killed.error.code = 1;
        assert_int_equal(dbp_wire_send(channel, &msg, -1), 0);
    }
    assert_int_equal(atomic_load(&count->size), 1);
    assert_int_equal(atomic_load(&count->waiting), 1);
    message(&msg, DBP_WIRE_FAILED, 0);
    msg.failed.session = open_msg.session;
    msg.failed.incarnation = open_msg.incarnation;
    memset(&msg.failed.error, '%', sizeof msg.failed.error);
    assert_int_equal(dbp_wire_send(channel, &msg, -1), 0);
    assert_int_equal(puppet_result(p), DBP_E_FAILED);
    assert_int_equal(puppet_do(p, PUPPET_ERROR), 0);
    assert_int_equal(strlen(p->error.text), sizeof p->error.text - 1);
    close(channel);
}

/* Its channel fills up: logins are asked for again later, nobody waits for it. */
static void test_a_connector_that_never_reads_blocks_nobody(void **state) {
    struct puppet *p = client();
    int channel = attach_connector();

    (void)state;
    for (uint32_t i = 0; i < 300; i++) { /* each registration of a larger floor asks for logins */
        p->spec.min_size = i % 2;
        assert_int_equal(puppet_do(p, PUPPET_REGISTER), 0);
    }
    assert_int_equal(puppet_do(p, PUPPET_ACQUIRE_NOW), DBP_E_BUSY);
    close(channel);
    assert_true(eventually_equal(&count->size, 0));
    atomic_store(&connector_pid, ANYBODY);
    assert_true(fake_start(&share, &fake) > 0);
    assert_whole();
}

/* ---- a process that writes all over the table ---- */

static void damage(uint32_t what) {
    struct dbp_session *s = &table->sessions[0];
    struct dbp_queue *queue = &table->pools[0].queue;
    uint32_t head = atomic_load(&queue->head);
    static const uint64_t words[] = {DBP_EMPTY,
                                     DBP_OPENING,
                                     DBP_GRANTED | 77u << 4,
                                     DBP_LEASED | 4u << 4,
                                     DBP_LEASED | DBP_OWNER_MASK << 4,
                                     DBP_RESETTING | 9u << 4,
                                     DBP_CLOSING,
                                     DBP_STATES,
                                     15u,
                                     UINT64_MAX};
    const uint32_t n_words = sizeof words / sizeof *words;

    if (what < n_words) {
        atomic_store(&s->word, words[what]);
        return;
    }
    if (what < 2 * n_words) { /* a slot that has no session */
        atomic_store(&table->sessions[5].word, words[what - n_words]);
        atomic_store(&table->sessions[5].pool, what % 2 ? 0 : UINT32_MAX);
        return;
    }
    switch (what - 2 * n_words) {
    case 0:
        atomic_store(&s->pool, UINT32_MAX);
        return;
    case 1:
        atomic_store(&s->pool, 3);
        return;
    case 2:
        atomic_store(&table->n_pools, UINT32_MAX);
        return;
    case 3:
        atomic_store(&table->pools[0].live, 0);
        return;
    case 4:
        atomic_store(&table->broker_up, 0);
        return;
    case 5:
        memset(table->pools[0].alias, 'x', sizeof table->pools[0].alias);
        return;
    case 6:
        atomic_store(&queue->head, head + 1000);
        return;
    case 7:
        atomic_store(&queue->tail, head + 1000);
        return;
    case 8:
        atomic_store(&queue->tail, head - 1000000000u);
        return;
    case 9: /* a ticket that is not of its place, of a process that is about to die */
        atomic_store(&queue->places[(head + 1) % DBP_WAITERS_MAX],
                     dbp_place_kept(DBP_PLACE_WAITING | 2u << 14, head + 1));
        return;
    case 10: /* a waiter that does not exist */
        atomic_store(&queue->places[head % DBP_WAITERS_MAX],
                     dbp_place_kept(DBP_PLACE_WAITING | 500u << 14 | (uint64_t)head << 32, head));
        return;
    case 11:
        memset(queue->places, 0xff, sizeof queue->places);
        return;
    case 12:
        for (uint32_t i = 0; i < DBP_STATES; i++)
            atomic_store(&count->state[i], i % 2 ? INT64_MIN : INT64_MAX);
        atomic_store(&count->size, INT64_MIN);
        atomic_store(&count->waiting, INT64_MAX);
        return;
    case 13:
        memset(table->pools[0].idle, 0xff, sizeof table->pools[0].idle);
        return;
    case 14:
        memset(table->sessions, 0xff, sizeof table->sessions);
        return;
    case 15:
        memset(table->sessions, 0, sizeof table->sessions);
        return;
    case 16:
        memset(table->pools, 0xa5, sizeof table->pools);
        return;
    default:
        _exit(1);
    }
}
#define DAMAGES (2u * 10u + 17u)

/* A new client, as soon as the table is such that one can attach, and a session for it. Who comes in the middle of the
 * repair may be told that there is nothing for it; whoever comes later is not. */
static struct puppet *client_with_a_session(void) {
    for (int tries = 0; tries < 200; tries++) {
        struct puppet *p = puppet_new(&share);
        p->spec = spec;
        if (puppet_do(p, PUPPET_ATTACH) == 0 && puppet_do(p, PUPPET_REGISTER) == 0 && puppet_acquire(p, 0) == 0 &&
            puppet_query(p, 0, "Q 3") == 0)
            return p;
        kill_child(p->pid);
        poll(NULL, 0, 50);
    }
    return NULL;
}

static void test_I2_a_damaged_table_is_put_right(void **state) {
    (void)state;
    for (uint32_t what = 0; what < DAMAGES; what++) {
        struct puppet *p = client_with_a_session();
        assert_non_null(p);
        if (what % 3 == 0)
            assert_int_equal(puppet_release(p, 0, DBP_RETURN_CLEAN), 0);
        pid_t pid = fork_child();
        if (pid == 0) {
            damage(what);
            _exit(0);
        }
        assert_int_equal(wait_child(pid), 0);
        kill_child(p->pid); /* the broker looks through all of it */
        p = client_with_a_session();
        if (!p)
            print_message("damage %u\n", what);
        assert_non_null(p);
        kill_child(p->pid);
    }
    assert_true(eventually_equal(&count->state[DBP_CLOSING], 0));
    assert_whole();
}

static void test_a_process_that_keeps_writing_kills_nobody_else(void **state) {
    uint64_t seed = test_seed();

    (void)state;
    assert_whole();
    pid_t pid = fork_child();
    if (pid == 0)
        for (;;) {
            uint64_t r = test_random(&seed), v = test_random(&seed);
            size_t from = offsetof(struct dbp_table, broker_up), words = (sizeof *table - from) / 8;
            switch (r % 4) {
            case 0: /* anywhere */
                ((_Atomic uint64_t *)((char *)table + from))[(r >> 8) % words] = v;
                break;
            case 1: /* a session in use */
                atomic_store(&table->sessions[(r >> 8) % 4].word, v % 8 ? (v & ~(uint64_t)0xff0) | (v >> 60) : v);
                break;
            case 2:
                atomic_store(&table->sessions[(r >> 8) % 4].pool, (uint32_t)v);
                break;
            default: /* a place near the head */
                atomic_store(&table->pools[0].queue.places[(atomic_load(&table->pools[0].queue.head) + r / 256 % 4) %
                                                           DBP_WAITERS_MAX],
                             v);
                break;
            }
            if (r % 64 == 0)
                poll(NULL, 0, 1);
        }
    /* The broker has sixty turns at least: others come, ask and die meanwhile. */
    for (int i = 0; i < 20; i++) {
        struct puppet *p = puppet_new(&share);
        p->spec = spec;
        if (puppet_do(p, PUPPET_ATTACH) == 0 && puppet_do(p, PUPPET_REGISTER) == 0) {
            (void)puppet_do(p, PUPPET_ACQUIRE_NOW);
            (void)puppet_do(p, PUPPET_BEGIN);
        }
        kill_child(p->pid);
    }
    kill_child(pid);
    assert_non_null(client_with_a_session());
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
#define LIAR(f) cmocka_unit_test_setup_teardown(f, setup_without_connector, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_a_client_that_never_reads_blocks_nobody),
        TEST(test_a_client_that_floods_starves_nobody),
        TEST(test_I10_as_many_fds_as_the_kernel_takes_are_all_closed),
        TEST(test_no_fd_left_in_the_master),
        TEST(test_replayed_messages_take_nothing),
        LIAR(test_I10_what_is_no_session_is_not_lent),
        LIAR(test_I3_sessions_that_nobody_asked_for_are_closed),
        LIAR(test_a_connector_that_never_reads_blocks_nobody),
        TEST(test_I2_a_damaged_table_is_put_right),
        TEST(test_a_process_that_keeps_writing_kills_nobody_else),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
