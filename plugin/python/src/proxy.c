/* SPDX-License-Identifier: MIT
 * The base of lease.py's proxies: whether the lease lasts, calling a method of the driver object while nobody else may,
 * and the end. In C because every call of a user's passes here several times per query; the rest of a proxy is Python.
 */
#include "ext.h"

#include <stddef.h>
#include <structmember.h>

static int proxy_init(PyObject *object, PyObject *args, PyObject *kwargs) {
    dbp_py_proxy *self = (dbp_py_proxy *)object;
    PyObject *profile, *lease, *driver, *target;

    if (kwargs && PyDict_GET_SIZE(kwargs) > 0) {
        PyErr_SetString(PyExc_TypeError, "a proxy takes no keyword arguments");
        return -1;
    }
    if (!PyArg_UnpackTuple(args, "Proxy", 3, 3, &profile, &lease, &driver))
        return -1;
    target = PyObject_GetAttrString(driver, "connection");
    if (!target)
        return -1;
    Py_INCREF(profile);
    Py_XSETREF(self->profile, profile);
    Py_INCREF(lease);
    Py_XSETREF(self->lease, lease);
    Py_INCREF(driver);
    Py_XSETREF(self->driver, driver);
    Py_XSETREF(self->target, target);
    if (!self->owner && dbp_py_owner_join(self) < 0)
        return -1;
    self->users = 1;
    self->epoch = dbp_py_epoch();
    return 0;
}

dbp_py_proxy *dbp_py_proxy_make(PyTypeObject *type, PyObject *profile, PyObject *lease, dbp_py_driver *driver) {
    dbp_py_proxy *self = (dbp_py_proxy *)type->tp_alloc(type, 0);

    if (!self)
        return NULL;
    Py_INCREF(profile);
    self->profile = profile;
    Py_INCREF(lease);
    self->lease = lease;
    Py_INCREF(driver);
    self->driver = (PyObject *)driver;
    Py_INCREF(driver->connection);
    self->target = driver->connection;
    self->users = 1;
    self->epoch = dbp_py_epoch();
    return self;
}

static int proxy_traverse(PyObject *object, visitproc visit, void *arg) {
    dbp_py_proxy *self = (dbp_py_proxy *)object;

    Py_VISIT(self->profile);
    Py_VISIT(self->lease);
    Py_VISIT(self->driver);
    Py_VISIT(self->target);
    Py_VISIT(self->watched);
    return 0;
}

static int proxy_clear(PyObject *object) {
    dbp_py_proxy *self = (dbp_py_proxy *)object;

    Py_CLEAR(self->profile);
    Py_CLEAR(self->lease);
    Py_CLEAR(self->driver);
    Py_CLEAR(self->target);
    Py_CLEAR(self->watched);
    return 0;
}

static bool is_leased(const dbp_py_proxy *self) {
    return self->lease && self->lease != Py_None;
}

/* Nobody closed it. */
static void proxy_finalize(PyObject *object) {
    dbp_py_proxy *self = (dbp_py_proxy *)object;
    PyObject *type, *error, *traceback, *answer;

    if (!is_leased(self))
        return;
    PyErr_Fetch(&type, &error, &traceback);
    answer = PyObject_CallMethod(object, "_abandon", NULL);
    if (!answer)
        PyErr_Clear(); /* at interpreter exit anything may be gone; the kernel tells the broker then */
    Py_XDECREF(answer);
    PyErr_Restore(type, error, traceback);
}

static void proxy_dealloc(PyObject *object) {
    PyObject_GC_UnTrack(object);
    dbp_py_owner_leave((dbp_py_proxy *)object);
    proxy_clear(object);
    Py_TYPE(object)->tp_free(object);
}

/* Only tests have other leases than ours. */
int dbp_py_proxy_lasts(const dbp_py_proxy *self) {
    PyObject *answer;
    int yes;

    if (!is_leased(self))
        return 0;
    if (Py_TYPE(self->lease) == &dbp_py_lease_type)
        return dbp_py_lease_valid((const dbp_py_lease *)self->lease);
    answer = PyObject_CallMethod(self->lease, "valid", NULL);
    if (!answer)
        return -1;
    yes = PyObject_IsTrue(answer);
    Py_DECREF(answer);
    return yes;
}

