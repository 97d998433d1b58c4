/* SPDX-License-Identifier: MIT
 * Ghosts: what no process reads, kept to say what must hold. And what a configuration must have reached to mean
 * something: a model that never gets to a state cannot fail in it.
 */

c_decl {
    static unsigned reached_marks; /* of the search, not of a state */
    static void print_marks(void) {
        printf("reached marks: %u\n", reached_marks);
    }
};
#define REACHED(what) c_code { reached_marks |= 1u << what; }
#define PASSED_BY          1
#define TOOK_A_STALE_BIT   2
#define TOLD_BY_ANOTHER    3
#define PUT_BACK           4
#define TIMED_OUT          5
#define GRANTED_AT_TIMEOUT 6
#define SETTLED            7
#define BURIED             8
#define REFUSED_AS_UNFIT   9
#define QUEUE_FULL        10
#define HUNG_UP           11
#define RETIRED           12
#define OPENED            13
#define FAILED_WAITERS    14
#define HOLDER_ENDED      15
#define TOOK_RECENT       16
#define PUT_BACK_UNFIT    17

/* I1: who uses the session's wire, from the return of an acquire to the call of the release. */
byte in_use;
#define IN_USE(s) ((in_use & BIT(s)) != 0)
#define GHOST_HOLDS(s)                                                                    \
    d_step {                                                                              \
        assert(!IN_USE(s) && sessions[s].state == DBP_LEASED && sessions[s].owner == me); \
        in_use = in_use | BIT(s)                                                          \
    }
#define GHOST_NO_HOLDER(s) in_use = in_use & ~BIT(s)

/* I3: sessions at the server, those being opened and closed included. */
#define ALIVE(s) (sessions[s].state != DBP_EMPTY)
#if SESSIONS == 1
#define N_ALIVE ALIVE(0)
#elif SESSIONS == 2
#define N_ALIVE (ALIVE(0) + ALIVE(1))
#else
#define N_ALIVE (ALIVE(0) + ALIVE(1) + ALIVE(2))
#endif
#define GHOST_SESSION_MOVED(s, to, who)                                      \
    assert(to != DBP_OPENING || N_ALIVE < CAP);                              \
    assert(!IN_USE(s) || to == DBP_CLOSING)

/* I4: grants in order of tickets. */
#define OLDER_WAITS(t, p) \
    (dbp_place_state(places[p]) == DBP_PLACE_WAITING && \
     ((dbp_place_ticket(places[p]) - (t)) & (TICKETS - 1)) > TICKETS / 2)
#if PLACES == 1
#define ANY_OLDER_WAITS(t) OLDER_WAITS(t, 0)
#elif PLACES == 2
#define ANY_OLDER_WAITS(t) (OLDER_WAITS(t, 0) || OLDER_WAITS(t, 1))
#else
#define ANY_OLDER_WAITS(t) (OLDER_WAITS(t, 0) || OLDER_WAITS(t, 1) || OLDER_WAITS(t, 2) || OLDER_WAITS(t, 3))
#endif

/* I4: nobody who came later barges past. in_line: the clients whose push has returned and who still wait; ahead[c]:
 * those of them who were there before c began to acquire. */
#ifdef BARGING
byte in_line;
byte ahead[CLIENTS];
#define GHOST_IN_LINE()                                                                      \
    if                                                                                       \
    :: dbp_place_ticket(place_at(mine)) == mine && dbp_place_state(place_at(mine)) == DBP_PLACE_WAITING -> \
       in_line = in_line | BIT(me)                                                           \
    :: else                                                                                  \
    fi
#define GHOST_LEAVES(who)                                                                    \
    in_line = in_line & ~BIT(who);                                                           \
    for (waker : 0 .. CLIENTS - 1) { ahead[waker] = ahead[waker] & ~BIT(who) };              \
    waker = 0
#define GHOST_BEGIN_ACQUIRE() ahead[me] = in_line;
#define GHOST_END_ACQUIRE() \
    atomic { assert(rc != OK || ahead[me] == 0); ahead[me] = 0 }
#else
#define GHOST_IN_LINE() skip
#define GHOST_LEAVES(who) skip
#define GHOST_BEGIN_ACQUIRE()
#define GHOST_END_ACQUIRE() skip
#endif

#define GHOST_PLACE_MOVED(from, to)                                                               \
    assert(to != DBP_PLACE_GRANTED || !ANY_OLDER_WAITS(dbp_place_ticket(from)));                  \
    GHOST_LEAVES(dbp_place_proc(from))

/* I4: an expired waiter holds nothing. */
#define LEASED_BY_ME(s) (sessions[s].state == DBP_LEASED && sessions[s].owner == me)
#if SESSIONS == 1
#define GHOST_EXPIRED() assert(!LEASED_BY_ME(0))
#else
#define GHOST_EXPIRED() assert(!LEASED_BY_ME(0) && !LEASED_BY_ME(1))
#endif
