/* SPDX-License-Identifier: MIT
 * Hand-off: see handoff.h.
 *
 * A grant is two words changed one after the other, and its author may die in between:
 *   1. session  IDLE -> GRANTED, owner = ticket      (whose it will be is now written in the session)
 *   2. place    WAITING -> GRANTED, session          (the waiter now knows)
 *   3. place    GRANTED -> FREE, session GRANTED -> LEASED, owner = slot     (by the waiter)
 * After 1, anybody can see from the session alone how to go on: if the place still waits, do 2; if it does not, the
 * waiter has left or died, and the session goes back to IDLE. That is dbp_handoff_sweep. The generation in the
 * session's word makes each of these steps happen once, however many try.
 *
 * No lost wake-up: a waiter takes its place and then looks for idle sessions; a holder offers its session (idle bit)
 * and then looks for waiters. Both are seq_cst, so at least one of the two sees the other, and that one runs match. A
 * holder that finds the bit set already has moved the word before it looked: who took or saw the bit before that and
 * found the word LEASED, has taken its place before the word, and is seen by the holder's look for waiters.
 */
#include "handoff.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

static void wake(const struct dbp_share *share, uint32_t pool, dbp_place place) {
    if (dbp_place_event(place)) {
        uint32_t proc = dbp_place_proc(place);
        uint64_t one = 1;
        /* Full (EAGAIN) means it is readable, which is all that is wanted. */
        if (proc < share->n_wake_fds && write(share->wake_fds[proc], &one, sizeof one) < 0 && errno != EAGAIN)
            return;
    } else {
        _Atomic uint32_t *word = dbp_queue_futex(&dbp_pool_at(share->table, pool)->queue, dbp_place_ticket(place));
        syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0); /* shared, between processes */
    }
}

void dbp_handoff_ring(const struct dbp_share *share, uint32_t pool) {
    uint64_t one = 1;

    /* Once is enough until the broker has taken the flag. */
    if (!dbp_attention_set(share->table, pool) && write(share->doorbell_fd, &one, sizeof one) < 0 && errno != EAGAIN)
        return; /* the broker's own tick finds the flag a second later */
}

static void leave(struct dbp_table *table, uint32_t pool) {
    atomic_fetch_sub_explicit(&dbp_pool_at(table, pool)->count.waiting, 1, memory_order_relaxed);
}

/* Step 2. True when the place has this session now, whoever wrote it. */
static bool tell_waiter(const struct dbp_share *share, uint32_t pool, dbp_place place, uint32_t session) {
    struct dbp_queue *queue = &dbp_pool_at(share->table, pool)->queue;

    if (dbp_queue_move(queue, place, DBP_PLACE_GRANTED, session)) {
        leave(share->table, pool);
        wake(share, pool, place);
        return true;
    }
    dbp_place now = dbp_queue_look(queue, dbp_place_ticket(place));
    return dbp_place_ticket(now) == dbp_place_ticket(place) && dbp_place_state(now) == DBP_PLACE_GRANTED &&
           dbp_place_session(now) == session;
}

/* Gives a session up that is still in GRANTED as seen; when it is not, somebody else has settled it. The broker, who
 * leaves a granted session alone, is told of one that became unfit meanwhile: nobody takes it, so nobody else would. */
static void put_back(const struct dbp_share *share, uint32_t pool, uint32_t session, dbp_word word) {
    if (dbp_idle_put(share->table, session, word) && atomic_load(&share->table->sessions[session].unfit))
        dbp_handoff_ring(share, pool);
}

