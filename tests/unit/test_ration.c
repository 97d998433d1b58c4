/* SPDX-License-Identifier: MIT
 * Sharing sessions between pools: the sum, nobody gets more than it can use, nobody gets less than a greedier one.
 */
#include "ration.h"

#include "../support/helpers.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static struct dbp_ration_share shares[DBP_POOLS_MAX];

static void claim(uint32_t i, uint32_t claimed, uint32_t live) {
    shares[i] = (struct dbp_ration_share){.claim = claimed, .live = live, .allowance = 77};
}

static void assert_allowances(uint32_t a, uint32_t b, uint32_t c) {
    assert_int_equal(shares[0].allowance, a);
    assert_int_equal(shares[1].allowance, b);
    assert_int_equal(shares[2].allowance, c);
}

static void test_small_claims_are_met_and_the_rest_is_shared_equally(void **state) {
    (void)state;
    claim(0, 10, 0);
    claim(1, 2, 0);
    claim(2, 10, 0);
    dbp_ration(shares, 3, 12);
    assert_allowances(5, 2, 5);
    claim(1, 10, 12); /* whoever was there first has no more right */
    dbp_ration(shares, 3, 12);
    assert_allowances(4, 4, 4);
}

static void test_what_nobody_claims_stays_where_it_is(void **state) {
    (void)state;
    claim(0, 1, 6);
    claim(1, 3, 0);
    claim(2, 0, 6);
    dbp_ration(shares, 3, 12);
    assert_allowances(5, 3, 4); /* the claims, then an equal part of the 8 that are left */
}

static void test_a_remainder_is_given_out_one_by_one(void **state) {
    (void)state;
    claim(0, 9, 0);
    claim(1, 9, 0);
    claim(2, 9, 0);
    dbp_ration(shares, 3, 8);
    assert_allowances(3, 3, 2);
    dbp_ration(shares, 3, 2); /* fewer than there are pools */
    assert_allowances(1, 1, 0);
    dbp_ration(shares, 3, 0);
    assert_allowances(0, 0, 0);
}

static uint32_t below(uint64_t *random, uint32_t n) {
    return (uint32_t)(test_random(random) % n);
}

static void test_any_figures(void **state) {
    uint64_t random = test_seed();

    (void)state;
    for (int round = 0; round < 20000; round++) {
        uint32_t n = 1 + below(&random, DBP_POOLS_MAX), most = below(&random, 60), sum = 0, claims = 0, useful = 0;
        for (uint32_t i = 0; i < n; i++) {
            claim(i, below(&random, 12), below(&random, 12));
            claims += shares[i].claim;
            useful += shares[i].claim > shares[i].live ? shares[i].claim : shares[i].live;
        }
        dbp_ration(shares, n, most);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t use = shares[i].claim > shares[i].live ? shares[i].claim : shares[i].live;
            sum += shares[i].allowance;
            assert_true(shares[i].allowance <= use);
            if (claims <= most)
                assert_true(shares[i].allowance >= shares[i].claim);
            for (uint32_t j = 0; j < n; j++) /* no claim is cut while another pool has more than one above it */
                if (shares[i].allowance < shares[i].claim)
                    assert_true(shares[j].allowance <= shares[i].allowance + 1);
        }
        assert_int_equal(sum, useful < most ? useful : most); /* nothing is wasted */
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_claims_are_met_and_the_rest_is_shared_equally),
        cmocka_unit_test(test_what_nobody_claims_stays_where_it_is),
        cmocka_unit_test(test_a_remainder_is_given_out_one_by_one),
        cmocka_unit_test(test_any_figures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
