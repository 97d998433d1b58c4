/* SPDX-License-Identifier: MIT
 * The broker's steps: keeper.c, opening.c, ending.c, resetting.c, and what broker.c calls them for. The connector and
 * the server are events that come when they like. `total`, `ending`, `resetting`, `opening_sent` are the broker's own.
 */

inline vacate(s) { /* dbp_ending_vacate */
    total--;
    STEP(sessions[s].readers = sessions[s].readers | BIT(me));
    dbp_session_move(s, DBP_EMPTY, 0, moved);
    assert(moved);
    moved = false;
    STEP(count_size--)
}

inline dbp_ending_begin(s) {
#if MUTANT == 12 /* the cap is free before the server has hung up */
    total--;
#endif
    ending = ending | BIT(s);
    resetting = resetting & ~BIT(s)
}

inline dbp_ending_done(s) {
    ending = ending & ~BIT(s);
    vacate(s);
#if MUTANT == 12
    total++;
#endif
    look_again = true;
    REACHED(HUNG_UP)
}

inline dbp_ending_unfit(s) {
    STEP(sessions[s].unfit = 1);
    STEP(state = sessions[s].state; LOAD_WORD(s, DBP_IDLE); LOAD_WORD(s, DBP_RESETTING));
    if
    :: state == DBP_IDLE || state == DBP_RESETTING ->
       dbp_session_move(s, DBP_CLOSING, state == DBP_RESETTING, moved);
       if
       :: moved -> moved = false; dbp_ending_begin(s)
       :: else
       fi
    :: else
    fi;
    state = 0
}

/* reserve() and the request to the connector */
inline open_one() {
    for (i : 0 .. SESSIONS - 1) {
        STEP(state = sessions[i].state; LOAD_WORD(i, DBP_EMPTY));
        if
        :: state == DBP_EMPTY ->
           STEP(sessions[i].unfit = 0);
           dbp_session_move(i, DBP_OPENING, 0, moved);
           assert(moved);
           moved = false;
           STEP(count_size++);
           total++;
           opening_sent = opening_sent | BIT(i);
           STEP(waiters_before = queue_tail);
           break
        :: else
        fi
    };
    state = 0;
    i = 0
}

/* The oldest idle session goes: here, any. */
inline retire_one() {
    for (i : 0 .. SESSIONS - 1) {
        STEP(state = sessions[i].state; LOAD_WORD(i, DBP_IDLE));
        if
        :: state == DBP_IDLE ->
           dbp_session_move(i, DBP_CLOSING, 0, moved);
           if
           :: moved -> moved = false; dbp_ending_begin(i); REACHED(RETIRED)
           :: else
           fi;
           break
        :: state == DBP_IDLE -> skip /* not this one */
        :: state != DBP_IDLE
        fi
    };
    state = 0;
    i = 0
}

#define WILL_BE_IDLE(s) \
    (sessions[s].state == DBP_OPENING || sessions[s].state == DBP_RESETTING || sessions[s].state == DBP_IDLE)

/* dbp_opening_tend with the janitor's first rule (a session per waiter that nobody is fetching for it, within the cap)
 * and, if the configuration allows, its others as whims: it may retire an idle session whenever it sees nobody wait. */
inline dbp_opening_tend() {
    look_again = false;
    STEP(scan = queue_head);
    waiting = 0;
    do
    :: waiting == CAP -> break
    :: else ->
       dbp_queue_next(scan, place, found);
       place = 0;
       if
       :: found -> found = false; waiting++
       :: else -> break
       fi
    od;
    scan = 0;
    STEP(for (i : 0 .. SESSIONS - 1) { /* the figures, taken as exact */
             if
             :: WILL_BE_IDLE(i) -> supply++
             :: else
             fi
         };
         i = 0);
#if RETIRES
    if
    :: waiting == 0 && retires > 0 -> retires--; retire_one()
    :: true
    fi;
#endif
    do
    :: waiting > supply && total < CAP -> supply++; open_one(); REACHED(OPENED)
    :: else -> break
    od;
    supply = 0;
    waiting = 0
}

inline dbp_opening_delivered(s) {
    opening_sent = opening_sent & ~BIT(s);
    STEP(sessions[s].readers = sessions[s].readers | BIT(me));
    dbp_idle_put(s, moved);
    assert(moved);
    moved = false;
    dbp_handoff_match();
    dbp_opening_tend()
}

inline dbp_opening_failed(s) {
    opening_sent = opening_sent & ~BIT(s);
    vacate(s);
    STEP(for (i : 0 .. SESSIONS - 1) {
             if
             :: sessions[i].state == DBP_IDLE || sessions[i].state == DBP_GRANTED ||
                sessions[i].state == DBP_LEASED || sessions[i].state == DBP_RESETTING -> found = true
             :: else
             fi
         };
         i = 0);
    if
    :: found -> found = false
    :: else -> dbp_handoff_fail(waiters_before); REACHED(FAILED_WAITERS)
    fi;
    look_again = true /* the retry, after its backoff */
}