void dbp_handoff_match(const struct dbp_share *share, uint32_t pool) {
    struct dbp_table *table = share->table;
    struct dbp_queue *queue = &dbp_pool_at(table, pool)->queue;
    dbp_place place;
    uint32_t session;
    dbp_word word;

    while (dbp_queue_oldest(queue, &place)) {
        if (!dbp_idle_take(table, pool, DBP_GRANTED, dbp_place_ticket(place), &session, &word))
            return;
        /* The waiter left meanwhile: back with it. (Or the sweep helped, and the waiter has claimed this very session
         * and freed its place already; then the word has moved on and nothing is put.) */
        if (!tell_waiter(share, pool, place, session))
            put_back(share, pool, session, word);
    }
}

/* Frees a place of this caller's that does not wait any more. In a loop: a lap may be counted in it meanwhile. */
static bool free_place(struct dbp_queue *queue, uint32_t ticket) {
    for (;;) {
        dbp_place place = dbp_queue_look(queue, ticket);
        if (dbp_place_ticket(place) != ticket || dbp_place_state(place) == DBP_PLACE_FREE)
            return false; /* the broker has buried this process */
        if (dbp_queue_move(queue, place, DBP_PLACE_FREE, 0))
            return true;
    }
}

int dbp_handoff_claim(const struct dbp_share *share, uint32_t pool, uint32_t ticket, uint32_t holder,
                      uint32_t *sessionp, dbp_word *wordp) {
    struct dbp_table *table = share->table;
    struct dbp_queue *queue = &dbp_pool_at(table, pool)->queue;
    dbp_place place = dbp_queue_look(queue, ticket);

    if (dbp_place_ticket(place) != ticket || dbp_place_state(place) == DBP_PLACE_FREE)
        return DBP_E_FAILED; /* not a place of this caller's: never granted anything */
    if (dbp_place_state(place) == DBP_PLACE_WAITING)
        return DBP_E_BUSY;
    bool mine = false;
    uint32_t session = dbp_place_session(place);
    if (dbp_place_state(place) == DBP_PLACE_GRANTED) {
        dbp_word word = atomic_load(&table->sessions[session].word);
        uint32_t lives_in = atomic_load(&table->sessions[session].pool);
        bool granted = dbp_word_state(word) == DBP_GRANTED && dbp_word_owner(word) == (ticket & DBP_OWNER_MASK);
        if (granted && lives_in != pool) { /* the pool was gone before we came into its queue: this is another one's */
            bool freed = free_place(queue, ticket);
            put_back(share, lives_in, session, word);
            dbp_handoff_match(share, lives_in);
            (void)freed;
            return DBP_E_FAILED;
        }
        /* The session first: killed in between, the place still names this process and the broker frees both. */
        mine = granted && dbp_session_move(table, session, word, DBP_LEASED, holder, wordp);
    }
    if (!free_place(queue, ticket) || !mine)
        return DBP_E_FAILED;
    *sessionp = session;
    return 0;
}

int dbp_handoff_cancel(const struct dbp_share *share, uint32_t pool, uint32_t ticket, uint32_t holder,
                       uint32_t *sessionp, dbp_word *wordp) {
    struct dbp_queue *queue = &dbp_pool_at(share->table, pool)->queue;
    dbp_place place = dbp_queue_look(queue, ticket);
    dbp_place oldest;

    if (dbp_place_ticket(place) == ticket && dbp_place_state(place) == DBP_PLACE_WAITING &&
        dbp_queue_move(queue, place, DBP_PLACE_FREE, 0)) {
        leave(share->table, pool);
        /* Moves head over this hole, so that newcomers find the queue quiet; and an idle session that was about to be
         * ours and was put back just now belongs to whoever is next. */
        if (dbp_queue_oldest(queue, &oldest))
            dbp_handoff_match(share, pool);
        return DBP_E_TIMEOUT;
    }
    int rc = dbp_handoff_claim(share, pool, ticket, holder, sessionp, wordp);
    return rc == 0 ? 0 : DBP_E_TIMEOUT;
}

