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
static uint8_t out[DBP_RESET_PACKET_MAX];

/* Starts and sends the ROLLBACK. */
static void begin(bool autocommit) {
    dbp_reset_init(&reset, DBP_RESET_ROLLBACK, autocommit);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_SEND);
    size_t n = dbp_reset_command(&reset, out);
    assert_int_equal(n, 4u + out[0]);
    assert_int_equal(out[1] | out[2] | out[3], 0); /* length and sequence number */
    assert_int_equal(out[4], 0x03);                /* COM_QUERY */
    assert_memory_equal(out + 5, "ROLLBACK", 8);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_READ);
}

static void feed_ok(uint16_t status) {
    uint8_t ok[] = {7, 0, 0, 1, 0x00, 0, 0, (uint8_t)status, (uint8_t)(status >> 8), 0, 0};

    dbp_reset_feed(&reset, ok, sizeof ok);
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
        assert_int_equal(dbp_reset_command(&reset, out), 5 + strlen(text[baseline]));
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
    dbp_reset_command(&reset, out);
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
        dbp_reset_feed(&reset, ok + i, 1);
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
        dbp_reset_feed(&reset, packet, 4 + answers[i].n);
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
        dbp_reset_feed(&reset, wrong[i].bytes, wrong[i].n);
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
    dbp_reset_feed(&reset, big, DBP_RESET_PACKET_MAX);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_READ);
    dbp_reset_feed(&reset, big, 1);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_FAILED);
    begin(true);
    dbp_reset_feed(&reset, big, sizeof big);
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_FAILED);
}

static void test_I5_bytes_that_nobody_asked_for_fail(void **state) {
    (void)state;
    dbp_reset_init(&reset, DBP_RESET_ROLLBACK, true);
    feed_ok(AUTOCOMMIT); /* before the command */
    assert_int_equal(dbp_reset_step(&reset), DBP_RESET_FAILED);
    begin(true);
    feed_ok(AUTOCOMMIT);
    feed_ok(AUTOCOMMIT); /* after the end */
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