/* Raises Database.<name>(...), Database being the class's DB-API module. */
static void refuse(dbp_py_proxy *self, const char *name, const char *number, const char *text) {
    PyObject *database = PyObject_GetAttrString((PyObject *)self, "Database"), *type = NULL, *error = NULL;

    if (database)
        type = PyObject_GetAttrString(database, name);
    if (type)
        error = number ? PyObject_CallFunction(type, "is", 0, text) : PyObject_CallFunction(type, "s", text);
    if (error)
        PyErr_SetObject(type, error);
    Py_XDECREF(error);
    Py_XDECREF(type);
    Py_XDECREF(database);
}

int dbp_py_proxy_check(dbp_py_proxy *self) {
    int yes = dbp_py_proxy_lasts(self);

    if (yes < 0)
        return -1;
    if (!yes)
        refuse(self, "InterfaceError", "0", "dbpool: this connection's session was returned to the pool");
    else if (self->busy)
        refuse(self, "ProgrammingError", NULL, "dbpool: another greenlet or thread is using this connection now");
    else
        return 0;
    return -1;
}

static PyObject *proxy_open_target(PyObject *object, PyObject *ignored) {
    dbp_py_proxy *self = (dbp_py_proxy *)object;

    (void)ignored;
    if (dbp_py_proxy_check(self) < 0)
        return NULL;
    Py_INCREF(self->target);
    return self->target;
}

/* The method has raised. The driver says what to raise in its place: what ended the wait inside the C library, where it
 * could only see a lost connection. */
static void failed(PyObject *driver) {
    PyObject *type, *error, *traceback, *instead;

    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback)
        PyException_SetTraceback(error, traceback);
    instead = PyObject_CallMethod(driver, "failed", "O", error);
    if (instead == Py_None) {
        PyErr_Restore(type, error, traceback);
    } else {
        if (instead) /* else failed() itself has raised */
            PyErr_SetObject((PyObject *)Py_TYPE(instead), instead);
        Py_DECREF(type);
        Py_DECREF(error);
        Py_XDECREF(traceback);
    }
    Py_XDECREF(instead);
}

int dbp_py_proxy_begin(dbp_py_proxy *self, PyObject **driver) {
    if (dbp_py_proxy_check(self) < 0)
        return -1;
    *driver = self->driver;
    Py_INCREF(*driver);
    self->busy = 1;
    return 0;
}

PyObject *dbp_py_proxy_end(dbp_py_proxy *self, PyObject *driver, PyObject *answer) {
    if (!answer)
        failed(driver); /* still busy: nobody comes between */
    self->busy = 0;
    Py_DECREF(driver);
    return answer;
}

static PyObject *proxy_call(PyObject *object, PyObject *const *args, Py_ssize_t n, PyObject *names) {
    dbp_py_proxy *self = (dbp_py_proxy *)object;
    PyObject *driver;

    if (n < 1) {
        PyErr_SetString(PyExc_TypeError, "_call(method, ...)");
        return NULL;
    }
    if (dbp_py_proxy_begin(self, &driver) < 0)
        return NULL;
    return dbp_py_proxy_end(self, driver, PyObject_Vectorcall(args[0], args + 1, (size_t)(n - 1), names));
}

/* ---- the end ---- */

