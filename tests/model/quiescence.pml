/* SPDX-License-Identifier: MIT
 * I2: what holds when nobody can move any more. And the beginning.
 */

#if STOPS
#define QUIET (timeout && ticked)
#else
#define QUIET timeout
#endif

proctype quiescence() {
    byte i;
    QUIET;
    d_step {
#if STOPS
        /* One that stopped keeps its lease and its place, and holds nobody else up. */
        assert(((done & 1) + ((done >> 1) & 1) + ((done >> 2) & 1)) >= CLIENTS - (DEATHS - deaths) ||
               (SESSIONS == 1 && sessions[0].state == DBP_LEASED && sessions[0].owner == VICTIM));
#else
        assert(done == BIT(CLIENTS) - 1); /* no waiter is lost */
        assert(died == 0);
        for (i : 0 .. SESSIONS - 1) { /* no session is lost */
            assert(sessions[i].state == DBP_EMPTY || (sessions[i].state == DBP_IDLE && (idle & BIT(i))))
        };
        for (i : 0 .. PLACES - 1) { /* no place is lost */
            assert(dbp_place_state(places[i]) == DBP_PLACE_FREE && reached(places[i]) % PLACES == i);
            assert(((queue_tail - reached(places[i])) & (TICKETS - 1)) <= PLACES)
        };
        assert(((queue_tail - queue_head) & (TICKETS - 1)) < TICKETS / 2);
        assert(count_size == N_ALIVE && in_use == 0)
#endif
    }
}

init {
    byte i;
    atomic {
        c_code { atexit(print_marks); };
        dbp_queue_init(i);
        i = 0;
        for (i : 0 .. OPEN_AT_FIRST - 1) {
            sessions[i].state = DBP_IDLE;
            idle = idle | BIT(i)
        };
        i = 0;
#if RESETTING_AT_FIRST
        sessions[0].state = DBP_RESETTING;
        idle = idle & ~BIT(0);
#endif
#if HELD
        for (i : 0 .. HELD - 1) {
            sessions[i].state = DBP_LEASED;
            sessions[i].owner = i;
            sessions[i].readers = BIT(i);
            idle = idle & ~BIT(i)
        };
        i = 0;
#endif
        for (i : OPEN_AT_FIRST .. SESSIONS - 1) { sessions[i].state = DBP_EMPTY };
        count_size = OPEN_AT_FIRST;
        run broker();
        run quiescence();
        run client(0);
        run client(1);
#if CLIENTS > 2
        run client(2);
#endif
#if CLIENTS > 3
        run client(3);
#endif
        i = 0
    }
}
