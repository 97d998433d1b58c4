/* SPDX-License-Identifier: MIT
 * The handshake relay between a server and a driver that are both played here, by this one thread: the relay's thread
 * is between them. Each read has a bound, so that a relay that loses something fails a test instead of hanging it.
 */
#include "handshake.h"
#include "relay.h"
#include "replay.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define SOON (dbp_now_us() + 20000000u)

static const uint8_t greeting[] = "\x0a"
                                  "5.5.5-10.11.19-MariaDB\0"
                                  "\x2a\x01\0\0"
                                  "ABCDEFGH\0"
                                  "\xfe\xff\x2d\x02\0\xff\xbf\x15"
                                  "\0\0\0\0\0\0"
                                  "\x1d\0\0\0"
                                  "IJKLMNOPQRST\0"
                                  "mysql_native_password";

/* One login: the two ends that the test plays, and the relay between them. */
struct scene {
    bool tcp;
    int listener;
    char name[DBP_DOOR_NAME_MAX];
    uint16_t port;
    struct dbp_relay *relay;
    int server; /* the server's end */
    int client; /* the driver's end */
};

static void be_patient(int fd) {
    struct timeval patience = {.tv_sec = 20};

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
}

static int connect_unix(const char *name) {
    struct sockaddr_un addr;
    socklen_t len;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (dbp_unix_address(name, &addr, &len) != 0 || connect(fd, (struct sockaddr *)&addr, len) != 0) {
        close(fd);
        return -1;
    }
    be_patient(fd);
    return fd;
}

static int connect_tcp(uint16_t port) {
    struct sockaddr_in addr = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (connect(fd, (struct sockaddr *)&addr, sizeof addr) != 0) {
        close(fd);
        return -1;
    }
    be_patient(fd);
    return fd;
}

static int connect_relay(const struct dbp_relay *relay) {
    return dbp_relay_socket(relay) ? connect_unix(dbp_relay_socket(relay)) : connect_tcp(dbp_relay_port(relay));
}

static struct dbp_relay_route route_to(const struct scene *s) {
    return (struct dbp_relay_route){.host = "127.0.0.1",
                                    .port = s->port,
                                    .unix_socket = s->tcp ? "" : s->name,
                                    .connect_deadline_us = SOON,
                                    .deadline_us = SOON,
                                    .stop_fd = -1};
}

/* The server listens and the relay has connected to it; the driver has not come yet. */
static void open_scene(struct scene *s, bool tcp) {
    struct dbp_error error;

    *s = (struct scene){.tcp = tcp, .listener = -1, .server = -1, .client = -1};
    assert_int_equal(tcp ? dbp_door_open_tcp(&s->port, &s->listener) : dbp_door_open_unix(s->name, &s->listener), 0);
    struct dbp_relay_route route = route_to(s);
    assert_int_equal(dbp_relay_start(&route, &error, &s->relay), 0);
    s->server = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC);
    assert_true(s->server >= 0);
    be_patient(s->server);
}

static void close_scene(struct scene *s) {
    if (s->client >= 0)
        close(s->client);
    s->relay = dbp_relay_free(s->relay);
    assert_null(s->relay);
    if (s->server >= 0)
        close(s->server);
    close(s->listener);
}

static void put(int fd, const void *bytes, size_t n) {
    assert_int_equal(send(fd, bytes, n, MSG_NOSIGNAL), n);
}

/* In one send: after a head that is refused, the other side is gone and a second send would fail. */
static void put_packet(int fd, const void *payload, size_t n, uint8_t seq) {
    uint8_t b[4 + 1024];

    assert_true(n <= sizeof b - 4);
    dbp_packet_head(b, n, seq);
    memcpy(b + 4, payload, n);
    put(fd, b, 4 + n);
}