static PyObject *proxy_close(PyObject *object, PyObject *const *args, Py_ssize_t n, PyObject *names) {
    Py_ssize_t all = n + (names ? PyTuple_GET_SIZE(names) : 0);
    dbp_py_proxy *self = (dbp_py_proxy *)object;
    int commit = 1, rc;
    PyObject *lease;

    if (all > 1 || (all > n && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "commit") != 0)) {
        PyErr_SetString(PyExc_TypeError, "close(commit=True) takes nothing else");
        return NULL;
    }
    if (all == 1 && (commit = PyObject_IsTrue(args[0])) < 0)
        return NULL;
    if (!is_leased(self))
        Py_RETURN_NONE;
    if (self->busy) {
        dbp_py_proxy_check(self); /* raises */
        return NULL;
    }
    if (!commit)
        self->undo = 1;
    if (--self->users > 0)
        Py_RETURN_NONE;
    lease = self->lease;
    self->lease = NULL;
    dbp_py_owner_leave(self);
    if (self->watched && self->watched != Py_None) {
        PyObject *answer = PyObject_CallMethod(object, "_unwatch", NULL);

        if (!answer)
            PyErr_WriteUnraisable(object); /* the lease goes back all the same */
        Py_XDECREF(answer);
    }
    rc = dbp_py_checkout_return(self->profile, lease, self->driver, !self->undo);
    Py_DECREF(lease);
    if (rc < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* From a finaliser, a greenlet's or a thread's end: memory only. */
static PyObject *proxy_abandon(PyObject *object, PyObject *ignored) {
    dbp_py_proxy *self = (dbp_py_proxy *)object;
    PyObject *lease = self->lease, *answer;

    (void)ignored;
    if (!is_leased(self))
        Py_RETURN_NONE;
    self->lease = NULL;
    dbp_py_owner_leave(self);
    answer = PyObject_CallMethod(self->profile, "give_up", "OOO", lease, self->driver, self->busy ? Py_True : Py_False);
    Py_DECREF(lease);
    return answer;
}

static PyObject *proxy_is_open(PyObject *object, void *closure) {
    int yes = dbp_py_proxy_lasts((dbp_py_proxy *)object);

    (void)closure;
    return yes < 0 ? NULL : PyBool_FromLong(yes);
}

static PyObject *proxy_is_inherited(PyObject *object, void *closure) {
    (void)closure;
    return PyBool_FromLong(((dbp_py_proxy *)object)->epoch != dbp_py_epoch());
}

static PyMethodDef proxy_methods[] = {
    {"_open", proxy_open_target, METH_NOARGS, "_open() -> the driver object, if it may be used now"},
    {"_call", (PyCFunction)(void (*)(void))proxy_call, METH_FASTCALL | METH_KEYWORDS,
     "_call(method, ...): calls a method that may use the wire"},
    {"close", (PyCFunction)(void (*)(void))proxy_close, METH_FASTCALL | METH_KEYWORDS,
     "close(commit=True)\n\nReturns the lease. Never waits for the server, and never raises for a session that is gone "
     "already.\n\ncommit=False: an open transaction is rolled back also where the pool's reset_on_return is 'commit'."},
    {"_abandon", proxy_abandon, METH_NOARGS, "_abandon(): returns a lease that nobody closed"},
    {NULL, NULL, 0, NULL}};

static PyMemberDef proxy_members[] = {{"_profile", T_OBJECT_EX, offsetof(dbp_py_proxy, profile), 0, NULL},
                                      {"_lease", T_OBJECT, offsetof(dbp_py_proxy, lease), 0, NULL},
                                      {"_driver", T_OBJECT_EX, offsetof(dbp_py_proxy, driver), 0, NULL},
                                      {"_target", T_OBJECT_EX, offsetof(dbp_py_proxy, target), 0, NULL},
                                      {"_watched", T_OBJECT, offsetof(dbp_py_proxy, watched), 0, NULL},
                                      {"_users", T_INT, offsetof(dbp_py_proxy, users), 0, NULL},
                                      {"_busy", T_BOOL, offsetof(dbp_py_proxy, busy), 0, NULL},
                                      {"_undo", T_BOOL, offsetof(dbp_py_proxy, undo), 0, NULL},
                                      {"_fresh", T_BOOL, offsetof(dbp_py_proxy, fresh), 0, NULL},
                                      {NULL, 0, 0, 0, NULL}};

static PyGetSetDef proxy_getset[] = {{"open", proxy_is_open, NULL, "True while the lease lasts.", NULL},
                                     {"_inherited", proxy_is_inherited, NULL, "It came here through a fork.", NULL},
                                     {NULL, NULL, NULL, NULL, NULL}};

PyTypeObject dbp_py_proxy_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dbpool._dbpool.Proxy",
    .tp_basicsize = sizeof(dbp_py_proxy),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_FINALIZE,
    .tp_doc = "Proxy(profile, lease, driver): see lease.py, whose classes name the DB-API module in Database.",
    .tp_new = PyType_GenericNew,
    .tp_init = proxy_init,
    .tp_dealloc = proxy_dealloc,
    .tp_finalize = proxy_finalize,
    .tp_traverse = proxy_traverse,
    .tp_clear = proxy_clear,
    .tp_methods = proxy_methods,
    .tp_members = proxy_members,
    .tp_getset = proxy_getset,
};
