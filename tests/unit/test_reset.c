/* SPDX-License-Identifier: MIT
 * The reset of a returned session, byte by byte (I5, I6).
 */
#include "reset.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define AUTOCOMMIT 0x0002u
#define IN_TRANS 0x0001u
#define MORE_RESULTS 0x0008u

static struct dbp_reset reset;
static struct dbp_pool_spec spec;
static uint8_t out[DBP_RESET_COMMAND_MAX];

/* Starts and sends the ROLLBACK. */
static void begin(bool autocommit) {
    dbp_reset_init(&reset, DBP_RESET_ROLLBACK, autocommit, 0, 0, NULL);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_SEND);
    size_t n = dbp_reset_command(&reset, &spec, out);
    assert_int_equal(n, 4u + out[0]);
    assert_int_equal(out[1] | out[2] | out[3], 0); /* length and sequence number */
    assert_int_equal(out[4], 0x03);                /* COM_QUERY */
    assert_memory_equal(out + 5, "ROLLBACK", 8);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_READ);
}

static void feed_ok(uint16_t status) {
    uint8_t ok[] = {7, 0, 0, 1, 0x00, 0, 0, (uint8_t)status, (uint8_t)(status >> 8), 0, 0};

    dbp_reset_feed(&reset, &spec, ok, sizeof ok);
}

static void test_one_rollback_when_the_baseline_is_kept(void **state) {
    (void)state;
    begin(true);
    feed_ok(AUTOCOMMIT);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_DONE);
    assert_int_equal(reset.status, AUTOCOMMIT);
    begin(false);
    feed_ok(0);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_DONE);
}

static void test_I6_autocommit_comes_back_to_the_baseline_after_the_rollback(void **state) {
    static const char *const text[] = {"SET autocommit=0", "SET autocommit=1"};

    (void)state;
    for (int baseline = 0; baseline < 2; baseline++) {
        uint16_t off = baseline ? 0 : AUTOCOMMIT, on = baseline ? AUTOCOMMIT : 0;
        begin(baseline);
        feed_ok(off);
        assert_int_equal(dbp_reset_step(&reset), DBP_RESET_SEND);
        assert_int_equal(dbp_reset_command(&reset, &spec, out), 5 + strlen(text[baseline]));
        assert_memory_equal(out + 5, text[baseline], strlen(text[baseline]));
        feed_ok(on);
        assert_int_equal(dbp_reset_step(&reset), DBP_RESET_DONE);
        assert_int_equal(reset.status, on);
    }
}

static void test_I5_autocommit_that_stays_off_the_baseline_fails(void **state) {
    (void)state;
    begin(true);
    feed_ok(0);
    dbp_reset_command(&reset, &spec, out);
    feed_ok(0);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_FAILED);
}

static void test_I6_a_transaction_that_is_open_after_the_rollback_fails(void **state) {
    (void)state;
    begin(true);
    feed_ok(AUTOCOMMIT | IN_TRANS); /* completion_type=CHAIN: the ROLLBACK began a new one */
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_FAILED);
}

static void test_I5_more_results_to_come_fail(void **state) {
    (void)state;
    begin(true);
    feed_ok(AUTOCOMMIT | MORE_RESULTS);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_FAILED);
}

static void test_an_answer_may_come_in_pieces(void **state) {
    static const uint8_t ok[] = {7, 0, 0, 1, 0x00, 0, 0, AUTOCOMMIT, 0, 0, 0};

    (void)state;
    begin(true);
    for (size_t i = 0; i < sizeof ok; i++) {
        assert_int_equal(dbp_reset_step(&reset), DBP_RESET_READ);
        dbp_reset_feed(&reset, &spec, ok + i, 1);
    }
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_DONE);
}

