/* SPDX-License-Identifier: MIT
 * Sharing a number of sessions between pools that want more than there are: max-min fairness. A pool that claims less
 * than an equal share gets all it claims, the others share the rest equally; what is left over lets pools keep idle
 * sessions that they have. Pure: figures in, allowances out.
 *
 * (Bertsekas and Gallager, "Data Networks", 6.5.2, describe max-min fairness and this way of filling.)
 */
#ifndef DBPOOL_RATION_H
#define DBPOOL_RATION_H

#include "dbpool.h"

struct dbp_ration_share {
    uint32_t claim;     /* sessions that are in use or waited for, and the floor; at most the pool's own cap */
    uint32_t live;      /* sessions that it has, without those that are being ended */
    uint32_t allowance; /* out: how many it may have */
};

/* Fills in the allowances of n pools (at most DBP_POOLS_MAX), whose sum is at most `most`. */
void dbp_ration(struct dbp_ration_share *shares, uint32_t n, uint32_t most);

#endif