/* Exactly n bytes. */
static void get(int fd, void *bytes, size_t n) {
    for (size_t at = 0; at < n;) {
        ssize_t got = recv(fd, (uint8_t *)bytes + at, n - at, 0);
        assert_true(got > 0);
        at += (size_t)got;
    }
}

static size_t get_packet(int fd, uint8_t *payload, size_t max) {
    uint8_t head[4];

    get(fd, head, 4);
    size_t n = head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16;
    assert_true(n <= max);
    get(fd, payload, n);
    return n;
}

static void expect_end(int fd) {
    uint8_t byte;
    ssize_t n = recv(fd, &byte, 1, 0);

    assert_true(n == 0 || (n < 0 && errno == ECONNRESET));
}

/* An answer that asks for all that there is. */
static size_t make_answer(uint8_t *b) {
    uint32_t caps = 0xffffffffu & ~(DBP_CAP_LONG_PASSWORD | DBP_CAP_CONNECT_ATTRS | DBP_CAP_CONNECT_WITH_DB);

    memset(b, 0, 32);
    for (int i = 0; i < 4; i++)
        b[i] = (uint8_t)(caps >> (8 * i));
    b[8] = 45;
    b[28] = 0x0d;
    memcpy(b + 32, "user\0\x03pwd", 9);
    memcpy(b + 41, DBP_NATIVE_PASSWORD, sizeof DBP_NATIVE_PASSWORD);
    return 41 + sizeof DBP_NATIVE_PASSWORD;
}

/* Plays a login to its end; checks what each side sees. */
static void log_in(struct scene *s) {
    uint8_t b[512], answer[128], ok[16];
    struct dbp_greeting g;
    struct dbp_login l;

    s->client = connect_relay(s->relay);
    assert_true(s->client >= 0);
    put_packet(s->server, greeting, sizeof greeting, 0);
    size_t n = get_packet(s->client, b, sizeof b);
    assert_int_equal(n, sizeof greeting);
    assert_int_equal(dbp_greeting_parse(b, n, &g), 0);
    assert_int_equal(g.extended, 0);
    assert_int_equal(g.capabilities & ~DBP_CAP_PASSED, 0);
    assert_true(g.capabilities & DBP_CAP_SESSION_TRACK);

    size_t len = make_answer(answer);
    put_packet(s->client, answer, len, 1);
    n = get_packet(s->server, b, sizeof b);
    assert_int_equal(n, len);
    assert_int_equal(dbp_login_parse(b, n, g.capabilities, &l), 0);
    assert_int_equal(l.capabilities & ~DBP_CAP_PASSED, 0);
    assert_true(l.capabilities & DBP_CAP_SESSION_TRACK);
    assert_int_equal(l.extended, 0);
    assert_memory_equal(b + 32, answer + 32, len - 32);

    n = dbp_build_ok(ok, sizeof ok, 2, 2);
    put(s->server, ok, n);
    get(s->client, b, n);
    assert_memory_equal(b, ok, n);
}

