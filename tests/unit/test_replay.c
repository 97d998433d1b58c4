/* SPDX-License-Identifier: MIT
 * The replayed login: what a stock driver may say is answered, what does not fit the session is refused by name,
 * nothing that a socket can bring hurts, and the private door lets nobody else in.
 */
#include "handshake.h"
#include "replay.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define SOON (dbp_now_us() + 10000000u) /* a bound for what happens at once */

/* What mysqlclient negotiates through the relay. */
#define SESSION_CAPS                                                                                 \
    (DBP_CAP_LONG_PASSWORD | DBP_CAP_PROTOCOL_41 | DBP_CAP_SECURE_CONNECTION | DBP_CAP_AUTH_LENENC | \
     DBP_CAP_PLUGIN_AUTH | DBP_CAP_TRANSACTIONS | DBP_CAP_MULTI_RESULTS | DBP_CAP_PS_MULTI_RESULTS | \
     DBP_CAP_SESSION_TRACK | DBP_CAP_FOUND_ROWS)

static void make_facts(struct dbp_session_facts *facts, uint32_t caps) {
    static const uint8_t server[] = "\x0a"
                                    "8.0.36\0"
                                    "\x07\0\0\0"
                                    "ABCDEFGH\0"
                                    "\xff\xff\xff\x02\0\xff\xdf\x15"
                                    "\0\0\0\0\0\0\0\0\0\0"
                                    "IJKLMNOPQRST\0"
                                    "caching_sha2_password";
    uint8_t masked[sizeof server];
    struct dbp_greeting g;
    size_t len;

    memset(facts, 0, sizeof *facts);
    memcpy(masked, server, sizeof server);
    assert_int_equal(dbp_greeting_mask(masked, sizeof masked), 0);
    assert_int_equal(dbp_greeting_parse(masked, sizeof masked, &g), 0);
    assert_int_equal(dbp_greeting_rebuild(masked, sizeof masked, g.capabilities, g.status, facts->greeting,
                                          sizeof facts->greeting, &len),
                     0);
    facts->greeting_len = (uint32_t)len;
    facts->connection_id = 7;
    facts->capabilities = caps;
    facts->charset = 45;
}

static size_t make_login(uint8_t *buf, uint32_t caps, uint8_t charset, const char *plugin) {
    uint8_t *p = buf + 4;

    for (int i = 0; i < 4; i++)
        *p++ = (uint8_t)(caps >> (8 * i));
    memcpy(p, "\0\0\0\x40", 4);
    p += 4;
    *p++ = charset;
    memset(p, 0, 23);
    p += 23;
    memcpy(p, "anyone", 7);
    p += 7;
    *p++ = 4;
    memcpy(p, "\1\2\3\4", 4); /* not what any password gives */
    p += 4;
    memcpy(p, plugin, strlen(plugin) + 1);
    p += strlen(plugin) + 1;
    dbp_packet_head(buf, (size_t)(p - buf) - 4, 1);
    return (size_t)(p - buf);
}

static size_t make_command(uint8_t *buf, uint8_t command, const char *text) {
    size_t n = strlen(text);

    dbp_packet_head(buf, n + 1, 0);
    buf[4] = command;
    memcpy(buf + 5, text, n);
    return n + 5;
}

static struct dbp_replay *new_replay(uint32_t caps, uint16_t status) {
    struct dbp_session_facts facts;
    struct dbp_replay *r = NULL;

    make_facts(&facts, caps);
    assert_int_equal(dbp_replay_new(&facts, "utf8mb4", status, &r), 0);
    return r;
}

/* Takes the one packet that must be there. */
static uint8_t take_packet(struct dbp_replay *r, uint8_t *buf, size_t max, struct dbp_packet *p) {
    size_t n = dbp_replay_take(r, buf, max);

    assert_int_equal(dbp_packet_peek(buf, n, max, p), 0);
    assert_int_equal(p->len + 4, n);
    return p->payload[0];
}

