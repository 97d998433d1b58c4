/* SPDX-License-Identifier: MIT
 * Handshake bytes: what a real server and driver send is understood and masked, everything cut short, too long or
 * mangled is refused or at least read within its bounds. Inputs are exact-size heap copies, so that ASan sees any step
 * outside.
 */
#include "handshake.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* The greeting of MariaDB 10.11 on Debian 12, as seen on the wire, plus SSL, extended bits 0x1d. */
static const uint8_t mariadb[] = "\x0a"
                                 "5.5.5-10.11.19-MariaDB\0"
                                 "\x2a\x01\0\0"
                                 "ABCDEFGH\0"
                                 "\xfe\xff"
                                 "\x2d"
                                 "\x02\0"
                                 "\xff\x81"
                                 "\x15"
                                 "\0\0\0\0\0\0"
                                 "\x1d\0\0\0"
                                 "IJKLMNOPQRST\0"
                                 "mysql_native_password";
#define MARIADB_FIXED (1 + 23 + 4 + 9)
#define MARIADB_LEAST (MARIADB_FIXED + 18 + 13) /* what follows is the plugin's name */

/* MySQL 8: bit 0 is on, no extended bits, all of 24..29 offered. */
static const uint8_t mysql8[] = "\x0a"
                                "8.0.36\0"
                                "\x09\0\0\0"
                                "ABCDEFGH\0"
                                "\xff\xff"
                                "\xff"
                                "\x02\0"
                                "\xff\xdf"
                                "\x15"
                                "\0\0\0\0\0\0\0\0\0\0"
                                "IJKLMNOPQRST\0"
                                "caching_sha2_password";

static uint8_t *copy_of(const void *bytes, size_t n) {
    uint8_t *copy = malloc(n ? n : 1);

    assert_non_null(copy);
    memcpy(copy, bytes, n);
    return copy;
}

/* An answer with everything in it, as libmariadb builds it. Returns its length. */
static size_t make_login(uint8_t *buf, uint32_t caps, uint32_t extended) {
    uint8_t *p = buf;

    for (int i = 0; i < 4; i++)
        *p++ = (uint8_t)(caps >> (8 * i));
    memcpy(p, "\0\0\0\x40\x2d", 5);
    p += 5;
    memset(p, 0, 19);
    p += 19;
    for (int i = 0; i < 4; i++)
        *p++ = (uint8_t)(extended >> (8 * i));
    memcpy(p, "user", 5);
    p += 5;
    *p++ = 20;
    memset(p, 'x', 20);
    p += 20;
    if (caps & DBP_CAP_CONNECT_WITH_DB) {
        memcpy(p, "db", 3);
        p += 3;
    }
    if (caps & DBP_CAP_PLUGIN_AUTH) {
        memcpy(p, DBP_NATIVE_PASSWORD, sizeof DBP_NATIVE_PASSWORD);
        p += sizeof DBP_NATIVE_PASSWORD;
    }
    if (caps & DBP_CAP_CONNECT_ATTRS) {
        memcpy(p, "\x08\x03_os\x03xyz", 9);
        p += 9;
    }
    return (size_t)(p - buf);
}

#define LOGIN_CAPS                                                                                 \
    (DBP_CAP_PROTOCOL_41 | DBP_CAP_SECURE_CONNECTION | DBP_CAP_AUTH_LENENC | DBP_CAP_PLUGIN_AUTH | \
     DBP_CAP_CONNECT_WITH_DB | DBP_CAP_CONNECT_ATTRS | DBP_CAP_SESSION_TRACK)

static void a_mariadb_greeting_is_taken_apart(void **state) {
    struct dbp_greeting g;

    (void)state;
    assert_int_equal(dbp_greeting_parse(mariadb, sizeof mariadb, &g), 0);
    assert_string_equal(g.version, "5.5.5-10.11.19-MariaDB");
    assert_int_equal(g.connection_id, 0x12a);
    assert_int_equal(g.capabilities, 0x81fffffeu);
    assert_int_equal(g.extended, 0x1d);
    assert_int_equal(g.charset, 45);
    assert_int_equal(g.status, DBP_STATUS_AUTOCOMMIT);
}

