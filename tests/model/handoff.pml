/* SPDX-License-Identifier: MIT
 * core/handoff.c: idle sessions and waiters brought together. Locals: place, session, found, got, moved.
 */

#define OK 0
#define BUSY 1
#define TIMEOUT 2
#define FAILED 3
#define FULL 4

/* The eventfd of the place's process, or FUTEX_WAKE of whoever sleeps on the place's address. */
inline wake(woken) {
#if EVENTS
    STEP(eventfd = eventfd | BIT(dbp_place_proc(woken)))
#else
    STEP(for (waker : 0 .. CLIENTS - 1) {
             if
             :: futex[waker] == 1 + dbp_place_ticket(woken) % PLACES -> futex[waker] = 0
             :: else
             fi
         };
         waker = 0)
#endif
}

inline dbp_handoff_ring() {
    STEP(got = attention; attention = 1);
    if
    :: WHEN(!got, doorbell = 1)
    :: got
    fi
}

#define NEVER_ASKS (MUTANT == 14)

/* Step 2 of a grant. told: the place has this session now, whoever wrote it. */
inline tell_waiter(to, s, told) {
    dbp_queue_move(to, DBP_PLACE_GRANTED, s, told);
    if
    :: told -> wake(to)
    :: WHEN(!told,
            seen = place_at(dbp_place_ticket(to));
            told = (!NEVER_ASKS && dbp_place_ticket(seen) == dbp_place_ticket(to) &&
                    dbp_place_state(seen) == DBP_PLACE_GRANTED && dbp_place_session(seen) == s);
            seen = 0;
            if
            :: told -> REACHED(TOLD_BY_ANOTHER)
            :: else
            fi)
    fi
}

inline put_back(s) {
    dbp_idle_put(s, moved);
#if UNFITS && MUTANT != 20
    if
    :: WHEN(moved, moved = sessions[s].unfit);
       if
       :: moved -> dbp_handoff_ring(); got = false; REACHED(PUT_BACK_UNFIT)
       :: else
       fi
    :: else
    fi;
#endif
    moved = false;
    REACHED(PUT_BACK)
}

inline dbp_handoff_match() {
    do
    :: dbp_queue_oldest(place, found);
       if
       :: !found -> break
       :: else
       fi;
       found = false;
#if MUTANT == 3 /* the newest instead of the oldest */
       d_step {
           if
           :: dbp_place_state(place_at(queue_tail - 1)) == DBP_PLACE_WAITING -> place = place_at(queue_tail - 1)
           :: else
           fi
       };
#endif
       dbp_idle_take(DBP_GRANTED, dbp_place_ticket(place), session, got);
       if
       :: !got -> break
       :: else
       fi;
       got = false;
       tell_waiter(place, session, moved);
       if
       :: moved -> moved = false
       :: else -> put_back(session)
       fi
    od;
    place = 0;
    session = 0;
    found = false
}

/* In a loop: a lap may be counted in it meanwhile. */
inline free_place(freed) {
    do
    :: STEP(seen = place_at(mine));
       if
       :: dbp_place_ticket(seen) != mine || dbp_place_state(seen) == DBP_PLACE_FREE -> freed = false; break
       :: else ->
          dbp_queue_move(seen, DBP_PLACE_FREE, 0, freed);
          if
          :: freed -> break
          :: else
          fi
       fi
    od;
    seen = 0
}

/* rc: OK with the lease of `session`, BUSY, or FAILED. */
inline dbp_handoff_claim() {
    STEP(place = place_at(mine));
    if
    :: dbp_place_ticket(place) != mine || dbp_place_state(place) == DBP_PLACE_FREE ->
       assert(false) /* a living client's place is freed by nobody else */
    :: dbp_place_ticket(place) == mine && dbp_place_state(place) == DBP_PLACE_WAITING -> rc = BUSY
    :: dbp_place_ticket(place) == mine && dbp_place_state(place) == DBP_PLACE_FAILED ->
       free_place(moved);
       moved = false;
       rc = FAILED
    :: dbp_place_ticket(place) == mine && dbp_place_state(place) == DBP_PLACE_GRANTED ->
       session = dbp_place_session(place);
#if MUTANT == 10 /* the place before the session */
       free_place(moved);
#endif
       STEP(got = (sessions[session].state == DBP_GRANTED && sessions[session].owner == mine);
            LOAD_WORD(session, DBP_GRANTED));
       assert(got); /* a waiter that knows of its session gets it */
       dbp_session_move_keep(session, DBP_LEASED, me, got);
       assert(got);
#if MUTANT != 10
       free_place(moved);
#endif
       moved = false;
       got = false;
       rc = OK
    fi;
    place = 0
}