static void expect_ok(struct dbp_replay *r, uint8_t seq, uint16_t status) {
    uint8_t buf[1024];
    struct dbp_packet p;
    uint16_t got;

    assert_int_equal(take_packet(r, buf, sizeof buf, &p), 0);
    assert_int_equal(p.seq, seq);
    assert_int_equal(dbp_ok_parse(p.payload, p.len, &got), 0);
    assert_int_equal(got, status);
}

static void expect_err(struct dbp_replay *r, uint8_t seq, const char *part) {
    uint8_t buf[1024];
    struct dbp_packet p;
    struct dbp_error e;

    assert_int_equal(take_packet(r, buf, sizeof buf, &p), 0xff);
    assert_int_equal(p.seq, seq);
    assert_int_equal(dbp_err_parse(p.payload, p.len, &e), 0);
    assert_int_equal(e.code, 1105);
    assert_string_equal(e.sqlstate, "HY000");
    assert_non_null(strstr(e.text, part));
    assert_non_null(dbp_replay_refusal(r));
}

static void drop_greeting(struct dbp_replay *r) {
    uint8_t buf[1024];
    struct dbp_packet p;

    assert_int_equal(take_packet(r, buf, sizeof buf, &p), 10);
    assert_int_equal(dbp_replay_take(r, buf, sizeof buf), 0);
}

static struct dbp_replay *logged_in(uint16_t status) {
    struct dbp_replay *r = new_replay(SESSION_CAPS, status);
    uint8_t b[256];

    drop_greeting(r);
    assert_int_equal(dbp_replay_feed(r, b, make_login(b, SESSION_CAPS, 45, DBP_NATIVE_PASSWORD)), 0);
    expect_ok(r, 2, status);
    assert_null(dbp_replay_refusal(r));
    return r;
}

/* PyMySQL believes the greeting's status, libmariadb the OK's: both must be the lease's. */
static void the_greeting_carries_the_lease_s_status(void **state) {
    struct dbp_replay *r = new_replay(SESSION_CAPS, 0x8000);
    uint8_t buf[1024];
    struct dbp_packet p;
    struct dbp_greeting g;

    (void)state;
    assert_int_equal(take_packet(r, buf, sizeof buf, &p), 10);
    assert_int_equal(p.seq, 0);
    assert_int_equal(dbp_greeting_parse(p.payload, p.len, &g), 0);
    assert_int_equal(g.status, 0x8000);
    assert_int_equal(g.connection_id, 7);
    assert_int_equal(g.extended, 0);
    assert_string_equal((const char *)p.payload + p.len - sizeof DBP_NATIVE_PASSWORD, DBP_NATIVE_PASSWORD);
    dbp_replay_free(r);
}

static void any_password_logs_in(void **state) {
    (void)state;
    dbp_replay_free(logged_in(DBP_STATUS_AUTOCOMMIT));
}

static void a_login_may_come_byte_by_byte(void **state) {
    struct dbp_replay *r = new_replay(SESSION_CAPS, 2);
    uint8_t b[256], buf[64];
    size_t n = make_login(b, SESSION_CAPS, 45, DBP_NATIVE_PASSWORD);

    (void)state;
    drop_greeting(r);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(dbp_replay_take(r, buf, sizeof buf), 0);
        assert_int_equal(dbp_replay_feed(r, b + i, 1), 0);
    }
    expect_ok(r, 2, 2);
    dbp_replay_free(r);
}

static void an_answer_may_be_taken_byte_by_byte(void **state) {
    struct dbp_replay *r = new_replay(SESSION_CAPS, 2);
    uint8_t all[1024], one[1024];
    size_t n = 0;

    (void)state;
    while (dbp_replay_take(r, one + n, 1) == 1)
        n++;
    dbp_replay_free(r);
    r = new_replay(SESSION_CAPS, 2);
    assert_int_equal(dbp_replay_take(r, all, sizeof all), n);
    assert_memory_equal(one, all, n);
    dbp_replay_free(r);
}