static void test_length_encoded_numbers_of_every_width_and_session_tracking(void **state) {
    static const struct {
        uint8_t bytes[64];
        size_t n;
    } answers[] = {
        {{0x00, 0xfa, 0xfa, 2, 0, 0, 0}, 7},
        {{0x00, 0xfc, 1, 1, 0xfc, 2, 2, 2, 0, 0, 0}, 11},
        {{0x00, 0xfd, 1, 1, 1, 0xfd, 2, 2, 2, 2, 0, 0, 0}, 13},
        {{0x00, 0xfe, 1, 1, 1, 1, 1, 1, 1, 1, 0xfe, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0}, 23},
        {{0x00, 0, 0, 2, 0x40, 0, 0, 0, 3, 2, 1, '1'}, 12}, /* SESSION_TRACK_STATE_CHANGE */
    };

    (void)state;
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        uint8_t packet[68] = {(uint8_t)answers[i].n, 0, 0, 1};
        memcpy(packet + 4, answers[i].bytes, answers[i].n);
        begin(true);
        dbp_reset_feed(&reset, &spec, packet, 4 + answers[i].n);
        assert_int_equal(dbp_reset_step(&reset), DBP_RESET_DONE);
        assert_int_equal(reset.status & AUTOCOMMIT, AUTOCOMMIT);
    }
}

static void test_I5_anything_but_one_ok_fails(void **state) {
    static const struct {
        uint8_t bytes[32];
        size_t n;
    } wrong[] = {
        {{9, 0, 0, 1, 0xff, 0x48, 0x04, '#', 'H', 'Y', '0', '0', '0'}, 13},       /* ERR */
        {{5, 0, 0, 1, 0xfe, 0, 0, 2, 0}, 9},                                      /* EOF */
        {{1, 0, 0, 1, 0x01}, 5},                                                  /* a result set */
        {{7, 0, 0, 1, 0xfb, 0, 0, 2, 0, 0, 0}, 11},                               /* LOCAL INFILE */
        {{7, 0, 0, 0, 0x00, 0, 0, 2, 0, 0, 0}, 11},                               /* sequence number 0 */
        {{7, 0, 0, 2, 0x00, 0, 0, 2, 0, 0, 0}, 11},                               /* 2: the end of something older */
        {{7, 0, 0, 1, 0x00, 0, 0, 2, 0, 0, 0, 7}, 12},                            /* a byte too many */
        {{7, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0}, 22}, /* two of them */
        {{6, 0, 0, 1, 0x00, 0, 0, 2, 0, 0}, 10},                                  /* too short for an OK */
        {{0, 0, 0, 1}, 4},                                                        /* empty */
        {{7, 0, 0, 1, 0x00, 0xfb, 0, 2, 0, 0, 0}, 11},                            /* NULL is no number */
        {{7, 0, 0, 1, 0x00, 0xff, 0, 2, 0, 0, 0}, 11},                            /* nor is 0xff */
        {{7, 0, 0, 1, 0x00, 0xfe, 0, 2, 0, 0, 0}, 11},                            /* a number longer than the packet */
        {{7, 0, 0, 1, 0x00, 0, 0xfd, 2, 0, 0, 0}, 11},                            /* no room for the status */
    };

    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        begin(true);
        dbp_reset_feed(&reset, &spec, wrong[i].bytes, wrong[i].n);
        if (dbp_reset_step(&reset) != DBP_RESET_FAILED)
            fail_msg("answer %zu was taken for an OK", i);
    }
}

static void test_I5_an_answer_too_long_fails_and_overruns_nothing(void **state) {
    static uint8_t big[2 * DBP_RESET_PACKET_MAX];

    (void)state;
    big[0] = 0xff;
    big[1] = 0xff;
    big[3] = 1;
    begin(true);
    dbp_reset_feed(&reset, &spec, big, 3);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_READ);
    dbp_reset_feed(&reset, &spec, big + 3, 1); /* the length is known now */
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_FAILED);
    begin(true);
    dbp_reset_feed(&reset, &spec, big, sizeof big);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_FAILED);
}

