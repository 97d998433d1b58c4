/* SPDX-License-Identifier: MIT
 * Attach requests that wait for a slot: see parking.h.
 */
#include "parking.h"

#include <string.h>
#include <unistd.h>

bool dbp_parking_put(struct dbp_parking *parking, const struct dbp_wire_attach *msg, int channel, int32_t pid,
                     uint64_t until_us) {
    if (parking->n == DBP_PARKED_MAX)
        return false;
    parking->places[parking->n++] =
        (struct dbp_parked){.msg = *msg, .channel = channel, .pid = pid, .until_us = until_us};
    return true;
}

static void take(struct dbp_parking *parking, uint32_t i, struct dbp_parked *parkedp) {
    *parkedp = parking->places[i];
    parking->n--;
    memmove(&parking->places[i], &parking->places[i + 1], (parking->n - i) * sizeof parking->places[0]);
}

bool dbp_parking_take(struct dbp_parking *parking, struct dbp_parked *parkedp) {
    if (parking->n == 0)
        return false;
    take(parking, 0, parkedp);
    return true;
}

bool dbp_parking_take_overdue(struct dbp_parking *parking, uint64_t now_us, struct dbp_parked *parkedp) {
    for (uint32_t i = 0; i < parking->n; i++)
        if (parking->places[i].until_us <= now_us) {
            take(parking, i, parkedp);
            return true;
        }
    return false;
}

void dbp_parking_clear(struct dbp_parking *parking) {
    for (uint32_t i = 0; i < parking->n; i++)
        close(parking->places[i].channel);
    parking->n = 0;
}
