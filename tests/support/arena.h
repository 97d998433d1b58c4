/* SPDX-License-Identifier: MIT
 * The stage of the race tests: a real broker in this process, the fake connector and server in a child, one pool, and
 * at the end the question whether all of it is whole.
 */
#ifndef DBPOOL_TEST_ARENA_H
#define DBPOOL_TEST_ARENA_H

#include "broker.h"
#include "fake_connector.h"

struct arena {
    struct dbp_share share;
    struct dbp_broker *broker;
    struct fake *fake;
    pid_t connector;
    int control, fds_before, cap;
    struct dbp_pool_counters *count;
    struct dbp_client *client; /* this process's own, once arena_client was called */
    uint32_t pool;
    uint32_t clients; /* attached by this process */
};

/* Sets it all up for n_procs slots. False with a line on stderr. */
bool arena_open(struct arena *arena, uint32_t n_procs, uint32_t pool_size, uint32_t max_overflow);
/* Attaches the calling process and registers the pool. */
bool arena_client(struct arena *arena, const char *label, struct dbp_client **clientp);
/* What it registers. */
struct dbp_pool_spec arena_spec(const struct arena *arena);

/* From here on the broker does nothing, in the middle of a batch of events; no fork of this process meanwhile, it would
 * wait for the batch's end. */
bool arena_hold_broker(struct arena *arena);
void arena_let_broker_go(void);
/* The connector hangs up and stays away; it attaches again. */
bool arena_connector_away(struct arena *arena);
bool arena_connector_back(struct arena *arena);

/* For eventually(): nobody has a slot but the connector and this process's clients. */
bool arena_only_ours_are_attached(void *arena);
/* When nobody is active any more: every session can be had at once, counters equal the words, the server never had
 * more than the cap, this process's fds are as many as they should be. False with lines on stderr. */
bool arena_is_whole(struct arena *arena);
/* Stops all; false when a process or an fd is left. */
bool arena_close(struct arena *arena);

#endif