static void test_I5_bytes_that_nobody_asked_for_fail(void **state) {
    (void)state;
    dbp_reset_init(&reset, DBP_RESET_ROLLBACK, true, 0, 0, NULL);
    feed_ok(AUTOCOMMIT); /* before the command */
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_FAILED);
    begin(true);
    feed_ok(AUTOCOMMIT);
    feed_ok(AUTOCOMMIT); /* after the end */
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_FAILED);
}

/* ---- the full reset ---- */

#define TRACKED_AND_MORE (DBP_FACT_TRACKED | DBP_FACT_ROLE_NONE | DBP_FACT_NAMES)

static void begin_full(const char *database, const char *init_sql, size_t n, bool autocommit, uint32_t facts) {
    memset(&spec, 0, sizeof spec);
    strcpy(spec.database, database);
    strcpy(spec.charset, "utf8mb4");
    memcpy(spec.init_sql, init_sql, n);
    dbp_reset_init(&reset, DBP_RESET_FULL, autocommit, AUTOCOMMIT, facts, "utf8mb4_bin");
}

/* The next command must be this one. */
static void sends(uint8_t command, const char *text) {
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_SEND);
    size_t n = dbp_reset_command(&reset, &spec, out);
    assert_int_equal(n, 5 + strlen(text));
    assert_int_equal(out[0] | out[1] << 8 | out[2] << 16, strlen(text) + 1);
    assert_int_equal(out[3], 0);
    assert_int_equal(out[4], command);
    assert_memory_equal(out + 5, text, strlen(text));
}

/* In an XA transaction ROLLBACK is refused, and nothing else would tell of it. */
static void test_I6_a_full_reset_begins_with_a_rollback_where_there_may_be_a_transaction(void **state) {
    static const uint8_t err[] = {9, 0, 0, 1, 0xff, 0x77, 0x05, '#', 'X', 'A', 'E', '0', '7'};

    (void)state;
    begin_full("shop", "", 1, true, 0);
    dbp_reset_init(&reset, DBP_RESET_FULL, true, IN_TRANS | AUTOCOMMIT, 0, NULL);
    sends(0x03, "ROLLBACK AND NO CHAIN NO RELEASE");
    feed_ok(AUTOCOMMIT);
    sends(0x1f, "");
    feed_ok(AUTOCOMMIT);
    sends(0x02, "shop");
    feed_ok(AUTOCOMMIT);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_DONE);
    dbp_reset_init(&reset, DBP_RESET_FULL, true, IN_TRANS | AUTOCOMMIT, 0, NULL);
    sends(0x03, "ROLLBACK AND NO CHAIN NO RELEASE");
    dbp_reset_feed(&reset, &spec, err, sizeof err);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_FAILED);
    assert_int_equal(reset.error, 1399);
}

static void test_I6_a_full_reset_says_all_that_the_login_said(void **state) {
    (void)state;
    begin_full("shop", "SET a=1\0SET b=2", 15, false, TRACKED_AND_MORE);
    sends(0x1f, "");
    feed_ok(AUTOCOMMIT); /* the server's own default, not the pool's */
    sends(0x02, "shop");
    feed_ok(AUTOCOMMIT);
    sends(0x03, "SET ROLE NONE");
    feed_ok(AUTOCOMMIT);
    sends(0x03, "SET NAMES utf8mb4 COLLATE utf8mb4_bin"); /* the login's: the server's default may be another */
    feed_ok(AUTOCOMMIT);
    sends(0x03, DBP_TRACKING_SQL);
    feed_ok(AUTOCOMMIT | DBP_STATUS_CHANGED);
    sends(0x03, "SET autocommit=0");
    feed_ok(0);
    sends(0x03, "SET a=1");
    feed_ok(0);
    sends(0x03, "SET b=2");
    feed_ok(IN_TRANS); /* an init statement that read a table */
    sends(0x03, "COMMIT AND NO CHAIN NO RELEASE");
    feed_ok(AUTOCOMMIT); /* and one that changed the baseline */
    sends(0x03, "SET autocommit=0");
    feed_ok(0);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_DONE);
}

