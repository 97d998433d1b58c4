/* SPDX-License-Identifier: MIT
 * The quick way of a checkout and of a return, which nearly all take: a session is free, its driver object is here, and
 * when it comes back nothing remarkable has happened to it. Whatever else may be is pool.py's, whose Profile and
 * drivers/ whose Driver have their bases here; connect() and the return go there when one of the conditions is not met.
 */
#include "ext.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <structmember.h>

/* ---- Driver ---- */

static int driver_traverse(PyObject *object, visitproc visit, void *arg) {
    dbp_py_driver *self = (dbp_py_driver *)object;

    Py_VISIT(self->connection);
    Py_VISIT(self->native);
    return 0;
}

static int driver_clear(PyObject *object) {
    dbp_py_driver *self = (dbp_py_driver *)object;

    Py_CLEAR(self->connection);
    Py_CLEAR(self->native);
    return 0;
}

static void driver_dealloc(PyObject *object) {
    PyObject_GC_UnTrack(object);
    driver_clear(object);
    Py_TYPE(object)->tp_free(object);
}

static PyMemberDef driver_members[] = {
    {"session", T_UINT, offsetof(dbp_py_driver, session), 0, "the slot"},
    {"incarnation", T_UINT, offsetof(dbp_py_driver, incarnation), 0, "of the session in it"},
    {"connection", T_OBJECT, offsetof(dbp_py_driver, connection), 0, "the driver object; None once destroyed"},
    {"native", T_OBJECT, offsetof(dbp_py_driver, native), 0, "mysqlclient's Native"},
    {"leased", T_BOOL, offsetof(dbp_py_driver, leased), 0, "a proxy has it"},
    {"broken", T_BOOL, offsetof(dbp_py_driver, broken), 0, "the session ends with the lease"},
    {"tracked", T_BOOL, offsetof(dbp_py_driver, tracked), 0, "the server reports changes of the session's state"},
    {"quick", T_BOOL, offsetof(dbp_py_driver, quick), 0, "native says all: checkout() and settle() need not be asked"},
    {"odd", T_BOOL, offsetof(dbp_py_driver, odd), 0, "but in this lease settle() must be"},
    {NULL, 0, 0, 0, NULL}};

PyTypeObject dbp_py_driver_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dbpool._dbpool.Driver",
    .tp_basicsize = sizeof(dbp_py_driver),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "Base of the drivers' Driver: see drivers/.",
    .tp_new = PyType_GenericNew,
    .tp_dealloc = driver_dealloc,
    .tp_traverse = driver_traverse,
    .tp_clear = driver_clear,
    .tp_members = driver_members,
};

/* ---- Checkout ---- */

typedef struct {
    PyObject_HEAD PyObject *objects; /* {session slot: Driver} */
    PyTypeObject *connection;        /* what connect() makes: a Proxy */
    unsigned pool;
    char quick; /* cleared while there is something else to do at a checkout */
    char autocommit;
    char commits;     /* reset_on_return: COMMIT instead of ROLLBACK */
    char full;        /* reset the whole session after each lease */
    char full_if_new; /* the same where the lease has changed the session */
} checkout_object;

static PyObject *name_slowly, *name_checkout, *name_give_back;

static int checkout_init(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"pool", "objects", "connection", "autocommit", "reset", NULL};
    checkout_object *self = (checkout_object *)object;
    PyObject *objects, *connection;
    const char *reset;
    int autocommit;
    unsigned pool;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "IO!O!ps:Checkout", names, &pool, &PyDict_Type, &objects,
                                     &PyType_Type, &connection, &autocommit, &reset))
        return -1;
    if (!PyType_IsSubtype((PyTypeObject *)connection, &dbp_py_proxy_type)) {
        PyErr_SetString(PyExc_TypeError, "Checkout: connection is a subclass of Proxy");
        return -1;
    }
    Py_INCREF(objects);
    Py_XSETREF(self->objects, objects);
    Py_INCREF(connection);
    Py_XSETREF(self->connection, (PyTypeObject *)connection);
    self->pool = pool;
    self->autocommit = (char)autocommit;
    self->commits = strcmp(reset, "commit") == 0 ? 1 : 0;
    self->full = strcmp(reset, "full") == 0 ? 1 : 0;
    self->full_if_new = strcmp(reset, "auto") == 0 ? 1 : 0;
    return 0;
}

static int checkout_traverse(PyObject *object, visitproc visit, void *arg) {
    Py_VISIT(((checkout_object *)object)->objects);
    Py_VISIT(((checkout_object *)object)->connection);
    return 0;
}

static int checkout_clear(PyObject *object) {
    Py_CLEAR(((checkout_object *)object)->objects);
    Py_CLEAR(((checkout_object *)object)->connection);
    return 0;
}

static void checkout_dealloc(PyObject *object) {
    PyObject_GC_UnTrack(object);
    checkout_clear(object);
    Py_TYPE(object)->tp_free(object);
}

