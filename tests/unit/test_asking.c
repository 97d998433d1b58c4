/* SPDX-License-Identifier: MIT
 * Many ask over one channel: each gets its own answer, whoever reads it, and whatever becomes of the one who reads. The
 * main thread plays the broker.
 */
#include "asking.h"
#include "attach.h"

#include "../support/helpers.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#define MANY 8

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct dbp_asking asking;
static int channel = -1, broker = -1; /* its two ends */

struct asker {
    pthread_t thread;
    uint32_t number; /* asks for this session; the answer's connection id is 100 more */
    uint64_t deadline_us;
    _Atomic bool interrupt; /* its wait ends by an exception, so to say */
    int rc, fd;
    uint32_t connection_id;
};

static _Thread_local struct asker *me;
static _Atomic uint32_t waiting, passed; /* waits begun, for an fd and for time to pass */
static _Atomic uint32_t overslept;       /* for an fd, until the deadline */
static _Atomic bool let_go;

static int wait_as_the_test_says(int fd, uint64_t deadline_us) {
    atomic_fetch_add(fd < 0 ? &passed : &waiting, 1);
    if (me->interrupt) {
        while (!atomic_load(&let_go) && dbp_now_us() < deadline_us)
            poll(NULL, 0, 1);
        return DBP_E_INTERRUPTED;
    }
    int rc = dbp_wait_readable(fd, deadline_us);
    if (fd >= 0 && rc == DBP_E_TIMEOUT)
        atomic_fetch_add(&overslept, 1);
    return rc;
}

static void *ask(void *arg) {
    union dbp_wire_any msg;

    me = arg;
    memset(&msg.fetch, 0, sizeof msg.fetch);
    dbp_wire_head_init(&msg.head, DBP_WIRE_FETCH, 0);
    msg.fetch.session = me->number;
    pthread_mutex_lock(&lock);
    me->rc = dbp_asking(&asking, &lock, &channel, &msg, DBP_WIRE_SESSION, me->deadline_us, &me->fd);
    pthread_mutex_unlock(&lock);
    if (msg.head.type == DBP_WIRE_SESSION)
        me->connection_id = msg.session.facts.connection_id;
    return NULL;
}

static void begin(struct asker *asker, uint32_t number) {
    *asker = (struct asker){.number = number, .deadline_us = in_seconds(WAIT_S), .rc = -1, .fd = -1};
}

static void start(struct asker *asker) {
    assert_int_equal(pthread_create(&asker->thread, NULL, ask, asker), 0);
}

static void assert_its_own_answer(struct asker *asker) {
    pthread_join(asker->thread, NULL);
    assert_int_equal(asker->rc, 0);
    assert_int_equal(atomic_load(&overslept), 0); /* nor was it just there when the deadline came */
    assert_int_equal(asker->connection_id, 100 + asker->number);
    assert_true(asker->fd >= 0);
    close(asker->fd);
}

static void receive(union dbp_wire_any *request) {
    int fd;

    assert_int_equal(dbp_wait_readable(broker, in_seconds(WAIT_S)), 0);
    assert_int_equal(dbp_wire_recv(broker, request, &fd, NULL), 0);
    assert_int_equal(request->head.type, DBP_WIRE_FETCH);
}

static void answer(const union dbp_wire_any *request) {
    union dbp_wire_any msg;
    int fd = eventfd(0, EFD_CLOEXEC);

    memset(&msg.session, 0, sizeof msg.session);
    dbp_wire_head_init(&msg.head, DBP_WIRE_SESSION, request->head.serial);
    msg.session.facts.connection_id = 100 + request->fetch.session;
    assert_int_equal(dbp_wire_send(broker, &msg, fd), 0);
    close(fd);
}

static int setup(void **state) {
    int pair[2];

    (void)state;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0)
        return -1;
    channel = pair[0];
    broker = pair[1];
    atomic_store(&waiting, 0);
    atomic_store(&passed, 0);
    atomic_store(&overslept, 0);
    atomic_store(&let_go, false);
    dbp_set_wait(wait_as_the_test_says);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    if (channel >= 0)
        close(channel);
    if (broker >= 0)
        close(broker);
    return reap_all();
}

/* ---- tests ---- */