/* rc: OK (a session was granted meanwhile) or TIMEOUT. */
inline dbp_handoff_cancel() {
    STEP(place = place_at(mine));
    moved = false;
    if
    :: dbp_place_ticket(place) == mine && dbp_place_state(place) == DBP_PLACE_WAITING ->
       dbp_queue_move(place, DBP_PLACE_FREE, 0, moved)
    :: else
    fi;
    place = 0;
    if
    :: moved ->
       moved = false;
       dbp_queue_oldest(place, found);
       if
       :: found -> found = false; place = 0; dbp_handoff_match()
       :: else
       fi;
       rc = TIMEOUT;
       REACHED(TIMED_OUT)
    :: else ->
#if MUTANT == 4 /* ignores a grant */
       rc = TIMEOUT
#else
       dbp_handoff_claim();
       assert(rc != BUSY);
       REACHED(GRANTED_AT_TIMEOUT)
#endif
    fi
}

inline dbp_handoff_fail(before) {
    STEP(scan = queue_head);
    do
    :: dbp_queue_next(scan, place, found);
       if
       :: !found -> break
       :: else
       fi;
       found = false;
       if
       :: ((dbp_place_ticket(place) - before) & (TICKETS - 1)) < TICKETS / 2 -> break
       :: else
       fi;
       dbp_queue_move(place, DBP_PLACE_FAILED, 0, moved);
       if
       :: moved -> moved = false; wake(place)
       :: else
       fi
    od;
    scan = 0;
    place = 0;
    dbp_queue_oldest(place, found);
    if
    :: found -> found = false; place = 0; dbp_handoff_match()
    :: else
    fi
}

/* The session `s` was seen in GRANTED, its owner in `owner`. */
inline settle_grant(s) {
    STEP(place = place_at(owner));
    got = false; /* settled */
#if MUTANT == 8 /* takes a session back from a waiter that was told of it */
    place = 0;
#endif
    if
    :: dbp_place_ticket(place) == owner && dbp_place_state(place) == DBP_PLACE_GRANTED &&
       dbp_place_session(place) == s ->
#if MUTANT != 5
       wake(place);
#endif
       got = true
    :: dbp_place_ticket(place) == owner && dbp_place_state(place) == DBP_PLACE_WAITING ->
       tell_waiter(place, s, got);
       REACHED(SETTLED)
    :: else
    fi;
    place = 0;
    owner = 0;
    if
    :: got -> got = false
    :: else ->
#if MUTANT == 6 /* a GRANTED place was freed: the session is not handed on */
       skip
#else
       put_back(s)
#endif
    fi
}

inline dbp_handoff_bury(slot) {
    do
    :: WHEN(i < PLACES,
            place = places[i];
            moved = (dbp_place_state(place) != DBP_PLACE_FREE && dbp_place_proc(place) == slot);
            if
            :: moved -> moved = false
            :: else -> place = 0; i++
            fi);
       if
       :: place == 0
       :: place != 0 -> /* again when it was not that any more */
          dbp_queue_move(place, DBP_PLACE_FREE, 0, moved);
          place = 0;
          REACHED(BURIED)
       fi
    :: i == PLACES -> i = 0; break
    od
}

#if MUTANT == 11
#define SWEEP_OFFERS_NOT & ~BIT(i)
#else
#define SWEEP_OFFERS_NOT
#endif

inline dbp_handoff_sweep() {
    do
    :: WHEN(i < SESSIONS, LOAD_WORD(i, DBP_GRANTED); state = sessions[i].state;
            if
            :: state == DBP_GRANTED -> owner = sessions[i].owner
            :: state == DBP_IDLE
            :: else -> state = 0; i++
            fi);
       if
       :: WHEN(state == DBP_IDLE, there = ((idle & BIT(i)) != 0));
          if
          :: WHEN(!there, idle = idle | BIT(i) SWEEP_OFFERS_NOT)
          :: there -> there = false
          fi;
          state = 0;
          i++
       :: state == DBP_GRANTED -> settle_grant(i); state = 0; i++
       :: state == 0
       fi
    :: i == SESSIONS -> i = 0; break
    od;
    dbp_handoff_match()
}
