/* SPDX-License-Identifier: MIT
 * What could not be made: see failure.h.
 */
#include "failure.h"

#include "dbpool.h"

#include <stdio.h>
#include <string.h>

static _Thread_local char failure[DBP_TEXT_MAX];

int dbp_failed(const char *what, int error) {
    snprintf(failure, sizeof failure, "%s: %s", what, strerror(error));
    return -error;
}

const char *dbp_failure(void) {
    return failure;
}
