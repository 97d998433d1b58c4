/* SPDX-License-Identifier: MIT
 * What the files of the keeper share and nobody else sees: opening.c, ending.c, resetting.c, keeper.c.
 */
#ifndef DBPOOL_KEEPER_PRIVATE_H
#define DBPOOL_KEEPER_PRIVATE_H

#include "keeper.h"
#include "reset.h"

#define DBP_END_MOST_US \
    10000000u /* a session being ended whose server does not hang up: given up after this, and logged */

struct kept {
    bool watched, server_gone, ending, resetting, opening_sent;
    bool wants_kill; /* asked or still to be asked */
    bool kill_sent;
    uint32_t kills_failed;   /* of this ending, in a row */
    uint64_t kill_again_us;  /* not before, after a failed one */
    uint64_t deadline_us;    /* of the login, the ending or the reset */
    uint32_t waiters_before; /* tail of the queue when its login was asked for */
    struct dbp_reset reset;
    struct dbp_session_facts facts;
};

struct kept_pool {
    uint32_t total; /* slots out of EMPTY */
    uint32_t failures;
    uint64_t retry_at_us;
    uint64_t wake_at_us;
    uint32_t last_logged; /* error code of the last logged login failure */
};

struct dbp_keeper {
    struct dbp_share share;
    struct dbp_table *table;
    struct dbp_registry *registry;
    struct dbp_keeper_ops ops;
    bool connector;
    uint64_t next_tick_us;
    struct kept_pool pools[DBP_POOLS_MAX];
    struct kept *sessions;     /* DBP_SESSIONS_MAX; pages of unused ones are never touched */
    int fds[DBP_SESSIONS_MAX]; /* the broker's copy of each session's fd; -1: none */
};

static inline struct dbp_session *shared(const struct dbp_keeper *keeper, uint32_t session) {
    return &keeper->table->sessions[session];
}

static inline dbp_word word_of(const struct dbp_keeper *keeper, uint32_t session) {
    return atomic_load(&shared(keeper, session)->word);
}

static inline uint32_t pool_of(const struct dbp_keeper *keeper, uint32_t session) {
    return atomic_load(&shared(keeper, session)->pool);
}

static inline const char *alias_of(const struct dbp_keeper *keeper, uint32_t pool) {
    return keeper->table->pools[pool].alias;
}

static inline void add(_Atomic int64_t *counter) {
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

/* keeper.c */
void dbp_keeper_say(const struct dbp_keeper *keeper, enum dbp_log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Watches the session's fd for events; 0 stops. */
void dbp_keeper_watch(struct dbp_keeper *keeper, uint32_t session, uint32_t events);
/* Consumes fd; -1 only closes the old one. */
void dbp_keeper_set_fd(struct dbp_keeper *keeper, uint32_t session, int fd);

/* opening.c: opens and retires what the policy wants now. */
void dbp_keeper_tend(struct dbp_keeper *keeper, uint32_t pool);
/* The connector has not answered for a session in OPENING. */
void dbp_keeper_login_overdue(struct dbp_keeper *keeper, uint32_t session);

/* ending.c */
/* CLOSING or OPENING to EMPTY: the place in the cap is free again. */
void dbp_keeper_vacate(struct dbp_keeper *keeper, uint32_t session);
/* Takes up a session that is in CLOSING. */
void dbp_keeper_begin_end(struct dbp_keeper *keeper, uint32_t session);
/* A session in CLOSING has come to its end. */
void dbp_keeper_ended(struct dbp_keeper *keeper, uint32_t session);
void dbp_keeper_ask_kill(struct dbp_keeper *keeper, uint32_t session);
/* Ends a session that is idle or being reset; a lease is only marked, its holder's return ends it. */
void dbp_keeper_end_unfit(struct dbp_keeper *keeper, uint32_t session);
/* Reads away what an ending session still sends: with a full receive buffer the server would never come to hang up.
 * True at its end of file. */
bool dbp_keeper_drained(int fd) DBP_MUST_USE;

/* resetting.c: a session in RESETTING. */
void dbp_keeper_begin_reset(struct dbp_keeper *keeper, uint32_t session);
void dbp_keeper_reset_answer(struct dbp_keeper *keeper, uint32_t session);
void dbp_keeper_reset_failed(struct dbp_keeper *keeper, uint32_t session, const char *why);

#endif
