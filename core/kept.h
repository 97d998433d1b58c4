/* SPDX-License-Identifier: MIT
 * What the broker keeps of each session and pool: the private state that opening.c, ending.c, resetting.c and keeper.c
 * work on, one above the other. Only the broker's thread touches it.
 */
#ifndef DBPOOL_KEPT_H
#define DBPOOL_KEPT_H

#include "janitor.h"
#include "registry.h"
#include "wire.h"
#include "reset.h"

#define DBP_END_MOST_US 10000000u /* a server that does not hang up for so long is asked by KILL, or logged */

#define DBP_RESEND_US 20000u /* the connector's channel was full: look again after this */

/* How the keeper reaches the outside. All are called on the broker's thread. */
struct dbp_keeper_ops {
    void (*log)(void *arg, enum dbp_log_level level, const char *text); /* never blocks */
    /* Gives a request to the connector: 0, or anything else when there is none or its channel is full: tried again
     * later. */
    int (*to_connector)(void *arg, const union dbp_wire_any *msg);
    /* Watches (events != 0) or stops watching (0) the fd of a session in the broker's epoll. An event that comes for
     * another incarnation is not this session's. */
    int (*watch)(void *arg, uint32_t session, uint32_t incarnation, int fd, uint32_t events, bool first);
    /* The pool is forgotten, its place may be another's. May be NULL. */
    void (*pool_gone)(void *arg, uint32_t pool);
    void *arg;
};

struct kept {
    bool watched, server_gone, ending, resetting, opening_sent;
    bool wants_kill;         /* asked or still to be asked */
    bool kill_sent;          /* to the connector */
    bool kill_done;          /* the server has answered it */
    bool unknown;            /* and that was: no such session */
    bool overdue;            /* that it does not hang up was logged */
    uint32_t kills_failed;   /* of this ending, in a row */
    uint64_t kill_again_us;  /* not before, after a failed one */
    uint64_t deadline_us;    /* of the login, the ending or the reset */
    uint32_t waiters_before; /* tail of the queue when its login was asked for */
    uint64_t expires_us;     /* max_lifetime less its jitter; 0: never */
    uint64_t spoke_us;       /* when the server last answered the broker: opened, reset, pinged */
    /* The broker's own; the table has copies, which any process can overwrite. */
    uint64_t opened_us;
    uint32_t incarnation; /* of the session in this slot */
    struct dbp_endpoint endpoint;
    uint64_t candidate; /* the password of its login, dbp_registry_candidate */
    bool replaced;      /* another one was opened for it */
    struct dbp_reset reset;
    struct dbp_session_facts facts;
};

struct kept_pool {
    uint32_t total;     /* slots out of EMPTY */
    uint32_t users;     /* processes that registered it */
    uint32_t allowance; /* its share while the room for all pools is short; else UINT32_MAX */
    uint32_t marked;    /* of its leases, to end at their return (dbp_rationing_mark) */
    bool look_again;    /* dbp_kept_look_again */
    struct dbp_janitor_memory memory;
    uint32_t failures;
    bool refused; /* the last one by the server's own words (dbp_janitor_refused) */
    uint64_t retry_at_us;
    uint32_t candidates_refused; /* passwords, since one was let in */
    uint64_t no_login_before_us; /* a KILL needs the room that an ended session leaves at the server */
    uint64_t wake_at_us;
    uint64_t used_us;     /* when somebody last registered it, or was seen to have leases of it */
    int64_t acquires;     /* as the last sweep found them */
    bool introduced;      /* dbp_resetting_introduce */
    bool undone;          /* the log was told of a lease whose rows a rollback takes back */
    uint32_t last_logged; /* error code of the last logged login failure */
    uint64_t logged_us;   /* and when that was */
};

