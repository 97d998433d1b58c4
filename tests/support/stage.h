/* SPDX-License-Identifier: MIT
 * The stage of the broker's unit tests: a real broker in this process, the fake connector and server in a child. One at
 * a time; the clients are puppets.
 */
#ifndef DBPOOL_TEST_STAGE_H
#define DBPOOL_TEST_STAGE_H

#include "broker.h"
#include "fake_connector.h"

extern struct dbp_share share;
extern struct dbp_broker *broker;
extern struct fake *fake;

/* May be NULL: called on the broker's thread, with its lock held, when a process wants to be the connector. */
extern void (*_Atomic stage_asked)(void);

/* For n_procs slots. ops.log defaults to test_log; ops.connector_is is ours. 0 or not, for cmocka's setup. */
int stage_open(uint32_t n_procs, struct dbp_broker_ops ops);
/* For cmocka's teardown: -1 when an fd of this process is left. */
int stage_close(void);

/* Bytes of attach requests that the broker has not read yet. */
int stage_queued(void);

#endif
