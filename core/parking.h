/* SPDX-License-Identifier: MIT
 * Attach requests for which no process slot is free: they wait here, in order of arrival, each for as long as its
 * process has patience. Only the broker's thread touches it.
 */
#ifndef DBPOOL_PARKING_H
#define DBPOOL_PARKING_H

#include "wire.h"

#define DBP_PARKED_MAX 64u /* each has an fd in the host's master; who finds no room comes again (DBP_E_BUSY) */

struct dbp_parked {
    struct dbp_wire_attach msg;
    int channel; /* owned */
    int32_t pid;
    uint64_t until_us;
};

struct dbp_parking {
    uint32_t n;
    struct dbp_parked places[DBP_PARKED_MAX]; /* the oldest first */
};

/* Consumes channel if there is room; false: it is the caller's still. */
bool dbp_parking_put(struct dbp_parking *parking, const struct dbp_wire_attach *msg, int channel, int32_t pid,
                     uint64_t until_us) DBP_MUST_USE;
/* Takes out the oldest one, or (now_us) one whose time is over: its channel is the caller's. False: there is none. */
bool dbp_parking_take(struct dbp_parking *parking, struct dbp_parked *parkedp) DBP_MUST_USE;
bool dbp_parking_take_overdue(struct dbp_parking *parking, uint64_t now_us, struct dbp_parked *parkedp) DBP_MUST_USE;
/* Closes all channels and forgets them. Also in a forked child. */
void dbp_parking_clear(struct dbp_parking *parking);

#endif
