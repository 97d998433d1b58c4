/* SPDX-License-Identifier: MIT
 * The connector's process: a child of the uWSGI master that only this plugin knows.
 *
 * uWSGI's own list of such helpers (gateways) will not do: a reload or stop kills those first, and the workers then
 * finish their requests, for up to worker-reload-mercy, with nobody to log in or to say KILL for them. This one lives
 * until the broker has said its last KILL.
 */
#ifndef DBPOOL_CONNECTOR_PROCESS_H
#define DBPOOL_CONNECTOR_PROCESS_H

#include "../core/dbpool.h"

/* Starts the process if there is none. Call it often, on the master's main thread, which is where uWSGI forks. One that
 * ends at once is started again a second later. share is borrowed for good. */
void connector_process_keep(const struct dbp_share *share, dbp_log_fn log);

/* Whether pid is this process. Any thread. */
bool connector_process_is(int32_t pid);

/* Waits for its end, which the broker's end brings about, and kills it if that takes long. Master's main thread. */
void connector_process_end(void);

#endif