static void flags_that_differ_are_refused_by_name(void **state) {
    const struct {
        uint32_t bit;
        const char *name;
    } bits[] = {
        {DBP_CAP_FOUND_ROWS, "FOUND_ROWS"},
        {DBP_CAP_MULTI_STATEMENTS, "MULTI_STATEMENTS"},
        {DBP_CAP_LOCAL_FILES, "LOCAL_FILES"},
        {DBP_CAP_IGNORE_SPACE, "IGNORE_SPACE"},
        {DBP_CAP_INTERACTIVE, "INTERACTIVE"},
        {DBP_CAP_COMPRESS, "COMPRESS"},
        {DBP_CAP_ZSTD, "ZSTD"},
        {DBP_CAP_NO_SCHEMA, "NO_SCHEMA"},
        {DBP_CAP_SSL, "SSL"},
    };
    uint8_t b[256];

    (void)state;
    for (size_t i = 0; i < sizeof bits / sizeof *bits; i++) {
        struct dbp_replay *r = new_replay(SESSION_CAPS, 2);
        drop_greeting(r);
        assert_int_equal(dbp_replay_feed(r, b, make_login(b, SESSION_CAPS ^ bits[i].bit, 45, DBP_NATIVE_PASSWORD)), 0);
        expect_err(r, 2, bits[i].name);
        /* Over: what comes now is not answered. */
        assert_int_equal(dbp_replay_feed(r, b, make_command(b, 0x0e, "")), 0);
        assert_int_equal(dbp_replay_take(r, b, sizeof b), 0);
        dbp_replay_free(r);
    }
}

/* The same bits the other way round: the session has them, the driver does not ask. */
static void flags_that_the_driver_lacks_are_refused_too(void **state) {
    const uint32_t bits[] = {DBP_CAP_MULTI_STATEMENTS, DBP_CAP_LOCAL_FILES, DBP_CAP_INTERACTIVE, DBP_CAP_DEPRECATE_EOF};
    uint8_t b[256];

    (void)state;
    for (size_t i = 0; i < sizeof bits / sizeof *bits; i++) {
        struct dbp_replay *r = new_replay(SESSION_CAPS | bits[i], 2);
        drop_greeting(r);
        assert_int_equal(dbp_replay_feed(r, b, make_login(b, SESSION_CAPS, 45, DBP_NATIVE_PASSWORD)), 0);
        expect_err(r, 2, "not asked for, the session has it");
        dbp_replay_free(r);
    }
}

/* PyMySQL knows neither; libraries of MySQL ask for DEPRECATE_EOF whether it is offered or not and heed the greeting.
 */
static void flags_that_do_not_matter_may_differ(void **state) {
    const uint32_t drivers[] = {SESSION_CAPS & ~DBP_CAP_SESSION_TRACK, SESSION_CAPS & ~DBP_CAP_PS_MULTI_RESULTS,
                                SESSION_CAPS & ~DBP_CAP_MULTI_RESULTS, SESSION_CAPS | DBP_CAP_DEPRECATE_EOF,
                                SESSION_CAPS | DBP_CAP_QUERY_ATTRIBUTES | (1u << 30)};
    uint8_t b[256];

    (void)state;
    for (size_t i = 0; i < sizeof drivers / sizeof *drivers; i++) {
        struct dbp_replay *r = new_replay(SESSION_CAPS, 2);
        drop_greeting(r);
        assert_int_equal(dbp_replay_feed(r, b, make_login(b, drivers[i], 45, DBP_NATIVE_PASSWORD)), 0);
        expect_ok(r, 2, 2);
        dbp_replay_free(r);
    }
}

/* libmariadb lays out its reading by what the greeting offers: a session without SESSION_TRACK must not offer it. */
static void what_the_session_lacks_is_not_offered(void **state) {
    struct dbp_replay *r = new_replay(SESSION_CAPS & ~DBP_CAP_SESSION_TRACK, 2);
    uint8_t buf[1024];
    struct dbp_packet p;
    struct dbp_greeting g;

    (void)state;
    take_packet(r, buf, sizeof buf, &p);
    assert_int_equal(dbp_greeting_parse(p.payload, p.len, &g), 0);
    assert_false(g.capabilities & (DBP_CAP_SESSION_TRACK | DBP_CAP_DEPRECATE_EOF | DBP_CAP_SSL | DBP_CAP_COMPRESS));
    dbp_replay_free(r);
}

