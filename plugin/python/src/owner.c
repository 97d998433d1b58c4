/* SPDX-License-Identifier: MIT
 * Whose leases they are: an Owner's end returns those that were not closed. It is a greenlet's, called by gevent when
 * the greenlet is over (rawlink), or a thread's, dying with the thread's dict. It knows its proxies and does not keep
 * them: a dropped one is still collected. They know their Owner and do not keep it: nothing but its greenlet or thread
 * may.
 */
#include "ext.h"

#include <stddef.h>
#include <structmember.h>

struct dbp_py_owner {
    PyObject_HEAD dbp_py_proxy *first;
    PyObject *greenlet; /* a weak reference; NULL: a thread's */
    PyObject *weakrefs;
};

static PyObject *getcurrent; /* greenlet.getcurrent, once the program has greenlets */
static PyObject
    *bare_greenlet; /* greenlet.greenlet itself, which nobody can link to: the main one of a thread is of it */
static PyObject *name_rawlink, *name_unlink, *name_abandon, *key_in_thread;

/* ---- the list ---- */

static void enter(dbp_py_owner *owner, dbp_py_proxy *proxy) {
    proxy->owner = owner;
    proxy->previous = NULL;
    proxy->next = owner->first;
    if (owner->first)
        owner->first->previous = proxy;
    owner->first = proxy;
}

static void strike(dbp_py_proxy *proxy) {
    if (proxy->previous)
        proxy->previous->next = proxy->next;
    else
        proxy->owner->first = proxy->next;
    if (proxy->next)
        proxy->next->previous = proxy->previous;
    proxy->owner = NULL;
}

/* Returns what is still leased. Memory only, and nothing is raised: it runs at the end of a greenlet or thread, and at
 * interpreter exit anything may be gone. */
static void end(dbp_py_owner *owner) {
    PyObject *type, *error, *traceback;

    PyErr_Fetch(&type, &error, &traceback);
    while (owner->first) {
        PyObject *proxy = (PyObject *)owner->first, *answer;

        Py_INCREF(proxy);
        strike(owner->first);
        answer = PyObject_CallMethodNoArgs(proxy, name_abandon);
        if (!answer)
            PyErr_Clear();
        Py_XDECREF(answer);
        Py_DECREF(proxy);
    }
    PyErr_Restore(type, error, traceback);
}

/* ---- the type ---- */

static dbp_py_owner *owner_new(void) {
    dbp_py_owner *owner = PyObject_New(dbp_py_owner, &dbp_py_owner_type);

    if (owner) {
        owner->first = NULL;
        owner->greenlet = owner->weakrefs = NULL;
    }
    return owner;
}

static void owner_dealloc(PyObject *object) {
    dbp_py_owner *owner = (dbp_py_owner *)object;

    if (owner->weakrefs)
        PyObject_ClearWeakRefs(object);
    end(owner);
    Py_XDECREF(owner->greenlet);
    PyObject_Free(object);
}

static PyObject *owner_call(PyObject *object, PyObject *args, PyObject *kwargs) {
    (void)args;
    (void)kwargs;
    end((dbp_py_owner *)object);
    Py_RETURN_NONE;
}

PyTypeObject dbp_py_owner_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dbpool._dbpool.Owner",
    .tp_basicsize = sizeof(dbp_py_owner),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "A greenlet or thread, as the one whose end returns leases.",
    .tp_dealloc = owner_dealloc,
    .tp_call = owner_call,
    .tp_weaklistoffset = offsetof(dbp_py_owner, weakrefs),
};

int dbp_py_owner_init(void) {
    name_rawlink = PyUnicode_InternFromString("rawlink");
    name_unlink = PyUnicode_InternFromString("unlink");
    name_abandon = PyUnicode_InternFromString("_abandon");
    key_in_thread = PyUnicode_InternFromString("dbpool._dbpool.Owner");
    return name_rawlink && name_unlink && name_abandon && key_in_thread ? 0 : -1;
}

/* ---- finding it ---- */

/* The thread's, borrowed from the thread's dict. */
static dbp_py_owner *of_thread(void) {
    PyObject *dict = PyThreadState_GetDict(), *found;

    if (!dict) {
        PyErr_SetString(PyExc_RuntimeError, "dbpool: this thread has no state");
        return NULL;
    }
    found = PyDict_GetItemWithError(dict, key_in_thread);
    if (!found && !PyErr_Occurred()) {
        found = (PyObject *)owner_new();
        if (found && PyDict_SetItem(dict, key_in_thread, found) < 0)
            Py_CLEAR(found);
        else
            Py_XDECREF(found);
    }
    return (dbp_py_owner *)found;
}

static int greenlets(void) {
    PyObject *module;

    if (getcurrent)
        return 1;
    module = PyDict_GetItemString(PyImport_GetModuleDict(), "greenlet");
    if (!module)
        return 0;
    bare_greenlet = PyObject_GetAttrString(module, "greenlet");
    getcurrent = bare_greenlet ? PyObject_GetAttrString(module, "getcurrent") : NULL;
    return getcurrent ? 1 : -1;
}

/* The running greenlet when somebody can be told of its end, else NULL with or without an exception. */
static PyObject *linkable_greenlet(void) {
    PyObject *current;

    if (greenlets() <= 0)
        return NULL;
    current = PyObject_CallNoArgs(getcurrent);
    if (current && ((PyObject *)Py_TYPE(current) == bare_greenlet || !PyObject_HasAttr(current, name_rawlink)))
        Py_CLEAR(current);
    return current;
}

int dbp_py_owner_join(dbp_py_proxy *proxy) {
    PyObject *greenlet = linkable_greenlet(), *answer = NULL;
    dbp_py_owner *owner;

    if (!greenlet) {
        owner = PyErr_Occurred() ? NULL : of_thread();
        if (owner)
            enter(owner, proxy);
        return owner ? 0 : -1;
    }
    owner = owner_new();
    if (owner)
        owner->greenlet = PyWeakref_NewRef(greenlet, NULL);
    if (owner && owner->greenlet)
        answer = PyObject_CallMethodOneArg(greenlet, name_rawlink, (PyObject *)owner);
    if (answer)
        enter(owner, proxy);
    Py_XDECREF(owner); /* the greenlet keeps it */
    Py_DECREF(greenlet);
    Py_XDECREF(answer);
    return answer ? 0 : -1;
}

void dbp_py_owner_leave(dbp_py_proxy *proxy) {
    dbp_py_owner *owner = proxy->owner;
    PyObject *greenlet = NULL, *type, *error, *traceback, *answer;

    if (!owner)
        return;
    strike(proxy);
    if (!owner->greenlet)
        return;
#if PY_VERSION_HEX >= 0x030d0000
    if (PyWeakref_GetRef(owner->greenlet, &greenlet) <= 0)
        return;
#else
    greenlet = PyWeakref_GetObject(owner->greenlet);
    if (greenlet == Py_None)
        return;
    Py_INCREF(greenlet);
#endif
    PyErr_Fetch(&type, &error, &traceback);
    answer = PyObject_CallMethodOneArg(greenlet, name_unlink, (PyObject *)owner);
    if (!answer)
        PyErr_WriteUnraisable(greenlet);
    Py_XDECREF(answer);
    PyErr_Restore(type, error, traceback);
    Py_DECREF(greenlet);
}

PyObject *dbp_py_thread_owner(PyObject *module, PyObject *ignored) {
    PyObject *owner = (PyObject *)of_thread();

    (void)module;
    (void)ignored;
    Py_XINCREF(owner);
    return owner;
}
