/* SPDX-License-Identifier: MIT
 * What the master makes before any fork, so that every process finds the pool by inheritance: the table, the control
 * socket, the doorbell and one wake-up eventfd per process slot. Needs no name in any file system.
 */
#ifndef DBPOOL_SHARE_H
#define DBPOOL_SHARE_H

#include "table.h"

/* Makes it all for up to n_procs attached processes at a time (at most DBP_PROCS_MAX). *broker_controlp gets the end of
 * the control socket that the broker reads, owned by the caller. Master, before any fork. 0 or -errno (dbp_failure). */
int dbp_share_new(uint32_t n_procs, struct dbp_share *sharep, int *broker_controlp) DBP_MUST_USE;

/* Undoes it; twice is harmless. */
void dbp_share_free(struct dbp_share *share);

#endif