static void mariadb_s_extended_bits_are_refused(void **state) {
    struct dbp_replay *r = new_replay(SESSION_CAPS, 2);
    uint8_t b[256];
    size_t n = make_login(b, SESSION_CAPS & ~DBP_CAP_LONG_PASSWORD, 45, DBP_NATIVE_PASSWORD);

    (void)state;
    b[4 + 28] = 0x08;
    drop_greeting(r);
    assert_int_equal(dbp_replay_feed(r, b, n), 0);
    expect_err(r, 2, "extended");
    dbp_replay_free(r);
}

static void another_character_set_at_login_is_refused(void **state) {
    const struct {
        uint8_t id;
        bool fits;
    } ids[] = {{45, true}, {255, true}, {224, true}, {46, true}, {33, false}, {8, false}, {28, false}, {0, false}};
    uint8_t b[256];

    (void)state;
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        struct dbp_replay *r = new_replay(SESSION_CAPS, 2);
        drop_greeting(r);
        assert_int_equal(dbp_replay_feed(r, b, make_login(b, SESSION_CAPS, ids[i].id, DBP_NATIVE_PASSWORD)), 0);
        if (ids[i].fits)
            expect_ok(r, 2, 2);
        else
            expect_err(r, 2, "collation");
        dbp_replay_free(r);
    }
}

static void tls_is_refused(void **state) {
    struct dbp_replay *r = new_replay(SESSION_CAPS, 2);
    uint8_t b[256];

    (void)state;
    make_login(b, SESSION_CAPS | DBP_CAP_SSL, 45, "");
    dbp_packet_head(b, 32, 1);
    drop_greeting(r);
    assert_int_equal(dbp_replay_feed(r, b, 36), 0);
    expect_err(r, 2, "TLS");
    dbp_replay_free(r);
}

static void another_auth_plugin_is_switched(void **state) {
    struct dbp_replay *r = new_replay(SESSION_CAPS, 2);
    uint8_t b[256], buf[256];
    struct dbp_packet p;

    (void)state;
    drop_greeting(r);
    assert_int_equal(dbp_replay_feed(r, b, make_login(b, SESSION_CAPS, 45, "caching_sha2_password")), 0);
    assert_int_equal(take_packet(r, buf, sizeof buf, &p), 0xfe);
    assert_int_equal(p.seq, 2);
    dbp_packet_head(b, 20, 3);
    assert_int_equal(dbp_replay_feed(r, b, 24), 0);
    expect_ok(r, 4, 2);
    dbp_replay_free(r);
}

static void a_driver_s_own_statements_are_answered_if_they_fit(void **state) {
    const struct {
        const char *sql;
        uint16_t status;
        bool fits;
    } cases[] = {
        {"SET NAMES utf8mb4", 2, true},
        {"set names 'utf8mb4';", 2, true},
        {"SET NAMES utf8mb4 COLLATE utf8mb4_unicode_ci", 2, true},
        {"SET NAMES utf8mb4 COLLATE latin1_bin", 2, false},
        {"SET NAMES utf8mb4 COLLATE", 2, false},
        {"SET NAMES utf8mb4 COLLATE utf8mb4_bin, x=1", 2, false},
        {"SET NAMES utf8", 2, false},
        {"SET NAMES latin1", 2, false},
        {"SET NAMES 'utf8mb4", 2, false},
        {"SET NAMES", 2, false},
        {"SET NAMES utf8mb4, autocommit=0", 2, false},
        {"SET autocommit=1", 2, true},
        {"SET AUTOCOMMIT = 1", 2, true},
        {"SET AUTOCOMMIT = 1 ; ", 2, true},
        {"SET autocommit=0", 2, false},
        {"SET autocommit=0", 0, true},
        {"SET autocommit=1", 0, false},
        {"SET autocommit=11", 2, false},
        {"SET autocommit=1, sql_mode=''", 2, false},
        {"SET autocommit", 2, false},
        {"SELECT 1", 2, false},
        {"", 2, false},
        {";", 2, false},
        {"'", 2, false},
    };
    uint8_t b[256];

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct dbp_replay *r = logged_in(cases[i].status);
        assert_int_equal(dbp_replay_feed(r, b, make_command(b, 0x03, cases[i].sql)), 0);
        if (cases[i].fits) {
            expect_ok(r, 1, cases[i].status);
            assert_null(dbp_replay_refusal(r));
        } else
            expect_err(r, 1, "statement");
        dbp_replay_free(r);
    }
}

