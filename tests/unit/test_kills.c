/* SPDX-License-Identifier: MIT
 * KILLs over one connection, against a server that is played by a thread here.
 */
#include "kills.h"

#include "handshake.h"

#include "../support/helpers.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#define MANY 500u

/* What the server does with its n-th statement. */
enum answer { OK, UNKNOWN, SILENCE, HANG_UP, GARBAGE };

static struct {
    int fd, stop_fd;
    pthread_t thread;
    enum answer (*answer)(uint32_t n);
    uint32_t said[MANY]; /* connection ids, in order */
    uint32_t n;
    uint32_t most; /* statements that lay there at once */
} server;

static int client_fd;
static struct dbp_kill kills[MANY];

static bool give(enum answer answer) {
    static const uint8_t ok[] = {7, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0};
    static const uint8_t err[] = {0x1b, 0,   0,   1,   0xff, 0x46, 0x04, '#', 'H', 'Y', '0', '0', '0', 'U', 'n', 'k',
                                  'n',  'o', 'w', 'n', ' ',  't',  'h',  'r', 'e', 'a', 'd', ' ', 'i', 'd', '!'};

    switch (answer) {
    case OK: /* in two pieces, as it may come */
        return send(server.fd, ok, 5, MSG_NOSIGNAL) == 5 && send(server.fd, ok + 5, sizeof ok - 5, MSG_NOSIGNAL) > 0;
    case UNKNOWN:
        return send(server.fd, err, sizeof err, MSG_NOSIGNAL) == (ssize_t)sizeof err;
    case GARBAGE:
        return send(server.fd, "garbage", 7, MSG_NOSIGNAL) == 7;
    case HANG_UP:
        shutdown(server.fd, SHUT_RDWR);
        return false;
    case SILENCE:
        return true;
    }
    return false;
}

static void *serve(void *arg) {
    static uint8_t in[65536];
    size_t have = 0;
    ssize_t got;

    (void)arg;
    while ((got = recv(server.fd, in + have, sizeof in - have, 0)) > 0) {
        uint32_t here = 0;
        have += (size_t)got;
        while (have >= 5 && have >= 4u + in[0]) {
            char sql[64];
            snprintf(sql, sizeof sql, "%.*s", in[0] - 1, (const char *)in + 5);
            if (in[3] != 0 || in[4] != 3 || server.n == MANY ||
                sscanf(sql, "KILL CONNECTION %u", &server.said[server.n]) != 1)
                return NULL;
            size_t size = 4u + in[0];
            memmove(in, in + size, have - size);
            have -= size;
            here++;
            if (!give(server.answer(server.n++)))
                return NULL;
        }
        server.most = here > server.most ? here : server.most;
    }
    return NULL;
}

static size_t run(enum answer (*answer)(uint32_t n), size_t n, uint64_t patience_us) {
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    server.fd = pair[0];
    client_fd = pair[1];
    server.answer = answer;
    server.n = server.most = 0;
    server.stop_fd = eventfd(0, EFD_CLOEXEC);
    for (uint32_t i = 0; i < n; i++)
        kills[i] = (struct dbp_kill){.connection_id = 4294967295u - i, .error = {.code = 77}};
    assert_int_equal(pthread_create(&server.thread, NULL, serve, NULL), 0);
    size_t done = dbp_kills_run(client_fd, server.stop_fd, patience_us, kills, n);
    close(client_fd);
    pthread_join(server.thread, NULL);
    close(server.fd);
    close(server.stop_fd);
    return done;
}

static enum answer every_third_is_unknown(uint32_t n) {
    return n % 3 == 0 ? UNKNOWN : OK;
}

static void test_each_gets_its_own_answer(void **state) {
    (void)state;
    assert_int_equal(run(every_third_is_unknown, MANY, 20000000), MANY);
    assert_int_equal(server.n, MANY);
    for (uint32_t i = 0; i < MANY; i++) {
        assert_int_equal(server.said[i], kills[i].connection_id);
        assert_int_equal(kills[i].error.code, i % 3 == 0 ? 1094 : 0);
    }
    assert_string_equal(kills[0].error.text, "Unknown thread id!");
    assert_string_equal(kills[0].error.sqlstate, "HY000");
    assert_true(server.most > 1); /* nobody waited for an answer before he went on */
}

static enum answer third_is_garbage(uint32_t n) {
    return n < 2 ? OK : n == 2 ? GARBAGE : SILENCE;
}

static enum answer third_hangs_up(uint32_t n) {
    return n < 2 ? OK : HANG_UP;
}

static enum answer third_is_silence(uint32_t n) {
    return n < 2 ? OK : SILENCE;
}

static void test_what_comes_after_a_failure_is_not_answered(void **state) {
    (void)state;
    assert_int_equal(run(third_is_garbage, 5, 20000000), 2);
    assert_int_equal(run(third_hangs_up, 5, 20000000), 2);
    assert_int_equal(run(third_is_silence, 5, 50000), 2);
}

static enum answer stops_us(uint32_t n) {
    uint64_t one = 1;

    (void)n;
    return write(server.stop_fd, &one, sizeof one) > 0 ? SILENCE : HANG_UP;
}

static void test_a_stop_ends_it(void **state) {
    (void)state;
    assert_int_equal(run(stops_us, 5, 3600000000), 0);
}

static void test_none_is_nothing_to_say(void **state) {
    (void)state;
    assert_int_equal(run(every_third_is_unknown, 0, 1000000), 0);
    assert_int_equal(server.n, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_gets_its_own_answer),
        cmocka_unit_test(test_what_comes_after_a_failure_is_not_answered),
        cmocka_unit_test(test_a_stop_ends_it),
        cmocka_unit_test(test_none_is_nothing_to_say),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
