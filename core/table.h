/* SPDX-License-Identifier: MIT
 * The lease table: what all processes share. Its layout is a file format (fixed widths, indexes instead of pointers,
 * magic, version, size); the truth about a session is one 64 bit word, changed by compare-and-swap in
 * dbp_session_move() and nowhere else. Everything else here is a hint, a counter, or written by the one process named
 * beside it.
 *
 * There is no lock. A process may be killed or stopped between any two instructions; what that leaves is listed in
 * DESIGN.md (crash matrix) and put right by dbp_handoff_sweep() in the broker.
 */
#ifndef DBPOOL_TABLE_H
#define DBPOOL_TABLE_H

#include "dbpool.h"
#include "queue.h"

#include <stdatomic.h>

#define DBP_TABLE_MAGIC 0x6462706f6f6c3031u /* "dbpool01" */
#define DBP_IDLE_WORDS (DBP_SESSIONS_MAX / 64u)
#define DBP_ATTENTION_WORDS (DBP_POOLS_MAX / 64u)

/* Who may move a session on from each state. The edges are in dbp_session_move(). */
enum dbp_state {
    DBP_EMPTY = 0, /* no session. Broker: reserves it (OPENING) */
    DBP_OPENING,   /* the connector logs in. Broker: IDLE when it delivers, EMPTY when it fails */
    DBP_IDLE,    /* in the pool, and its idle bit is set. Client: LEASED or, for a waiter, GRANTED; broker: CLOSING, or
                    RESETTING for a ping */
    DBP_GRANTED, /* owner is a ticket. The waiter: LEASED; whoever finds the waiter gone: IDLE */
    DBP_LEASED,  /* owner is a dbp_holder(). He: IDLE, RESETTING or CLOSING; broker when he died: CLOSING */
    DBP_RESETTING, /* owner is a dbp_reset_kind. Broker: IDLE when the server has answered well, else CLOSING */
    DBP_CLOSING, /* still counted in the cap; owner is 1 when it needs a KILL. Broker: EMPTY when the server has hung up
                  */
    DBP_STATES
};

/* state: 4 bits, owner: 28 bits, generation: 32 bits, one more at every move, so that no stale word ever matches.
 * (It wraps after 2^32 moves of one session: a process would have to sleep through exactly that many.) */
typedef uint64_t dbp_word;
#define DBP_OWNER_MASK 0x0fffffffu

static inline enum dbp_state dbp_word_state(dbp_word word) {
    return (enum dbp_state)(word & 0xfu);
}
static inline uint32_t dbp_word_owner(dbp_word word) {
    return (uint32_t)(word >> 4) & DBP_OWNER_MASK;
}
static inline uint32_t dbp_word_generation(dbp_word word) {
    return (uint32_t)(word >> 32);
}

/* The owner of a LEASED session: a process slot (10 bits) and which attach of that slot it is (18 bits, never 0), so
 * that a process which is not attached any more, and does not know it yet, is never taken for the slot's next one. */
#define DBP_ATTACHES 0x3ffffu

static inline uint32_t dbp_holder(uint32_t slot, uint32_t attach) {
    return slot | attach << 10;
}
static inline uint32_t dbp_holder_slot(uint32_t holder) {
    return holder & 0x3ffu;
}
static inline uint32_t dbp_holder_attach(uint32_t holder) {
    return holder >> 10;
}

enum dbp_fitness {
    DBP_FIT = 0,
    DBP_UNFIT,        /* the server hung up, or it is too old */
    DBP_UNFIT_SURPLUS /* its place is needed elsewhere (rationing.c, or a smaller cap): may be taken back */
};

/* One cache line. pool, incarnation and connection_id are written by the broker while the session is EMPTY or OPENING
 * and published by the move to IDLE; they are atomic because a stale idle bit may make somebody look too early. */
struct dbp_session {
    _Atomic dbp_word word;
    _Atomic uint32_t pool;          /* its handle */
    _Atomic uint32_t incarnation;   /* counts the sessions that lived in this slot */
    _Atomic uint32_t connection_id; /* the server's */
    _Atomic uint32_t
        status; /* server status word; written by each holder, or the broker, before it gives the session on */
    _Atomic uint32_t unfit; /* an enum dbp_fitness, written by the broker; whoever has an unfit session ends it */
    uint32_t reserved;
    _Atomic uint64_t users;       /* bit (slot % 64) of each process that ever leased it */
    _Atomic uint64_t opened_us;   /* broker */
    _Atomic uint64_t returned_us; /* last holder, at its return */
    uint64_t reserved2;
};

