/* SPDX-License-Identifier: MIT
 * The one clock of core: microseconds of CLOCK_MONOTONIC, which does not jump when somebody sets the date.
 */
#include "dbpool.h"

#include <time.h>

uint64_t dbp_now_us(void) {
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
}
