/* SPDX-License-Identifier: MIT
 * The base of lease.py's proxies: whether the lease lasts, and calling a method of the driver object while nobody else
 * may. In C because every call of a user's passes here several times per query; the rest of a proxy is Python.
 */
#include "ext.h"

#include <stddef.h>
#include <structmember.h>

typedef struct {
    PyObject_HEAD PyObject *profile; /* pool.py's */
    PyObject *lease;                 /* None once it was returned */
    PyObject *driver;
    PyObject *target;  /* the driver object */
    PyObject *owner;   /* lease.py's: whose end returns the lease */
    PyObject *watched; /* leaks.py's, with leak_threshold; NULL reads as None */
    int users;         /* more than 1 where use_threadlocal gave it again: so many must close it */
    char busy;         /* a call is under way */
    char undo;         /* one of the users wants no commit */
} proxy_object;

static int proxy_init(PyObject *object, PyObject *args, PyObject *kwargs) {
    proxy_object *self = (proxy_object *)object;
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
    Py_INCREF(Py_None);
    Py_XSETREF(self->owner, Py_None);
    self->users = 1;
    return 0;
}

static int proxy_traverse(PyObject *object, visitproc visit, void *arg) {
    proxy_object *self = (proxy_object *)object;

    Py_VISIT(self->profile);
    Py_VISIT(self->lease);
    Py_VISIT(self->driver);
    Py_VISIT(self->target);
    Py_VISIT(self->owner);
    Py_VISIT(self->watched);
    return 0;
}

static int proxy_clear(PyObject *object) {
    proxy_object *self = (proxy_object *)object;

    Py_CLEAR(self->profile);
    Py_CLEAR(self->lease);
    Py_CLEAR(self->driver);
    Py_CLEAR(self->target);
    Py_CLEAR(self->owner);
    Py_CLEAR(self->watched);
    return 0;
}

/* Nobody closed it. */
static void proxy_finalize(PyObject *object) {
    proxy_object *self = (proxy_object *)object;
    PyObject *type, *error, *traceback, *answer;

    if (!self->lease || self->lease == Py_None)
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
    proxy_clear(object);
    Py_TYPE(object)->tp_free(object);
}

/* 1, 0, or -1 with an exception. Only tests have other leases than ours. */
static int lasts(const proxy_object *self) {
    PyObject *answer;
    int yes;

    if (!self->lease || self->lease == Py_None)
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
static void refuse(proxy_object *self, const char *name, const char *number, const char *text) {
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

static int check(proxy_object *self) {
    int yes = lasts(self);

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
    proxy_object *self = (proxy_object *)object;

    (void)ignored;
    if (check(self) < 0)
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

static PyObject *proxy_call(PyObject *object, PyObject *const *args, Py_ssize_t n, PyObject *names) {
    proxy_object *self = (proxy_object *)object;
    PyObject *driver, *answer;

    if (n < 1) {
        PyErr_SetString(PyExc_TypeError, "_call(method, ...)");
        return NULL;
    }
    if (check(self) < 0)
        return NULL;
    driver = self->driver;
    Py_INCREF(driver);
    self->busy = 1;
    answer = PyObject_Vectorcall(args[0], args + 1, (size_t)(n - 1), names);
    if (!answer)
        failed(driver); /* still busy: nobody comes between */
    self->busy = 0;
    Py_DECREF(driver);
    return answer;
}

static PyObject *proxy_is_open(PyObject *object, void *closure) {
    int yes = lasts((proxy_object *)object);

    (void)closure;
    return yes < 0 ? NULL : PyBool_FromLong(yes);
}

static PyMethodDef proxy_methods[] = {
    {"_open", proxy_open_target, METH_NOARGS, "_open() -> the driver object, if it may be used now"},
    {"_call", (PyCFunction)(void (*)(void))proxy_call, METH_FASTCALL | METH_KEYWORDS,
     "_call(method, ...): calls a method that may use the wire"},
    {NULL, NULL, 0, NULL}};

static PyMemberDef proxy_members[] = {{"_profile", T_OBJECT_EX, offsetof(proxy_object, profile), 0, NULL},
                                      {"_lease", T_OBJECT_EX, offsetof(proxy_object, lease), 0, NULL},
                                      {"_driver", T_OBJECT_EX, offsetof(proxy_object, driver), 0, NULL},
                                      {"_target", T_OBJECT_EX, offsetof(proxy_object, target), 0, NULL},
                                      {"_owner", T_OBJECT_EX, offsetof(proxy_object, owner), 0, NULL},
                                      {"_watched", T_OBJECT, offsetof(proxy_object, watched), 0, NULL},
                                      {"_users", T_INT, offsetof(proxy_object, users), 0, NULL},
                                      {"_busy", T_BOOL, offsetof(proxy_object, busy), 0, NULL},
                                      {"_undo", T_BOOL, offsetof(proxy_object, undo), 0, NULL},
                                      {NULL, 0, 0, 0, NULL}};

static PyGetSetDef proxy_getset[] = {{"open", proxy_is_open, NULL, "True while the lease lasts.", NULL},
                                     {NULL, NULL, NULL, NULL, NULL}};

PyTypeObject dbp_py_proxy_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dbpool._dbpool.Proxy",
    .tp_basicsize = sizeof(proxy_object),
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
