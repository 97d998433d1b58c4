/* SPDX-License-Identifier: MIT
 * The cap over all pools of an instance: who gives up sessions when another pool needs one and there is no room.
 *
 * Idle ones go first (opening.c retires down to the allowance). A pool whose sessions are all in use has some of its
 * leases marked: each ends when its holder returns it, instead of going to that pool's next waiter.
 */
#ifndef DBPOOL_RATIONING_H
#define DBPOOL_RATIONING_H

#include "kept.h"

/* Shares the room out anew when it is short; at most every DBP_RATION_EVERY_US, or sessions would only be closed here
 * and opened there and back. Returns when it wants to be called again; UINT64_MAX: not before somebody is refused. */
uint64_t dbp_rationing_look(struct dbp_keeper *keeper);

/* Marks leases of the pool so that n of them end at their return, or takes marks back. */
void dbp_rationing_mark(struct dbp_keeper *keeper, uint32_t pool, uint32_t n);

#define DBP_RATION_EVERY_US 50000u

#endif
