/* SPDX-License-Identifier: MIT
 * Strangers at the private doors: other processes, as another user, come before the right one, keep coming, and stay.
 * None is heard, none keeps the right one out; alone they get nothing and the door's deadline ends it.
 */
#include "replay.h"

#include "../support/helpers.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#define NOBODY 65534
#define STRANGERS 3

struct door {
    bool tcp;
    char name[DBP_DOOR_NAME_MAX];
    uint16_t port;
    int fd;
};

static void open_door(struct door *door, bool tcp) {
    door->tcp = tcp;
    if (tcp)
        assert_int_equal(dbp_door_open_tcp(&door->port, &door->fd), 0);
    else
        assert_int_equal(dbp_door_open_unix(door->name, &door->fd), 0);
}

/* -1: it does not take any now. */
static int knock(const struct door *door, int flags) {
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_un un;
    socklen_t len = sizeof in;
    int fd = socket(door->tcp ? AF_INET : AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);

    in.sin_port = htons(door->port);
    if (!door->tcp && dbp_unix_address(door->name, &un, &len) != 0)
        return -1;
    if (fd >= 0 && connect(fd, door->tcp ? (struct sockaddr *)&in : (struct sockaddr *)&un, len) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

struct seen {
    _Atomic uint32_t knocked, heard, ready;
};

/* Comes again and again, talks, and waits to be answered. */
static pid_t stranger(const struct door *door, struct seen *seen) {
    pid_t pid = fork_child();

    if (pid != 0)
        return pid;
    close(door->fd);
    if (setresgid(NOBODY, NOBODY, NOBODY) != 0 || setresuid(NOBODY, NOBODY, NOBODY) != 0)
        _exit(9);
    for (;;) {
        char byte;
        int fd = knock(door, 0);
        if (fd < 0) {
            poll(NULL, 0, 1);
            continue;
        }
        (void)!send(fd, "let me in", 9, MSG_NOSIGNAL);
        atomic_fetch_add(&seen->knocked, 1);
        if (recv(fd, &byte, 1, 0) > 0)
            atomic_fetch_add(&seen->heard, 1);
        close(fd);
    }
}

static void among_strangers(bool tcp) {
    struct seen *seen = shared_memory(sizeof *seen);
    struct door door;
    int before = fd_census(0), mine, fd = -1;

    open_door(&door, tcp);
    for (int i = 0; i < STRANGERS; i++)
        assert_true(stranger(&door, seen) > 0);
    assert_true(eventually_at_least(&seen->knocked, STRANGERS)); /* they stand in the queue first */
    assert_int_equal(dbp_door_accept(door.fd, -1, -1, dbp_now_us() + 50000, &fd), DBP_E_TIMEOUT);
    assert_int_equal(fd, -1);
    /* The queue may be full of them: room is made by looking who is there. Over TCP the kernel takes more. */
    while ((mine = knock(&door, tcp ? 0 : SOCK_NONBLOCK)) < 0)
        assert_int_equal(dbp_door_accept(door.fd, -1, -1, dbp_now_us() + 1000, &fd), DBP_E_TIMEOUT);
    assert_int_equal(dbp_door_accept(door.fd, -1, -1, in_seconds(WAIT_S), &fd), 0);
    char byte;
    assert_int_equal(send(mine, "x", 1, MSG_NOSIGNAL), 1);
    assert_int_equal(recv(fd, &byte, 1, 0) < 0 ? poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 20000) : 1, 1);
    assert_int_equal(reap_all(), STRANGERS);
    assert_int_equal(atomic_load(&seen->heard), 0);
    close(mine);
    close(fd);
    close(door.fd);
    assert_int_equal(fd_census(0), before);
}

static void test_over_a_unix_socket_only_this_process_is_heard(void **state) {
    (void)state;
    among_strangers(false);
}

static void test_over_tcp_only_this_process_is_heard(void **state) {
    (void)state;
    among_strangers(true);
}

/* The whole replay with strangers only: its thread ends at its deadline and has told nobody its greeting. */
static void test_a_replay_that_only_strangers_find_ends(void **state) {
    struct seen *seen = shared_memory(sizeof *seen);
    struct dbp_session_facts facts = {0};
    static const uint8_t greeting[] = "\n8.0\0\1\0\0\0abcdefgh\0\0\x82\x2d\2\0\x08\0\x15\0\0\0\0\0\0\0\0\0\0"
                                      "ijklmnopqrst";
    struct dbp_replay_server *server;
    struct door door = {.fd = -1};
    char refusal[64];

    (void)state;
    facts.greeting_len = sizeof greeting;
    for (size_t i = 0; i < sizeof greeting; i++)
        facts.greeting[i] = greeting[i];
    uint64_t deadline = dbp_now_us() + 200000;
    assert_int_equal(dbp_replay_server_start(&facts, "utf8mb4", 2, deadline, door.name, sizeof door.name, &server), 0);
    for (int i = 0; i < STRANGERS; i++)
        assert_true(stranger(&door, seen) > 0);
    while (dbp_now_us() < deadline)
        poll(NULL, 0, 10);
    assert_int_equal(dbp_replay_server_stop(server, refusal, sizeof refusal), 0);
    assert_int_equal(reap_all(), STRANGERS);
    assert_int_equal(atomic_load(&seen->heard), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_over_a_unix_socket_only_this_process_is_heard),
        cmocka_unit_test(test_over_tcp_only_this_process_is_heard),
        cmocka_unit_test(test_a_replay_that_only_strangers_find_ends),
    };
    if (geteuid() != 0) {
        print_message("becoming nobody needs root: skipped\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
