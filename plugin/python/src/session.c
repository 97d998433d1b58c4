/* SPDX-License-Identifier: MIT
 * What a driver object is made from: a leased session's fd, its facts, and the login played to the driver by a thread
 * (mysqlclient). PyMySQL's login is played in memory by the Wire.
 */
#include "ext.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- Facts ---- */

static PyObject *facts_row(PyObject *object, void *closure) {
    const struct dbp_session_facts *f = &((dbp_py_facts *)object)->facts;
    PyObject *row = PyList_New(0);
    size_t at = 0;
    uint32_t i;

    (void)closure;
    for (i = 0; row && i < f->row_columns; i++) {
        PyObject *value;
        uint16_t n;

        if (at + sizeof(n) > sizeof(f->row))
            break;
        memcpy(&n, f->row + at, sizeof(n));
        at += sizeof(n);
        if (n == 0xFFFF) {
            value = Py_None;
            Py_INCREF(value);
        } else {
            if (at + n > sizeof(f->row))
                break;
            value = PyBytes_FromStringAndSize((const char *)f->row + at, n);
            at += n;
        }
        if (!value || PyList_Append(row, value) < 0)
            Py_CLEAR(row);
        Py_XDECREF(value);
    }
    return row;
}

static PyObject *facts_connection_id(PyObject *object, void *closure) {
    (void)closure;
    return PyLong_FromUnsignedLong(((dbp_py_facts *)object)->facts.connection_id);
}

static PyObject *facts_status(PyObject *object, void *closure) {
    (void)closure;
    return PyLong_FromUnsignedLong(((dbp_py_facts *)object)->facts.status & 0xFFFFu);
}

static PyObject *facts_tracked(PyObject *object, void *closure) {
    (void)closure;
    return PyBool_FromLong((((dbp_py_facts *)object)->facts.status & DBP_FACT_TRACKED) != 0);
}

static PyGetSetDef facts_getset[] = {{"connection_id", facts_connection_id, NULL, NULL, NULL},
                                     {"status", facts_status, NULL, "server status word after opening", NULL},
                                     {"tracked", facts_tracked, NULL, "the server reports changes", NULL},
                                     {"row", facts_row, NULL, "the first row of facts_sql: [bytes or None, ...]", NULL},
                                     {NULL, NULL, NULL, NULL, NULL}};

static void plain_dealloc(PyObject *object) {
    PyObject_Free(object);
}

PyTypeObject dbp_py_facts_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dbpool._dbpool.Facts",
    .tp_basicsize = sizeof(dbp_py_facts),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "What a process knows of a session.",
    .tp_dealloc = plain_dealloc,
    .tp_getset = facts_getset,
};

