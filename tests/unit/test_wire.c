/* SPDX-License-Identifier: MIT
 * Control messages: what is sent arrives, what is not understood is refused with its fds closed, and the receiver
 * goes on (I10). Each test ends with an fd census.
 */
#include "wire.h"

#include "../support/helpers.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static int pair[2], some_fd, fds_before;

/* Said once more from the header's comment: bytes and fds of each type, and whether it can answer no. */
static const struct format {
    size_t size;
    int fds;
    bool nay;
} formats[DBP_WIRE_TYPES] = {
    [DBP_WIRE_ATTACH] = {sizeof(struct dbp_wire_attach), 1, false},
    [DBP_WIRE_ATTACHED] = {sizeof(struct dbp_wire_attached), 0, true},
    [DBP_WIRE_REGISTER] = {sizeof(struct dbp_wire_register), 0, false},
    [DBP_WIRE_REGISTERED] = {sizeof(struct dbp_wire_registered), 0, true},
    [DBP_WIRE_FETCH] = {sizeof(struct dbp_wire_fetch), 0, false},
    [DBP_WIRE_SESSION] = {sizeof(struct dbp_wire_session), 1, true},
    [DBP_WIRE_OPEN] = {sizeof(struct dbp_wire_open), 0, false},
    [DBP_WIRE_OPENED] = {sizeof(struct dbp_wire_opened), 1, false},
    [DBP_WIRE_FAILED] = {sizeof(struct dbp_wire_failed), 0, false},
    [DBP_WIRE_KILL] = {sizeof(struct dbp_wire_kill), 0, false},
    [DBP_WIRE_KILLED] = {sizeof(struct dbp_wire_killed), 0, false},
    [DBP_WIRE_CANCEL] = {sizeof(struct dbp_wire_cancel), 0, false},
};

static int setup(void **state) {
    (void)state;
    fds_before = fd_census(0);
    some_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (some_fd < 0)
        return -1;
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair);
}

static int teardown(void **state) {
    (void)state;
    close(some_fd);
    if (pair[0] >= 0)
        close(pair[0]);
    close(pair[1]);
    return fd_census(0) == fds_before ? 0 : -1;
}

static union dbp_wire_any message(enum dbp_wire_type type) {
    union dbp_wire_any msg;

    memset(&msg, 0x5a, sizeof msg);
    dbp_wire_head_init(&msg.head, type, 77);
    return msg;
}

/* Sends anything at all, with n copies of some_fd, and credentials if asked for. */
static void send_raw(const void *data, size_t size, int n) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(253 * sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
    struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};

    if (n > 0) {
        memset(&control, 0, sizeof control);
        mh.msg_control = control.bytes;
        mh.msg_controllen = CMSG_SPACE((size_t)n * sizeof(int));
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&mh);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN((size_t)n * sizeof(int));
        for (int i = 0; i < n; i++)
            memcpy(CMSG_DATA(cmsg) + (size_t)i * sizeof(int), &some_fd, sizeof some_fd);
    }
    assert_int_equal(sendmsg(pair[0], &mh, MSG_NOSIGNAL), size);
}

/* Refused, nothing kept, and the next good message gets through. */
static void assert_refused(void) {
    union dbp_wire_any msg, good = message(DBP_WIRE_FETCH);
    int fd = -7, before = fd_census(0);
    int32_t pid = -7;

    assert_int_equal(dbp_wire_recv(pair[1], &msg, &fd, &pid), DBP_E_INVALID);
    assert_int_equal(fd, -7);
    assert_int_equal(pid, -7);
    assert_int_equal(fd_census(0), before);
    assert_int_equal(dbp_wire_send(pair[0], &good, -1), 0);
    assert_int_equal(dbp_wire_recv(pair[1], &msg, &fd, NULL), 0);
    assert_int_equal(msg.head.type, DBP_WIRE_FETCH);
    assert_int_equal(fd, -1);
}

