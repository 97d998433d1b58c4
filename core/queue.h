/* SPDX-License-Identifier: MIT
 * The waiters of one pool, in order of arrival across all processes: a lock-free ring of tickets in shared memory.
 *
 * An entry is one 64 bit word {state, event flag, session, process slot, laps, ticket}. Ticket t lives in entry t %
 * size. Taking a place is one compare-and-swap of the entry from "free, ticket t - size" to "waiting, ticket t": there
 * is no moment in which a place is taken but not yet written, so a process killed or stopped anywhere blocks nobody;
 * the tail and head counters only lag behind the entries, and whoever meets a lagging one moves it on.
 *
 * A place that was granted and not claimed yet (its process is stopped, or busy) does not stop the ring: whoever meets
 * it a lap later counts the lap in the entry, under the same compare-and-swap, and takes the next place.
 *
 * Limits: size places, holes included (an entry that gave up is a hole until all before it are served). A ticket comes
 * back after 2^32 waits of a pool; a process would have to sleep through exactly that many to mistake it.
 */
#ifndef DBPOOL_QUEUE_H
#define DBPOOL_QUEUE_H

#include "dbpool.h"

#include <stdatomic.h>

/* Who may move an entry on. */
enum dbp_place_state {
    DBP_PLACE_FREE = 0, /* nobody's. The next to arrive: WAITING */
    DBP_PLACE_WAITING,  /* the waiter: FREE (gives up); anyone with a session: GRANTED; broker: FAILED, FREE if it died
                         */
    DBP_PLACE_GRANTED,  /* a session waits in GRANTED for it. The waiter: FREE (claims); broker: FREE if it died */
    DBP_PLACE_FAILED    /* no session can be opened. The waiter, or the broker if it died: FREE */
};

typedef uint64_t dbp_place;

static inline enum dbp_place_state dbp_place_state(dbp_place place) {
    return (enum dbp_place_state)(place & 0xfu);
}
static inline uint32_t dbp_place_session(dbp_place place) {
    return (uint32_t)(place >> 4) & 0x3ffu;
}
static inline uint32_t dbp_place_proc(dbp_place place) {
    return (uint32_t)(place >> 14) & 0x3ffu;
}
static inline bool dbp_place_event(dbp_place place) {
    return (place >> 24) & 1u;
}
static inline uint32_t dbp_place_laps(dbp_place place) {
    return (uint32_t)(place >> 25) & 0x7fu;
}
static inline uint32_t dbp_place_ticket(dbp_place place) {
    return (uint32_t)(place >> 32);
}

/* How the place of ticket % DBP_WAITERS_MAX == i is kept: its ticket less what it is at first, so that memory of zeros
 * is a queue that nobody has used yet, and costs nothing. */
static inline dbp_place dbp_place_kept(dbp_place place, uint32_t i) {
    return place - ((dbp_place)(i % DBP_WAITERS_MAX - DBP_WAITERS_MAX) << 32);
}

struct dbp_queue {
    _Alignas(64) _Atomic uint32_t head; /* no ticket before it is waiting; may lag */
    _Alignas(64) _Atomic uint32_t tail; /* every ticket before it was taken; may lag by entries being counted */
    _Alignas(64) _Atomic dbp_place places[DBP_WAITERS_MAX];
};
_Static_assert((DBP_WAITERS_MAX & (DBP_WAITERS_MAX - 1)) == 0, "ticket % size must survive the wrap of tickets");

/* Memory of zeros needs it not. */
void dbp_queue_init(struct dbp_queue *queue);

/* So many places, from the first on, may have been used ever: for scans that leave the rest of the memory alone. */
uint32_t dbp_queue_reach(const struct dbp_queue *queue);

/* Takes the next place. False: the queue is full. */
bool dbp_queue_push(struct dbp_queue *queue, uint32_t proc, bool event, uint32_t *ticketp) DBP_MUST_USE;

/* The oldest place that is still waiting, with its word. False: nobody waits. Moves lagging counters on. Amortised
 * O(1). */
bool dbp_queue_oldest(struct dbp_queue *queue, dbp_place *placep) DBP_MUST_USE;

/* The next waiting place from *ticketp on, for scans; false at the end. *ticketp is moved past it. Start at head. */
bool dbp_queue_next(struct dbp_queue *queue, uint32_t *ticketp, dbp_place *placep) DBP_MUST_USE;

/* The word of ticket now. */
dbp_place dbp_queue_look(const struct dbp_queue *queue, uint32_t ticket);

/* Changes a place's state; from must be its word as read. session is kept with GRANTED. False: it was not that any
 * more. */
bool dbp_queue_move(struct dbp_queue *queue, dbp_place from, enum dbp_place_state to, uint32_t session) DBP_MUST_USE;

/* Puts an impossible ring right (some process wrote where it may not): all places free, from tail on. Whoever waited
 * finds another ticket in its place, which is DBP_E_FAILED. True when it did. Broker only, from time to time. */
bool dbp_queue_mend(struct dbp_queue *queue);

/* The 32 bits that change with a place's state, to sleep on. */
_Atomic uint32_t *dbp_queue_futex(struct dbp_queue *queue, uint32_t ticket);

/* True when nobody can be waiting: two loads, the fast path's question. A false answer may be a lag. */
static inline bool dbp_queue_quiet(const struct dbp_queue *queue) {
    return atomic_load(&queue->head) == atomic_load(&queue->tail);
}

#endif
