/* SPDX-License-Identifier: MIT
 * Registering a pool, reading its counters, and the two values that core hands out as Python objects: Lease and Wait.
 * Both give up what they hold when they are dropped, atomics only: capacity is never lost to an exception.
 */
#include "ext.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

/* An outcome that the caller handles is a positive int, -errno is an OSError. */
static PyObject *outcome(int r) {
    if (r > 0)
        return PyLong_FromLong(r);
    errno = -r;
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* ---- Lease ---- */

PyObject *dbp_py_lease_wrap(const struct dbp_lease *lease, unsigned epoch) {
    dbp_py_lease *self = PyObject_New(dbp_py_lease, &dbp_py_lease_type);

    if (!self) {
        /* Out of memory: give it back, nobody has touched it. */
        const struct dbp_api *api = dbp_py_api();
        struct dbp_client *client = dbp_py_client();

        if (api && client)
            api->release(client, lease, api->lease_status(client, lease), DBP_RETURN_CLEAN);
        return NULL;
    }
    self->lease = *lease;
    self->epoch = epoch;
    self->held = true;
    return (PyObject *)self;
}

bool dbp_py_lease_held(const dbp_py_lease *self) {
    return self->held && self->epoch == dbp_py_epoch();
}

int dbp_py_lease_return(dbp_py_lease *self, uint16_t status, enum dbp_return how) {
    if (!dbp_py_lease_held(self))
        return DBP_E_STALE;
    self->held = false;
    return dbp_py_api()->release(dbp_py_client(), &self->lease, status, how);
}

static void lease_dealloc(PyObject *object) {
    dbp_py_lease *self = (dbp_py_lease *)object;

    /* Nobody knows any more what was done with it. */
    if (dbp_py_lease_held(self))
        dbp_py_lease_return(self, dbp_py_api()->lease_status(dbp_py_client(), &self->lease), DBP_RETURN_DOOM);
    PyObject_Free(self);
}

bool dbp_py_lease_valid(const dbp_py_lease *self) {
    return dbp_py_lease_held(self) && dbp_py_api()->lease_valid(dbp_py_client(), &self->lease);
}

static PyObject *lease_valid(PyObject *object, PyObject *ignored) {
    (void)ignored;
    return PyBool_FromLong(dbp_py_lease_valid((const dbp_py_lease *)object));
}

static PyObject *lease_status(PyObject *object, PyObject *ignored) {
    dbp_py_lease *self = (dbp_py_lease *)object;

    (void)ignored;
    return PyLong_FromLong(dbp_py_lease_held(self) ? dbp_py_api()->lease_status(dbp_py_client(), &self->lease) : 0);
}

static PyObject *lease_release(PyObject *object, PyObject *args) {
    int status, how, r;

    if (!PyArg_ParseTuple(args, "ii:release", &status, &how))
        return NULL;
    if (how < DBP_RETURN_CLEAN || how > DBP_RETURN_FULL) {
        PyErr_SetString(PyExc_ValueError, "release: how is CLEAN, RESET, COMMIT, FULL or DOOM");
        return NULL;
    }
    r = dbp_py_lease_return((dbp_py_lease *)object, (uint16_t)status, (enum dbp_return)how);
    return r < 0 ? outcome(r) : PyLong_FromLong(r);
}

static PyObject *lease_get(PyObject *object, void *closure) {
    const char *base = (const char *)&((dbp_py_lease *)object)->lease;
    uint32_t value;

    memcpy(&value, base + (size_t)closure, sizeof(value));
    return PyLong_FromUnsignedLong(value);
}

static PyGetSetDef lease_getset[] = {
    {"pool", lease_get, NULL, NULL, (void *)offsetof(struct dbp_lease, pool)},
    {"session", lease_get, NULL, "the session's slot", (void *)offsetof(struct dbp_lease, session)},
    {"generation", lease_get, NULL, NULL, (void *)offsetof(struct dbp_lease, generation)},
    {"incarnation", lease_get, NULL, "changes when another session takes the slot",
     (void *)offsetof(struct dbp_lease, incarnation)},
    {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef lease_methods[] = {
    {"valid", lease_valid, METH_NOARGS, "valid() -> bool: the session is still this lease's"},
    {"status", lease_status, METH_NOARGS, "status() -> int: the server status word that the previous holder left"},
    {"release", lease_release, METH_VARARGS,
     "release(status, how) -> 0 or E_*: gives the session back; harmless twice (E_STALE). Also from a finaliser."},
    {NULL, NULL, 0, NULL}};

PyTypeObject dbp_py_lease_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dbpool._dbpool.Lease",
    .tp_basicsize = sizeof(dbp_py_lease),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "The right to use one session. Dropped unreturned, the session is ended.",
    .tp_dealloc = lease_dealloc,
    .tp_methods = lease_methods,
    .tp_getset = lease_getset,
};

/* ---- Wait ---- */

typedef struct {
    PyObject_HEAD struct dbp_wait wait;
    uint64_t began_us;
    unsigned epoch;
    bool queued;
} wait_object;

static void wait_over(wait_object *self) {
    self->queued = false;
    dbp_py_api()->wait_account(dbp_py_client(), self->wait.pool, dbp_py_deadline(0.0) - self->began_us);
}

static PyObject *wait_poll(PyObject *object, PyObject *ignored) {
    wait_object *self = (wait_object *)object;
    struct dbp_lease lease;
    int r;

    (void)ignored;
    if (!self->queued || self->epoch != dbp_py_epoch())
        return outcome(DBP_E_STALE);
    r = dbp_py_api()->wait_poll(dbp_py_client(), &self->wait, &lease);
    if (r != DBP_E_BUSY)
        wait_over(self);
    return r == 0 ? dbp_py_lease_wrap(&lease, self->epoch) : outcome(r);
}

static PyObject *wait_cancel(PyObject *object, PyObject *ignored) {
    wait_object *self = (wait_object *)object;
    struct dbp_lease lease;
    int r;

    (void)ignored;
    if (!self->queued || self->epoch != dbp_py_epoch())
        return outcome(DBP_E_STALE);
    r = dbp_py_api()->wait_cancel(dbp_py_client(), &self->wait, &lease);
    wait_over(self);
    return r == 0 ? dbp_py_lease_wrap(&lease, self->epoch) : outcome(r);
}

static void wait_dealloc(PyObject *object) {
    wait_object *self = (wait_object *)object;

    if (self->queued && self->epoch == dbp_py_epoch()) {
        const struct dbp_api *api = dbp_py_api();
        struct dbp_client *client = dbp_py_client();
        struct dbp_lease lease;

        if (api->wait_cancel(client, &self->wait, &lease) == 0)
            api->release(client, &lease, api->lease_status(client, &lease), DBP_RETURN_CLEAN);
        wait_over(self);
    }
    PyObject_Free(self);
}

static PyMethodDef wait_methods[] = {
    {"poll", wait_poll, METH_NOARGS, "poll() -> Lease, or E_BUSY (still queued), or another E_* (ended)"},
    {"cancel", wait_cancel, METH_NOARGS, "cancel() -> Lease if one was granted meanwhile, else E_TIMEOUT"},
    {NULL, NULL, 0, NULL}};

PyTypeObject dbp_py_wait_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dbpool._dbpool.Wait",
    .tp_basicsize = sizeof(wait_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "A place in a pool's queue. Dropped, it leaves the queue.",
    .tp_dealloc = wait_dealloc,
    .tp_methods = wait_methods,
};

/* ---- taking ---- */

static PyObject *acquire_now(PyObject *module, PyObject *arg) {
    unsigned long pool = PyLong_AsUnsignedLong(arg);
    struct dbp_client *client;
    struct dbp_lease lease;
    int r;

    (void)module;
    if (pool == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    client = dbp_py_client();
    if (!client)
        return NULL;
    r = dbp_py_api()->acquire_now(client, (uint32_t)pool, &lease);
    return r == 0 ? dbp_py_lease_wrap(&lease, dbp_py_epoch()) : outcome(r);
}

/* Asked by core after a signal, without the GIL. The exception stays set in this thread. */
static bool interrupted(void *arg) {
    PyGILState_STATE state = PyGILState_Ensure();
    bool raised = PyErr_CheckSignals() < 0;

    (void)arg;
    PyGILState_Release(state);
    return raised;
}

static PyObject *acquire(PyObject *module, PyObject *args) {
    struct dbp_client *client;
    struct dbp_lease lease;
    unsigned pool;
    double seconds;
    int r;

    (void)module;
    if (!PyArg_ParseTuple(args, "Id:acquire", &pool, &seconds))
        return NULL;
    client = dbp_py_client();
    if (!client)
        return NULL;
    Py_BEGIN_ALLOW_THREADS r = dbp_py_api()->acquire(client, pool, dbp_py_deadline(seconds), interrupted, NULL, &lease);
    Py_END_ALLOW_THREADS if (r == DBP_E_INTERRUPTED && PyErr_Occurred()) return NULL;
    return r == 0 ? dbp_py_lease_wrap(&lease, dbp_py_epoch()) : outcome(r);
}

static PyObject *wait_begin(PyObject *module, PyObject *arg) {
    unsigned long pool = PyLong_AsUnsignedLong(arg);
    struct dbp_client *client;
    wait_object *self;
    int r;

    (void)module;
    if (pool == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    client = dbp_py_client();
    self = client ? PyObject_New(wait_object, &dbp_py_wait_type) : NULL;
    if (!self)
        return NULL;
    self->queued = false;
    self->epoch = dbp_py_epoch();
    self->began_us = dbp_py_deadline(0.0);
    r = dbp_py_api()->wait_begin(client, (uint32_t)pool, DBP_WAIT_EVENT, &self->wait);
    if (r == 0) {
        self->queued = true;
        return (PyObject *)self;
    }
    Py_DECREF(self);
    return outcome(r);
}

static PyObject *wait_eventfd(PyObject *module, PyObject *ignored) {
    struct dbp_client *client = dbp_py_client();

    (void)module;
    (void)ignored;
    return client ? PyLong_FromLong(dbp_py_api()->wait_fd(client)) : NULL;
}

/* ---- registering ---- */

static int put_text(char *to, size_t size, PyObject *spec, const char *key) {
    PyObject *value = PyDict_GetItemString(spec, key); /* borrowed */
    char *bytes;
    Py_ssize_t n;

    if (!value)
        return 0;
    if (PyBytes_AsStringAndSize(value, &bytes, &n) < 0)
        return -1;
    if ((size_t)n >= size || memchr(bytes, 0, (size_t)n)) {
        PyErr_Format(PyExc_ValueError, "%s is longer than %zu bytes or has a NUL in it", key, size - 1);
        return -1;
    }
    memcpy(to, bytes, (size_t)n);
    return 0;
}

/* A list of statements, each closed by a NUL. */
static int put_statements(char *to, size_t size, PyObject *spec, const char *key) {
    PyObject *list = PyDict_GetItemString(spec, key);
    size_t used = 0;
    Py_ssize_t i;

    for (i = 0; list && i < PyList_GET_SIZE(list); i++) {
        char *bytes;
        Py_ssize_t n;

        if (PyBytes_AsStringAndSize(PyList_GET_ITEM(list, i), &bytes, &n) < 0)
            return -1;
        if (used + (size_t)n + 2 > size || memchr(bytes, 0, (size_t)n)) {
            PyErr_Format(PyExc_ValueError,
                         "init_command, with what the pool adds to it, is longer than %zu bytes or has a NUL in it",
                         size - 2);
            return -1;
        }
        memcpy(to + used, bytes, (size_t)n);
        used += (size_t)n + 1;
    }
    return 0;
}

static int put_number(uint32_t *to, PyObject *spec, const char *key) {
    PyObject *value = PyDict_GetItemString(spec, key);
    unsigned long number;

    if (!value)
        return 0;
    number = PyLong_AsUnsignedLong(value);
    if (number == (unsigned long)-1 && PyErr_Occurred())
        return -1;
    if (number > UINT32_MAX) {
        PyErr_Format(PyExc_ValueError, "%s is out of range", key);
        return -1;
    }
    *to = (uint32_t)number;
    return 0;
}

static int spec_fill(struct dbp_pool_spec *to, PyObject *spec) {
#define TEXT(field) put_text(to->field, sizeof(to->field), spec, #field) < 0
#define NUMBER(field) put_number(&to->field, spec, #field) < 0
    if (TEXT(alias) || TEXT(host) || TEXT(unix_socket) || TEXT(user) || TEXT(password) || TEXT(database) ||
        TEXT(charset) || TEXT(facts_sql) || put_statements(to->init_sql, sizeof(to->init_sql), spec, "init_sql") < 0)
        return -1;
    if (NUMBER(port) || NUMBER(client_flags) || NUMBER(autocommit) || NUMBER(connect_timeout_s) || NUMBER(pool_size) ||
        NUMBER(max_overflow) || NUMBER(recycle_s) || NUMBER(max_lifetime_s) || NUMBER(idle_timeout_s) ||
        NUMBER(keepalive_s) || NUMBER(min_size) || NUMBER(core_size) || NUMBER(retire_interval_ms) ||
        NUMBER(retire_quantity) || NUMBER(unload_timeout_ms) || NUMBER(max_waiting) ||
        NUMBER(overflow_grace_ms))
        return -1;
#undef TEXT
#undef NUMBER
    return 0;
}

static PyObject *pool_register(PyObject *module, PyObject *args) {
    struct dbp_pool_spec spec = {0};
    char why[DBP_TEXT_MAX] = "";
    struct dbp_client *client;
    uint32_t pool = 0;
    PyObject *dict;
    double seconds;
    int r;

    (void)module;
    if (!PyArg_ParseTuple(args, "O!d:register", &PyDict_Type, &dict, &seconds))
        return NULL;
    client = dbp_py_client();
    if (!client)
        return NULL;
    if (spec_fill(&spec, dict) < 0) {
        explicit_bzero(&spec, sizeof(spec));
        return NULL;
    }
    r = dbp_py_api()->client_register(client, &spec, dbp_py_deadline(seconds), why, sizeof(why), &pool);
    explicit_bzero(&spec, sizeof(spec));
    if (PyErr_Occurred())
        return NULL; /* of the wait: DBP_E_INTERRUPTED */
    if (r < 0)
        return outcome(r);
    return Py_BuildValue("(iIs)", r, (unsigned)pool, why);
}

static PyObject *pool_announce(PyObject *module, PyObject *arg) {
    struct dbp_pool_spec spec = {0};
    const struct dbp_api *api = dbp_py_api();
    int r;

    (void)module;
    if (!api)
        return NULL;
    if (!PyDict_Check(arg)) {
        PyErr_SetString(PyExc_TypeError, "announce: a dict of dbp_pool_spec's fields");
        return NULL;
    }
    r = spec_fill(&spec, arg) < 0 ? -1 : api->announce(&spec);
    explicit_bzero(&spec, sizeof(spec));
    if (PyErr_Occurred())
        return NULL;
    return r < 0 ? outcome(r) : PyLong_FromLong(r);
}

/* ---- looking ---- */

static PyObject *pool_stats(PyObject *module, PyObject *arg) {
    unsigned long pool = PyLong_AsUnsignedLong(arg);
    struct dbp_client *client = dbp_py_client();
    struct dbp_stats s = {0};

    (void)module;
    if (!client || (pool == (unsigned long)-1 && PyErr_Occurred()))
        return NULL;
    dbp_py_api()->pool_stats(client, (uint32_t)pool, &s);
    return Py_BuildValue("{sLsLsLsLsLsLsLsLsLsLsLsLsLsLsLsLsLsLsLsL}", "size", (long long)s.size, "max",
                         (long long)s.max, "idle", (long long)s.idle, "leased", (long long)s.leased, "opening",
                         (long long)s.opening, "resetting", (long long)s.resetting, "closing", (long long)s.closing,
                         "waiting", (long long)s.waiting, "opened", (long long)s.opened, "closed", (long long)s.closed,
                         "acquires", (long long)s.acquires, "waits", (long long)s.waits, "timeouts",
                         (long long)s.timeouts, "wait_us", (long long)s.wait_us, "failures", (long long)s.failures,
                         "resets", (long long)s.resets, "undone", (long long)s.undone, "kills", (long long)s.kills,
                         "all_size", (long long)s.all_size, "all_max", (long long)s.all_max);
}

static PyObject *pool_error(PyObject *module, PyObject *arg) {
    unsigned long pool = PyLong_AsUnsignedLong(arg);
    struct dbp_client *client = dbp_py_client();
    struct dbp_error e = {0};
    PyObject *text, *answer;

    (void)module;
    if (!client || (pool == (unsigned long)-1 && PyErr_Occurred()))
        return NULL;
    dbp_py_api()->pool_error(client, (uint32_t)pool, &e);
    text = PyUnicode_DecodeUTF8(e.text, (Py_ssize_t)strnlen(e.text, sizeof(e.text)), "replace");
    if (!text)
        return NULL;
    answer = Py_BuildValue("(IN)", (unsigned)e.code, text);
    return answer;
}

#define HOLDERS_SHOWN 8 /* as many as an error message can bear */

static PyObject *pool_holders(PyObject *module, PyObject *arg) {
    unsigned long pool = PyLong_AsUnsignedLong(arg);
    struct dbp_client *client = dbp_py_client();
    struct dbp_holder holders[HOLDERS_SHOWN];
    PyObject *list;
    uint32_t all, i;

    (void)module;
    if (!client || (pool == (unsigned long)-1 && PyErr_Occurred()))
        return NULL;
    all = dbp_py_api()->pool_holders(client, (uint32_t)pool, HOLDERS_SHOWN, holders);
    list = PyList_New(0);
    for (i = 0; list && i < all && i < HOLDERS_SHOWN; i++) {
        PyObject *one = Py_BuildValue("(sII)", holders[i].label, (unsigned)holders[i].pid, (unsigned)holders[i].leases);

        if (!one || PyList_Append(list, one) < 0)
            Py_CLEAR(list);
        Py_XDECREF(one);
    }
    return list ? Py_BuildValue("(IN)", (unsigned)all, list) : NULL;
}

PyMethodDef dbp_py_pool_methods[] = {
    {"register", pool_register, METH_VARARGS,
     "register(spec, seconds) -> (0 or E_*, pool, text): spec is a dict of dbp_pool_spec's fields, texts as bytes"},
    {"announce", pool_announce, METH_O,
     "announce(spec) -> 0 or E_*: in the master before its fork: the pool is made when the broker starts"},
    {"acquire_now", acquire_now, METH_O, "acquire_now(pool) -> Lease or E_*: never waits"},
    {"acquire", acquire, METH_VARARGS, "acquire(pool, seconds) -> Lease or E_*: blocks the thread, without the GIL"},
    {"wait_begin", wait_begin, METH_O, "wait_begin(pool) -> Wait or E_*: queues for an event loop"},
    {"wait_eventfd", wait_eventfd, METH_NOARGS, "wait_eventfd() -> fd: written when a Wait of this process is over"},
    {"stats", pool_stats, METH_O, "stats(pool) -> dict of counters"},
    {"error", pool_error, METH_O, "error(pool) -> (code, text) of the last failed login"},
    {"holders", pool_holders, METH_O, "holders(pool) -> (number, [(label, pid, leases), ...]), most leases first"},
    {NULL, NULL, 0, NULL}};