static void test_every_message_arrives_as_it_was_sent(void **state) {
    (void)state;
    for (uint32_t type = 1; type < DBP_WIRE_TYPES; type++) {
        union dbp_wire_any sent = message((enum dbp_wire_type)type), got;
        int fd = -7;
        memset(&got, 0, sizeof got);
        assert_int_equal(dbp_wire_send(pair[0], &sent, formats[type].fds ? some_fd : -1), 0);
        assert_int_equal(dbp_wire_recv(pair[1], &got, &fd, NULL), 0);
        assert_memory_equal(&got, &sent, formats[type].size);
        assert_int_equal(fd >= 0, formats[type].fds);
        if (fd >= 0) {
            struct stat a, b;
            assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
            assert_int_equal(fstat(fd, &a) | fstat(some_fd, &b), 0);
            assert_true(a.st_rdev == b.st_rdev);
            close(fd);
        }
        assert_int_equal(fcntl(some_fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC); /* the sender's is not consumed */
    }
}

static void test_an_answer_that_says_no_carries_no_fd(void **state) {
    (void)state;
    for (uint32_t type = 1; type < DBP_WIRE_TYPES; type++) {
        union dbp_wire_any msg = message((enum dbp_wire_type)type), got;
        int fd = -7;
        msg.head.result = DBP_E_STALE;
        send_raw(&msg, formats[type].size, 1);
        assert_refused();
        send_raw(&msg, formats[type].size, 0);
        if (!formats[type].nay) {
            assert_refused(); /* a request, or a delivery, has nothing to refuse */
            continue;
        }
        assert_int_equal(dbp_wire_recv(pair[1], &got, &fd, NULL), 0);
        assert_int_equal(fd, -1);
        assert_int_equal(got.head.result, DBP_E_STALE);
    }
}

static void test_I10_wrong_sizes_are_refused(void **state) {
    static uint8_t big[sizeof(union dbp_wire_any) + 4096];

    (void)state;
    for (uint32_t type = 1; type < DBP_WIRE_TYPES; type++) {
        union dbp_wire_any msg = message((enum dbp_wire_type)type);
        memcpy(big, &msg, sizeof msg);
        send_raw(big, formats[type].size - 1, formats[type].fds);
        assert_refused();
        send_raw(big, formats[type].size + 1, formats[type].fds);
        assert_refused();
        send_raw(big, sizeof big, formats[type].fds); /* longer than any: cut off by the kernel */
        assert_refused();
        send_raw(big, sizeof(struct dbp_wire_head) - 1, formats[type].fds);
        assert_refused();
        send_raw(big, 1, 3);
        assert_refused();
    }
}

static void test_I10_wrong_heads_are_refused(void **state) {
    (void)state;
    for (uint32_t type = 1; type < DBP_WIRE_TYPES; type++) {
        union dbp_wire_any msg = message((enum dbp_wire_type)type);
        msg.head.magic ^= 1;
        send_raw(&msg, formats[type].size, formats[type].fds);
        assert_refused();
        msg = message((enum dbp_wire_type)type);
        msg.head.version++;
        send_raw(&msg, formats[type].size, formats[type].fds);
        assert_refused();
        static const uint16_t types[] = {0, DBP_WIRE_TYPES, DBP_WIRE_TYPES + 1, UINT16_MAX};
        for (size_t i = 0; i < 4; i++) {
            msg = message((enum dbp_wire_type)type);
            msg.head.type = types[i];
            send_raw(&msg, formats[type].size, formats[type].fds);
            assert_refused();
        }
    }
}

static void test_I10_wrong_numbers_of_fds_are_refused_and_all_closed(void **state) {
    static const int numbers[] = {0, 1, 2, 3, 253};

    (void)state;
    for (uint32_t type = 1; type < DBP_WIRE_TYPES; type++)
        for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
            union dbp_wire_any msg = message((enum dbp_wire_type)type);
            if (numbers[i] == formats[type].fds)
                continue;
            send_raw(&msg, formats[type].size, numbers[i]);
            assert_refused();
        }
}

static void test_I10_fds_without_a_message_are_closed(void **state) {
    (void)state;
    send_raw("", 0, 2); /* of no bytes, which otherwise means the end */
    assert_refused();
}

static void test_the_senders_pid_comes_from_the_kernel(void **state) {
    union dbp_wire_any msg = message(DBP_WIRE_ATTACH);
    int on = 1, fd = -1;
    int32_t pid = 0;

    (void)state;
    assert_int_equal(setsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on), 0);
    assert_int_equal(dbp_wire_send(pair[0], &msg, some_fd), 0);
    assert_int_equal(dbp_wire_recv(pair[1], &msg, &fd, &pid), 0);
    assert_int_equal(pid, getpid());
    assert_true(fd >= 0);
    close(fd);
    msg = message(DBP_WIRE_ATTACH);
    send_raw(&msg, sizeof msg.attach, 253); /* as many fds as the kernel lets through, and the credentials */
    assert_refused();
}

static void test_nothing_there_and_nobody_there(void **state) {
    union dbp_wire_any msg = message(DBP_WIRE_FETCH);
    int fd = -7;

    (void)state;
    assert_int_equal(dbp_wire_recv(pair[1], &msg, &fd, NULL), -EAGAIN);
    assert_int_equal(dbp_wire_send(pair[0], &msg, -1), 0);
    close(pair[0]);
    pair[0] = -1;
    assert_int_equal(dbp_wire_recv(pair[1], &msg, &fd, NULL), 0); /* what was sent before the end arrives */
    assert_int_equal(dbp_wire_recv(pair[1], &msg, &fd, NULL), -EPIPE);
    assert_int_equal(dbp_wire_send(pair[1], &msg, -1), -EPIPE); /* and no SIGPIPE */
}

static void test_a_receiver_that_does_not_read_blocks_nobody(void **state) {
    union dbp_wire_any msg = message(DBP_WIRE_KILL);
    int rc = 0, n = 0, fd;

    (void)state;
    while ((rc = dbp_wire_send(pair[0], &msg, -1)) == 0)
        n++;
    assert_int_equal(rc, -EAGAIN);
    assert_true(n > 0);
    assert_int_equal(dbp_wire_recv(pair[1], &msg, &fd, NULL), 0);
    assert_int_equal(dbp_wire_send(pair[0], &msg, -1), 0);
}

static void test_an_unknown_type_is_not_sent(void **state) {
    union dbp_wire_any msg = message(DBP_WIRE_FETCH);

    (void)state;
    msg.head.type = 0;
    assert_int_equal(dbp_wire_send(pair[0], &msg, -1), -EINVAL);
    msg.head.type = DBP_WIRE_TYPES;
    assert_int_equal(dbp_wire_send(pair[0], &msg, -1), -EINVAL);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_every_message_arrives_as_it_was_sent),
        TEST(test_an_answer_that_says_no_carries_no_fd),
        TEST(test_I10_wrong_sizes_are_refused),
        TEST(test_I10_wrong_heads_are_refused),
        TEST(test_I10_wrong_numbers_of_fds_are_refused_and_all_closed),
        TEST(test_I10_fds_without_a_message_are_closed),
        TEST(test_the_senders_pid_comes_from_the_kernel),
        TEST(test_nothing_there_and_nobody_there),
        TEST(test_a_receiver_that_does_not_read_blocks_nobody),
        TEST(test_an_unknown_type_is_not_sent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
