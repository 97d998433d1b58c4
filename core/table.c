/* SPDX-License-Identifier: MIT
 * The lease table: see table.h.
 *
 * I1 (one holder) rests on one fact: to own a session is to have moved its word to LEASED with one's own slot, and the
 * word changes only by compare-and-swap against a value that includes a generation which every move increments.
 * The idle bits are a hint: a session whose bit is set may be idle, and one without its bit is found by the sweep only.
 */
#include "table.h"

#include "failure.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EDGE(to) (1u << (to))

static const uint32_t edges[DBP_STATES] = {
    [DBP_EMPTY] = EDGE(DBP_OPENING),
    [DBP_OPENING] = EDGE(DBP_IDLE) | EDGE(DBP_EMPTY),
    [DBP_IDLE] = EDGE(DBP_LEASED) | EDGE(DBP_GRANTED) | EDGE(DBP_RESETTING) | EDGE(DBP_CLOSING),
    [DBP_GRANTED] = EDGE(DBP_LEASED) | EDGE(DBP_IDLE),
    [DBP_LEASED] = EDGE(DBP_IDLE) | EDGE(DBP_RESETTING) | EDGE(DBP_CLOSING),
    [DBP_RESETTING] = EDGE(DBP_IDLE) | EDGE(DBP_CLOSING),
    [DBP_CLOSING] = EDGE(DBP_EMPTY),
};

void dbp_table_sign(struct dbp_table *table) {
    if (table->size != sizeof *table)
        table->size = sizeof *table;
    if (table->version != DBP_VERSION)
        table->version = DBP_VERSION;
    if (table->magic != DBP_TABLE_MAGIC)
        table->magic = DBP_TABLE_MAGIC;
}

int dbp_table_new(struct dbp_table **tablep) {
    const char *step = "memfd_create";
    void *memory = MAP_FAILED;
    int fd = memfd_create("dbpool-table", MFD_CLOEXEC);

    if (fd >= 0) {
        step = "ftruncate";
        if (ftruncate(fd, sizeof(struct dbp_table)) == 0) {
            step = "mmap";
            memory = mmap(NULL, sizeof(struct dbp_table), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        }
    }
    int error = errno;
    if (fd >= 0)
        close(fd); /* the mapping, which children inherit, is all that anybody needs */
    if (memory == MAP_FAILED) {
        char what[64];
        snprintf(what, sizeof what, "the shared table of %zu kB (%s)", sizeof(struct dbp_table) / 1024, step);
        return dbp_failed(what, error);
    }

    struct dbp_table *table = memory; /* zeroed: every session EMPTY, every pool not live */
    dbp_table_sign(table);
    *tablep = table;
    return 0;
}

struct dbp_table *dbp_table_free(struct dbp_table *table) {
    if (table)
        munmap(table, sizeof *table);
    return NULL;
}

bool dbp_table_valid(const struct dbp_table *table) {
    if (table->magic != DBP_TABLE_MAGIC || table->version != DBP_VERSION || table->size != sizeof *table)
        return false;
    if (atomic_load(&table->n_pools) > DBP_POOLS_MAX)
        return false;
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        const struct dbp_session *session = &table->sessions[i];
        dbp_word word = atomic_load(&session->word);

        if ((uint32_t)dbp_word_state(word) >= DBP_STATES)
            return false;
        if (dbp_word_state(word) == DBP_LEASED && dbp_holder_slot(dbp_word_owner(word)) >= DBP_PROCS_MAX)
            return false;
    }
    return true;
}

/* IDLE is not counted: it is what remains of the size. */
static void count(struct dbp_pool *pool, enum dbp_state state, uint32_t owner, int64_t n) {
    if (state == DBP_EMPTY)
        atomic_fetch_sub(&pool->count.size, n); /* in order with the look for waiters after it, see dbp_wait_begin */
    else if (state == DBP_LEASED)
        atomic_fetch_add_explicit(&pool->usage[owner % DBP_USAGES].leased, n, memory_order_relaxed);
    else if (state != DBP_IDLE)
        atomic_fetch_add_explicit(&pool->count.state[state], n, memory_order_relaxed);
}