static PyObject *fetch(PyObject *module, PyObject *args) {
    const struct dbp_api *api;
    struct dbp_client *client;
    dbp_py_lease *lease;
    dbp_py_facts *facts;
    double seconds;
    int r, fd = -1;

    (void)module;
    if (!PyArg_ParseTuple(args, "O!d:fetch", &dbp_py_lease_type, &lease, &seconds))
        return NULL;
    client = dbp_py_client();
    if (!client)
        return NULL;
    if (!dbp_py_lease_held(lease))
        return PyLong_FromLong(DBP_E_STALE);
    facts = PyObject_New(dbp_py_facts, &dbp_py_facts_type);
    if (!facts)
        return NULL;
    api = dbp_py_api();
    r = api->session_fetch(client, &lease->lease, dbp_py_deadline(seconds), &fd, &facts->facts);
    if (r == 0) {
        if (dbp_py_guard(fd) == 0)
            return Py_BuildValue("(iN)", fd, facts);
        close(fd);
        Py_DECREF(facts);
        return NULL;
    }
    Py_DECREF(facts);
    if (PyErr_Occurred())
        return NULL; /* of the wait: DBP_E_INTERRUPTED */
    if (r > 0)
        return PyLong_FromLong(r);
    errno = -r;
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* ---- ReplayServer ---- */

typedef struct {
    PyObject_HEAD struct dbp_replay_server *server;
    char name[108];
} server_object;

static PyObject *server_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    const struct dbp_api *api = dbp_py_api();
    server_object *self;
    dbp_py_facts *facts;
    const char *charset;
    double seconds;
    int status, r;

    (void)kwargs;
    if (!api || !PyArg_ParseTuple(args, "O!sid:ReplayServer", &dbp_py_facts_type, &facts, &charset, &status, &seconds))
        return NULL;
    self = (server_object *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    r = api->replay_server_start(&facts->facts, charset, (uint16_t)status, dbp_py_deadline(seconds), self->name,
                                 sizeof(self->name), &self->server);
    if (r == 0)
        return (PyObject *)self;
    Py_DECREF(self);
    if (r < 0) {
        errno = -r;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    PyErr_Format(PyExc_RuntimeError, "the login replay did not start (%d)", r);
    return NULL;
}

static PyObject *server_stop(PyObject *object, PyObject *ignored) {
    server_object *self = (server_object *)object;
    struct dbp_replay_server *server = self->server;
    char refusal[DBP_TEXT_MAX] = "";

    (void)ignored;
    self->server = NULL;
    if (server) {
        Py_BEGIN_ALLOW_THREADS dbp_py_api()->replay_server_stop(server, refusal, sizeof(refusal));
        Py_END_ALLOW_THREADS
    }
    return PyUnicode_DecodeUTF8(refusal, (Py_ssize_t)strlen(refusal), "replace");
}

static void server_dealloc(PyObject *object) {
    PyObject *refusal = server_stop(object, NULL);

    if (!refusal)
        PyErr_Clear();
    Py_XDECREF(refusal);
    Py_TYPE(object)->tp_free(object);
}

static PyObject *server_name(PyObject *object, void *closure) {
    (void)closure;
    return PyUnicode_FromString(((server_object *)object)->name);
}

static PyGetSetDef server_getset[] = {{"name", server_name, NULL, "for unix_socket=, with a leading @", NULL},
                                      {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef server_methods[] = {
    {"stop", server_stop, METH_NOARGS, "stop() -> why the driver was refused, or ''. Joins the thread."},
    {NULL, NULL, 0, NULL}};

PyTypeObject dbp_py_replay_server_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dbpool._dbpool.ReplayServer",
    .tp_basicsize = sizeof(server_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "ReplayServer(facts, charset, status, seconds): plays the server's side of one login.",
    .tp_new = server_new,
    .tp_dealloc = server_dealloc,
    .tp_methods = server_methods,
    .tp_getset = server_getset,
};

static PyObject *close_fd(PyObject *module, PyObject *arg) {
    long fd = PyLong_AsLong(arg);

    (void)module;
    if (fd == -1 && PyErr_Occurred())
        return NULL;
    dbp_py_unguard((int)fd);
    close((int)fd);
    Py_RETURN_NONE;
}

/* Looks, takes nothing: another process may be in the middle of an answer. */
static PyObject *peek_end(PyObject *module, PyObject *arg) {
    long fd = PyLong_AsLong(arg);
    char byte;
    ssize_t n;

    (void)module;
    if (fd == -1 && PyErr_Occurred())
        return NULL;
    n = recv((int)fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return PyBool_FromLong(n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR));
}

/* Not the driver's own ping: that one waits as long as the driver's read timeout, which may be for ever. Both drivers
 * are idle here and number each command from 0, so a command between two of theirs goes unseen. */
static PyObject *ping(PyObject *module, PyObject *args) {
    static const uint8_t command[5] = {1, 0, 0, 0, 0x0e}; /* COM_PING */
    uint8_t answer[64] = {0};                             /* an OK packet without text has 7 bytes after its header */
    size_t have = 0, want = 4;
    int fd, timeout_ms;

    (void)module;
    if (!PyArg_ParseTuple(args, "ii:ping", &fd, &timeout_ms))
        return NULL;
    uint64_t deadline = dbp_py_deadline(timeout_ms / 1e3);

    if (send(fd, command, sizeof(command), MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)sizeof(command))
        Py_RETURN_FALSE;
    while (have < want) {
        uint64_t now = dbp_py_deadline(0.0);
        int ready = now >= deadline ? 0 : dbp_py_wait(fd, true, (int)((deadline - now) / 1000u) + 1);
        ssize_t n;

        if (ready < 0)
            return NULL;
        if (ready == 0)
            Py_RETURN_FALSE;
        n = recv(fd, answer + have, want - have, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (n <= 0)
            Py_RETURN_FALSE;
        have += (size_t)n;
        if (have == 4) {
            want = 4u + (answer[0] | (size_t)answer[1] << 8 | (size_t)answer[2] << 16);
            if (want <= 4 || want > sizeof(answer) || answer[3] != 1)
                Py_RETURN_FALSE;
        }
    }
    return PyBool_FromLong(answer[4] == 0);
}

PyMethodDef dbp_py_session_methods[] = {
    {"fetch", fetch, METH_VARARGS, "fetch(lease, seconds) -> (fd, Facts) or E_*: the fd is the caller's, guarded"},
    {"close", close_fd, METH_O, "close(fd): of a session; unguards it"},
    {"peek_end", peek_end, METH_O, "peek_end(fd) -> bool: the peer has closed; never waits"},
    {"ping", ping, METH_VARARGS, "ping(fd, timeout_ms) -> bool: the server answers on an idle session"},
    {NULL, NULL, 0, NULL}};
