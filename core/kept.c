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
    keeper->ops.log(keeper->ops.arg, level, text);
}

void dbp_kept_watch(struct dbp_keeper *keeper, uint32_t session, uint32_t events) {
    struct kept *kept = &keeper->sessions[session];

    if (events == 0 && !kept->watched)
        return;
    int rc =
        keeper->ops.watch(keeper->ops.arg, session, kept->incarnation, keeper->fds[session], events, !kept->watched);
    if (rc != 0)
        dbp_kept_say(keeper, DBP_LOG_ERROR, "cannot watch session %u: %s", session, strerror(-rc));
    kept->watched = events != 0 && rc == 0;
}

bool dbp_kept_move(struct dbp_keeper *keeper, uint32_t session, enum dbp_state from, enum dbp_state to,
                   uint32_t owner) {
    dbp_word word = word_of(keeper, session);

    return dbp_word_state(word) == from && dbp_session_move(keeper->table, session, word, to, owner, NULL);
}

uint64_t dbp_kept_returned_us(const struct dbp_keeper *keeper, uint32_t session) {
    uint64_t returned = atomic_load(&shared(keeper, session)->returned_us);

    return returned >= keeper->sessions[session].opened_us && returned <= dbp_now_us()
               ? returned
               : keeper->sessions[session].spoke_us;
}

void dbp_kept_set_fd(struct dbp_keeper *keeper, uint32_t session, int fd) {
    if (keeper->fds[session] >= 0)
        close(keeper->fds[session]);
    keeper->fds[session] = fd;
}

void dbp_kept_look_again(struct dbp_keeper *keeper, uint32_t pool) {
    keeper->pools[pool].look_again = true;
    dbp_kept_activate(keeper, pool);
}

void dbp_kept_activate(struct dbp_keeper *keeper, uint32_t pool) {
    keeper->active[pool / 64u] |= (uint64_t)1 << pool % 64u;
}

uint32_t dbp_kept_active(const struct dbp_keeper *keeper, uint32_t from) {
    for (uint32_t word = from / 64u; word < DBP_ATTENTION_WORDS; word++, from = 64u * word) {
        uint64_t bits = keeper->active[word] >> from % 64u;
        if (bits)
            return from + (uint32_t)__builtin_ctzll(bits);
    }
    return DBP_POOLS_MAX;
}

static uint32_t smaller(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

struct dbp_kept_limits dbp_kept_limits(const struct dbp_keeper *keeper, uint32_t pool) {
    const struct dbp_pool_spec *spec = dbp_registry_spec(keeper->registry, pool);
    uint32_t allowance = keeper->pools[pool].allowance;

    if (!spec || dbp_registry_closing(keeper->registry, pool))
        return (struct dbp_kept_limits){0};
    /* Of one that is superseded no session is kept beyond its grace: nobody new comes to it. */
    bool superseded = dbp_registry_superseded(keeper->registry, pool);
    return (struct dbp_kept_limits){.pool_size = superseded ? 0 : smaller(spec->pool_size, allowance),
                                    .cap = smaller(spec->pool_size + spec->max_overflow, allowance),
                                    .min_size = superseded ? 0 : smaller(spec->min_size, allowance)};
}

uint32_t dbp_kept_count(const struct dbp_keeper *keeper, uint32_t pool, enum dbp_state state) {
    int64_t count = dbp_pool_count(keeper->table, pool, state);

    return count < 0 ? 0 : count > DBP_SESSIONS_MAX ? DBP_SESSIONS_MAX : (uint32_t)count;
}

uint32_t dbp_kept_waiting(struct dbp_keeper *keeper, uint32_t pool, uint32_t most) {
    struct dbp_queue *queue = &keeper->table->pools[pool].queue;
    uint32_t ticket = atomic_load(&queue->head), n = 0;
    dbp_place place;

    /* Counted, not taken from the counter, which may be wrong by what a killed process left: a waiter must never be
     * overlooked. More than the cap allows need not be counted. */
    while (n < most && dbp_queue_next(queue, &ticket, &place))
        n++;
    return n;
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
