/* SPDX-License-Identifier: MIT
 * The ring of waiters: see queue.h for the idea. All operations are seq_cst; the pairing that matters (a waiter queues,
 * then looks for an idle session; a holder offers its session, then looks for a waiter) is argued in handoff.c.
 */
#include "queue.h"

#define LAPS_MAX 127u /* 7 bits; 127 laps are two million waits of one pool during one unclaimed grant */

/* No honest operation walks further in one go: the head lags by the laps that one grant can sleep through, at most. A
 * damaged ring (any process can write anything into it) would lead round it for ever. */
#define STEPS_MAX ((LAPS_MAX + 33u) * DBP_WAITERS_MAX)

static dbp_place place_make(enum dbp_place_state state, uint32_t session, uint32_t proc, bool event, uint32_t laps,
                            uint32_t ticket) {
    return (dbp_place)state | (dbp_place)(session & 0x3ffu) << 4 | (dbp_place)(proc & 0x3ffu) << 14 |
           (dbp_place)event << 24 | (dbp_place)laps << 25 | (dbp_place)ticket << 32;
}

/* The last ticket that this entry has decided about: its own, or one that passed it by a lap later. */
static uint32_t reached(dbp_place place) {
    return dbp_place_ticket(place) + dbp_place_laps(place) * DBP_WAITERS_MAX;
}

static _Atomic dbp_place *place_at(struct dbp_queue *queue, uint32_t ticket) {
    return &queue->places[ticket % DBP_WAITERS_MAX];
}

dbp_place dbp_queue_look(const struct dbp_queue *queue, uint32_t ticket) {
    uint32_t i = ticket % DBP_WAITERS_MAX;

    return atomic_load(&queue->places[i]) - dbp_place_kept(0, i);
}

/* *seenp: as it was read last; what is there now when it is not that any more. */
static bool swap(struct dbp_queue *queue, uint32_t ticket, dbp_place *seenp, dbp_place next) {
    dbp_place kept = dbp_place_kept(*seenp, ticket);
    bool done = atomic_compare_exchange_strong(place_at(queue, ticket), &kept, dbp_place_kept(next, ticket));

    *seenp = kept - dbp_place_kept(0, ticket);
    return done;
}

void dbp_queue_init(struct dbp_queue *queue) {
    for (uint32_t i = 0; i < DBP_WAITERS_MAX; i++)
        atomic_init(&queue->places[i], 0);
    atomic_init(&queue->head, 0);
    atomic_init(&queue->tail, 0);
}

uint32_t dbp_queue_reach(const struct dbp_queue *queue) {
    uint32_t tail = atomic_load(&queue->tail);

    /* The tail may lag by one, and the last place is kept as zero until the ring was once full. */
    return tail < DBP_WAITERS_MAX - 1 && atomic_load(&queue->places[DBP_WAITERS_MAX - 1]) == 0 ? tail + 1
                                                                                               : DBP_WAITERS_MAX;
}

static void help(_Atomic uint32_t *counter, uint32_t seen) {
    atomic_compare_exchange_strong(counter, &seen, seen + 1);
}

bool dbp_queue_push(struct dbp_queue *queue, uint32_t proc, bool event, uint32_t *ticketp) {
    uint32_t passed_by = 0;

    for (uint32_t step = 0; step < STEPS_MAX && passed_by < DBP_WAITERS_MAX; step++) {
        uint32_t ticket = atomic_load(&queue->tail);
        dbp_place seen = dbp_queue_look(queue, ticket), next;

        if (reached(seen) == ticket) { /* taken or passed by, but not counted yet */
            help(&queue->tail, ticket);
            continue;
        }
        if (reached(seen) != ticket - DBP_WAITERS_MAX)
            continue; /* tail was old news */
        bool taking = dbp_place_state(seen) == DBP_PLACE_FREE;
        if (taking) {
            next = place_make(DBP_PLACE_WAITING, 0, proc, event, 0, ticket);
        } else if (dbp_place_state(seen) == DBP_PLACE_WAITING || dbp_place_laps(seen) == LAPS_MAX) {
            if (atomic_load(&queue->tail) != ticket)
                continue;
            return false;
        } else {
            next = place_make(dbp_place_state(seen), dbp_place_session(seen), dbp_place_proc(seen),
                              dbp_place_event(seen), dbp_place_laps(seen) + 1, dbp_place_ticket(seen));
        }
        if (!swap(queue, ticket, &seen, next))
            continue;
        help(&queue->tail, ticket);
        if (taking) {
            *ticketp = ticket;
            return true;
        }
        passed_by++;
    }
    return false; /* once around, and nothing but unclaimed grants */
}