static void detach_gives_the_session(bool tcp) {
    struct scene s;
    struct dbp_relay_session session;
    struct dbp_greeting g;
    uint8_t b[64];
    int on = 0;
    socklen_t len = sizeof on;

    open_scene(&s, tcp);
    log_in(&s);
    assert_int_equal(dbp_relay_detach(s.relay, s.client, &session), 0);

    assert_true(fcntl(session.fd, F_GETFL) & O_NONBLOCK);
    assert_true(fcntl(session.fd, F_GETFD) & FD_CLOEXEC);
    if (tcp) {
        assert_int_equal(getsockopt(session.fd, IPPROTO_TCP, TCP_NODELAY, &on, &len), 0);
        assert_true(on);
        assert_int_equal(getsockopt(session.fd, SOL_SOCKET, SO_KEEPALIVE, &on, &len), 0);
        assert_true(on);
        /* An upload that waits for a lock, its window closed, is no dead server. */
        assert_int_equal(getsockopt(session.fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &on, &len), 0);
        assert_int_equal(on, 0);
    }
    assert_int_equal(session.charset, 45);
    assert_int_equal(session.capabilities & ~DBP_CAP_PASSED, 0);
    assert_true(session.capabilities & DBP_CAP_SESSION_TRACK);
    assert_false(session.capabilities & (DBP_CAP_CONNECT_WITH_DB | DBP_CAP_LONG_PASSWORD));
    assert_int_equal(dbp_greeting_parse(session.greeting, session.greeting_len, &g), 0);
    assert_int_equal(g.connection_id, 0x12a);
    assert_int_equal(g.extended, 0);

    /* The driver's COM_QUIT ends at the relay, and the session is alive. */
    put_packet(s.client, "\x01", 1, 0);
    close(s.client);
    s.client = -1;
    s.relay = dbp_relay_free(s.relay);
    put(session.fd, "ping", 4);
    get(s.server, b, 4);
    assert_memory_equal(b, "ping", 4);
    put(s.server, "pong", 4);
    struct pollfd p = {.fd = session.fd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 20000), 1);
    get(session.fd, b, 4);
    assert_memory_equal(b, "pong", 4);
    close(session.fd);
    close_scene(&s);
}

static void detach_gives_a_session_over_unix(void **state) {
    (void)state;
    detach_gives_the_session(false);
}

static void detach_gives_a_session_over_tcp(void **state) {
    (void)state;
    detach_gives_the_session(true);
}

/* The driver must think of the transport what is true, or it sends its password in clear. */
static void the_door_is_of_the_server_s_kind(void **state) {
    struct scene s;

    (void)state;
    open_scene(&s, true);
    assert_null(dbp_relay_socket(s.relay));
    assert_int_not_equal(dbp_relay_port(s.relay), 0);
    close_scene(&s);
    open_scene(&s, false);
    assert_int_equal(dbp_relay_socket(s.relay)[0], '@');
    close_scene(&s);
}

static void later_bytes_pass_as_they_are(void **state) {
    struct scene s;
    uint8_t out[8192], in[8192];

    (void)state;
    open_scene(&s, true);
    log_in(&s);
    for (unsigned round = 0; round < 64; round++) {
        for (size_t i = 0; i < sizeof out; i++)
            out[i] = (uint8_t)(i * 31 + round * 7);
        put(s.server, out, sizeof out);
        get(s.client, in, sizeof in);
        assert_memory_equal(in, out, sizeof in);
        put(s.client, out, sizeof out);
        get(s.server, in, sizeof in);
        assert_memory_equal(in, out, sizeof in);
    }
    close_scene(&s);
}

static void the_handshake_may_come_byte_by_byte(void **state) {
    struct scene s;
    uint8_t b[512], packet[256], head[4];

    (void)state;
    open_scene(&s, false);
    s.client = connect_relay(s.relay);
    dbp_packet_head(head, sizeof greeting, 0);
    for (size_t i = 0; i < 4; i++)
        put(s.server, head + i, 1);
    for (size_t i = 0; i < sizeof greeting; i++)
        put(s.server, greeting + i, 1);
    assert_int_equal(get_packet(s.client, b, sizeof b), sizeof greeting);
    size_t n = make_answer(packet + 4);
    dbp_packet_head(packet, n, 1);
    for (size_t i = 0; i < n + 4; i++)
        put(s.client, packet + i, 1);
    assert_int_equal(get_packet(s.server, b, sizeof b), n);
    close_scene(&s);
}

/* 1040, 1130 and the like come instead of a greeting. */
static void an_error_instead_of_a_greeting_passes(void **state) {
    struct scene s;
    struct dbp_relay_session session;
    struct dbp_error e;
    uint8_t b[64];

    (void)state;
    open_scene(&s, true);
    s.client = connect_relay(s.relay);
    put_packet(s.server, "\xff\x10\x04Too many", 11, 0);
    size_t n = get_packet(s.client, b, sizeof b);
    assert_int_equal(dbp_err_parse(b, n, &e), 0);
    assert_int_equal(e.code, 1040);
    assert_int_equal(dbp_relay_detach(s.relay, s.client, &session), DBP_E_INVALID);
    close_scene(&s);
}

