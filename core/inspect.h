/* SPDX-License-Identifier: MIT
 * Looking at a pool without taking part: see dbp_pool_stats, dbp_pool_error and dbp_pool_holders in dbpool.h, of which
 * these are the halves that need no client.
 */
#ifndef DBPOOL_INSPECT_H
#define DBPOOL_INSPECT_H

#include "table.h"

void dbp_inspect_stats(const struct dbp_table *table, uint32_t pool, struct dbp_stats *statsp);
void dbp_inspect_error(const struct dbp_table *table, uint32_t pool, struct dbp_error *errorp);
uint32_t dbp_inspect_holders(const struct dbp_table *table, uint32_t pool, uint32_t n, struct dbp_holder *holders);

#endif
