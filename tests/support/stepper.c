/* SPDX-License-Identifier: MIT
 * Stepping through a child: see stepper.h.
 */
#include "stepper.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

/* <sys/ptrace.h> and <linux/ptrace.h> exclude each other; this is the kernel's struct ptrace_syscall_info. */
struct call_info {
    uint8_t op, pad[3];
    uint32_t arch;
    uint64_t instruction_pointer, stack_pointer, rest[8];
};

#define SYSCALL_STOP (SIGTRAP | 0x80) /* PTRACE_O_TRACESYSGOOD */

bool stepper_offer(void) {
    if (under_valgrind())
        return false; /* that would be stepping through valgrind */
    return ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0 && raise(SIGSTOP) == 0;
}

/* The child's next stop; false when it ended instead. */
static bool next_stop(pid_t pid, int *statusp) {
    while (waitpid(pid, statusp, WUNTRACED) < 0)
        if (errno != EINTR)
            return false;
    return WIFSTOPPED(*statusp);
}

static uint64_t pointer_of(pid_t pid) {
    struct call_info info;

    memset(&info, 0, sizeof info);
    return ptrace(PTRACE_GET_SYSCALL_INFO, pid, (void *)sizeof info, &info) < 0 ? 0 : info.instruction_pointer;
}

bool stepper_take(struct stepper *stepper, int *codep) {
    siginfo_t info;
    int status;

    memset(stepper->met, 0, sizeof stepper->met);
    memset(stepper->seen, 0, sizeof stepper->seen);
    stepper->steps = 0;
    stepper->in_call = false;
    stepper->where = 0;
    /* Only looked at: an end is helpers.c's to take, which has a list of the children. */
    if (waitid(P_PID, (id_t)stepper->pid, &info, WSTOPPED | WEXITED | WNOWAIT) != 0)
        return false;
    if (info.si_code != CLD_TRAPPED && info.si_code != CLD_STOPPED) {
        *codep = wait_child(stepper->pid);
        return false;
    }
    if (!next_stop(stepper->pid, &status))
        return false;
    if (ptrace(PTRACE_SETOPTIONS, stepper->pid, NULL, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL) != 0)
        return false;
    return true;
}

bool stepper_asleep(pid_t pid) {
    char path[40], text[256], *state;

    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = '\0';
    state = strrchr(text, ')'); /* the name may hold anything */
    return state && state[1] == ' ' && state[2] == 'S';
}

/* The code is this process's own: the child is its fork and loads nothing. */
__attribute__((no_sanitize_address, no_sanitize_thread)) static bool is_syscall(uint64_t pointer) {
    const volatile uint8_t *code = (const volatile uint8_t *)(uintptr_t)pointer;

    if (!code)
        return false;
#if defined(__x86_64__)
    return code[0] == 0x0f && code[1] == 0x05; /* syscall */
#elif defined(__aarch64__)
    return code[0] == 0x01 && code[1] == 0x00 && code[2] == 0x00 && code[3] == 0xd4; /* svc #0 */
#else
#error "how does this machine enter the kernel?"
#endif
}

/* Has met one of that kind; true: it is the one that was looked for. */
static bool meet(struct stepper *s, enum step_kind kind, bool events, uint32_t n) {
    uint32_t sum = 0;

    if (atomic_load(s->phase) != STEP_INSIDE)
        return false;
    s->at = kind;
    s->met[kind]++;
    if ((kind != STEP_INSTRUCTION) != events)
        return false;
    if (!events)
        return s->met[STEP_INSTRUCTION] == n;
    for (int i = 0; i < STEP_EVENTS; i++)
        sum += s->met[i];
    return sum == n;
}

/* The instruction at pointer was done: true if it counts. An iteration of a repeated one (rep stos) never does. */
static bool is_news(struct stepper *s, uint64_t pointer) {
    uint32_t at = (uint32_t)(pointer * 0x9e3779b97f4a7c15u >> 40) % STEP_SEEN;
    bool again = pointer == s->where;

    s->where = pointer;
    if (again || atomic_load(s->phase) != STEP_INSIDE)
        return false;
    for (uint32_t i = 0; i < STEP_SEEN && s->seen[at].pointer != 0 && s->seen[at].pointer != pointer; i++)
        at = (at + 1) % STEP_SEEN;
    if (s->seen[at].pointer != pointer && s->seen[at].pointer != 0)
        return true; /* no room to know better */
    s->seen[at].pointer = pointer;
    return s->seen[at].times++ < STEP_TIMES;
}