static void bad_greeting(const void *bytes, size_t n) {
    struct scene s;
    struct dbp_relay_session session;

    open_scene(&s, false);
    s.client = connect_relay(s.relay);
    put(s.server, bytes, n);
    shutdown(s.server, SHUT_WR);
    expect_end(s.client); /* not a byte of it */
    assert_int_equal(dbp_relay_detach(s.relay, s.client, &session), DBP_E_INVALID);
    close_scene(&s);
}

static void a_greeting_that_is_none_does_not_pass(void **state) {
    uint8_t packet[4 + sizeof greeting];

    (void)state;
    for (size_t n = 0; n < sizeof packet; n++) { /* cut on the wire */
        dbp_packet_head(packet, sizeof greeting, 0);
        memcpy(packet + 4, greeting, sizeof greeting);
        bad_greeting(packet, n);
    }
    for (size_t n = 0; n < sizeof greeting - sizeof DBP_NATIVE_PASSWORD; n++) { /* cut, and the head says so */
        dbp_packet_head(packet, n, 0);
        bad_greeting(packet, n + 4);
    }
    dbp_packet_head(packet, sizeof greeting, 1);
    bad_greeting(packet, sizeof packet);
    bad_greeting("\xff\xff\xff\0xxxx", 8);
    bad_greeting("HTTP/1.1 400 Bad Request\r\n\r\n", 28);
}

static void an_answer_that_is_none_does_not_pass(void **state) {
    uint8_t b[512], answer[128];

    (void)state;
    size_t len = make_answer(answer);
    for (size_t n = 0; n < len; n++) {
        struct scene s;
        struct dbp_relay_session session;
        open_scene(&s, false);
        s.client = connect_relay(s.relay);
        put_packet(s.server, greeting, sizeof greeting, 0);
        get_packet(s.client, b, sizeof b);
        put_packet(s.client, answer, n, 1); /* n == 32 is an SSLRequest */
        expect_end(s.server);
        expect_end(s.client);
        assert_int_equal(dbp_relay_detach(s.relay, s.client, &session), DBP_E_INVALID);
        close_scene(&s);
    }
}

static void an_end_on_one_side_is_an_end_on_the_other(void **state) {
    struct scene s;

    (void)state;
    open_scene(&s, true);
    log_in(&s);
    close(s.server);
    s.server = -1;
    expect_end(s.client);
    close_scene(&s);

    open_scene(&s, true);
    log_in(&s);
    close(s.client);
    s.client = -1;
    s.relay = dbp_relay_free(s.relay);
    expect_end(s.server);
    close_scene(&s);
}

/* A login that failed later (init_sql) ends politely. */
static void without_detach_a_quit_reaches_the_server(void **state) {
    uint8_t b[8];

    (void)state;
    for (int i = 0; i < 20; i++) {
        struct scene s;
        open_scene(&s, i % 2);
        log_in(&s);
        put_packet(s.client, "\x01", 1, 0);
        close(s.client);
        s.client = -1;
        s.relay = dbp_relay_free(s.relay);
        assert_int_equal(get_packet(s.server, b, sizeof b), 1);
        assert_int_equal(b[0], 1);
        expect_end(s.server);
        close_scene(&s);
    }
}

/* I5: what is not known to be idle is not handed on. */
static void bytes_under_way_forbid_detaching(void **state) {
    struct scene s;
    struct dbp_relay_session session;

    (void)state;
    for (int i = 0; i < 20; i++) {
        open_scene(&s, true);
        log_in(&s);
        put(s.client, "\x01\0\0\0\x0e", 5); /* a command that was not answered */
        assert_int_equal(dbp_relay_detach(s.relay, s.client, &session), -EPROTO);
        close_scene(&s);

        open_scene(&s, true);
        log_in(&s);
        close(s.server); /* the server has hung up */
        s.server = -1;
        assert_int_equal(dbp_relay_detach(s.relay, s.client, &session), -EPROTO);
        close_scene(&s);
    }
}