struct dbp_keeper {
    struct dbp_share share;
    struct dbp_table *table;
    struct dbp_registry *registry;
    struct dbp_keeper_ops ops;
    bool connector;
    bool stopping;                /* nothing is opened any more */
    uint64_t connector_due_us;    /* without a connector: not having one is an error from then on */
    uint64_t connector_missed_us; /* when the pools were last told so */
    uint64_t next_tick_us;
    uint64_t random;              /* state of dbp_kept_random */
    uint32_t max_sessions, total; /* of all pools together: the cap, and what there is */
    bool refused;                 /* a session could not be opened for want of room: rationing.c has to look */
    bool scarce;                  /* the pools have allowances */
    uint64_t ration_at_us;        /* not again before */
    struct kept_pool pools[DBP_POOLS_MAX];
    uint64_t
        active[DBP_ATTENTION_WORDS]; /* a bit for each pool that something may be done about; the others cost nothing */
    /* The broker's own idea of what the table says: 1 + the pool of each slot out of EMPTY. The table can be written by
     * any process: what is an index or is counted by the cap is taken from here. */
    uint16_t home[DBP_SESSIONS_MAX];
    uint32_t attached[DBP_PROCS_MAX]; /* which attach of each slot is in force; 0: none */
    uint64_t seen_us[DBP_PROCS_MAX];  /* when its process last did something that the broker noticed */
    uint32_t dropped;                 /* pools, for the log */
    uint32_t mended;                  /* words put right, logged at powers of two */
    struct kept *sessions;            /* DBP_SESSIONS_MAX; pages of unused ones are never touched */
    int fds[DBP_SESSIONS_MAX];        /* the broker's copy of each session's fd; -1: none */
};

static inline struct dbp_session *shared(const struct dbp_keeper *keeper, uint32_t session) {
    return &keeper->table->sessions[session];
}

static inline dbp_word word_of(const struct dbp_keeper *keeper, uint32_t session) {
    return atomic_load(&shared(keeper, session)->word);
}

static inline uint32_t pool_of(const struct dbp_keeper *keeper, uint32_t session) {
    uint32_t home = keeper->home[session];

    return home ? home - 1 : 0;
}

static inline uint32_t handle_of(const struct dbp_keeper *keeper, uint32_t pool) {
    return dbp_registry_handle(keeper->registry, pool);
}

static inline const char *alias_of(const struct dbp_keeper *keeper, uint32_t pool) {
    const struct dbp_pool_spec *spec = dbp_registry_spec(keeper->registry, pool);

    return spec ? spec->alias : "?";
}

static inline void add(_Atomic int64_t *counter) {
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

/* What the pool may have now: its policy, less what other pools need more. */
struct dbp_kept_limits {
    uint32_t pool_size, cap, min_size;
};

struct dbp_kept_limits dbp_kept_limits(const struct dbp_keeper *keeper, uint32_t pool);
/* dbp_pool_count, in range: the figure may be below zero for a moment, or damaged. */
uint32_t dbp_kept_count(const struct dbp_keeper *keeper, uint32_t pool, enum dbp_state state);
/* Waiters of the pool, counted up to `most`. */
uint32_t dbp_kept_waiting(struct dbp_keeper *keeper, uint32_t pool, uint32_t most);

void dbp_kept_say(const struct dbp_keeper *keeper, enum dbp_log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Watches the session's fd for events (EPOLL*); 0 stops. */
void dbp_kept_watch(struct dbp_keeper *keeper, uint32_t session, uint32_t events);
/* Moves a session that is in state `from`. False: it is not, or not any more. */
bool dbp_kept_move(struct dbp_keeper *keeper, uint32_t session, enum dbp_state from, enum dbp_state to,
                   uint32_t owner) DBP_MUST_USE;
/* When the session came back last. Its holder writes that, so it is believed only where it can be true. */
uint64_t dbp_kept_returned_us(const struct dbp_keeper *keeper, uint32_t session);
/* Consumes fd; -1 only closes the old one. */
void dbp_kept_set_fd(struct dbp_keeper *keeper, uint32_t session, int fd);
/* A number from 0 to most: for jitter, not for secrets. */
uint64_t dbp_kept_random(struct dbp_keeper *keeper, uint64_t most);
/* The pool's figures have changed: its policy is asked again at the end of the broker's batch (dbp_keeper_tick). */
void dbp_kept_look_again(struct dbp_keeper *keeper, uint32_t pool);
/* The ticks look at it from now on, until there is nothing to do. */
void dbp_kept_activate(struct dbp_keeper *keeper, uint32_t pool);
/* The next active pool from `from` on; DBP_POOLS_MAX: none. */
uint32_t dbp_kept_active(const struct dbp_keeper *keeper, uint32_t from);

#endif