/* Borrowed: this session's driver object when it can be had the quick way, else NULL, with or without an exception. */
static dbp_py_driver *quick_driver(const checkout_object *self, const dbp_py_lease *lease) {
    PyObject *slot = PyLong_FromUnsignedLong(lease->lease.session), *found;
    dbp_py_driver *driver;

    if (!slot)
        return NULL;
    found = PyDict_GetItemWithError(self->objects, slot);
    Py_DECREF(slot);
    if (!found || !PyObject_TypeCheck(found, &dbp_py_driver_type))
        return NULL;
    driver = (dbp_py_driver *)found;
    if (!driver->quick || driver->incarnation != lease->lease.incarnation || !driver->connection || !driver->native ||
        Py_TYPE(driver->native) != &dbp_py_native_type)
        return NULL;
    return driver;
}

static PyObject *checkout_connect(PyObject *object, PyObject *ignored) {
    checkout_object *self = (checkout_object *)object;
    struct dbp_client *client;
    struct dbp_lease got;
    dbp_py_driver *driver;
    dbp_py_proxy *proxy;
    dbp_py_lease *lease;

    (void)ignored;
    if (!self->quick || !dbp_py_wait_is_set_up())
        return PyObject_CallMethodNoArgs(object, name_slowly);
    client = dbp_py_client();
    if (!client)
        return NULL;
    if (dbp_py_api()->acquire_now(client, self->pool, &got) != 0)
        return PyObject_CallMethodNoArgs(object, name_slowly);
    lease = (dbp_py_lease *)dbp_py_lease_wrap(&got, dbp_py_epoch());
    if (!lease)
        return NULL;
    driver = quick_driver(self, lease);
    if (!driver) {
        PyObject *answer =
            PyErr_Occurred() ? NULL : PyObject_CallMethodOneArg(object, name_checkout, (PyObject *)lease);

        Py_DECREF(lease);
        return answer;
    }
    if (dbp_py_native_begin(driver->native, dbp_py_api()->lease_status(client, &got)) < 0) {
        Py_DECREF(lease);
        return NULL;
    }
    driver->leased = 1;
    proxy = dbp_py_proxy_make(self->connection, object, (PyObject *)lease, driver);
    Py_DECREF(lease);
    if (proxy && dbp_py_owner_join(proxy) < 0)
        Py_CLEAR(proxy); /* which gives the lease up */
    return (PyObject *)proxy;
}

/* 1 when the lease was given back, -1 when that failed; 0: nothing was done and pool.py decides. */
static int quick_return(const checkout_object *self, dbp_py_lease *lease, PyObject *object, bool commit) {
    dbp_py_driver *driver = (dbp_py_driver *)object;
    enum dbp_return how;
    bool grown, changed;
    uint16_t status;
    int rc;

    if (!PyObject_TypeCheck(object, &dbp_py_driver_type) || !driver->quick || driver->broken || driver->odd)
        return 0;
    how = dbp_py_native_verdict(driver->native, self->autocommit, &status, &grown, &changed);
    if (how == DBP_RETURN_DOOM || grown)
        return 0;
    if (self->full || (self->full_if_new && (changed || !driver->tracked)))
        how = DBP_RETURN_FULL;
    else if (how == DBP_RETURN_RESET && self->commits && commit)
        how = DBP_RETURN_COMMIT;
    driver->leased = 0;
    rc = dbp_py_lease_return(lease, status, how);
    if (rc >= 0)
        return 1;
    errno = -rc;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

int dbp_py_checkout_return(PyObject *profile, PyObject *lease, PyObject *driver, bool commit) {
    PyObject *answer;

    if (PyObject_TypeCheck(profile, &dbp_py_checkout_type) && Py_TYPE(lease) == &dbp_py_lease_type) {
        int rc = quick_return((checkout_object *)profile, (dbp_py_lease *)lease, driver, commit);

        if (rc != 0)
            return rc < 0 ? -1 : 0;
    }
    answer = PyObject_CallMethodObjArgs(profile, name_give_back, lease, driver, commit ? Py_True : Py_False, NULL);
    Py_XDECREF(answer);
    return answer ? 0 : -1;
}

static PyMethodDef checkout_methods[] = {
    {"connect", checkout_connect, METH_NOARGS,
     "connect() -> a connection of the driver's kind on a session of the pool. Any thread or greenlet."},
    {NULL, NULL, 0, NULL}};

static PyMemberDef checkout_members[] = {
    {"objects", T_OBJECT_EX, offsetof(checkout_object, objects), READONLY, "{session slot: Driver}"},
    {"pool_id", T_UINT, offsetof(checkout_object, pool), 0, "the pool, as it was registered last"},
    {"quick", T_BOOL, offsetof(checkout_object, quick), 0, "connect() may go the quick way; set by pool.py"},
    {NULL, 0, 0, 0, NULL}};

PyTypeObject dbp_py_checkout_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dbpool._dbpool.Checkout",
    .tp_basicsize = sizeof(checkout_object),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "Checkout(pool, objects, connection, autocommit, reset): base of pool.py's Profile.",
    .tp_new = PyType_GenericNew,
    .tp_init = checkout_init,
    .tp_dealloc = checkout_dealloc,
    .tp_traverse = checkout_traverse,
    .tp_clear = checkout_clear,
    .tp_methods = checkout_methods,
    .tp_members = checkout_members,
};

int dbp_py_checkout_init(void) {
    name_slowly = PyUnicode_InternFromString("_connect");
    name_checkout = PyUnicode_InternFromString("_checkout");
    name_give_back = PyUnicode_InternFromString("give_back");
    return name_slowly && name_checkout && name_give_back ? 0 : -1;
}