static void utf8_is_utf8mb3(void **state) {
    const char *const pools[] = {"utf8", "utf8mb3"}, *const drivers[] = {"SET NAMES utf8", "SET NAMES utf8mb3",
                                                                         "SET NAMES utf8 COLLATE utf8mb3_bin"};
    struct dbp_session_facts facts;
    uint8_t b[256];

    (void)state;
    make_facts(&facts, SESSION_CAPS);
    facts.charset = 33;
    for (size_t i = 0; i < 2; i++)
        for (size_t j = 0; j < 3; j++) {
            struct dbp_replay *r = NULL;
            assert_int_equal(dbp_replay_new(&facts, pools[i], 2, &r), 0);
            drop_greeting(r);
            assert_int_equal(dbp_replay_feed(r, b, make_login(b, SESSION_CAPS, 33, DBP_NATIVE_PASSWORD)), 0);
            expect_ok(r, 2, 2);
            assert_int_equal(dbp_replay_feed(r, b, make_command(b, 0x03, drivers[j])), 0);
            expect_ok(r, 1, 2);
            dbp_replay_free(r);
        }
}

static void ping_is_answered_and_quit_ends(void **state) {
    struct dbp_replay *r = logged_in(2);
    uint8_t b[256];

    (void)state;
    assert_int_equal(dbp_replay_feed(r, b, make_command(b, 0x0e, "")), 0);
    expect_ok(r, 1, 2);
    assert_int_equal(dbp_replay_feed(r, b, make_command(b, 0x01, "")), 0);
    assert_int_equal(dbp_replay_feed(r, b, make_command(b, 0x0e, "")), 0);
    assert_int_equal(dbp_replay_take(r, b, sizeof b), 0);
    assert_null(dbp_replay_refusal(r));
    dbp_replay_free(r);
}

static void other_commands_are_refused(void **state) {
    struct dbp_replay *r = logged_in(2);
    uint8_t b[256];

    (void)state;
    assert_int_equal(dbp_replay_feed(r, b, make_command(b, 0x02, "mysql")), 0); /* COM_INIT_DB */
    expect_err(r, 1, "command 2");
    /* The first refusal is the one that is kept; the machine goes on. */
    assert_int_equal(dbp_replay_feed(r, b, make_command(b, 0x03, "SELECT 1")), 0);
    expect_err(r, 1, "SELECT 1");
    assert_non_null(strstr(dbp_replay_refusal(r), "command 2"));
    dbp_replay_free(r);
}

/* I9: what stands after '=' or in quotes may be a password. */
static void a_refusal_repeats_no_secret(void **state) {
    const char *const statements[] = {"SET PASSWORD = PASSWORD('hush')", "ALTER USER x IDENTIFIED BY 'hush'",
                                      "SET @token=\"hush\"", "/*hush*/ SELECT 1"};
    uint8_t b[256];

    (void)state;
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++) {
        struct dbp_replay *r = logged_in(2);
        assert_int_equal(dbp_replay_feed(r, b, make_command(b, 0x03, statements[i])), 0);
        expect_err(r, 1, "statement");
        assert_null(strstr(dbp_replay_refusal(r), "hush"));
        dbp_replay_free(r);
    }
}

static void a_login_cut_anywhere_waits_or_dies_quietly(void **state) {
    uint8_t whole[256], buf[1024];
    size_t len = make_login(whole, SESSION_CAPS, 45, DBP_NATIVE_PASSWORD);

    (void)state;
    for (size_t n = 0; n < len - 4; n++) { /* the head says n: a whole packet with too little in it */
        struct dbp_replay *r = new_replay(SESSION_CAPS, 2);
        drop_greeting(r);
        dbp_packet_head(whole, n, 1);
        uint8_t *b = malloc(n + 4);
        memcpy(b, whole, n + 4);
        assert_int_equal(dbp_replay_feed(r, b, n + 4), DBP_E_INVALID);
        assert_int_equal(dbp_replay_take(r, buf, sizeof buf), 0);
        assert_non_null(dbp_replay_refusal(r));
        assert_int_equal(dbp_replay_feed(r, b, 1), DBP_E_INVALID); /* dead it stays */
        free(b);
        dbp_replay_free(r);
    }
}

