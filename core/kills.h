/* SPDX-License-Identifier: MIT
 * KILL statements over one connection, written without waiting for each other's answers: a worker that died with many
 * sessions costs one login and a few round trips, however far away the server is.
 */
#ifndef DBPOOL_KILLS_H
#define DBPOOL_KILLS_H

#include "dbpool.h"

struct dbp_kill {
    uint32_t connection_id;
    struct dbp_error error; /* code 0: it was killed */
};

/* Says KILL CONNECTION for each of n on fd, a logged-in connection with an idle wire, and reads the answers, which come
 * in the same order. Blocks, but for patience_us without any progress at most, and not once stop_fd is readable.
 * Returns how many were answered: their errors are filled. If not all were, the connection is of no use any more. */
size_t dbp_kills_run(int fd, int stop_fd, uint64_t patience_us, struct dbp_kill *kills, size_t n);

#endif
