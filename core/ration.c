/* SPDX-License-Identifier: MIT
 * Max-min fair shares: see ration.h.
 */
#include "ration.h"

static uint32_t at_most(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

/* Raises the allowances, all alike, until each has what it wants or nothing is left. Returns what is left. */
static uint32_t divide(struct dbp_ration_share *shares, const uint32_t *wants, uint32_t n, uint32_t left) {
    for (;;) {
        uint32_t unmet = 0;
        for (uint32_t i = 0; i < n; i++)
            unmet += shares[i].allowance < wants[i];
        if (unmet == 0 || left == 0)
            return left;
        uint32_t each = left >= unmet ? left / unmet : 1;
        for (uint32_t i = 0; i < n; i++) {
            if (shares[i].allowance >= wants[i])
                continue;
            uint32_t more = at_most(at_most(each, wants[i] - shares[i].allowance), left);
            shares[i].allowance += more;
            left -= more;
        }
    }
}

void dbp_ration(struct dbp_ration_share *shares, uint32_t n, uint32_t most) {
    uint32_t wants[DBP_POOLS_MAX] = {0};

    for (uint32_t i = 0; i < n; i++) {
        shares[i].allowance = 0;
        wants[i] = shares[i].claim;
    }
    uint32_t left = divide(shares, wants, n, most);
    for (uint32_t i = 0; i < n; i++)
        wants[i] = shares[i].live;
    (void)divide(shares, wants, n, left); /* more than all of them have is of no use to anybody now */
}
