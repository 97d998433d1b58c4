/* SPDX-License-Identifier: MIT
 * The small things that all files of the keeper do: see kept.h.
 */
#include "kept.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void dbp_kept_say(const struct dbp_keeper *keeper, enum dbp_log_level level, const char *format, ...) {
    char text[DBP_TEXT_MAX + 128];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    keeper->ops.log(level, text);
}

void dbp_kept_watch(struct dbp_keeper *keeper, uint32_t session, uint32_t events) {
    struct kept *kept = &keeper->sessions[session];

    if (events == 0 && !kept->watched)
        return;
    int rc = keeper->ops.watch(keeper->ops.arg, session, keeper->fds[session], events, !kept->watched);
    if (rc != 0)
        dbp_kept_say(keeper, DBP_LOG_ERROR, "cannot watch session %u: %s", session, strerror(-rc));
    kept->watched = events != 0 && rc == 0;
}

bool dbp_kept_move(struct dbp_keeper *keeper, uint32_t session, enum dbp_state from, enum dbp_state to,
                   uint32_t owner) {
    dbp_word word = word_of(keeper, session);

    return dbp_word_state(word) == from && dbp_session_move(keeper->table, session, word, to, owner, NULL);
}

void dbp_kept_set_fd(struct dbp_keeper *keeper, uint32_t session, int fd) {
    if (keeper->fds[session] >= 0)
        close(keeper->fds[session]);
    keeper->fds[session] = fd;
}

void dbp_kept_look_again(struct dbp_keeper *keeper, uint32_t pool) {
    keeper->pools[pool].look_again = true;
}

/* xorshift64 (Marsaglia, "Xorshift RNGs", 2003). */
uint64_t dbp_kept_random(struct dbp_keeper *keeper, uint64_t most) {
    uint64_t x = keeper->random ? keeper->random : dbp_now_us() | 1u;

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    keeper->random = x;
    return most == UINT64_MAX ? x : x % (most + 1);
}
