/* SPDX-License-Identifier: MIT
 * The ring of waiters: see queue.h for the idea. All operations are seq_cst; the pairing that matters (a waiter queues,
 * then looks for an idle session; a holder offers its session, then looks for a waiter) is argued in handoff.c.
 */
#include "queue.h"

static dbp_place place_make(enum dbp_place_state state, uint32_t session, uint32_t proc, bool event, uint32_t ticket) {
    return (dbp_place)state | (dbp_place)(session & 0x3ffu) << 4 | (dbp_place)(proc & 0x3ffu) << 14 |
           (dbp_place)event << 24 | (dbp_place)ticket << 32;
}

static _Atomic dbp_place *place_at(struct dbp_queue *queue, uint32_t ticket) {
    return &queue->places[ticket % DBP_WAITERS_MAX];
}

void dbp_queue_init(struct dbp_queue *queue) {
    for (uint32_t i = 0; i < DBP_WAITERS_MAX; i++)
        atomic_init(&queue->places[i], place_make(DBP_PLACE_FREE, 0, 0, false, i - DBP_WAITERS_MAX));
    atomic_init(&queue->head, 0);
    atomic_init(&queue->tail, 0);
}

static void help(_Atomic uint32_t *counter, uint32_t seen) {
    atomic_compare_exchange_strong(counter, &seen, seen + 1);
}

bool dbp_queue_push(struct dbp_queue *queue, uint32_t proc, bool event, uint32_t *ticketp) {
    for (;;) {
        uint32_t ticket = atomic_load(&queue->tail);
        dbp_place seen = atomic_load(place_at(queue, ticket));
        uint32_t before = dbp_place_ticket(seen);

        if (before == ticket) { /* taken, but its taker has not counted it yet */
            help(&queue->tail, ticket);
            continue;
        }
        if (before != ticket - DBP_WAITERS_MAX)
            continue; /* tail was old news */
        if (dbp_place_state(seen) != DBP_PLACE_FREE) {
            if (atomic_load(&queue->tail) != ticket)
                continue;
            return false;
        }
        if (atomic_compare_exchange_strong(place_at(queue, ticket), &seen,
                                           place_make(DBP_PLACE_WAITING, 0, proc, event, ticket))) {
            help(&queue->tail, ticket);
            *ticketp = ticket;
            return true;
        }
    }
}

bool dbp_queue_oldest(struct dbp_queue *queue, dbp_place *placep) {
    for (;;) {
        uint32_t ticket = atomic_load(&queue->head);
        dbp_place seen = atomic_load(place_at(queue, ticket));

        if (dbp_place_ticket(seen) == ticket && dbp_place_state(seen) == DBP_PLACE_WAITING) {
            *placep = seen;
            return true;
        }
        if (dbp_place_ticket(seen) == ticket - DBP_WAITERS_MAX) {
            if (atomic_load(&queue->head) == ticket)
                return false; /* not taken yet: this is the tail */
            continue;
        }
        /* Taken and no more waiting, which is for good. Keep head <= tail, or quiet() would be wrong for ever. */
        if (atomic_load(&queue->tail) == ticket)
            help(&queue->tail, ticket);
        help(&queue->head, ticket);
    }
}

bool dbp_queue_next(struct dbp_queue *queue, uint32_t *ticketp, dbp_place *placep) {
    for (uint32_t ticket = *ticketp;; ticket++) {
        dbp_place seen = atomic_load(place_at(queue, ticket));

        if (dbp_place_ticket(seen) != ticket) {
            *ticketp = ticket;
            return false;
        }
        if (dbp_place_state(seen) == DBP_PLACE_WAITING) {
            *ticketp = ticket + 1;
            *placep = seen;
            return true;
        }
    }
}

dbp_place dbp_queue_look(const struct dbp_queue *queue, uint32_t ticket) {
    return atomic_load(&queue->places[ticket % DBP_WAITERS_MAX]);
}

bool dbp_queue_move(struct dbp_queue *queue, dbp_place from, enum dbp_place_state to, uint32_t session) {
    uint32_t ticket = dbp_place_ticket(from);
    dbp_place next = place_make(to, session, dbp_place_proc(from), dbp_place_event(from), ticket);

    return atomic_compare_exchange_strong(place_at(queue, ticket), &from, next);
}

_Atomic uint32_t *dbp_queue_futex(struct dbp_queue *queue, uint32_t ticket) {
    /* The low half of the word: x86-64 and arm64 are little endian. */
    _Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the futex is the word's low half");
    return (_Atomic uint32_t *)(void *)place_at(queue, ticket);
}