/* From the entry of a call to its exit. */
static enum stepped through_call(struct stepper *s, bool events, uint32_t n) {
    uint64_t deadline = in_seconds(WAIT_S);
    bool slept = false;
    int status = 0;
    pid_t got;

    if (ptrace(PTRACE_SYSCALL, s->pid, NULL, NULL) != 0)
        return STEPPED_WRONG;
    while ((got = waitpid(s->pid, &status, WNOHANG | WUNTRACED)) == 0) {
        if (!slept && stepper_asleep(s->pid)) {
            slept = true;
            if (meet(s, STEP_ASLEEP, events, n))
                return STEPPED;
            if (atomic_load(s->phase) == STEP_AFTER)
                return STEPPED_THROUGH; /* it waits for its end */
            if (s->feed)
                s->feed();
        }
        if (dbp_now_us() > deadline)
            return STEPPED_WRONG;
        if (slept)
            poll(NULL, 0, 1);
        else
            sched_yield();
    }
    s->in_call = false;
    s->where = 0;
    if (got != s->pid || !WIFSTOPPED(status) || WSTOPSIG(status) != SYSCALL_STOP)
        return STEPPED_WRONG;
    if (s->look)
        s->sum = s->look(); /* what changed meanwhile may be others' doing */
    bool found = meet(s, STEP_EXIT, events, n);
    if (meet(s, STEP_INSTRUCTION, events, n))
        found = true;
    return found ? STEPPED : STEPPED_ON;
}

/* One instruction, or half a system call. STEPPED: it is the one that was looked for. */
static enum stepped one_step(struct stepper *s, bool events, uint32_t n) {
    uint64_t pointer = pointer_of(s->pid);
    int status;

    s->steps += atomic_load(s->phase) == STEP_INSIDE;

    if (s->in_call)
        return through_call(s, events, n);
    bool call = is_syscall(pointer);
    if (ptrace(call ? PTRACE_SYSCALL : PTRACE_SINGLESTEP, s->pid, NULL, NULL) != 0 || !next_stop(s->pid, &status) ||
        WSTOPSIG(status) != (call ? SYSCALL_STOP : SIGTRAP))
        return STEPPED_WRONG;
    if (call) {
        s->in_call = true;
        return meet(s, STEP_ENTRY, events, n) ? STEPPED : STEPPED_ON;
    }
    bool found = is_news(s, pointer) && meet(s, STEP_INSTRUCTION, events, n);
    if (s->look && atomic_load(s->phase) == STEP_INSIDE) {
        uint64_t sum = s->look();
        if (sum != s->sum && meet(s, STEP_STORE, events, n))
            found = true;
        s->sum = sum;
    }
    return found ? STEPPED : STEPPED_ON;
}

enum stepped stepper_go(struct stepper *s, bool events, uint32_t n) {
    if (s->look)
        s->sum = s->look();
    for (;;) {
        if (atomic_load(s->phase) == STEP_AFTER)
            return STEPPED_THROUGH;
        if (n == 0 && atomic_load(s->phase) == STEP_INSIDE)
            return STEPPED;
        enum stepped result = one_step(s, events, n);
        if (result != STEPPED_ON)
            return result;
    }
}

bool stepper_hold(struct stepper *s) {
    int status;

    if (kill(s->pid, SIGSTOP) != 0)
        return false;
    /* First the interrupted call's exit, which goes unreported here: it will be begun again. Then the signal. */
    while (next_stop(s->pid, &status)) {
        if (WSTOPSIG(status) == SIGSTOP)
            return true;
        if (ptrace(PTRACE_CONT, s->pid, NULL, NULL) != 0)
            return false;
    }
    return false;
}

bool stepper_let_go(struct stepper *s) {
    return ptrace(PTRACE_DETACH, s->pid, NULL, NULL) == 0;
}
