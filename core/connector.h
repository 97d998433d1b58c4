/* SPDX-License-Identifier: MIT
 * The connector: a process of its own that logs in to servers and kills sessions for the broker. The only part that
 * calls libmysqlclient (plain blocking API, in threads): DNS, auth plugins and their crashes stay in here.
 */
#ifndef DBPOOL_CONNECTOR_H
#define DBPOOL_CONNECTOR_H

#include "wire.h"

/* Runs the connector on an attached channel until the broker closes it. Blocks; call it in a process of its own.
 * Answers each OPEN by OPENED (+fd, non-blocking, the broker's to keep) or FAILED, each KILL by KILLED unless it was
 * cancelled, in any order. 0 when the broker hung up, -errno. */
int dbp_connector_run(int channel, dbp_log_fn log) DBP_MUST_USE;

/* Attaches as connector (role DBP_ROLE_CONNECTOR) and runs; returns as dbp_connector_run, DBP_E_TIMEOUT when the broker
 * does not answer until deadline_us. */
int dbp_connector_main(const struct dbp_share *share, uint64_t deadline_us, dbp_log_fn log) DBP_MUST_USE;

#endif