static void only_the_socket_that_logged_in_is_detached(void **state) {
    struct dbp_relay_session session;

    (void)state;
    for (int tcp = 0; tcp < 2; tcp++) {
        struct scene s, other;
        open_scene(&s, tcp);
        open_scene(&other, tcp);
        log_in(&s);
        log_in(&other);
        assert_int_equal(dbp_relay_detach(s.relay, other.client, &session), DBP_E_INVALID);
        assert_int_equal(dbp_relay_detach(other.relay, -1, &session), DBP_E_INVALID);
        close_scene(&other);
        close_scene(&s);
        /* And nothing before anyone has logged in, or twice. */
        open_scene(&s, tcp);
        assert_int_equal(dbp_relay_detach(s.relay, s.listener, &session), DBP_E_INVALID);
        close_scene(&s);
        open_scene(&s, tcp);
        log_in(&s);
        assert_int_equal(dbp_relay_detach(s.relay, s.client, &session), 0);
        close(session.fd);
        assert_int_equal(dbp_relay_detach(s.relay, s.client, &session), DBP_E_INVALID);
        close_scene(&s);
    }
}

/* Another process that is quicker at the door is sent away, and the login goes on. */
static void a_stranger_at_the_door_is_sent_away(void **state) {
    (void)state;
    for (int tcp = 0; tcp < 2; tcp++) {
        struct scene s;
        int status = -1;
        open_scene(&s, tcp);
        pid_t pid = fork();
        if (pid == 0) {
            uint8_t byte;
            int fd = connect_relay(s.relay);
            ssize_t n = fd >= 0 ? recv(fd, &byte, 1, 0) : 1;
            _exit(n == 0 || (n < 0 && errno == ECONNRESET) ? 0 : 1);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
        log_in(&s);
        /* One login per relay: the door is shut now. */
        assert_int_equal(connect_relay(s.relay), -1);
        close_scene(&s);
    }
}

static void an_unreachable_server_is_said_as_the_library_would(void **state) {
    struct dbp_relay_route route = {
        .host = "", .unix_socket = "/nowhere/s.sock", .connect_deadline_us = SOON, .deadline_us = SOON, .stop_fd = -1};
    struct dbp_relay *relay = NULL;
    struct dbp_error e;
    uint16_t port;
    int fd;

    (void)state;
    assert_int_equal(dbp_relay_start(&route, &e, &relay), DBP_E_FAILED);
    assert_int_equal(e.code, 2002);
    assert_string_equal(e.sqlstate, "HY000");
    assert_string_equal(e.text, "Can't connect to local MySQL server through socket '/nowhere/s.sock' (2)");

    assert_int_equal(dbp_door_open_tcp(&port, &fd), 0); /* a port where nobody listens: it was ours until now */
    close(fd);
    route.unix_socket = "";
    route.port = port;
    assert_int_equal(dbp_relay_start(&route, &e, &relay), DBP_E_FAILED);
    assert_int_equal(e.code, 2003);
    assert_string_equal(e.text, "Can't connect to MySQL server on '127.0.0.1' (111)");

    route.host = "256.256.256.256 not a name";
    assert_int_equal(dbp_relay_start(&route, &e, &relay), DBP_E_FAILED);
    assert_int_equal(e.code, 2005);
    assert_non_null(strstr(e.text, "Unknown MySQL server host '256.256.256.256 not a name'"));
    assert_null(relay);
}

/* A server whose queue is full: connecting ends by the deadline, or by stop_fd. */
static void connecting_is_bounded(void **state) {
    struct scene s = {.tcp = false};
    struct dbp_relay *relay = NULL;
    struct dbp_error e;
    int fds[64], n = 0;

    (void)state;
    assert_int_equal(dbp_door_open_unix(s.name, &s.listener), 0);
    struct sockaddr_un addr;
    socklen_t len;
    assert_int_equal(dbp_unix_address(s.name, &addr, &len), 0);
    for (; n < 64; n++) {
        fds[n] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (connect(fds[n], (struct sockaddr *)&addr, len) != 0)
            break;
    }
    assert_true(n < 64);
    struct dbp_relay_route route = route_to(&s);
    route.connect_deadline_us = dbp_now_us() + 1000;
    assert_int_equal(dbp_relay_start(&route, &e, &relay), DBP_E_FAILED);
    assert_int_equal(e.code, 2002);

    route.connect_deadline_us = dbp_now_us() + 3600000000u;
    route.stop_fd = eventfd(1, EFD_CLOEXEC);
    assert_int_equal(dbp_relay_start(&route, &e, &relay), DBP_E_CLOSED);
    assert_null(relay);
    close(route.stop_fd);
    for (int i = 0; i <= n; i++)
        close(fds[i]);
    close(s.listener);
}

static void the_deadline_and_stop_end_a_login(void **state) {
    struct scene s = {.tcp = true};
    struct dbp_error e;
    uint64_t one = 1;

    (void)state;
    for (int by_stop = 0; by_stop < 2; by_stop++) {
        assert_int_equal(dbp_door_open_tcp(&s.port, &s.listener), 0);
        struct dbp_relay_route route = route_to(&s);
        route.stop_fd = eventfd(0, EFD_CLOEXEC);
        if (!by_stop)
            route.deadline_us = dbp_now_us() + 20000;
        assert_int_equal(dbp_relay_start(&route, &e, &s.relay), 0);
        s.server = accept4(s.listener, NULL, NULL, SOCK_CLOEXEC);
        s.client = connect_relay(s.relay);
        if (by_stop)
            assert_int_equal(write(route.stop_fd, &one, sizeof one), sizeof one);
        if (s.client >= 0) /* else the deadline was there first, which is an end as well */
            expect_end(s.client);
        close_scene(&s);
        close(route.stop_fd);
    }
}

static int count_fds(void) {
    DIR *dir = opendir("/proc/self/fd");
    int n = 0;

    while (dir && readdir(dir))
        n++;
    if (dir)
        closedir(dir);
    return n;
}

static int census(void **state) {
    static int before;

    (void)state;
    if (before == 0) {
        before = count_fds();
        return 0;
    }
    return count_fds() == before ? 0 : -1;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(detach_gives_a_session_over_unix),
        cmocka_unit_test(detach_gives_a_session_over_tcp),
        cmocka_unit_test(the_door_is_of_the_server_s_kind),
        cmocka_unit_test(later_bytes_pass_as_they_are),
        cmocka_unit_test(the_handshake_may_come_byte_by_byte),
        cmocka_unit_test(an_error_instead_of_a_greeting_passes),
        cmocka_unit_test(a_greeting_that_is_none_does_not_pass),
        cmocka_unit_test(an_answer_that_is_none_does_not_pass),
        cmocka_unit_test(an_end_on_one_side_is_an_end_on_the_other),
        cmocka_unit_test(without_detach_a_quit_reaches_the_server),
        cmocka_unit_test(bytes_under_way_forbid_detaching),
        cmocka_unit_test(only_the_socket_that_logged_in_is_detached),
        cmocka_unit_test(a_stranger_at_the_door_is_sent_away),
        cmocka_unit_test(an_unreachable_server_is_said_as_the_library_would),
        cmocka_unit_test(connecting_is_bounded),
        cmocka_unit_test(the_deadline_and_stop_end_a_login),
    };

    return cmocka_run_group_tests(tests, census, census);
}