static void test_a_full_reset_leaves_out_what_the_session_never_had(void **state) {
    (void)state;
    begin_full("shop", "", 0, true, 0);
    sends(0x1f, "");
    feed_ok(AUTOCOMMIT);
    sends(0x02, "shop");
    feed_ok(AUTOCOMMIT);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_DONE);
}

static void test_I6_without_a_database_the_server_must_say_that_there_is_none(void **state) {
    static const uint8_t error[] = {9, 0, 0, 1, 0xff, 0xcf, 0x04, '#', '4', '2', '0', '0', '0'}; /* 1231 */

    (void)state;
    begin_full("", "", 0, true, 0);
    sends(0x1f, "");
    feed_ok(AUTOCOMMIT);
    sends(0x03, "SET autocommit=IF(DATABASE() IS NULL, @@autocommit, 7)");
    dbp_reset_feed(&reset, &spec, error, sizeof error);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_FAILED);
    assert_int_equal(reset.error, 1231);
}

/* Up to the first init statement. */
static void begin_init(const char *init_sql, size_t n) {
    begin_full("shop", init_sql, n, true, 0);
    sends(0x1f, "");
    feed_ok(AUTOCOMMIT);
    sends(0x02, "shop");
    feed_ok(AUTOCOMMIT);
    sends(0x03, init_sql);
}

static void test_results_of_init_statements_are_read_and_forgotten(void **state) {
    static const uint8_t answer[] = {
        1, 0, 0, 1, 1,              /* one column */
        3, 0, 0, 2, 3,    'd', 'e', /* its definition */
        5, 0, 0, 3, 0xfe, 0,   0,   2,
        0,                     /* end of columns */
        2, 0, 0, 4, 1,    'x', /* a row */
        1, 0, 0, 5, 0xfb,      /* a NULL */
        5, 0, 0, 6, 0xfe, 0,   0,   2 | MORE_RESULTS,
        0, /* and another result */
        7, 0, 0, 7, 0x00, 0,   0,   2 | MORE_RESULTS,
        0, 0, 0, /* no rows */
        7, 0, 0, 8, 0x00, 0,   0,   2,
        0, 0, 0,
    };

    (void)state;
    for (size_t piece = 1; piece <= sizeof answer; piece++) {
        begin_init("CALL p()\0SET b=2", 16);
        for (size_t at = 0; at < sizeof answer; at += piece) {
            assert_int_equal(dbp_reset_step(&reset), DBP_RESET_READ);
            dbp_reset_feed(&reset, &spec, answer + at, sizeof answer - at < piece ? sizeof answer - at : piece);
        }
        sends(0x03, "SET b=2");
        feed_ok(AUTOCOMMIT);
        assert_int_equal(dbp_reset_step(&reset), DBP_RESET_DONE);
    }
}

static void test_a_long_row_of_an_init_statement_overruns_nothing(void **state) {
    static uint8_t row[4 + 70000];
    static const uint8_t head[] = {1, 0, 0, 1, 1, 1, 0, 0, 2, 0, 5, 0, 0, 3, 0xfe, 0, 0, 2, 0};
    static const uint8_t end[] = {5, 0, 0, 5, 0xfe, 0, 0, 2, 0};

    (void)state;
    row[0] = 70000 & 0xff;
    row[1] = (70000 >> 8) & 0xff;
    row[2] = 70000 >> 16;
    row[3] = 4;
    row[4] = 0xfd;
    begin_init("SELECT a", 8);
    dbp_reset_feed(&reset, &spec, head, sizeof head);
    for (size_t at = 0; at < sizeof row; at += 512)
        dbp_reset_feed(&reset, &spec, row + at, sizeof row - at < 512 ? sizeof row - at : 512);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_READ);
    dbp_reset_feed(&reset, &spec, end, sizeof end);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_DONE);
}

