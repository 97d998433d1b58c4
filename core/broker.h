/* SPDX-License-Identifier: MIT
 * The broker: a thread of the host's master that owns every session, serves the processes' channels and sees them die.
 * It never blocks on anything but epoll, calls no third-party library, and may be forked around at any moment.
 */
#ifndef DBPOOL_BROKER_H
#define DBPOOL_BROKER_H

#include "share.h"

struct dbp_broker;

struct dbp_broker_ops {
    /* Called on a thread of its own (logger.h): it may block, but a fork may come at any moment of it, so it must hold
     * no lock that a forked child needs. */
    dbp_log_fn log;
    /* These are called on the broker's thread with its lock held, for which a fork of the host waits: they must not
     * block. Whether the process that asks to be the connector is the one that the host started; it gets the passwords.
     */
    bool (*connector_is)(void *arg, int32_t pid);
    /* A pool is its alias's current one from now on, and is in the table; before the process that registered it hears
     * so. May be NULL. Also called within dbp_broker_register. */
    void (*pool_current)(void *arg, uint32_t pool, const char *alias);
    void *arg;
    uint32_t max_sessions; /* of all pools together, at most DBP_SESSIONS_MAX; 0: as many */
    /* The first n_own process slots are the host's own processes': slot 0 the connector's, the others those of
     * dbp_client_attach_own. All further ones, at least one, are for whoever comes. 0: all are. */
    uint32_t n_own;
};

/* Starts the thread (all signals blocked in it). share is borrowed until stop; control_fd (dbp_share_new) is consumed,
 * also on failure: from now on the broker closes it, in every child too, and nobody else may.
 * Call it in the process that goes on to fork the workers, after any daemonizing. One per process. 0 or -errno
 * (dbp_failure). */
int dbp_broker_start(const struct dbp_share *share, int control_fd, const struct dbp_broker_ops *ops,
                     struct dbp_broker **brokerp) DBP_MUST_USE;

/* Makes a pool known before any process registers it, so that its floor is open when the first one asks. Any thread of
 * the broker's process. 0, DBP_E_INVALID or DBP_E_FULL with text (DBP_TEXT_MAX bytes). */
int dbp_broker_register(struct dbp_broker *broker, const struct dbp_pool_spec *spec, char *text) DBP_MUST_USE;

/* Ends the sessions, those in use by KILL: waits for the answers, 2 s at most, so keep the connector until then. Stops
 * and joins the thread; NULL. Only in the process that started it; NULL is allowed. */
struct dbp_broker *dbp_broker_stop(struct dbp_broker *broker);

#endif