bool dbp_session_move(struct dbp_table *table, uint32_t session, dbp_word from, enum dbp_state to, uint32_t owner,
                      dbp_word *wordp) {
    struct dbp_session *s = &table->sessions[session];
    enum dbp_state state = dbp_word_state(from);
    dbp_word next =
        (dbp_word)to | (dbp_word)(owner & DBP_OWNER_MASK) << 4 | (dbp_word)(dbp_word_generation(from) + 1) << 32;

    if (state >= DBP_STATES || !(edges[state] & EDGE(to)))
        return false;
    /* Read before the move: after a move to EMPTY the slot may be another pool's. */
    uint32_t pool = atomic_load_explicit(&s->pool, memory_order_relaxed);
    if (!atomic_compare_exchange_strong(&s->word, &from, next))
        return false;
    if (wordp)
        *wordp = next;
    /* Counters are for people and for the cap's first guess; the broker keeps the cap by what it reserved itself. */
    count(dbp_pool_at(table, pool), state, dbp_word_owner(from), -1);
    count(dbp_pool_at(table, pool), to, owner, 1);
    return true;
}

void dbp_session_force(struct dbp_table *table, uint32_t session, enum dbp_state to, uint32_t owner) {
    _Atomic dbp_word *word = &table->sessions[session].word;
    uint32_t generation = dbp_word_generation(atomic_load(word)) + 1;

    atomic_store(word, (dbp_word)to | (dbp_word)(owner & DBP_OWNER_MASK) << 4 | (dbp_word)generation << 32);
}

bool dbp_idle_take(struct dbp_table *table, uint32_t pool, enum dbp_state to, uint32_t owner, uint32_t *sessionp,
                   dbp_word *wordp) {
    struct dbp_pool *p = dbp_pool_at(table, pool);

    for (uint32_t i = 0; i < DBP_IDLE_WORDS; i++) {
        uint64_t bits = atomic_load(&p->idle[i]);
        while (bits) {
            uint64_t bit = bits & -bits;
            bits &= ~bit;
            if (!(atomic_fetch_and(&p->idle[i], ~bit) & bit))
                continue; /* somebody was faster */
            /* Nothing is lost when the word turns out not to be IDLE (dbp_idle_take_this has left the bit, the broker
             * ended it, or it was offered twice): whoever makes it IDLE anew looks for the bit after that. */
            uint32_t session = i * 64u + (uint32_t)__builtin_ctzll(bit);
            dbp_word word = atomic_load(&table->sessions[session].word);
            if (dbp_word_state(word) == DBP_IDLE && atomic_load(&table->sessions[session].pool) == pool &&
                !atomic_load(&table->sessions[session].unfit) && /* the broker ends it, at the latest in its sweep */
                dbp_session_move(table, session, word, to, owner, wordp)) {
                *sessionp = session;
                return true;
            }
            /* Taken for a pool that has gone from this place meanwhile: the bit is the next one's. */
            if (dbp_word_state(word) == DBP_IDLE && atomic_load(&table->sessions[session].pool) != pool)
                dbp_idle_offer(table, session);
        }
    }
    return false;
}

bool dbp_idle_take_this(struct dbp_table *table, uint32_t pool, uint32_t session, uint32_t holder, dbp_word *wordp) {
    struct dbp_session *s = &table->sessions[session];
    dbp_word word = atomic_load(&s->word);

    return dbp_word_state(word) == DBP_IDLE && atomic_load(&s->pool) == pool && !atomic_load(&s->unfit) &&
           dbp_session_move(table, session, word, DBP_LEASED, holder, wordp);
}

void dbp_idle_offer(struct dbp_table *table, uint32_t session) {
    uint32_t pool = atomic_load(&table->sessions[session].pool);
    uint64_t bit = (uint64_t)1 << (session % 64u);

    /* The bit is there still if dbp_idle_take_this has left it there: then whoever takes it from now on looks at the
     * word later than that and finds it IDLE. */
    if (!(atomic_load(&dbp_pool_at(table, pool)->idle[session / 64u]) & bit))
        atomic_fetch_or(&dbp_pool_at(table, pool)->idle[session / 64u], bit);
}

bool dbp_idle_put(struct dbp_table *table, uint32_t session, dbp_word from) {
    if (!dbp_session_move(table, session, from, DBP_IDLE, 0, NULL))
        return false;
    dbp_idle_offer(table, session);
    return true;
}