static void masking_leaves_only_what_drivers_agree_on(void **state) {
    const struct {
        const uint8_t *bytes;
        size_t n;
        uint32_t offered;
    } servers[] = {{mariadb, sizeof mariadb, 0x81fffffeu}, {mysql8, sizeof mysql8, 0xdfffffffu}};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        uint8_t *b = copy_of(servers[i].bytes, servers[i].n);
        struct dbp_greeting before, after;
        assert_int_equal(dbp_greeting_parse(b, servers[i].n, &before), 0);
        assert_int_equal(before.capabilities, servers[i].offered);
        assert_int_equal(dbp_greeting_mask(b, servers[i].n), 0);
        assert_int_equal(dbp_greeting_parse(b, servers[i].n, &after), 0);
        assert_int_equal(after.extended, 0);
        assert_int_equal(after.capabilities & (DBP_CAP_SSL | DBP_CAP_COMPRESS | 0xff000000u), 0);
        assert_true(after.capabilities & DBP_CAP_SESSION_TRACK);
        assert_int_equal(after.capabilities, before.capabilities & DBP_CAP_PASSED);
        assert_string_equal(after.version, before.version);
        assert_int_equal(after.connection_id, before.connection_id);
        assert_int_equal(after.status, before.status);
        free(b);
    }
}

static void the_extended_bits_are_gone_from_the_bytes(void **state) {
    uint8_t *b = copy_of(mariadb, sizeof mariadb);

    (void)state;
    assert_int_equal(dbp_greeting_mask(b, sizeof mariadb), 0);
    for (size_t i = 8; i < 18; i++)
        assert_int_equal(b[MARIADB_FIXED + i], 0);
    free(b);
}

static void a_rebuilt_greeting_asks_for_a_native_password(void **state) {
    uint8_t out[DBP_GREETING_MAX];
    struct dbp_greeting g;
    size_t len = 0;

    (void)state;
    assert_int_equal(dbp_greeting_rebuild(mysql8, sizeof mysql8, 0x1234u, 0x8001, out, sizeof out, &len), 0);
    assert_int_equal(dbp_greeting_parse(out, len, &g), 0);
    assert_string_equal(g.version, "8.0.36");
    assert_int_equal(g.connection_id, 9);
    assert_int_equal(g.status, 0x8001);
    assert_int_equal(g.capabilities, 0x1234u | DBP_CAP_PROTOCOL_41 | DBP_CAP_SECURE_CONNECTION | DBP_CAP_PLUGIN_AUTH);
    assert_int_equal(out[len - 1], 0);
    assert_string_equal((char *)out + len - sizeof DBP_NATIVE_PASSWORD, DBP_NATIVE_PASSWORD);
    assert_null(memmem(out, len, "ABCDEFGH", 8)); /* the server's scramble does not travel */
    assert_null(memmem(out, len, "IJKLMNOP", 8));
    for (size_t max = 0; max < len; max++) {
        size_t untouched = 77;
        uint8_t *small = malloc(max ? max : 1);
        assert_int_equal(dbp_greeting_rebuild(mysql8, sizeof mysql8, 0, 0, small, max, &untouched), DBP_E_INVALID);
        assert_int_equal(untouched, 77);
        free(small);
    }
}

static void a_greeting_cut_anywhere_is_refused(void **state) {
    (void)state;
    for (size_t n = 0; n < sizeof mariadb; n++) {
        uint8_t *b = copy_of(mariadb, n), out[DBP_GREETING_MAX];
        struct dbp_greeting g;
        size_t len;
        int expected = n >= MARIADB_LEAST ? 0 : DBP_E_INVALID;
        assert_int_equal(dbp_greeting_parse(b, n, &g), expected);
        assert_int_equal(dbp_greeting_rebuild(b, n, 0, 0, out, sizeof out, &len), expected);
        assert_int_equal(dbp_greeting_mask(b, n), expected);
        if (expected != 0)
            assert_memory_equal(b, mariadb, n);
        free(b);
    }
}