bool dbp_queue_oldest(struct dbp_queue *queue, dbp_place *placep) {
    for (uint32_t step = 0; step < STEPS_MAX; step++) {
        uint32_t ticket = atomic_load(&queue->head);
        dbp_place seen = dbp_queue_look(queue, ticket);

        if (dbp_place_ticket(seen) == ticket && dbp_place_state(seen) == DBP_PLACE_WAITING) {
            *placep = seen;
            return true;
        }
        if (reached(seen) == ticket - DBP_WAITERS_MAX) {
            if (atomic_load(&queue->head) == ticket)
                return false; /* not taken yet: this is the tail */
            continue;
        }
        /* Taken and no more waiting, or passed by: for good. Keep head <= tail, or quiet() would be wrong for ever. */
        if (atomic_load(&queue->tail) == ticket)
            help(&queue->tail, ticket);
        help(&queue->head, ticket);
    }
    return false;
}

bool dbp_queue_next(struct dbp_queue *queue, uint32_t *ticketp, dbp_place *placep) {
    uint32_t end = atomic_load(&queue->head) + STEPS_MAX;

    for (uint32_t ticket = *ticketp;; ticket++) {
        dbp_place seen = dbp_queue_look(queue, ticket);

        if (reached(seen) == ticket - DBP_WAITERS_MAX || end - ticket - 1u >= STEPS_MAX) {
            *ticketp = ticket;
            return false;
        }
        if (dbp_place_ticket(seen) == ticket && dbp_place_state(seen) == DBP_PLACE_WAITING) {
            *ticketp = ticket + 1;
            *placep = seen;
            return true;
        }
    }
}

bool dbp_queue_move(struct dbp_queue *queue, dbp_place from, enum dbp_place_state to, uint32_t session) {
    /* A place that becomes free has also been the places that passed it by. */
    uint32_t laps = to == DBP_PLACE_FREE ? 0 : dbp_place_laps(from);
    uint32_t ticket = to == DBP_PLACE_FREE ? reached(from) : dbp_place_ticket(from);
    dbp_place next = place_make(to, session, dbp_place_proc(from), dbp_place_event(from), laps, ticket);

    return swap(queue, ticket, &from, next);
}

/* What honest processes keep: head <= tail; nobody waits before head; every ticket before tail was reached, and none
 * after it. All of these only grow, so with what must be smaller read first, nobody's acting meanwhile looks wrong. */
static bool possible(const struct dbp_queue *queue) {
    uint32_t head = atomic_load(&queue->head), tail = atomic_load(&queue->tail), reach = dbp_queue_reach(queue);

    if (tail - head > STEPS_MAX)
        return false;
    /* And one place more: it was taken where the tail was set back, or its end would be no end. */
    for (uint32_t i = 0; i <= reach && i < DBP_WAITERS_MAX; i++) {
        dbp_place place = dbp_queue_look(queue, i);
        uint32_t ticket = dbp_place_ticket(place);
        if (ticket % DBP_WAITERS_MAX != i || dbp_place_state(place) > DBP_PLACE_FAILED ||
            (dbp_place_state(place) == DBP_PLACE_WAITING && (int32_t)(ticket - head) < 0) ||
            (int32_t)(reached(place) - (tail - DBP_WAITERS_MAX)) < 0 ||
            (int32_t)(atomic_load(&queue->tail) - reached(place)) < 0)
            return false;
    }
    return true;
}

bool dbp_queue_mend(struct dbp_queue *queue) {
    uint32_t tail = atomic_load(&queue->tail);

    if (possible(queue))
        return false;
    for (uint32_t i = 0; i < DBP_WAITERS_MAX; i++) {
        uint32_t next = tail + i; /* the ticket that this place is for */
        atomic_store(place_at(queue, next),
                     dbp_place_kept(place_make(DBP_PLACE_FREE, 0, 0, false, 0, next - DBP_WAITERS_MAX), next));
    }
    atomic_store(&queue->head, tail);
    atomic_store(&queue->tail, tail);
    return true;
}

_Atomic uint32_t *dbp_queue_futex(struct dbp_queue *queue, uint32_t ticket) {
    /* The low half of the word: x86-64 and arm64 are little endian. */
    _Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the futex is the word's low half");
    return (_Atomic uint32_t *)(void *)place_at(queue, ticket);
}
