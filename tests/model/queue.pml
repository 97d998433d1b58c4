/* SPDX-License-Identifier: MIT
 * core/queue.c: the ring of waiters. A place is one packed word, compared and swapped whole, as in C.
 */

#define DBP_PLACE_FREE    0
#define DBP_PLACE_WAITING 1
#define DBP_PLACE_GRANTED 2
#define DBP_PLACE_FAILED  3

/* Tickets count mod 16: no configuration pushes so often that one comes back, which in C takes 2^32 waits. */
#define TICKETS 16
#define LAPS_MAX 3

#define dbp_place_state(p)   ((p) & 3)
#define dbp_place_session(p) (((p) >> 2) & 3)
#define dbp_place_proc(p)    (((p) >> 4) & 3)
#define dbp_place_laps(p)    (((p) >> 6) & 3)
#define dbp_place_ticket(p)  (((p) >> 8) & (TICKETS - 1))
#define place_make(state, session, proc, laps, ticket) \
    ((state) | (session) << 2 | (proc) << 4 | (laps) << 6 | ((ticket) & (TICKETS - 1)) << 8)

#define LOW_HALF(p) ((p) & 255) /* what a futex compares: all but the ticket */
#define reached(p) ((dbp_place_ticket(p) + dbp_place_laps(p) * PLACES) & (TICKETS - 1))
#define A_LAP_BEFORE(ticket) (((ticket) - PLACES) & (TICKETS - 1))
#define NEXT(ticket) (((ticket) + 1) & (TICKETS - 1))
#define place_at(ticket) places[(ticket) % PLACES]

byte queue_head, queue_tail;
short places[PLACES];

inline dbp_queue_init(i) {
    for (i : 0 .. PLACES - 1) {
        places[i] = place_make(DBP_PLACE_FREE, 0, 0, 0, i - PLACES)
    }
}

#define HELP(counter, seen_value)                                \
    if                                                           \
    :: counter == seen_value -> counter = NEXT(seen_value)       \
    :: else                                                      \
    fi
inline help(counter, seen_value) {
    STEP(HELP(counter, seen_value))
}

inline dbp_queue_push(ticket, pushed) {
    passed_by = 0;
    do
    :: STEP(ticket = queue_tail);
       STEP(seen = place_at(ticket));
       if
       :: WHEN(reached(seen) == ticket, HELP(queue_tail, ticket)) /* taken or passed by, but not counted yet */
       :: reached(seen) != ticket && reached(seen) != A_LAP_BEFORE(ticket) -> skip /* tail was old news */
       :: WHEN(reached(seen) == A_LAP_BEFORE(ticket) && dbp_place_state(seen) == DBP_PLACE_FREE,
               if
               :: place_at(ticket) == seen ->
                  place_at(ticket) = place_make(DBP_PLACE_WAITING, 0, me, 0, ticket);
                  pushed = true
               :: else -> pushed = false
               fi);
          if
          :: WHEN(pushed, HELP(queue_tail, ticket); GHOST_IN_LINE(); break)
          :: !pushed
          fi
       :: reached(seen) == A_LAP_BEFORE(ticket) &&
          (dbp_place_state(seen) == DBP_PLACE_WAITING ||
           (dbp_place_state(seen) != DBP_PLACE_FREE && dbp_place_laps(seen) == LAPS_MAX)) ->
          STEP(at_end = (queue_tail == ticket));
          if
          :: at_end -> pushed = false; break
          :: else
          fi
       :: reached(seen) == A_LAP_BEFORE(ticket) &&
          (dbp_place_state(seen) == DBP_PLACE_GRANTED || dbp_place_state(seen) == DBP_PLACE_FAILED) &&
          dbp_place_laps(seen) != LAPS_MAX ->
          STEP(if
               :: place_at(ticket) == seen ->
                  place_at(ticket) = place_make(dbp_place_state(seen), dbp_place_session(seen), dbp_place_proc(seen),
                                                dbp_place_laps(seen) + 1, dbp_place_ticket(seen));
                  lapped = true;
                  REACHED(PASSED_BY)
               :: else -> lapped = false
               fi);
          if
          :: lapped ->
             lapped = false;
             help(queue_tail, ticket);
             passed_by++;
             if
             :: passed_by == PLACES -> pushed = false; break
             :: else
             fi
          :: else
          fi
       fi
    od;
    passed_by = 0
}

/* found with place = its word, or not found. Uses seen, ticket. */
inline dbp_queue_oldest(place, found) {
    do
    :: STEP(ticket = queue_head);
       STEP(seen = place_at(ticket);
            found = (dbp_place_ticket(seen) == ticket && dbp_place_state(seen) == DBP_PLACE_WAITING);
            if
            :: found -> place = seen; seen = 0; ticket = 0; break
            :: else -> lapped = (reached(seen) != A_LAP_BEFORE(ticket)); seen = 0
            fi);
       if
       :: WHEN(!lapped, /* not taken yet: this is the tail */
               if
               :: queue_head == ticket -> ticket = 0; break
               :: else
               fi)
       :: WHEN(lapped, lapped = (queue_tail == ticket)); /* taken and no more waiting, or passed by */
          if
          :: WHEN(lapped, HELP(queue_tail, ticket)); help(queue_head, ticket) /* keeps head <= tail */
          :: WHEN(!lapped, HELP(queue_head, ticket))
          fi
       fi
    od
}

/* One call of dbp_queue_next: from `scan` on; found with place, or not. */
inline dbp_queue_next(scan, place, found) {
    do
    :: STEP(seen = place_at(scan);
            if
            :: reached(seen) == A_LAP_BEFORE(scan) -> found = false; seen = 0; break
            :: dbp_place_ticket(seen) == scan && dbp_place_state(seen) == DBP_PLACE_WAITING ->
               place = seen; found = true; scan = NEXT(scan); seen = 0; break
            :: else -> scan = NEXT(scan); seen = 0
            fi)
    od
}

/* What the place's word becomes: one that is freed has also been the places that passed it by. */
#if MUTANT == 13
#define FREED_TICKET(from) dbp_place_ticket(from)
#else
#define FREED_TICKET(from) reached(from)
#endif
#define moved_place(from, to, session)                                                                            \
    ((to) == DBP_PLACE_FREE -> place_make(DBP_PLACE_FREE, 0, dbp_place_proc(from), 0, FREED_TICKET(from))        \
                             : place_make(to, session, dbp_place_proc(from), dbp_place_laps(from),                 \
                                          dbp_place_ticket(from)))

inline dbp_queue_move(from, to, session, moved) {
    STEP(if
         :: place_at(dbp_place_ticket(from)) == from ->
            place_at(dbp_place_ticket(from)) = moved_place(from, to, session);
            moved = true;
            GHOST_PLACE_MOVED(from, to)
         :: else -> moved = false
         fi)
}

/* Two loads: C leaves their order open, so both are tried. BEGIN: ghosts of the first step. */
#define dbp_queue_quiet(BEGIN, quiet)                                                  \
    if                                                                                 \
    :: STEP(BEGIN ticket = queue_head); STEP(quiet = (queue_tail == ticket); ticket = 0)    \
    :: STEP(BEGIN ticket = queue_tail); STEP(quiet = (queue_head == ticket); ticket = 0)    \
    fi