static void a_mangled_greeting_stays_within_its_bounds(void **state) {
    static const uint8_t evil[] = {0x00, 0x01, 0x7f, 0x80, 0xfb, 0xfc, 0xfd, 0xfe, 0xff};

    (void)state;
    for (size_t i = 0; i < sizeof mariadb; i++)
        for (size_t e = 0; e < sizeof evil; e++) {
            uint8_t *b = copy_of(mariadb, sizeof mariadb), out[DBP_GREETING_MAX];
            struct dbp_greeting g;
            size_t len;
            b[i] = evil[e];
            int rc = dbp_greeting_parse(b, sizeof mariadb, &g);
            assert_true(rc == 0 || rc == DBP_E_INVALID);
            if (i == 0)
                assert_int_equal(rc, DBP_E_INVALID);
            assert_int_equal(dbp_greeting_rebuild(b, sizeof mariadb, 0, 0, out, sizeof out, &len), rc);
            assert_int_equal(dbp_greeting_mask(b, sizeof mariadb), rc);
            if (rc == 0) {
                assert_int_equal(dbp_greeting_parse(b, sizeof mariadb, &g), 0);
                assert_int_equal(g.capabilities & ~DBP_CAP_PASSED, 0);
            }
            free(b);
        }
}

static void an_old_greeting_without_4_1_is_refused(void **state) {
    uint8_t *b = copy_of(mariadb, sizeof mariadb);
    struct dbp_greeting g;

    (void)state;
    b[MARIADB_FIXED + 1] &= (uint8_t) ~(DBP_CAP_PROTOCOL_41 >> 8);
    assert_int_equal(dbp_greeting_parse(b, sizeof mariadb, &g), DBP_E_INVALID);
    free(b);
}

static void an_answer_is_taken_apart_and_masked(void **state) {
    uint8_t b[256];
    struct dbp_login l;
    uint32_t caps = LOGIN_CAPS | DBP_CAP_DEPRECATE_EOF | DBP_CAP_QUERY_ATTRIBUTES | DBP_CAP_COMPRESS;
    size_t n = make_login(b, caps, 0x1d);

    (void)state;
    assert_int_equal(dbp_login_parse(b, n, 0xffffffffu, &l), 0);
    assert_false(l.ssl_request);
    assert_int_equal(l.capabilities, caps);
    assert_int_equal(l.extended, 0x1d);
    assert_int_equal(l.charset, 45);
    assert_string_equal(l.plugin, DBP_NATIVE_PASSWORD);
    assert_int_equal(dbp_login_mask(b, n, 0xffffffffu), 0);
    assert_int_equal(dbp_login_parse(b, n, 0xffffffffu, &l), 0);
    assert_int_equal(l.capabilities, LOGIN_CAPS);
    assert_int_equal(l.extended, 0);
    assert_string_equal(l.plugin, DBP_NATIVE_PASSWORD);
}

/* libmariadb sets bits for parts that it leaves out when the server did not offer them. */
static void parts_that_were_not_offered_are_not_expected(void **state) {
    uint8_t b[256];
    struct dbp_login l;
    size_t n = make_login(b, LOGIN_CAPS & ~(DBP_CAP_CONNECT_ATTRS | DBP_CAP_PLUGIN_AUTH), 0);

    (void)state;
    b[2] |= (DBP_CAP_CONNECT_ATTRS | DBP_CAP_PLUGIN_AUTH) >> 16;
    assert_int_equal(dbp_login_parse(b, n, 0xffffffffu, &l), DBP_E_INVALID);
    assert_int_equal(dbp_login_parse(b, n, 0xffffffffu & ~(DBP_CAP_CONNECT_ATTRS | DBP_CAP_PLUGIN_AUTH), &l), 0);
    assert_string_equal(l.plugin, "");
}

static void an_answer_cut_anywhere_is_refused(void **state) {
    uint8_t whole[256];
    size_t len = make_login(whole, LOGIN_CAPS, 0);

    (void)state;
    for (size_t n = 0; n < len; n++) {
        uint8_t *b = copy_of(whole, n);
        struct dbp_login l;
        assert_int_equal(dbp_login_parse(b, n, 0xffffffffu, &l), DBP_E_INVALID);
        assert_int_equal(dbp_login_mask(b, n, 0xffffffffu), DBP_E_INVALID);
        assert_memory_equal(b, whole, n);
        free(b);
    }
}

