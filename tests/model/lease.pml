/* SPDX-License-Identifier: MIT
 * A model of the lease protocol, for spin: clients that acquire, wait and release, die at any step or time out at any
 * wait, and the broker that opens, ends and repairs. The names are those of core/; each file here is one file there.
 * `run` has the configurations and the mutants.
 *
 * Granularity: every load, store, compare-and-swap and fetch-and-or of shared memory that the C does, and every write
 * to or read of an eventfd, is one STEP: others come in between any two of them. What follows a step and touches
 * nothing but the process's own variables is merged with it, which hides nothing since nobody can see it. Merged
 * although shared: the counters that the policy reads (dbp_opening_tend, login_failed), which are guesses in C too and
 * counted again by each tick; and in dbp_keeper_attend a session's word with its unfit mark, which only the broker
 * sets. Orders are sequentially consistent, as the C asks for with seq_cst.
 *
 * Checked: assertions at the step that would break them (I1, I3, I4), and in every state in which nobody can move any
 * more (proctype quiescence): all clients have ended and the pool is whole (I2). As the clients do a bounded number of
 * things and the state graph has no cycle (configuration "cycles": nothing spins), each run gets to such a state. The
 * sweep of each second is left out unless TICKS or STOPS ask for it: it must not be what saves a waiter.
 *
 * Not modelled: more than one pool and pools that go, processes that are let go of, threads of one process, the counters, max_waiting, forks, a death of the broker or
 * of the connector, the bytes on any wire, a lease used after its return, memory weaker than sequentially consistent.
 */

#ifndef MUTANT
#define MUTANT 0
#endif
#ifndef CLIENTS
#define CLIENTS 2
#endif
#ifndef SESSIONS
#define SESSIONS 1
#endif
#ifndef CAP
#define CAP SESSIONS
#endif
#ifndef OPEN_AT_FIRST
#define OPEN_AT_FIRST CAP
#endif
#ifndef PLACES
#define PLACES 4
#endif
#ifndef ROUNDS
#define ROUNDS 1
#endif
#ifndef ROUNDS_OF_FIRST
#define ROUNDS_OF_FIRST ROUNDS
#endif
#ifndef ROUNDS_OF_LAST
#define ROUNDS_OF_LAST ROUNDS
#endif
#ifndef DEATHS
#define DEATHS 0
#endif
#ifndef HELD /* so many clients begin as holders, of session 0, 1, ... */
#define HELD 0
#endif
#ifndef RESETTING_AT_FIRST /* 1: session 0 is being reset: nobody holds it, and it will be idle */
#define RESETTING_AT_FIRST 0
#endif
#ifndef QUEUERS /* clients begin at wait_begin, since acquire_now has found nothing; 2: in every round */
#define QUEUERS 0
#endif
#ifndef VICTIM /* who may die. Clients that begin alike differ in nothing but their names, so one of a kind is enough */
#define VICTIM 0
#endif
#ifndef REBIRTHS /* another process takes the dead one's slot and does what is left of its rounds */
#define REBIRTHS 0
#endif
#ifndef STOPS /* a death is a stop for good, which the broker does not see; then a tick comes for certain */
#define STOPS 0
#endif
#ifndef TIMEOUTS /* 1: any wait may have a deadline; 2: those of the last client have, no others */
#define TIMEOUTS 0
#endif
#ifndef EVENTS /* waiters have an eventfd; 0: a futex */
#define EVENTS 0
#endif
#ifndef RECENT /* a client tries the session that it returned last before it asks the idle bits */
#define RECENT 0
#endif
#ifndef TICKS
#define TICKS 0
#endif
#ifndef RESETS
#define RESETS 0
#endif
#ifndef DOOMS
#define DOOMS 0
#endif
#ifndef FAILS
#define FAILS 0
#endif
#ifndef UNFITS
#define UNFITS 0
#endif
#ifndef RETIRES
#define RETIRES 0
#endif

#define BIT(i) (1 << (i))
#define BROKER CLIENTS

byte deaths = DEATHS;
byte died, done;
bit attention, doorbell, ticked;
byte eventfd;
byte futex[CLIENTS]; /* the place it sleeps on, and 1 */

#define CAN_DIE (deaths > 0 && me == VICTIM)
#define DIE     deaths--; goto killed
#if DEATHS
#define MAY_DIE             \
    if                      \
    :: CAN_DIE -> DIE       \
    :: true                 \
    fi;
#else
#define MAY_DIE
#endif
/* One access to shared memory, before which a client may die. WHEN: under a condition on its own variables. */
#define STEP(...) atomic { MAY_DIE __VA_ARGS__ }
#define WHEN(condition, ...) atomic { condition -> MAY_DIE __VA_ARGS__ }

#include "properties.pml"
#include "queue.pml"
#include "table.pml"
#include "handoff.pml"
#include "client.pml"
#include "broker.pml"
#include "quiescence.pml"