static void test_I5_what_an_init_statement_must_not_answer(void **state) {
    static const struct {
        uint8_t bytes[32];
        size_t n;
    } wrong[] = {
        {{7, 0, 0, 1, 0xfb, '/', 'e', 't', 'c', '/', 'x'}, 11},                      /* LOCAL INFILE */
        {{5, 0, 0, 1, 0xfe, 0, 0, 2, 0}, 9},                                         /* the end of nothing */
        {{1, 0, 0, 1, 1, 1, 0, 0, 2, 0, 5, 0, 0, 4, 0xfe, 0, 0, 2, 0}, 19},          /* a packet is missing */
        {{1, 0, 0, 1, 1, 5, 0, 0, 2, 0xfe, 0, 0, 2, 0, 3, 0, 0, 3, 0xff, 1, 0}, 21}, /* an error in the middle */
    };

    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        begin_init("SELECT a", 8);
        dbp_reset_feed(&reset, &spec, wrong[i].bytes, wrong[i].n);
        if (dbp_reset_step(&reset) != DBP_RESET_FAILED)
            fail_msg("answer %zu was accepted", i);
    }
}

static void test_I5_our_own_statements_have_no_rows(void **state) {
    static const uint8_t columns[] = {1, 0, 0, 1, 1};

    (void)state;
    begin_full("shop", "", 0, true, 0);
    sends(0x1f, "");
    dbp_reset_feed(&reset, &spec, columns, sizeof columns);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_FAILED);
}

static void test_the_longest_init_statement_fits(void **state) {
    char longest[sizeof spec.init_sql - 1];

    (void)state;
    memset(longest, 'x', sizeof longest);
    longest[sizeof longest - 1] = '\0';
    begin_init(longest, sizeof longest);
}

static void test_I10_a_kind_that_does_not_exist_fails(void **state) {
    (void)state;
    dbp_reset_init(&reset, (enum dbp_reset_kind)77, true, 0, 0, NULL);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_FAILED);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_rollback_when_the_baseline_is_kept),
        cmocka_unit_test(test_I6_autocommit_comes_back_to_the_baseline_after_the_rollback),
        cmocka_unit_test(test_I5_autocommit_that_stays_off_the_baseline_fails),
        cmocka_unit_test(test_I6_a_transaction_that_is_open_after_the_rollback_fails),
        cmocka_unit_test(test_I5_more_results_to_come_fail),
        cmocka_unit_test(test_an_answer_may_come_in_pieces),
        cmocka_unit_test(test_length_encoded_numbers_of_every_width_and_session_tracking),
        cmocka_unit_test(test_I5_anything_but_one_ok_fails),
        cmocka_unit_test(test_I5_an_answer_too_long_fails_and_overruns_nothing),
        cmocka_unit_test(test_I5_bytes_that_nobody_asked_for_fail),
        cmocka_unit_test(test_I6_a_full_reset_says_all_that_the_login_said),
        cmocka_unit_test(test_I6_a_full_reset_begins_with_a_rollback_where_there_may_be_a_transaction),
        cmocka_unit_test(test_a_full_reset_leaves_out_what_the_session_never_had),
        cmocka_unit_test(test_I6_without_a_database_the_server_must_say_that_there_is_none),
        cmocka_unit_test(test_results_of_init_statements_are_read_and_forgotten),
        cmocka_unit_test(test_a_long_row_of_an_init_statement_overruns_nothing),
        cmocka_unit_test(test_I5_what_an_init_statement_must_not_answer),
        cmocka_unit_test(test_I5_our_own_statements_have_no_rows),
        cmocka_unit_test(test_the_longest_init_statement_fits),
        cmocka_unit_test(test_I10_a_kind_that_does_not_exist_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
