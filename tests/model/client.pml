/* SPDX-License-Identifier: MIT
 * core/client.c: acquire, wait, release. A client dies (or stops for good) before any of its steps.
 */

#define CLEAN 0
#define RESET 1
#define DOOM 2

inline dbp_acquire_now() {
    dbp_queue_quiet(GHOST_BEGIN_ACQUIRE(), found);
#if MUTANT == 7 /* barges past the queue */
    found = true;
#endif
    if
    :: found -> found = false
    :: else ->
       dbp_queue_oldest(place, found);
       place = 0
    fi;
    rc = BUSY;
    if
    :: found -> found = false
    :: else ->
       do
#if RECENT
       :: got = false;
          if
          :: recent != 0 -> session = recent - 1; recent = 0; dbp_idle_take_this(DBP_LEASED, me, session, got)
          :: else
          fi;
          if
          :: !got -> dbp_idle_take(DBP_LEASED, me, session, got)
          :: else
          fi;
#else
       :: dbp_idle_take(DBP_LEASED, me, session, got);
#endif
          if
          :: !got -> break
          :: else
          fi;
          got = false;
#if UNFITS
          STEP(got = sessions[session].unfit); /* refused_as_unfit */
          if
          :: got ->
             dbp_session_move(session, DBP_CLOSING, 0, got);
             got = false;
             dbp_handoff_ring();
             REACHED(REFUSED_AS_UNFIT)
          :: else -> rc = OK; break
          fi
#else
          rc = OK;
          break
#endif
       od
    fi;
    GHOST_END_ACQUIRE()
}

inline dbp_wait_begin() {
    dbp_queue_push(mine, moved);
    if
    :: !moved -> rc = FULL; mine = 0; REACHED(QUEUE_FULL)
    :: else ->
       moved = false;
#if MUTANT != 1 /* the re-check after publishing: the store-load pairing in handoff.c */
       STEP(found = (idle != 0));
       if
       :: found -> found = false; dbp_handoff_match()
       :: else
       fi;
#endif
       STEP(place = place_at(mine);
            rc = BUSY;
            got = (dbp_place_ticket(place) == mine && dbp_place_state(place) == DBP_PLACE_WAITING);
            place = 0);
       if
       :: WHEN(got, got = (count_size < CAP));
          if
          :: got -> dbp_handoff_ring()
          :: else
          fi
       :: else
       fi
    fi
}

/* Until woken or the deadline, which comes when it likes for a client that has one (impatient). No slices: in C a sleep
 * ends after a second at the latest, which must not be what saves anybody. */
inline sleep_on() {
#if EVENTS
#if STOPS
end_waits:
#endif
    if
    :: atomic { (eventfd & BIT(me)) != 0 -> eventfd = eventfd & ~BIT(me) }
    :: impatient -> rc = TIMEOUT
    :: atomic { CAN_DIE -> DIE }
    fi
#else
    STEP(seen = place_at(mine));
    if
    :: dbp_place_ticket(seen) != mine || dbp_place_state(seen) != DBP_PLACE_WAITING -> skip
    :: else ->
#if MUTANT == 16 /* sleeps without comparing */
       STEP(futex[me] = 1 + mine % PLACES);
#else
       STEP(if
            :: LOW_HALF(place_at(mine)) == LOW_HALF(seen) -> futex[me] = 1 + mine % PLACES
            :: else
            fi);
#endif
#if STOPS
end_sleeps:
#endif
       if
       :: atomic { futex[me] == 0 -> skip }
       :: atomic { futex[me] != 0 && impatient -> futex[me] = 0; rc = TIMEOUT }
       :: atomic { futex[me] != 0 && CAN_DIE -> DIE }
       fi
    fi;
    seen = 0
#endif
}