static void mangled_bytes_never_log_in_wrongly_or_crash(void **state) {
    static const uint8_t evil[] = {0x00, 0x01, 0x7f, 0x80, 0xfb, 0xfc, 0xfe, 0xff};
    uint8_t whole[512], buf[4096];
    size_t login = make_login(whole, SESSION_CAPS, 45, DBP_NATIVE_PASSWORD);
    size_t len = login + make_command(whole + login, 0x03, "SET NAMES utf8mb4 COLLATE utf8mb4_bin");

    (void)state;
    for (size_t i = 0; i < len; i++)
        for (size_t e = 0; e < sizeof evil; e++) {
            struct dbp_replay *r = new_replay(SESSION_CAPS, 2);
            uint8_t was = whole[i];
            drop_greeting(r);
            whole[i] = evil[e];
            int rc = dbp_replay_feed(r, whole, len);
            assert_true(rc == 0 || rc == DBP_E_INVALID);
            assert_true(dbp_replay_take(r, buf, sizeof buf) < 1024);
            if (rc != 0)
                assert_non_null(dbp_replay_refusal(r));
            whole[i] = was;
            dbp_replay_free(r);
        }
}

static void too_much_is_refused(void **state) {
    struct dbp_replay *r = logged_in(2);
    uint8_t big[40000];

    (void)state;
    memset(big, 'x', sizeof big);
    dbp_packet_head(big, 30000, 0);
    assert_int_equal(dbp_replay_feed(r, big, sizeof big), DBP_E_INVALID);
    assert_non_null(dbp_replay_refusal(r));
    dbp_replay_free(r);

    /* A driver that never reads cannot make it grow. */
    r = logged_in(2);
    int rc = 0;
    for (int i = 0; i < 10000 && rc == 0; i++)
        rc = dbp_replay_feed(r, big, make_command(big, 0x0e, ""));
    assert_int_equal(rc, DBP_E_INVALID);
    dbp_replay_free(r);
}

static void a_wrong_sequence_number_is_refused(void **state) {
    struct dbp_replay *r = new_replay(SESSION_CAPS, 2);
    uint8_t b[256];
    size_t n = make_login(b, SESSION_CAPS, 45, DBP_NATIVE_PASSWORD);

    (void)state;
    b[3] = 2;
    assert_int_equal(dbp_replay_feed(r, b, n), DBP_E_INVALID);
    dbp_replay_free(r);
    r = logged_in(2);
    n = make_command(b, 0x0e, "");
    b[3] = 1;
    assert_int_equal(dbp_replay_feed(r, b, n), DBP_E_INVALID);
    dbp_replay_free(r);
}

static void damaged_facts_are_refused(void **state) {
    struct dbp_session_facts facts;
    struct dbp_replay *r = NULL;
    char name[80];

    (void)state;
    make_facts(&facts, SESSION_CAPS);
    uint32_t len = facts.greeting_len;
    for (uint32_t n = 0; n < len - sizeof DBP_NATIVE_PASSWORD; n++) {
        facts.greeting_len = n;
        assert_int_equal(dbp_replay_new(&facts, "utf8mb4", 2, &r), DBP_E_INVALID);
    }
    facts.greeting_len = 100000;
    assert_int_equal(dbp_replay_new(&facts, "utf8mb4", 2, &r), DBP_E_INVALID);
    facts.greeting_len = len;
    memset(name, 'x', sizeof name);
    name[sizeof name - 1] = 0;
    assert_int_equal(dbp_replay_new(&facts, name, 2, &r), DBP_E_INVALID);
    assert_null(r);
    assert_null(dbp_replay_free(NULL));
}

/* ---- the server ---- */

static int connect_to(const char *name) {
    struct sockaddr_un addr;
    socklen_t len;
    struct timeval patience = {.tv_sec = 20};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || dbp_unix_address(name, &addr, &len) != 0 || connect(fd, (struct sockaddr *)&addr, len) != 0) {
        close(fd);
        return -1;
    }
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return fd;
}