static void test_each_gets_its_own_answer(void **state) {
    union dbp_wire_any requests[MANY];
    struct asker askers[MANY];
    int before = fd_census(0);

    (void)state;
    for (uint32_t i = 0; i < MANY; i++) {
        begin(&askers[i], i);
        start(&askers[i]);
    }
    for (int i = 0; i < MANY; i++)
        receive(&requests[i]);
    for (int i = MANY; i-- > 0;) /* the other way round */
        answer(&requests[i]);
    for (int i = 0; i < MANY; i++)
        assert_its_own_answer(&askers[i]);
    assert_null(asking.first);
    assert_null(asking.reader);
    assert_int_equal(fd_census(0), before);
}

static void test_nobody_waits_with_the_lock(void **state) {
    union dbp_wire_any request;
    struct asker asker;

    (void)state;
    begin(&asker, 1);
    start(&asker);
    assert_true(eventually_at_least(&waiting, 1));
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_S / 2;
    assert_int_equal(pthread_mutex_timedlock(&lock, &until), 0);
    pthread_mutex_unlock(&lock);
    receive(&request);
    answer(&request);
    assert_its_own_answer(&asker);
}

/* A greenlet is killed, a signal's exception comes: another one reads on. */
static void test_the_reader_is_interrupted(void **state) {
    union dbp_wire_any first, second;
    struct asker reader, other;
    int before = fd_census(0);

    (void)state;
    begin(&reader, 1);
    reader.interrupt = true;
    start(&reader);
    assert_true(eventually_at_least(&waiting, 1));
    begin(&other, 2);
    start(&other);
    assert_true(eventually_at_least(&waiting, 2));
    receive(&first);
    receive(&second);
    answer(&first); /* nobody will want it */
    answer(&second);
    atomic_store(&let_go, true);
    pthread_join(reader.thread, NULL);
    assert_int_equal(reader.rc, DBP_E_INTERRUPTED);
    assert_int_equal(reader.fd, -1);
    assert_its_own_answer(&other);
    assert_int_equal(fd_census(0), before);
}

/* The same where the one that has to read next goes in that moment too. */
static void test_all_but_one_are_interrupted(void **state) {
    union dbp_wire_any request;
    struct asker askers[MANY];

    (void)state;
    for (uint32_t i = 0; i < MANY; i++) {
        begin(&askers[i], i);
        askers[i].interrupt = i + 1 < MANY;
        start(&askers[i]);
        assert_true(eventually_at_least(&waiting, i + 1));
    }
    atomic_store(&let_go, true);
    for (uint32_t i = 0; i + 1 < MANY; i++) {
        pthread_join(askers[i].thread, NULL);
        assert_int_equal(askers[i].rc, DBP_E_INTERRUPTED);
        receive(&request);
    }
    receive(&request);
    answer(&request);
    assert_its_own_answer(&askers[MANY - 1]);
}

static void test_a_deadline_ends_each_wait(void **state) {
    union dbp_wire_any request;
    struct asker reader, other, next;
    int before = fd_census(0);

    (void)state;
    begin(&reader, 1);
    reader.deadline_us = dbp_now_us() + 20000;
    start(&reader);
    assert_true(eventually_at_least(&waiting, 1));
    begin(&other, 2);
    other.deadline_us = dbp_now_us() + 20000;
    start(&other);
    pthread_join(reader.thread, NULL);
    pthread_join(other.thread, NULL);
    assert_int_equal(reader.rc, DBP_E_TIMEOUT);
    assert_int_equal(other.rc, DBP_E_TIMEOUT);
    atomic_store(&overslept, 0);
    for (int i = 0; i < 2; i++) {
        receive(&request);
        answer(&request); /* too late */
    }
    begin(&next, 3);
    start(&next);
    receive(&request);
    answer(&request);
    assert_its_own_answer(&next);
    assert_int_equal(fd_census(0), before);
}

/* The broker stands still, and many have asked: time passes, and then it goes on. */
static void test_a_full_channel_is_tried_again(void **state) {
    union dbp_wire_any request, filler;
    struct asker asker;
    uint32_t n = 0;

    (void)state;
    memset(&filler.fetch, 0, sizeof filler.fetch);
    dbp_wire_head_init(&filler.head, DBP_WIRE_FETCH, UINT32_MAX);
    while (dbp_wire_send(channel, &filler, -1) == 0)
        n++;
    begin(&asker, 1);
    start(&asker);
    assert_true(eventually_at_least(&passed, 2));
    for (; n > 0; n--)
        receive(&request);
    receive(&request);
    answer(&request);
    assert_its_own_answer(&asker);

    while (dbp_wire_send(channel, &filler, -1) == 0)
        continue;
    begin(&asker, 2);
    asker.deadline_us = dbp_now_us() + 20000;
    start(&asker);
    pthread_join(asker.thread, NULL);
    assert_int_equal(asker.rc, DBP_E_TIMEOUT);
    assert_null(asking.first);
}

