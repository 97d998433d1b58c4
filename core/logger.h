/* SPDX-License-Identifier: MIT
 * Log lines of a thread that may not block. A log may stand still: a pipe that nobody reads, a full disk, a stopped
 * collector. Lines wait in a short queue for a thread of their own, which alone waits for the log; what finds the queue
 * full is dropped and counted.
 */
#ifndef DBPOOL_LOGGER_H
#define DBPOOL_LOGGER_H

#include "dbpool.h"

struct dbp_logger;

/* Starts the thread. write is called on it and may block; a fork may come at any moment of it. 0 or -errno. */
int dbp_logger_new(dbp_log_fn write, struct dbp_logger **loggerp) DBP_MUST_USE;
/* Any thread of this process. Never waits for the log. */
void dbp_logger_say(struct dbp_logger *logger, enum dbp_log_level level, const char *text);
/* Waits for the lines to be written, for wait_us at most: a thread that stands still is left behind, with its memory.
 * NULL; NULL is allowed. */
struct dbp_logger *dbp_logger_free(struct dbp_logger *logger, uint64_t wait_us);

#endif