/* Reads one packet; -1 at end of file. */
static int read_packet(int fd, uint8_t *buf, size_t max) {
    size_t n = 0;
    struct dbp_packet p;

    while (dbp_packet_peek(buf, n, max, &p) != 0) {
        ssize_t got = read(fd, buf + n, max - n);
        if (got <= 0)
            return -1;
        n += (size_t)got;
    }
    return (int)n;
}

static void start(struct dbp_replay_server **sp, char *name, size_t n, uint64_t deadline) {
    struct dbp_session_facts facts;

    make_facts(&facts, SESSION_CAPS);
    assert_int_equal(dbp_replay_server_start(&facts, "utf8mb4", 2, deadline, name, n, sp), 0);
    assert_int_equal(name[0], '@');
}

static void log_in_at(const char *name) {
    uint8_t b[256], buf[1024];
    int fd = connect_to(name);

    assert_true(fd >= 0);
    assert_true(read_packet(fd, buf, sizeof buf) > 0);
    assert_int_equal(buf[4], 10);
    size_t n = make_login(b, SESSION_CAPS, 45, DBP_NATIVE_PASSWORD);
    assert_int_equal(write(fd, b, n), n);
    assert_int_equal(read_packet(fd, buf, sizeof buf), 11);
    assert_int_equal(buf[4], 0);
    close(fd);
}

static void a_driver_logs_in_at_the_door(void **state) {
    struct dbp_replay_server *s;
    char name[64], refusal[64];

    (void)state;
    start(&s, name, sizeof name, SOON);
    log_in_at(name);
    assert_int_equal(dbp_replay_server_stop(s, refusal, sizeof refusal), 0);
    assert_string_equal(refusal, "");
    assert_int_equal(connect_to(name), -1); /* nothing is left of it */
}

static void stop_tells_the_refusal(void **state) {
    struct dbp_replay_server *s;
    char name[64], refusal[512];
    uint8_t b[256], buf[1024];

    (void)state;
    start(&s, name, sizeof name, SOON);
    int fd = connect_to(name);
    assert_true(read_packet(fd, buf, sizeof buf) > 0);
    size_t n = make_login(b, SESSION_CAPS | DBP_CAP_LOCAL_FILES, 45, DBP_NATIVE_PASSWORD);
    assert_int_equal(write(fd, b, n), n);
    assert_true(read_packet(fd, buf, sizeof buf) > 0);
    assert_int_equal(buf[4], 0xff);
    assert_int_equal(dbp_replay_server_stop(s, refusal, sizeof refusal), 0);
    assert_non_null(strstr(refusal, "LOCAL_FILES"));
    close(fd);
}

static void garbage_ends_the_conversation(void **state) {
    struct dbp_replay_server *s;
    char name[64], refusal[512];
    uint8_t buf[1024];

    (void)state;
    start(&s, name, sizeof name, SOON);
    int fd = connect_to(name);
    assert_true(read_packet(fd, buf, sizeof buf) > 0);
    assert_int_equal(write(fd, "GET / HTTP/1.1\r\n\r\n", 18), 18);
    assert_int_equal(read_packet(fd, buf, sizeof buf), -1);
    assert_int_equal(dbp_replay_server_stop(s, refusal, sizeof refusal), 0);
    assert_string_not_equal(refusal, "");
    close(fd);
}

static void stop_ends_a_server_that_nobody_came_to(void **state) {
    struct dbp_replay_server *s;
    char name[64], refusal[4] = "xyz";

    (void)state;
    start(&s, name, sizeof name, dbp_now_us() + 3600000000u);
    assert_int_equal(dbp_replay_server_stop(s, refusal, sizeof refusal), 0);
    assert_string_equal(refusal, "");
    /* And one whose driver has connected and stays. */
    start(&s, name, sizeof name, dbp_now_us() + 3600000000u);
    int fd = connect_to(name);
    assert_int_equal(dbp_replay_server_stop(s, refusal, 0), 0);
    close(fd);
}

