/* SPDX-License-Identifier: MIT
 * The pools' figures among uWSGI's metrics (--stats, SNMP, pushers): each metric points at its counter in the shared
 * table, so that they show the present.
 */
#ifndef DBPOOL_METRICS_H
#define DBPOOL_METRICS_H

#include "../core/dbpool.h"

/* In post_init: asks uWSGI for metrics at all, makes those that its thresholds name (exits where there can be none of
 * that name), and stands in its way to reading them, to sum up before. */
void metrics_init(struct dbp_table *table);
/* A pool is its alias's current one now. The broker's thread, or the main thread: only noted. */
void metrics_pool_current(void *arg, uint32_t pool, const char *alias);
/* Shows what was noted. The master's main thread only: it takes uWSGI's lock, as uWSGI does there itself. */
void metrics_show(void);
/* In a child, for the child itself, which has registered the pool (its handle): one thread at a time. It takes no lock
 * of uWSGI's: a child that is killed with it would stop the master. */
void metrics_show_here(uint32_t pool, const char *alias);

#endif
