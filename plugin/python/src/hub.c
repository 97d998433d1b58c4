/* SPDX-License-Identifier: MIT
 * What the gevent hub calls when an fd of ours is ready (waiting.py). In C, and never with an error, because of
 * signals: what a Python signal handler raises comes out between any two steps of Python code, so also of a callback in
 * Python. There it would lose the wake-ups that the callback had in hand, and gevent stops a watcher of an fd whose
 * callback has raised (gevent/libev/callbacks.c, gevent_callback): nobody of this process would be woken again.
 */
#include "ext.h"

#include <unistd.h>

static PyObject *name_popleft, *name_poll, *name_ready, *name_result, *name_stop, *name_switch, *name_wait,
    *name_waiter;

int dbp_py_hub_init(void) {
    static const struct {
        PyObject **name;
        const char *text;
    } names[] = {
        {&name_popleft, "popleft"}, {&name_poll, "poll"},     {&name_ready, "ready"}, {&name_result, "result"},
        {&name_stop, "stop"},       {&name_switch, "switch"}, {&name_wait, "wait"},   {&name_waiter, "waiter"},
    };
    size_t i;

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (!(*names[i].name = PyUnicode_InternFromString(names[i].text)))
            return -1;
    return 0;
}

/* False in a forked child that runs its parent's loop: the fds are the parent's too, and so is what they say. */
static bool ours(PyObject *watcher, unsigned epoch) {
    PyObject *answer;

    if (epoch == dbp_py_epoch())
        return true;
    answer = PyObject_CallMethodNoArgs(watcher, name_stop);
    if (!answer)
        PyErr_WriteUnraisable(watcher);
    Py_XDECREF(answer);
    return false;
}

/* Consumes waiter. Returns when its greenlet waits for something else, or is over. */
static void switch_to(PyObject *waiter, PyObject *value) {
    PyObject *answer = PyObject_CallMethodOneArg(waiter, name_switch, value);

    if (!answer)
        PyErr_WriteUnraisable(waiter);
    Py_XDECREF(answer);
    Py_DECREF(waiter);
}

/* ---- sessions ---- */

static PyObject *wake_ready(PyObject *module, PyObject *args) {
    PyObject *epoll, *waiters, *watcher, *fds;
    Py_ssize_t i;
    unsigned epoch;

    (void)module;
    if (!PyArg_ParseTuple(args, "OO!OI:wake_ready", &epoll, &PyDict_Type, &waiters, &watcher, &epoch))
        return NULL;
    if (!ours(watcher, epoch))
        Py_RETURN_NONE;
    fds = PyObject_CallMethodNoArgs(epoll, name_ready);
    for (i = 0; fds && i < PyList_GET_SIZE(fds); i++) {
        PyObject *fd = PyList_GET_ITEM(fds, i);
        PyObject *waiter = PyDict_GetItemWithError(waiters, fd);

        if (!waiter)
            continue; /* that wait ended otherwise */
        Py_INCREF(waiter);
        if (PyDict_DelItem(waiters, fd) < 0)
            PyErr_WriteUnraisable(waiters);
        switch_to(waiter, Py_True);
    }
    if (PyErr_Occurred())
        PyErr_WriteUnraisable(epoll);
    Py_XDECREF(fds);
    Py_RETURN_NONE;
}

/* ---- leases ---- */

/* 1: the wait of place is over, and *waiter is whom to tell, NULL where he left by himself. 0: it goes on. Or -1. */
static int is_over(PyObject *place, PyObject **waiter) {
    PyObject *result = PyObject_GetAttr(place, name_result), *wait;
    bool left = result && result != Py_None;
    int rc = -1;

    *waiter = NULL;
    Py_XDECREF(result);
    if (!result || left)
        return left ? 1 : -1;
    wait = PyObject_GetAttr(place, name_wait);
    result = wait ? PyObject_CallMethodNoArgs(wait, name_poll) : NULL;
    Py_XDECREF(wait);
    if (result && PyLong_Check(result) && PyLong_AsLong(result) == DBP_E_BUSY)
        rc = 0;
    else if (result && PyObject_SetAttr(place, name_result, result) == 0 &&
             (*waiter = PyObject_GetAttr(place, name_waiter)))
        rc = 1;
    Py_XDECREF(result);
    return rc;
}

/* Grants come in the order of the queue, so the first that waits on ends the round. */
static int serve(PyObject *queue) {
    int more;

    while ((more = PyObject_IsTrue(queue)) > 0) {
        PyObject *place = PySequence_GetItem(queue, 0), *waiter = NULL, *popped;

        more = place ? is_over(place, &waiter) : -1;
        Py_XDECREF(place);
        if (more <= 0)
            break;
        popped = PyObject_CallMethodNoArgs(queue, name_popleft);
        Py_XDECREF(popped);
        if (waiter)
            switch_to(waiter, Py_None);
        if (!popped)
            return -1;
    }
    return more;
}

static PyObject *wake_granted(PyObject *module, PyObject *args) {
    PyObject *queues, *watcher, *each;
    uint64_t count;
    Py_ssize_t i;
    unsigned epoch;
    int eventfd;

    (void)module;
    if (!PyArg_ParseTuple(args, "iO!OI:wake_granted", &eventfd, &PyDict_Type, &queues, &watcher, &epoch))
        return NULL;
    if (!ours(watcher, epoch))
        Py_RETURN_NONE;
    if (read(eventfd, &count, sizeof(count)) < 0) {
        /* Nobody has written: a look does no harm. */
    }
    each = PyDict_Values(queues); /* who is switched to may wait again, also for another pool */
    for (i = 0; each && i < PyList_GET_SIZE(each); i++)
        if (serve(PyList_GET_ITEM(each, i)) < 0)
            PyErr_WriteUnraisable(PyList_GET_ITEM(each, i));
    if (!each)
        PyErr_WriteUnraisable(queues);
    Py_XDECREF(each);
    Py_RETURN_NONE;
}

PyMethodDef dbp_py_hub_methods[] = {
    {"wake_ready", wake_ready, METH_VARARGS,
     "wake_ready(epoll, {fd: Waiter}, watcher, epoch): switches to those whose fd fired. In the hub."},
    {"wake_granted", wake_granted, METH_VARARGS,
     "wake_granted(eventfd, {pool: queue of places}, watcher, epoch): switches to those that were served. In the hub."},
    {NULL, NULL, 0, NULL}};