void dbp_handoff_fail(const struct dbp_share *share, uint32_t pool, uint32_t before) {
    struct dbp_queue *queue = &dbp_pool_at(share->table, pool)->queue;
    uint32_t ticket = atomic_load(&queue->head);
    dbp_place place;

    while (dbp_queue_next(queue, &ticket, &place) && (int32_t)(dbp_place_ticket(place) - before) < 0)
        if (dbp_queue_move(queue, place, DBP_PLACE_FAILED, 0)) {
            leave(share->table, pool);
            wake(share, pool, place);
        }
    if (dbp_queue_oldest(queue, &place)) /* moves head over them */
        dbp_handoff_match(share, pool);
}

/* A session in GRANTED: goes on to its waiter or back to IDLE, see the top. */
static void settle_grant(const struct dbp_share *share, uint32_t pool, uint32_t session, dbp_word word) {
    struct dbp_queue *queue = &dbp_pool_at(share->table, pool)->queue;
    dbp_place place = dbp_queue_look(queue, dbp_word_owner(word));

    /* A place that nobody can have taken yet was written by one that is broken: no other scan comes there. */
    if ((dbp_place_ticket(place) & DBP_OWNER_MASK) == dbp_word_owner(word) &&
        dbp_word_owner(word) % DBP_WAITERS_MAX < dbp_queue_reach(queue)) {
        if (dbp_place_state(place) == DBP_PLACE_GRANTED && dbp_place_session(place) == session) {
            wake(share, pool, place); /* its author may have died before waking it */
            return;
        }
        if (dbp_place_state(place) == DBP_PLACE_WAITING && tell_waiter(share, pool, place, session))
            return;
    }
    put_back(share, pool, session, word);
}

void dbp_handoff_bury(const struct dbp_share *share, uint32_t pool, uint32_t slot) {
    struct dbp_queue *queue = &dbp_pool_at(share->table, pool)->queue;

    dbp_queue_mend(queue); /* it must be true how far the places reach */
    /* All places, not only those from head on: a granted one may lie before it. */
    for (uint32_t i = 0, n = dbp_queue_reach(queue); i < n; i++) {
        dbp_place place = dbp_queue_look(queue, i);
        while (dbp_place_state(place) != DBP_PLACE_FREE && dbp_place_proc(place) == slot) {
            if (dbp_queue_move(queue, place, DBP_PLACE_FREE, 0)) {
                if (dbp_place_state(place) == DBP_PLACE_WAITING)
                    leave(share->table, pool);
                break;
            }
            if (dbp_place_ticket(place) % DBP_WAITERS_MAX != i)
                break; /* damaged: the sweep mends the queue */
            place = dbp_queue_look(queue, i);
        }
    }
}

void dbp_handoff_bury_strangers(const struct dbp_share *share, uint32_t pool, const uint32_t *attached) {
    struct dbp_queue *queue = &dbp_pool_at(share->table, pool)->queue;

    for (uint32_t i = 0, n = dbp_queue_reach(queue); i < n; i++) {
        dbp_place place = dbp_queue_look(queue, i);
        uint32_t proc = dbp_place_proc(place);
        if (dbp_place_state(place) != DBP_PLACE_FREE && (proc >= DBP_PROCS_MAX || attached[proc] == 0))
            dbp_handoff_bury(share, pool, proc);
    }
}

void dbp_handoff_sweep(const struct dbp_share *share, uint32_t pool) {
    struct dbp_table *table = share->table;

    dbp_queue_mend(&dbp_pool_at(table, pool)->queue);
    for (uint32_t session = 0; session < DBP_SESSIONS_MAX; session++) {
        dbp_word word = atomic_load(&table->sessions[session].word);
        if (dbp_word_state(word) == DBP_EMPTY || atomic_load(&table->sessions[session].pool) != pool)
            continue;
        if (dbp_word_state(word) == DBP_IDLE)
            dbp_idle_offer(table, session);
        else if (dbp_word_state(word) == DBP_GRANTED)
            settle_grant(share, pool, session, word);
    }
    dbp_handoff_match(share, pool);
}
