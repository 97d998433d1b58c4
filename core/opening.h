/* SPDX-License-Identifier: MIT
 * Opening and retiring sessions as the policy (janitor.c) wants.
 */
#ifndef DBPOOL_OPENING_H
#define DBPOOL_OPENING_H

#include "kept.h"

/* Asks the policy, and opens and retires what it wants now. */
void dbp_opening_tend(struct dbp_keeper *keeper, uint32_t pool);

/* The connector's answers; delivered consumes fd. */
void dbp_opening_delivered(struct dbp_keeper *keeper, const struct dbp_wire_opened *msg, int fd);
void dbp_opening_failed(struct dbp_keeper *keeper, const struct dbp_wire_failed *msg);
/* Opens another one for a session whose time will soon be over, so that no request has to wait for its login. */
void dbp_opening_replace(struct dbp_keeper *keeper, uint32_t session);
/* The pool's settings have changed: what failed may be mended. */
void dbp_opening_forgive(struct dbp_keeper *keeper, uint32_t pool);
/* The connector died while it logged in; alone: nothing else that it did can have been the cause. */
void dbp_opening_crashed(struct dbp_keeper *keeper, uint32_t session, bool alone);
/* It has not answered for a session in OPENING. */
void dbp_opening_overdue(struct dbp_keeper *keeper, uint32_t session);

#endif