inline dbp_acquire() {
#if QUEUERS == 2
    rc = BUSY;
#elif QUEUERS
    if
    :: round > 1 -> dbp_acquire_now()
    :: else -> rc = BUSY
    fi;
#else
    dbp_acquire_now();
#endif
    if
    :: rc == BUSY ->
       session = 0;
       dbp_wait_begin();
       do
       :: rc != BUSY -> break
       :: else ->
          dbp_handoff_claim();
          if
          :: rc != BUSY -> break
          :: else -> sleep_on()
          fi;
          if
          :: rc == TIMEOUT -> dbp_handoff_cancel(); break
          :: else
          fi
       od;
       mine = 0
    :: else
    fi
}

inline dbp_release(how) {
    STEP(GHOST_NO_HOLDER(session);
         got = (IS_CURRENT(session) && sessions[session].state == DBP_LEASED &&
                sessions[session].owner == me)); /* held */
    assert(got);
    got = false;
#if UNFITS
    STEP(got = sessions[session].unfit);
#endif
    if
    :: how == DOOM || got ->
       dbp_session_move(session, DBP_CLOSING, how == DOOM, moved);
       assert(moved);
       dbp_handoff_ring()
    :: how == RESET && !got ->
       dbp_session_move(session, DBP_RESETTING, 0, moved);
       assert(moved);
       dbp_handoff_ring()
    :: how == CLEAN && !got ->
       dbp_idle_put(session, moved);
       assert(moved);
#if RECENT
       recent = session + 1;
#endif
#if MUTANT != 2
       dbp_queue_quiet(, found);
       owner = session;
       session = 0;
       if
       :: !found -> dbp_handoff_match()
       :: else -> found = false
       fi;
       session = owner;
       owner = 0;
#endif
#if UNFITS
       STEP(got = sessions[session].unfit);
       if
       :: got -> dbp_handoff_ring()
       :: else
       fi
#endif
    fi;
    got = false;
    moved = false;
    session = 0
}

proctype client(byte me) {
    short place, seen;
    byte ticket, mine, session, bits, passed_by, owner, waker, rc, how, round;
    bool got, moved, found, at_end, lapped, pushed, impatient, there;
#if RECENT
    byte recent; /* 1 + the session that it returned last */
#endif

#if HELD
    if
    :: me < HELD -> session = me; round = 1; rc = OK; goto holding
    :: else
    fi;
#endif
begin:
    do
    :: round == (me == 0 -> ROUNDS_OF_FIRST : (me == CLIENTS - 1 -> ROUNDS_OF_LAST : ROUNDS)) -> break
    :: else ->
       round++;
#if TIMEOUTS == 2
       impatient = (me == CLIENTS - 1);
#elif TIMEOUTS
       if
       :: impatient = true
       :: impatient = false
       fi;
#endif
       dbp_acquire();
#if HELD
holding:
#endif
       if
       :: rc == OK ->
          rc = 0;
          GHOST_HOLDS(session);
          if
          :: how = CLEAN
#if RESETS
          :: how = RESET
#endif
#if DOOMS
          :: how = DOOM
#endif
          fi;
          dbp_release(how);
          how = CLEAN
       :: rc == TIMEOUT -> GHOST_EXPIRED(); rc = 0
       :: rc == FAILED -> assert(FAILS > 0); rc = 0
       :: rc == FULL -> assert(PLACES < 4); rc = 0
       fi
    od;
    goto finished;

killed: /* its words and what it was about to do are gone with it; what it wrote stays */
    atomic {
        place = 0; seen = 0; ticket = 0; mine = 0; session = 0; bits = 0; passed_by = 0; owner = 0; waker = 0; rc = 0;
        how = 0; got = 0; moved = 0; found = 0; at_end = 0; lapped = 0; pushed = 0; impatient = 0; there = 0;
#if RECENT
        recent = 0;
#endif
        futex[me] = 0
    };
#if STOPS
end_stopped:
    false; /* stopped for good: alive to the broker */
#else
    died = died | BIT(me); /* end of file on its channel */
#if REBIRTHS
    atomic { (died & BIT(me)) == 0 -> eventfd = eventfd & ~BIT(me) };
    goto begin;
#endif
#endif
finished:
    done = done | BIT(me)
}