static void a_mangled_answer_stays_within_its_bounds(void **state) {
    static const uint8_t evil[] = {0x00, 0x01, 0x7f, 0x80, 0xfb, 0xfc, 0xfd, 0xfe, 0xff};
    uint8_t whole[256];
    size_t len = make_login(whole, LOGIN_CAPS, 0);

    (void)state;
    for (size_t i = 0; i < len; i++)
        for (size_t e = 0; e < sizeof evil; e++) {
            uint8_t *b = copy_of(whole, len);
            struct dbp_login l;
            b[i] = evil[e];
            int rc = dbp_login_parse(b, len, 0xffffffffu, &l);
            assert_true(rc == 0 || rc == DBP_E_INVALID);
            assert_int_equal(dbp_login_mask(b, len, 0xffffffffu), rc);
            if (rc == 0)
                assert_true(l.plugin[0] == 0 || ((const uint8_t *)l.plugin > b && (const uint8_t *)l.plugin < b + len));
            free(b);
        }
}

static void a_length_beyond_the_end_is_refused(void **state) {
    uint8_t b[256];
    struct dbp_login l;
    size_t n = make_login(b, LOGIN_CAPS, 0);

    (void)state;
    b[37] = 0xfe; /* 8 bytes of length follow: x's, so 0x7878... */
    assert_int_equal(dbp_login_parse(b, n, 0xffffffffu, &l), DBP_E_INVALID);
    memset(b + 38, 0xff, 8); /* adding this to a pointer would wrap */
    assert_int_equal(dbp_login_parse(b, n, 0xffffffffu, &l), DBP_E_INVALID);
}

static void an_ssl_request_is_seen_and_never_masked(void **state) {
    uint8_t b[256];
    struct dbp_login l;

    (void)state;
    make_login(b, LOGIN_CAPS | DBP_CAP_SSL, 0);
    assert_int_equal(dbp_login_parse(b, 32, 0xffffffffu, &l), 0);
    assert_true(l.ssl_request);
    assert_string_equal(l.plugin, "");
    assert_int_equal(dbp_login_mask(b, 32, 0xffffffffu), DBP_E_INVALID);
    make_login(b, LOGIN_CAPS, 0);
    assert_int_equal(dbp_login_parse(b, 32, 0xffffffffu, &l), DBP_E_INVALID);
}

static void a_packet_is_found_only_when_it_is_whole(void **state) {
    const uint8_t bytes[] = {3, 0, 0, 7, 'a', 'b', 'c', 'd'};
    struct dbp_packet p = {NULL, 0, 0};

    (void)state;
    for (size_t n = 0; n < 7; n++) {
        uint8_t *b = copy_of(bytes, n);
        assert_int_equal(dbp_packet_peek(b, n, 100, &p), DBP_E_BUSY);
        assert_null(p.payload);
        free(b);
    }
    assert_int_equal(dbp_packet_peek(bytes, 8, 3, &p), 0);
    assert_ptr_equal(p.payload, bytes + 4);
    assert_int_equal(p.len, 3);
    assert_int_equal(p.seq, 7);
    assert_int_equal(dbp_packet_peek(bytes, 8, 2, &p), DBP_E_INVALID);
    assert_int_equal(dbp_packet_peek((const uint8_t *)"\xff\xff\xff", 3, 1000, &p), DBP_E_INVALID);
}