inline dbp_resetting_answer(s) {
    resetting = resetting & ~BIT(s);
    STEP(got = sessions[s].unfit; sessions[s].readers = sessions[s].readers | BIT(me));
    if
    :: got -> got = false; dbp_ending_unfit(s)
    :: else ->
       dbp_idle_put(s, moved);
       assert(moved);
       moved = false;
       dbp_handoff_match();
       look_again = true
    fi
}

inline dbp_resetting_failed(s) {
    STEP(sessions[s].readers = sessions[s].readers | BIT(me));
    dbp_session_move(s, DBP_CLOSING, 1, moved);
    assert(moved);
    moved = false;
    dbp_ending_begin(s);
    look_again = true
}

inline dbp_keeper_attend() {
#if MUTANT != 9 && MUTANT != 18 /* 9: the flag that a dead client left set stays set */
    STEP(attention = 0);
#endif
    do
    :: WHEN(i < SESSIONS,
            state = sessions[i].state;
            found = sessions[i].unfit && state == DBP_IDLE;
            if
            :: state == DBP_CLOSING && !(ending & BIT(i)) -> dbp_ending_begin(i)
            :: state == DBP_RESETTING && !(resetting & BIT(i)) ->
               assert(!IN_USE(i));
               resetting = resetting | BIT(i)
            :: else
            fi;
            state = 0;
            i++);
       if
       :: found -> found = false; dbp_ending_unfit(i - 1)
       :: else
       fi
    :: i == SESSIONS -> i = 0; break
    od;
#if MUTANT == 18 /* the flag after the look */
    STEP(attention = 0);
#endif
    dbp_opening_tend()
}

inline answer_doorbell() {
    STEP(doorbell = 0);
#if MUTANT == 9
    STEP(got = attention; attention = 0);
#else
    STEP(got = attention);
#endif
    if
    :: got -> got = false; dbp_keeper_attend()
    :: else
    fi
}

inline dbp_keeper_holder_died(slot) {
#if MUTANT != 15
    dbp_handoff_bury(slot);
#endif
    do
    :: WHEN(i < SESSIONS,
            moved = (sessions[i].state == DBP_LEASED && sessions[i].owner == slot);
            if
            :: moved -> LOAD_WORD(i, DBP_LEASED); GHOST_NO_HOLDER(i)
            :: else -> i++
            fi);
       if
       :: moved ->
          dbp_session_move(i, DBP_CLOSING, 1, moved);
          assert(moved);
          moved = false;
          dbp_ending_begin(i);
          REACHED(HOLDER_ENDED);
          i++
       :: else
       fi
    :: i == SESSIONS -> i = 0; break
    od;
    dbp_handoff_sweep();
    dbp_keeper_attend()
}

inline sweep_tick() { /* the second's part of dbp_keeper_tick */
    dbp_handoff_sweep();
    dbp_keeper_attend()
}

proctype broker() {
    byte me = BROKER;
    short place, seen;
    byte ticket, mine, session, bits, owner, waker, i, s, scan, waiting, supply, waiters_before;
    byte total, ending, resetting, opening_sent;
    byte ticks = TICKS, fails = FAILS, unfits = UNFITS, retires = RETIRES;
    mtype state;
    bool got, moved, found, lapped, look_again, there;

    total = OPEN_AT_FIRST;
    resetting = RESETTING_AT_FIRST;
end:
    do
    :: atomic { doorbell -> skip }; answer_doorbell()
    :: atomic { died -> skip }; dbp_keeper_holder_died(VICTIM); STEP(died = 0)
    :: ending & 1 -> s = 0; hung_up: dbp_ending_done(s); s = 0
    :: ending & 2 -> s = 1; goto hung_up
    :: ending & 4 -> s = 2; goto hung_up
    :: opening_sent & 1 -> s = 0; delivered: dbp_opening_delivered(s); s = 0
    :: opening_sent & 2 -> s = 1; goto delivered
    :: opening_sent & 4 -> s = 2; goto delivered
#if FAILS
    :: fails > 0 && (opening_sent & 1) -> fails--; s = 0; failed: dbp_opening_failed(s); s = 0
    :: fails > 0 && (opening_sent & 2) -> fails--; s = 1; goto failed
#endif
#if RESETS || RESETTING_AT_FIRST
    :: resetting & 1 -> s = 0; answered: dbp_resetting_answer(s); s = 0
    :: resetting & 2 -> s = 1; goto answered
#endif
#if RESETS
    :: resetting & 1 -> s = 0; reset_failed: dbp_resetting_failed(s); s = 0
    :: resetting & 2 -> s = 1; goto reset_failed
#endif
    :: look_again -> dbp_opening_tend()
#if TICKS
    :: ticks > 0 -> ticks--; sweep_tick()
#endif
#if STOPS
    :: atomic { timeout && !ticked -> ticked = true }; sweep_tick()
#endif
#if UNFITS
    :: unfits > 0 && !(ending & 1) && sessions[0].state != DBP_EMPTY && sessions[0].state != DBP_OPENING ->
       unfits--;
       dbp_ending_unfit(0)
#endif
#if RETIRES
    :: retires > 0 -> dbp_opening_tend()
#endif
    od;
killed:
    assert(false)
}
