/* SPDX-License-Identifier: MIT
 * Runs a forked child instruction by instruction (ptrace) and stops it at a chosen point: after it changed shared
 * memory, at the entry or the exit of a system call, asleep inside one, or after the n-th instruction. There it can be
 * killed, or held while others go on and continued afterwards.
 */
#ifndef DBPOOL_TEST_STEPPER_H
#define DBPOOL_TEST_STEPPER_H

#include "helpers.h"

/* An event is a stop that is worth a trial of its own. */
enum step_kind {
    STEP_STORE, /* the instruction before changed what look() sees */
    STEP_ENTRY, /* the kernel has been asked, and has done nothing yet */
    STEP_EXIT,
    STEP_ASLEEP, /* inside a system call that waits */
    STEP_EVENTS,
    STEP_INSTRUCTION = STEP_EVENTS, /* any */
    STEP_KINDS
};

#define STEP_TIMES 4u   /* a loop that only reads comes by a thousand times: it is met so often */
#define STEP_SEEN 8192u /* more instructions than any operation has */

/* In memory that the child shares; the child moves it on around what is watched. */
enum step_phase { STEP_BEFORE, STEP_INSIDE, STEP_AFTER };

struct stepper {
    pid_t pid;
    const _Atomic uint32_t *phase;
    uint64_t (*look)(void); /* a sum over the shared memory; NULL: no STEP_STORE */
    void (*feed)(void);     /* called when the child sleeps and is to go on: makes it wake */
    /* what was met so far */
    uint32_t met[STEP_KINDS];
    uint64_t steps; /* instructions in all, every time */
    enum step_kind at;
    /* own */
    bool in_call;
    uint64_t sum, where;
    struct {
        uint64_t pointer;
        uint32_t times;
    } seen[STEP_SEEN];
};

enum stepped { STEPPED, STEPPED_THROUGH, STEPPED_WRONG, STEPPED_ON /* not there yet: stepper.c's own */ };

/* In the child: asks to be stepped and stops. False: ptrace is not allowed here, or of no use. */
bool stepper_offer(void);
/* Waits for that. False: the child ended instead, *codep is its exit code. */
bool stepper_take(struct stepper *stepper, int *codep);

/* Goes on to the n-th event (events) or instruction (!events) inside the watched part; THROUGH when that ended before.
 * An instruction counts the first STEP_TIMES times only. */
enum stepped stepper_go(struct stepper *stepper, bool events, uint32_t n);

/* A child that was left asleep: stops it for good, where it is. */
bool stepper_hold(struct stepper *stepper);
/* Lets it run on by itself. */
bool stepper_let_go(struct stepper *stepper);
/* True while it sleeps in the kernel. */
bool stepper_asleep(pid_t pid);

#endif
