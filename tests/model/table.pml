/* SPDX-License-Identifier: MIT
 * core/table.c: the sessions' words and the idle bits.
 *
 * A word is {state, owner, generation}. The generation is not a number here but what it is for: `readers` is the set of
 * the processes that have read the word since it last moved and still hold that copy. A move empties the set, and a
 * compare-and-swap succeeds for those in it alone. That is a counter that never wraps, without its many values.
 */

mtype = { DBP_EMPTY, DBP_OPENING, DBP_IDLE, DBP_GRANTED, DBP_LEASED, DBP_RESETTING, DBP_CLOSING };

typedef dbp_session {
    mtype state;
    byte owner;   /* GRANTED: a ticket; LEASED: a process; CLOSING: 1 = needs a KILL */
    byte readers; /* bit of each process whose copy of the word is the word */
    bit unfit
};
dbp_session sessions[SESSIONS];
byte idle;       /* the idle bits */
byte count_size; /* kept by the broker a step after the word, as in C */

#define EDGE(from, to)                                                                                       \
    (((from) == DBP_EMPTY && (to) == DBP_OPENING) ||                                                         \
     ((from) == DBP_OPENING && ((to) == DBP_IDLE || (to) == DBP_EMPTY)) ||                                   \
     ((from) == DBP_IDLE && ((to) == DBP_LEASED || (to) == DBP_GRANTED || (to) == DBP_RESETTING ||           \
                             (to) == DBP_CLOSING)) ||                                                        \
     ((from) == DBP_GRANTED && ((to) == DBP_LEASED || (to) == DBP_IDLE)) ||                                  \
     ((from) == DBP_LEASED && ((to) == DBP_IDLE || (to) == DBP_RESETTING || (to) == DBP_CLOSING)) ||         \
     ((from) == DBP_RESETTING && ((to) == DBP_IDLE || (to) == DBP_CLOSING)) ||                               \
     ((from) == DBP_CLOSING && (to) == DBP_EMPTY))

/* The load of a word whose copy is kept for a compare-and-swap if its state is `wanted`. */
#define LOAD_WORD(s, wanted)                                                        \
    if                                                                              \
    :: sessions[s].state == wanted -> sessions[s].readers = sessions[s].readers | BIT(me) \
    :: else                                                                         \
    fi

#define IS_CURRENT(s) ((sessions[s].readers & BIT(me)) != 0)

#define move_to(s, to, who, who_knows)                 \
    assert(EDGE(sessions[s].state, to));               \
    GHOST_SESSION_MOVED(s, to, who);                   \
    sessions[s].state = to;                            \
    sessions[s].owner = who;                           \
    sessions[s].readers = who_knows

inline dbp_session_move(s, to, who, moved) {
    STEP(if
         :: IS_CURRENT(s) -> move_to(s, to, who, 0); moved = true
         :: else -> moved = false
         fi)
}

/* As dbp_session_move, and keeps the new word (wordp). */
inline dbp_session_move_keep(s, to, who, moved) {
    STEP(if
         :: IS_CURRENT(s) -> move_to(s, to, who, BIT(me)); moved = true
         :: else -> moved = false
         fi)
}

#define LOWEST(bits) (((bits) & 1) -> 0 : (((bits) & 2) -> 1 : 2))

/* Leaves bits 0 and, when got, the word of `session` as this process moved it. */
inline dbp_idle_take(to, who, session, got) {
    STEP(bits = idle; got = false);
    do
    :: bits == 0 -> break
    :: WHEN(bits != 0,
            session = LOWEST(bits);
            bits = bits & ~BIT(session);
            got = ((idle & BIT(session)) != 0);
            idle = idle & ~BIT(session));
       if
       :: WHEN(got, got = (sessions[session].state == DBP_IDLE); LOAD_WORD(session, DBP_IDLE));
#if UNFITS
          if
          :: WHEN(got, got = !sessions[session].unfit)
          :: else
          fi;
#endif
          if
          :: WHEN(got,
                  if
                  :: IS_CURRENT(session) -> move_to(session, to, who, BIT(me)); bits = 0; break
                  :: else -> got = false
                  fi)
          :: else -> REACHED(TOOK_A_STALE_BIT)
          fi
       :: else /* somebody was faster */
       fi
    od
}

/* One session, which the caller had last. Its idle bit stays. */
inline dbp_idle_take_this(to, who, session, got) {
    STEP(got = (sessions[session].state == DBP_IDLE); LOAD_WORD(session, DBP_IDLE));
    if
    :: WHEN(got,
            if
            :: IS_CURRENT(session) -> move_to(session, to, who, BIT(me)); REACHED(TOOK_RECENT)
            :: else -> got = false
            fi)
    :: else
    fi
}

inline dbp_idle_offer(s) {
    STEP(there = ((idle & BIT(s)) != 0));
    if
    :: WHEN(!there, idle = idle | BIT(s))
    :: there -> there = false
    fi
}

inline dbp_idle_put(s, moved) {
#if MUTANT == 17
    dbp_idle_offer(s);
    dbp_session_move(s, DBP_IDLE, 0, moved)
#elif MUTANT == 19
    STEP(there = ((idle & BIT(s)) != 0));
    dbp_session_move(s, DBP_IDLE, 0, moved);
    if
    :: WHEN(moved && !there, idle = idle | BIT(s))
    :: else -> there = false
    fi
#else
    dbp_session_move(s, DBP_IDLE, 0, moved);
    if
    :: moved -> dbp_idle_offer(s)
    :: else
    fi
#endif
}