bool dbp_idle_any(const struct dbp_table *table, uint32_t pool) {
    for (uint32_t i = 0; i < DBP_IDLE_WORDS; i++)
        if (atomic_load(&table->pools[dbp_pool_place(pool)].idle[i]))
            return true;
    return false;
}

int64_t dbp_pool_count(const struct dbp_table *table, uint32_t pool, enum dbp_state state) {
    const struct dbp_pool *p = &table->pools[dbp_pool_place(pool)];
    uint64_t n = 0;

    if (state == DBP_LEASED)
        for (uint32_t i = 0; i < DBP_USAGES; i++)
            n += (uint64_t)atomic_load_explicit(&p->usage[i].leased, memory_order_relaxed);
    else if (state != DBP_IDLE)
        n = (uint64_t)atomic_load(&p->count.state[state]);
    else {
        n = (uint64_t)atomic_load(&p->count.size);
        for (int other = DBP_OPENING; other < DBP_STATES; other++)
            if (other != DBP_IDLE)
                n -= (uint64_t)dbp_pool_count(table, pool, (enum dbp_state)other);
    }
    return (int64_t)n; /* any bytes, no overflow: the figures are shared memory */
}

void dbp_pool_count_acquire(struct dbp_table *table, uint32_t pool, uint32_t slot) {
    atomic_fetch_add_explicit(&table->pools[dbp_pool_place(pool)].usage[slot % DBP_USAGES].acquires, 1,
                              memory_order_relaxed);
}

int64_t dbp_pool_acquires(const struct dbp_table *table, uint32_t pool) {
    uint64_t n = 0;

    for (uint32_t i = 0; i < DBP_USAGES; i++)
        n +=
            (uint64_t)atomic_load_explicit(&table->pools[dbp_pool_place(pool)].usage[i].acquires, memory_order_relaxed);
    return (int64_t)n;
}

void dbp_pool_sum_up(struct dbp_table *table, uint32_t pool) {
    struct dbp_pool_counters *count = &dbp_pool_at(table, pool)->count;

    atomic_store(&count->acquires, dbp_pool_acquires(table, pool));
    atomic_store(&count->state[DBP_IDLE], dbp_pool_count(table, pool, DBP_IDLE));
    atomic_store(&count->state[DBP_LEASED], dbp_pool_count(table, pool, DBP_LEASED));
}

/* What must be added to get from one figure to another. Wraps, as the addition does: the figures are shared memory. */
static int64_t difference(int64_t to, int64_t from) {
    return (int64_t)((uint64_t)to - (uint64_t)from);
}

void dbp_table_recount(struct dbp_table *table, uint32_t pool) {
    struct dbp_pool *p = dbp_pool_at(table, pool);
    int64_t before[DBP_STATES], words[DBP_STATES] = {0}, places = 0, size = 0;
    int64_t waiting = atomic_load(&p->count.waiting);

    for (int state = DBP_OPENING; state < DBP_STATES; state++)
        before[state] = dbp_pool_count(table, pool, (enum dbp_state)state);
    for (uint32_t i = 0; i < DBP_SESSIONS_MAX; i++) {
        enum dbp_state state = dbp_word_state(atomic_load(&table->sessions[i].word));
        if (state != DBP_EMPTY && state < DBP_STATES &&
            dbp_pool_place(atomic_load(&table->sessions[i].pool)) == dbp_pool_place(pool))
            words[state]++;
    }
    uint32_t ticket = atomic_load(&p->queue.head);
    dbp_place place;
    while (dbp_queue_next(&p->queue, &ticket, &place))
        places++;

    /* A live process may stand between its move and its count, which makes the difference seen here wrong by that one
     * for a moment; the next recount, in a quieter moment, takes it back. Only a death makes a difference that stays.
     */
    for (int state = DBP_OPENING; state < DBP_STATES; state++) {
        if (before[state] != words[state])
            count(p, (enum dbp_state)state, 0, difference(words[state], before[state]));
        size += words[state];
    }
    atomic_fetch_add(&p->count.size, difference(size, atomic_load(&p->count.size)));
    if (waiting != places)
        atomic_fetch_add(&p->count.waiting, difference(places, waiting));
}