static void what_is_built_is_parsed(void **state) {
    uint8_t b[128];
    struct dbp_packet p;
    struct dbp_error e;
    uint16_t status = 0;
    size_t n = dbp_build_ok(b, sizeof b, 5, 0x4002);

    (void)state;
    assert_int_equal(dbp_packet_peek(b, n, 100, &p), 0);
    assert_int_equal(p.seq, 5);
    assert_int_equal(dbp_ok_parse(p.payload, p.len, &status), 0);
    assert_int_equal(status, 0x4002);
    assert_int_equal(dbp_err_parse(p.payload, p.len, &e), DBP_E_INVALID);
    for (size_t max = 0; max < n; max++)
        assert_int_equal(dbp_build_ok(b, max, 0, 0), 0);

    n = dbp_build_err(b, sizeof b, 2, 1045, "28000", "Access denied");
    assert_int_equal(dbp_packet_peek(b, n, 100, &p), 0);
    assert_int_equal(dbp_err_parse(p.payload, p.len, &e), 0);
    assert_int_equal(e.code, 1045);
    assert_string_equal(e.sqlstate, "28000");
    assert_string_equal(e.text, "Access denied");
    assert_int_equal(dbp_ok_parse(p.payload, p.len, &status), DBP_E_INVALID);
    for (size_t max = 0; max < n; max++)
        assert_int_equal(dbp_build_err(b, max, 0, 1, "HY000", "Access denied"), 0);
    assert_int_equal(dbp_build_err(b, sizeof b, 0, 1, "HY", "x"), 0);

    n = dbp_build_auth_switch(b, sizeof b, 2);
    assert_int_equal(b[4], 0xfe);
    assert_string_equal((char *)b + 5, DBP_NATIVE_PASSWORD);
    assert_int_equal(n, 4 + 1 + sizeof DBP_NATIVE_PASSWORD + DBP_SCRAMBLE_LEN + 1);
    for (size_t max = 0; max < n; max++)
        assert_int_equal(dbp_build_auth_switch(b, max, 0), 0);
}

static void replies_cut_anywhere_are_refused(void **state) {
    static const uint8_t ok[] = {0, 0xfc, 1, 2, 0xfd, 1, 2, 3, 0x02, 0x40, 0, 0};
    static const uint8_t err[] = {0xff, 0x10, 0x04, '#', '0', '8', '0', '0', '4', 'T', 'o', 'o'};
    struct dbp_error e;
    uint16_t status;

    (void)state;
    for (size_t n = 0; n <= sizeof ok; n++) {
        uint8_t *b = copy_of(ok, n);
        assert_int_equal(dbp_ok_parse(b, n, &status), n == sizeof ok ? 0 : DBP_E_INVALID);
        free(b);
    }
    assert_int_equal(status, 0x4002);
    for (size_t n = 0; n <= sizeof err; n++) {
        uint8_t *b = copy_of(err, n);
        assert_int_equal(dbp_err_parse(b, n, &e), n == 3 || n >= 9 ? 0 : DBP_E_INVALID);
        free(b);
    }
    assert_int_equal(e.code, 1040);
    assert_string_equal(e.sqlstate, "08004");
    assert_string_equal(e.text, "Too");
    /* Before the greeting there is no sqlstate. */
    assert_int_equal(dbp_err_parse((const uint8_t *)"\xff\x6a\x04Host", 7, &e), 0);
    assert_string_equal(e.sqlstate, "HY000");
    assert_string_equal(e.text, "Host");
}

static void a_long_error_text_is_cut(void **state) {
    size_t n = 3 + 2 * DBP_TEXT_MAX;
    uint8_t *b = malloc(n);
    struct dbp_error e;

    (void)state;
    memset(b, 'x', n);
    memcpy(b, "\xff\x01\x00", 3);
    assert_int_equal(dbp_err_parse(b, n, &e), 0);
    assert_int_equal(strlen(e.text), DBP_TEXT_MAX - 1);
    free(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_mariadb_greeting_is_taken_apart),
        cmocka_unit_test(masking_leaves_only_what_drivers_agree_on),
        cmocka_unit_test(the_extended_bits_are_gone_from_the_bytes),
        cmocka_unit_test(a_rebuilt_greeting_asks_for_a_native_password),
        cmocka_unit_test(a_greeting_cut_anywhere_is_refused),
        cmocka_unit_test(a_mangled_greeting_stays_within_its_bounds),
        cmocka_unit_test(an_old_greeting_without_4_1_is_refused),
        cmocka_unit_test(an_answer_is_taken_apart_and_masked),
        cmocka_unit_test(parts_that_were_not_offered_are_not_expected),
        cmocka_unit_test(an_answer_cut_anywhere_is_refused),
        cmocka_unit_test(a_mangled_answer_stays_within_its_bounds),
        cmocka_unit_test(a_length_beyond_the_end_is_refused),
        cmocka_unit_test(an_ssl_request_is_seen_and_never_masked),
        cmocka_unit_test(a_packet_is_found_only_when_it_is_whole),
        cmocka_unit_test(what_is_built_is_parsed),
        cmocka_unit_test(replies_cut_anywhere_are_refused),
        cmocka_unit_test(a_long_error_text_is_cut),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
