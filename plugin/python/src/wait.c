/* SPDX-License-Identifier: MIT
 * Waiting for a session's fd, or for the broker. Four callers, one meaning: PyMySQL's Wire (GIL held), libmariadb's I/O
 * wait callback (GIL mostly released), the fallback driver (Python), core when it asks the broker (GIL held). In a
 * greenlet the hook, set from Python, waits on the gevent hub; everywhere else poll(2) waits without the GIL in slices,
 * so that a signal handler runs soon even when the kernel gave the signal to another thread.
 */
#include "ext.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdatomic.h>

#define SLICE_MS 200 /* the longest that a Python signal handler is kept waiting: below what a person notices */

static PyObject *hook;
/* Read without the GIL: only says whether taking the GIL is worth it, so relaxed is enough. */
static atomic_bool hook_set;

static int slice(int timeout_ms, uint64_t deadline) {
    uint64_t now;

    if (timeout_ms < 0)
        return SLICE_MS;
    now = dbp_py_deadline(0.0);
    if (now >= deadline)
        return 0;
    return deadline - now >= SLICE_MS * 1000u ? SLICE_MS : (int)((deadline - now + 999u) / 1000u);
}

static int poll_slices(int fd, bool reading, int timeout_ms) {
    struct pollfd p = {.fd = fd, .events = reading ? POLLIN : POLLOUT};
    uint64_t deadline = timeout_ms < 0 ? 0 : dbp_py_deadline(timeout_ms / 1e3);

    for (;;) {
        int ms = slice(timeout_ms, deadline), r, err;

        Py_BEGIN_ALLOW_THREADS r = poll(&p, 1, ms);
        err = errno;
        Py_END_ALLOW_THREADS if (r > 0) return 1;
        if (r < 0 && err != EINTR) {
            errno = err;
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        if (PyErr_CheckSignals() < 0)
            return -1;
        if (timeout_ms >= 0 && ms == 0)
            return 0;
    }
}

int dbp_py_wait(int fd, bool reading, int timeout_ms) {
    if (hook) {
        PyObject *answer = PyObject_CallFunction(hook, "iOi", fd, reading ? Py_True : Py_False, timeout_ms);
        int ready;

        if (!answer)
            return -1;
        if (answer != Py_None) {
            ready = PyObject_IsTrue(answer);
            Py_DECREF(answer);
            return ready;
        }
        Py_DECREF(answer);
    }
    return poll_slices(fd, reading, timeout_ms);
}

int dbp_py_wait_for_broker(int fd, uint64_t deadline_us) {
    uint64_t now = dbp_py_deadline(0.0);
    uint64_t ms = now >= deadline_us ? 0 : (deadline_us - now + 999u) / 1000u;
    int ready = dbp_py_wait(fd, true, ms > INT_MAX ? INT_MAX : (int)ms);

    return ready > 0 ? 0 : ready == 0 ? DBP_E_TIMEOUT : DBP_E_INTERRUPTED;
}

static bool have_gil(void) {
#if PY_VERSION_HEX >= 0x030d0000
    PyThreadState *current = PyThreadState_GetUnchecked();
#else
    PyThreadState *current = _PyThreadState_UncheckedGet();
#endif
    /* Not PyGILState_Check(): it always says yes once uWSGI has made a sub-interpreter for another app. */
    return current && current == PyGILState_GetThisThreadState();
}

int dbp_py_wait_unlocked(int fd, bool reading, int timeout_ms, void (*failed)(int fd)) {
    uint64_t deadline = timeout_ms < 0 ? 0 : dbp_py_deadline(timeout_ms / 1e3);
    PyGILState_STATE state;
    int ready;

    if (!atomic_load_explicit(&hook_set, memory_order_relaxed) && !have_gil()) {
        struct pollfd p = {.fd = fd, .events = reading ? POLLIN : POLLOUT};

        if (poll(&p, 1, slice(timeout_ms, deadline)) > 0)
            return 1;
    }
    state = PyGILState_Ensure();
    {
        /* Another exception may be on its way when a finaliser brings us here: leave it as it was. */
#if PY_VERSION_HEX >= 0x030c0000
        PyObject *pending = PyErr_GetRaisedException();
#else
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
#endif
        if (timeout_ms > 0) {
            uint64_t now = dbp_py_deadline(0.0);

            timeout_ms = now >= deadline ? 0 : (int)((deadline - now) / 1000u);
        }
        ready = dbp_py_wait(fd, reading, timeout_ms);
        if (ready < 0)
            failed(fd);
#if PY_VERSION_HEX >= 0x030c0000
        PyErr_SetRaisedException(pending);
#else
        PyErr_Restore(type, value, traceback);
#endif
    }
    PyGILState_Release(state);
    if (ready == 0)
        errno = ETIMEDOUT;
    return ready;
}

bool dbp_py_wait_is_set_up(void) {
    return hook || !PyDict_GetItemString(PyImport_GetModuleDict(), "gevent._hub_local");
}

PyObject *dbp_py_set_wait_hook(PyObject *module, PyObject *callable) {
    (void)module;
    if (callable != Py_None && !PyCallable_Check(callable)) {
        PyErr_SetString(PyExc_TypeError, "the wait hook must be callable or None");
        return NULL;
    }
    Py_XDECREF(hook);
    hook = NULL;
    if (callable != Py_None) {
        Py_INCREF(callable);
        hook = callable;
    }
    atomic_store_explicit(&hook_set, hook != NULL, memory_order_relaxed);
    Py_RETURN_NONE;
}

PyObject *dbp_py_wait_fd(PyObject *module, PyObject *args) {
    int fd, reading, timeout_ms, ready;

    (void)module;
    if (!PyArg_ParseTuple(args, "ipi:wait", &fd, &reading, &timeout_ms))
        return NULL;
    ready = dbp_py_wait(fd, reading, timeout_ms);
    return ready < 0 ? NULL : PyBool_FromLong(ready);
}