static void the_deadline_ends_a_server(void **state) {
    struct dbp_replay_server *s;
    char name[64];
    uint8_t buf[1024];

    (void)state;
    start(&s, name, sizeof name, dbp_now_us() + 20000u);
    int fd = connect_to(name);
    while (fd >= 0 && read_packet(fd, buf, sizeof buf) > 0)
        ;
    /* End of file came by itself: nobody called stop. */
    assert_int_equal(dbp_replay_server_stop(s, NULL, 0), 0);
    if (fd >= 0)
        close(fd);
}

/* Another process that finds the name (it stands in /proc/net/unix) learns nothing and takes nobody's place. */
static void another_process_is_not_let_in(void **state) {
    struct dbp_replay_server *s;
    char name[64], refusal[64];
    int status = -1;

    (void)state;
    start(&s, name, sizeof name, SOON);
    pid_t pid = fork();
    if (pid == 0) {
        uint8_t buf[64];
        int fd = connect_to(name);
        _exit(fd >= 0 && read(fd, buf, sizeof buf) <= 0 ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    log_in_at(name);
    assert_int_equal(dbp_replay_server_stop(s, refusal, sizeof refusal), 0);
}

static void a_name_that_does_not_fit_is_an_error(void **state) {
    struct dbp_session_facts facts;
    struct dbp_replay_server *s = NULL;
    struct sockaddr_un addr;
    socklen_t len;
    char name[8], path[200];

    (void)state;
    make_facts(&facts, SESSION_CAPS);
    assert_int_equal(dbp_replay_server_start(&facts, "utf8mb4", 2, SOON, name, sizeof name, &s), DBP_E_INVALID);
    assert_null(s);
    memset(path, 'p', sizeof path);
    path[sizeof addr.sun_path] = 0;
    assert_int_equal(dbp_unix_address(path, &addr, &len), DBP_E_INVALID);
    path[sizeof addr.sun_path - 1] = 0;
    assert_int_equal(dbp_unix_address(path, &addr, &len), 0);
    assert_int_equal(dbp_unix_address("", &addr, &len), DBP_E_INVALID);
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
        cmocka_unit_test(the_greeting_carries_the_lease_s_status),
        cmocka_unit_test(any_password_logs_in),
        cmocka_unit_test(a_login_may_come_byte_by_byte),
        cmocka_unit_test(an_answer_may_be_taken_byte_by_byte),
        cmocka_unit_test(flags_that_differ_are_refused_by_name),
        cmocka_unit_test(flags_that_the_driver_lacks_are_refused_too),
        cmocka_unit_test(flags_that_do_not_matter_may_differ),
        cmocka_unit_test(what_the_session_lacks_is_not_offered),
        cmocka_unit_test(mariadb_s_extended_bits_are_refused),
        cmocka_unit_test(another_character_set_at_login_is_refused),
        cmocka_unit_test(tls_is_refused),
        cmocka_unit_test(another_auth_plugin_is_switched),
        cmocka_unit_test(a_driver_s_own_statements_are_answered_if_they_fit),
        cmocka_unit_test(utf8_is_utf8mb3),
        cmocka_unit_test(ping_is_answered_and_quit_ends),
        cmocka_unit_test(other_commands_are_refused),
        cmocka_unit_test(a_refusal_repeats_no_secret),
        cmocka_unit_test(a_login_cut_anywhere_waits_or_dies_quietly),
        cmocka_unit_test(mangled_bytes_never_log_in_wrongly_or_crash),
        cmocka_unit_test(too_much_is_refused),
        cmocka_unit_test(a_wrong_sequence_number_is_refused),
        cmocka_unit_test(damaged_facts_are_refused),
        cmocka_unit_test(a_driver_logs_in_at_the_door),
        cmocka_unit_test(stop_tells_the_refusal),
        cmocka_unit_test(garbage_ends_the_conversation),
        cmocka_unit_test(stop_ends_a_server_that_nobody_came_to),
        cmocka_unit_test(the_deadline_ends_a_server),
        cmocka_unit_test(another_process_is_not_let_in),
        cmocka_unit_test(a_name_that_does_not_fit_is_an_error),
    };

    return cmocka_run_group_tests(tests, census, census);
}