#define DBP_ERROR_WORDS (sizeof(struct dbp_error) / sizeof(uint32_t))
_Static_assert(sizeof(struct dbp_error) % sizeof(uint32_t) == 0, "copied in words");

/* IDLE and LEASED, and the acquires, change with every lease, so each process counts them on a cache line of its own
 * (struct dbp_usage): here they are as the master last summed them up. dbp_pool_count() has the present. */
struct dbp_pool_counters {
    _Atomic int64_t state[DBP_STATES]; /* sessions in each state; EMPTY is not kept */
    _Atomic int64_t acquires;
    _Atomic int64_t size; /* all but EMPTY: what the cap limits */
    _Atomic int64_t max;  /* the cap: pool_size + max_overflow */
    _Atomic int64_t waiting;
    _Atomic int64_t opened, closed, waits, timeouts, wait_us, failures, resets, undone, kills;
};

#define DBP_USAGES 16u /* the processes that share one do no harm, but for their speed */

struct dbp_usage {
    _Alignas(64) _Atomic int64_t leased; /* sessions that were LEASED to these processes, less those that went on */
    _Atomic int64_t acquires;
};

/* Pools are named by handles: a place in the table, and which of the pools that lived there it is. A session belongs to
 * a handle, so nothing that was meant for an earlier pool of the place ever gets one of a later pool's. */
static inline uint32_t dbp_pool_place(uint32_t pool) {
    return pool % DBP_POOLS_MAX;
}
static inline uint32_t dbp_pool_live(uint32_t pool) { /* dbp_pool.live while it lives */
    return pool / DBP_POOLS_MAX + 1u;
}

struct dbp_pool {
    _Atomic uint32_t live; /* broker: dbp_pool_live() of the pool that lives here, once all below is written; 0: none */
    uint32_t reserved;
    char alias[DBP_ALIAS_MAX];
    _Atomic uint32_t ring_above;             /* broker: with more sessions than this it wants to know of each return */
    _Atomic uint32_t max_waiting;            /* broker; 0: no limit but the queue's */
    _Atomic uint32_t error_seq;              /* odd while the broker writes error; 0: none yet */
    _Atomic uint32_t error[DBP_ERROR_WORDS]; /* a struct dbp_error, word by word: readers may come in between */
    _Alignas(64) _Atomic uint64_t idle[DBP_IDLE_WORDS]; /* bit = this session is IDLE; a hint, taken before the word */
    _Alignas(64) struct dbp_pool_counters count;
    struct dbp_usage usage[DBP_USAGES]; /* by process slot % DBP_USAGES */
    _Alignas(64) struct dbp_queue queue;
};

struct dbp_proc {
    _Atomic uint32_t attached; /* broker: which attach of this slot is in force; 0: none. Its own copy is the truth */
    _Atomic uint32_t pid;      /* broker, for people: 0 = free slot, or a process of another pid namespace */
    char label[24];            /* broker, before pid */
};

struct dbp_table {
    uint64_t magic;
    uint32_t version;
    uint32_t reserved;
    uint64_t size;
    _Atomic uint32_t broker_up;    /* broker: 1 while it runs */
    _Atomic uint32_t n_pools;      /* broker: places in pools that were ever used */
    _Atomic uint32_t max_sessions; /* broker: of all pools together */
    struct dbp_proc procs[DBP_PROCS_MAX];
    _Alignas(64) _Atomic uint64_t attention[DBP_ATTENTION_WORDS]; /* a bit for each place of a pool: clients set it
                                                                     before they ring; the broker takes it */
    _Alignas(64) struct dbp_session sessions[DBP_SESSIONS_MAX];
    struct dbp_pool pools[DBP_POOLS_MAX];
};

static inline struct dbp_pool *dbp_pool_at(struct dbp_table *table, uint32_t pool) {
    return &table->pools[dbp_pool_place(pool)];
}
static inline bool dbp_pool_lives(const struct dbp_table *table, uint32_t pool) {
    return atomic_load(&table->pools[dbp_pool_place(pool)].live) == dbp_pool_live(pool); /* pairs with registry.c */
}
/* True when it was set already. */
static inline bool dbp_attention_set(struct dbp_table *table, uint32_t pool) {
    uint32_t place = dbp_pool_place(pool);
    uint64_t bit = (uint64_t)1 << place % 64u;

    return atomic_fetch_or(&table->attention[place / 64u], bit) & bit;
}
static inline void dbp_attention_take(struct dbp_table *table, uint32_t pool) {
    uint32_t place = dbp_pool_place(pool);

    atomic_fetch_and(&table->attention[place / 64u], ~((uint64_t)1 << place % 64u));
}
static inline bool dbp_attention(const struct dbp_table *table, uint32_t pool) {
    uint32_t place = dbp_pool_place(pool);

    return atomic_load(&table->attention[place / 64u]) >> place % 64u & 1u;
}

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && sizeof(void *) == 8,
               "64 bit machines only: a lock of libatomic's would be one for each process");