static void test_the_end_of_the_channel_ends_all(void **state) {
    union dbp_wire_any request;
    struct asker askers[MANY];

    (void)state;
    for (uint32_t i = 0; i < MANY; i++) {
        begin(&askers[i], i);
        start(&askers[i]);
        receive(&request);
    }
    assert_true(eventually_at_least(&waiting, MANY));
    close(broker);
    broker = -1;
    for (int i = 0; i < MANY; i++) {
        pthread_join(askers[i].thread, NULL);
        assert_int_equal(askers[i].rc, DBP_E_CLOSED);
    }
    begin(&askers[0], 0);
    start(&askers[0]);
    pthread_join(askers[0].thread, NULL);
    assert_int_equal(askers[0].rc, DBP_E_CLOSED);
}

/* The process attaches anew while others wait: what they asked was asked on the old channel. */
static void test_another_channel(void **state) {
    union dbp_wire_any request;
    struct asker askers[MANY], later;
    int pair[2], old = channel, old_broker = broker;

    (void)state;
    for (uint32_t i = 0; i < MANY; i++) {
        begin(&askers[i], i);
        start(&askers[i]);
        receive(&request);
    }
    assert_true(eventually_at_least(&waiting, MANY));
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    pthread_mutex_lock(&lock);
    channel = pair[0];
    broker = pair[1];
    dbp_asking_over(&asking);
    pthread_mutex_unlock(&lock);
    for (int i = 1; i < MANY; i++) {
        pthread_join(askers[i].thread, NULL);
        assert_int_equal(askers[i].rc, DBP_E_CLOSED);
    }
    /* The first one reads the old channel still, and nobody waits for it to do so. */
    begin(&later, MANY);
    start(&later);
    receive(&request);
    assert_int_equal(request.fetch.session, MANY);
    answer(&request);
    assert_its_own_answer(&later);
    close(old_broker);
    pthread_join(askers[0].thread, NULL);
    assert_int_equal(askers[0].rc, DBP_E_CLOSED);
    close(old);
}

/* Neither what wakes the others, nor an fd that came for one who has not seen it yet. */
static void test_I11_a_forked_child_keeps_nothing(void **state) {
    union dbp_wire_any first, second;
    struct asker reader, other;

    (void)state;
    begin(&reader, 1);
    start(&reader);
    assert_true(eventually_at_least(&waiting, 1));
    begin(&other, 2);
    other.interrupt = true; /* does not go on when it is woken */
    start(&other);
    assert_true(eventually_at_least(&waiting, 2));
    receive(&first);
    receive(&second);
    int before = fd_census(0); /* with the one that wakes it */
    answer(&second);
    answer(&first);
    assert_its_own_answer(&reader); /* it has read the other's answer before its own */
    pthread_mutex_lock(&lock);
    assert_int_equal(fd_census(0), before + 1);
    pid_t pid = fork_child();
    if (pid == 0) {
        dbp_asking_fork_child(&asking);
        _exit(under_valgrind() || fd_census(0) == before - 1 ? 0 : 1);
    }
    pthread_mutex_unlock(&lock);
    assert_int_equal(wait_child(pid), 0);
    atomic_store(&let_go, true);
    pthread_join(other.thread, NULL);
    assert_int_equal(other.rc, DBP_E_INTERRUPTED); /* an exception is on its way: there is no answer then */
    assert_int_equal(other.fd, -1);
    assert_int_equal(fd_census(0), before - 1);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_each_gets_its_own_answer),         TEST(test_nobody_waits_with_the_lock),
        TEST(test_the_reader_is_interrupted),        TEST(test_all_but_one_are_interrupted),
        TEST(test_a_deadline_ends_each_wait),        TEST(test_a_full_channel_is_tried_again),
        TEST(test_the_end_of_the_channel_ends_all),  TEST(test_another_channel),
        TEST(test_I11_a_forked_child_keeps_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