_Static_assert(sizeof(struct dbp_session) == 64, "a session is one cache line");
_Static_assert(sizeof(struct dbp_proc) == 32, "layout");
_Static_assert(DBP_SESSIONS_MAX % 64 == 0 && DBP_SESSIONS_MAX <= 1024, "queue entries have 10 bits for a session");
_Static_assert(DBP_POOLS_MAX % 64 == 0, "attention has whole words");
_Static_assert(DBP_PROCS_MAX <= 1024, "queue entries have 10 bits for a process slot");

/* Maps a new table (memfd, MAP_SHARED: forked children see the same). *tablep is the caller's, until dbp_table_free.
 * 0 or -errno (dbp_failure). */
int dbp_table_new(struct dbp_table **tablep) DBP_MUST_USE;
struct dbp_table *dbp_table_free(struct dbp_table *table); /* NULL */

/* Says what it is, again should somebody have written over it: an attaching process looks. Broker only. */
void dbp_table_sign(struct dbp_table *table);

/* True when the segment is one of this version and every word in it is in range (I10). */
bool dbp_table_valid(const struct dbp_table *table);

/* The one function that changes a session's state. from must be the word as read; fails (false) when it is not that any
 * more, and on an edge that dbp_state does not name: from may be what some process wrote where it may not, and a
 * library must not end its host for that. On success *wordp (may be NULL) gets the new word. Keeps the pool's counters.
 * Any process. */
bool dbp_session_move(struct dbp_table *table, uint32_t session, dbp_word from, enum dbp_state to, uint32_t owner,
                      dbp_word *wordp) DBP_MUST_USE;

/* Overwrites a word that no rule of this table can have left there: some process wrote where it may not. The state to
 * go on from is the broker's own knowledge; generation goes on, so that no lease of before is valid. The counters are
 * left to the next recount. Broker only. */
void dbp_session_force(struct dbp_table *table, uint32_t session, enum dbp_state to, uint32_t owner);

/* Takes one idle session of the pool, lowest slot first: the rest can age out, and few sessions serve a low load.
 * Moves it to `to` (LEASED or GRANTED) for owner. False: none is idle. Any process. */
bool dbp_idle_take(struct dbp_table *table, uint32_t pool, enum dbp_state to, uint32_t owner, uint32_t *sessionp,
                   dbp_word *wordp) DBP_MUST_USE;
/* Takes this very session of the pool for a process, if it is idle. Its idle bit stays as it is, and so does what other
 * processes have of it in their caches. */
bool dbp_idle_take_this(struct dbp_table *table, uint32_t pool, uint32_t session, uint32_t holder,
                        dbp_word *wordp) DBP_MUST_USE;
/* Moves a session to IDLE and offers it in the idle bits. False: from was not its word any more. */
bool dbp_idle_put(struct dbp_table *table, uint32_t session, dbp_word from) DBP_MUST_USE;
/* Offers an IDLE session again whose bit may be lost. Harmless when it is not. */
void dbp_idle_offer(struct dbp_table *table, uint32_t session);
bool dbp_idle_any(const struct dbp_table *table, uint32_t pool);

/* Sessions of the pool in a state, now; never mind EMPTY. Summed from figures that change meanwhile: may be off by what
 * moves just then. */
int64_t dbp_pool_count(const struct dbp_table *table, uint32_t pool, enum dbp_state state);
/* Leases that the pool has given, ever. */
int64_t dbp_pool_acquires(const struct dbp_table *table, uint32_t pool);
/* An acquire by the process of this slot. */
void dbp_pool_count_acquire(struct dbp_table *table, uint32_t pool, uint32_t slot);
/* Writes the sums of what the processes count into the pool's counters. The master only, any thread. */
void dbp_pool_sum_up(struct dbp_table *table, uint32_t pool);

/* Counts again from the words what a killed process left uncounted; called twice around a pause, see table.c. Broker
 * only. */
void dbp_table_recount(struct dbp_table *table, uint32_t pool);

#endif
