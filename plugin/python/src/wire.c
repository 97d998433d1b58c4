/* SPDX-License-Identifier: MIT
 * The socket-like object that PyMySQL talks to. First it plays the session's login in memory, then it reads and writes
 * the session's fd: always non-blocking (the open file description is shared with other processes), waiting by
 * dbp_py_wait, timeouts kept here and never set on the socket. It also reads the status word off every EOF packet,
 * which PyMySQL 1.0 throws away, and keeps in mind whether the lease changed its session: by what the server reports
 * (DBP_STATUS_CHANGED) and by what the commands say (scan.c).
 *
 * An exception that ends a wait (a signal's, gevent's) leaves the wire in the middle of something. PyMySQL's own
 * clean-up would go on writing and reading, wait for ever, or report another error in its place: so the wire is dead
 * from then on, and the exception is kept for the caller.
 *
 * PyMySQL reads a packet as read(4) and read(length) from makefile("rb"), and writes by sendall; nothing else is used.
 */
#include "ext.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHUNK 16384u /* one recv; larger reads go straight into the answer */

typedef struct {
    PyObject_HEAD PyObject *gone; /* exception class for any use after close() */
    struct dbp_replay *replay;    /* the login being played, else NULL */
    int fd;                       /* -1: still in the login, or closed */
    bool closed;
    unsigned epoch;     /* in a forked child fd is closed already, and its number may be anybody's */
    int timeout_ms;     /* -1: none */
    unsigned status;    /* server status word, as last heard, without DBP_STATUS_CHANGED */
    bool changed;       /* in this lease, by all that is known */
    bool doubt;         /* an error packet came in this lease: it has no status word, and the last one is older */
    bool writes;        /* the answer that comes next is that of INSERT or its kin */
    bool wrote;         /* one has changed rows in the transaction that is open, by all that is known */
    bool opaque;        /* its character set is none of those that scan.c can read */
    bool autocommit;    /* the last command was SET autocommit: what it reports is no change */
    PyObject *ended;    /* the exception that ended a wait */
    uint32_t announced; /* length in the packet header that was read last */
    size_t start, end;  /* unread bytes of buffer */
    unsigned char buffer[CHUNK];
} wire_object;

static PyObject *wire_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    const struct dbp_api *api;
    wire_object *self;
    dbp_py_facts *facts;
    const char *charset;
    PyObject *gone;
    int status, r;

    (void)kwargs;
    if (!PyArg_ParseTuple(args, "O!siO:Wire", &dbp_py_facts_type, &facts, &charset, &status, &gone))
        return NULL;
    api = dbp_py_api();
    self = api ? (wire_object *)type->tp_alloc(type, 0) : NULL;
    if (!self)
        return NULL;
    Py_INCREF(gone);
    self->gone = gone;
    self->epoch = dbp_py_epoch();
    self->fd = -1;
    self->timeout_ms = -1;
    self->status = (unsigned)status;
    r = api->replay_new(&facts->facts, charset, (uint16_t)status, &self->replay);
    if (r == 0)
        return (PyObject *)self;
    Py_DECREF(self);
    PyErr_Format(PyExc_RuntimeError, "the login replay did not start (%d)", r);
    return NULL;
}

/* For tests and for nothing else: a Wire over any socket. */
static PyObject *wire_over(PyObject *type, PyObject *args) {
    wire_object *self;
    PyObject *gone;
    int fd;

    if (!PyArg_ParseTuple(args, "iO:over", &fd, &gone))
        return NULL;
    self = (wire_object *)((PyTypeObject *)type)->tp_alloc((PyTypeObject *)type, 0);
    if (!self)
        return NULL;
    Py_INCREF(gone);
    self->gone = gone;
    self->epoch = dbp_py_epoch();
    self->fd = fd;
    self->timeout_ms = -1;
    return (PyObject *)self;
}

static void wire_shut(wire_object *self) {
    if (self->replay)
        self->replay = dbp_py_api()->replay_free(self->replay);
    if (self->fd >= 0 && self->epoch == dbp_py_epoch()) {
        dbp_py_unguard(self->fd);
        close(self->fd);
    }
    self->fd = -1;
    self->closed = true;
}

static void wire_dealloc(PyObject *object) {
    wire_object *self = (wire_object *)object;

    wire_shut(self);
    Py_XDECREF(self->gone);
    Py_XDECREF(self->ended);
    Py_TYPE(object)->tp_free(object);
}

static bool usable(wire_object *self) {
    PyObject *args;

    if (self->ended) {
        PyErr_SetString(PyExc_OSError, "a wait on this session was broken off");
        return false;
    }
    if (!self->closed)
        return true;
    args = Py_BuildValue("(is)", 0, "dbpool: this connection's session was returned to the pool");
    if (args)
        PyErr_SetObject(self->gone, args);
    Py_XDECREF(args);
    return false;
}

/* The exception stays set as well. */
static void keep_exception(wire_object *self) {
    PyObject *type, *value, *traceback;

    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (!self->ended && value) {
        if (traceback)
            PyException_SetTraceback(value, traceback);
        Py_INCREF(value);
        self->ended = value;
    }
    PyErr_Restore(type, value, traceback);
}

static int wait_or_raise(wire_object *self, bool reading) {
    int fd = self->fd, ready = dbp_py_wait(fd, reading, self->timeout_ms);

    if (ready < 0) {
        keep_exception(self);
        return -1;
    }
    if (!usable(self) || self->fd != fd) /* closed while we waited */
        return PyErr_Occurred() ? -1 : (PyErr_SetString(PyExc_OSError, "the wire changed during a wait"), -1);
    if (ready == 0) {
        PyErr_SetString(PyExc_TimeoutError, "timed out");
        return -1;
    }
    return 0;
}

/* Bytes read into to; 0 at the end of the stream; -1. */
static Py_ssize_t receive(wire_object *self, void *to, size_t n) {
    for (;;) {
        ssize_t got;

        if (self->replay)
            return (Py_ssize_t)dbp_py_api()->replay_take(self->replay, to, n);
        got = recv(self->fd, to, n, MSG_DONTWAIT);
        if (got >= 0)
            return got;
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        if (wait_or_raise(self, true) < 0)
            return -1;
    }
}

#define IN_TRANS 0x0001u
#define MORE_RESULTS 0x0008u
#define NO_BACKSLASH_ESCAPES 0x0200u

static void hear(wire_object *self, unsigned status) {
    if ((status & DBP_STATUS_CHANGED) && !self->autocommit)
        self->changed = true;
    self->status = status & 0xFFFFu & ~DBP_STATUS_CHANGED;
    if (!(status & IN_TRANS))
        self->wrote = false;
}

#define COM_QUIT 0x01
#define COM_QUERY 0x03
#define COM_STATISTICS 0x09
#define COM_PROCESS_KILL 0x0C
#define COM_PING 0x0E

/* What is about to be sent: PyMySQL sends a command's first packet in one piece, and only that has sequence number 0
 * (or a chunk of a file that LOAD DATA LOCAL sends, which counts as a change anyway). */
static void look(wire_object *self, const unsigned char *data, size_t n) {
    enum dbp_py_effect effect = DBP_PY_CHANGES;

    if (n >= 4 && data[3] != 0)
        return;
    if (n >= 5 && !self->opaque && n - 4 == ((size_t)data[0] | (size_t)data[1] << 8 | (size_t)data[2] << 16)) {
        if (data[4] == COM_QUERY && n - 4 < 0xFFFFFFu) /* longer ones go on in another packet */
            effect = dbp_py_scan((const char *)data + 5, n - 5, !(self->status & NO_BACKSLASH_ESCAPES));
        else if (data[4] == COM_PING || data[4] == COM_PROCESS_KILL || data[4] == COM_STATISTICS || data[4] == COM_QUIT)
            effect = DBP_PY_QUIET;
    }
    if (effect == DBP_PY_CHANGES)
        self->changed = true;
    self->autocommit = effect == DBP_PY_AUTOCOMMIT;
    self->writes = effect == DBP_PY_WRITES;
}

/* PyMySQL reads a header, then exactly its payload: so 5 bytes that were announced and begin with 0xFE are an EOF
 * packet (a text row that begins with 0xFE is at least 9 long). */
static void note(wire_object *self, const unsigned char *data, size_t n) {
    if (n == 5 && self->announced == 5 && data[0] == 0xFE)
        hear(self, (unsigned)data[3] | (unsigned)data[4] << 8);
    /* An ERR packet; no row and no other answer begins so. What the statement did before it failed was not reported. It
     * is the last of its answers, whatever the one before it said of more. */
    if (n == self->announced && n >= 3 && data[0] == 0xFF) {
        self->changed = self->doubt = true;
        self->status &= ~MORE_RESULTS;
    }
    if (n == self->announced && self->writes) {
        /* An OK packet with rows that were changed; the driver tells its status. With RETURNING rows come instead. */
        if (n >= 7 && data[0] == 0 && data[1] != 0)
            self->wrote = true;
        self->writes = false;
    }
    self->announced = n == 4 ? (uint32_t)data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 : 0;
}

static PyObject *wire_read(PyObject *object, PyObject *arg) {
    wire_object *self = (wire_object *)object;
    Py_ssize_t wanted = PyLong_AsSsize_t(arg);
    size_t have = 0;
    PyObject *answer;
    char *to;

    if (wanted < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "read: how many bytes?");
        return NULL;
    }
    if (!usable(self))
        return NULL;
    answer = PyBytes_FromStringAndSize(NULL, wanted);
    if (!answer)
        return NULL;
    to = PyBytes_AS_STRING(answer);
    while (have < (size_t)wanted) {
        size_t left = (size_t)wanted - have;

        if (self->end > self->start) {
            size_t n = self->end - self->start < left ? self->end - self->start : left;

            memcpy(to + have, self->buffer + self->start, n);
            self->start += n;
            have += n;
            continue;
        }
        self->start = self->end = 0;
        {
            Py_ssize_t got =
                left >= CHUNK ? receive(self, to + have, left) : receive(self, self->buffer, sizeof(self->buffer));

            if (got < 0) {
                Py_DECREF(answer);
                return NULL;
            }
            if (got == 0)
                break; /* the caller sees that it is short, and says so */
            if (left >= CHUNK)
                have += (size_t)got;
            else
                self->end = (size_t)got;
        }
    }
    if (have < (size_t)wanted) {
        _PyBytes_Resize(&answer, (Py_ssize_t)have);
        return answer;
    }
    note(self, (const unsigned char *)to, have);
    return answer;
}

static PyObject *wire_sendall(PyObject *object, PyObject *arg) {
    wire_object *self = (wire_object *)object;
    Py_buffer data;
    size_t sent = 0;

    if (!usable(self) || PyObject_GetBuffer(arg, &data, PyBUF_SIMPLE) < 0)
        return NULL;
    if (self->replay) {
        int r = dbp_py_api()->replay_feed(self->replay, data.buf, (size_t)data.len);

        PyBuffer_Release(&data);
        if (r != 0)
            return PyErr_Format(PyExc_OSError, "the login replay did not understand the driver");
        Py_RETURN_NONE;
    }
    look(self, data.buf, (size_t)data.len);
    while (sent < (size_t)data.len) {
        ssize_t n = send(self->fd, (const char *)data.buf + sent, (size_t)data.len - sent, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n >= 0) {
            sent += (size_t)n;
            continue;
        }
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            PyErr_SetFromErrno(PyExc_OSError);
        else if (wait_or_raise(self, false) == 0)
            continue;
        PyBuffer_Release(&data);
        return NULL;
    }
    PyBuffer_Release(&data);
    Py_RETURN_NONE;
}

static PyObject *wire_settimeout(PyObject *object, PyObject *arg) {
    wire_object *self = (wire_object *)object;
    double seconds;

    if (!usable(self))
        return NULL;
    if (arg == Py_None) {
        self->timeout_ms = -1;
        Py_RETURN_NONE;
    }
    seconds = PyFloat_AsDouble(arg);
    if (seconds == -1.0 && PyErr_Occurred())
        return NULL;
    self->timeout_ms = seconds * 1e3 >= 2147483647.0 ? -1 : seconds <= 0.0 ? 0 : (int)(seconds * 1e3);
    Py_RETURN_NONE;
}

static PyObject *wire_makefile(PyObject *object, PyObject *args) {
    (void)args;
    Py_INCREF(object);
    return object;
}

static PyObject *wire_adopt(PyObject *object, PyObject *arg) {
    wire_object *self = (wire_object *)object;
    long fd = PyLong_AsLong(arg);

    if (fd == -1 && PyErr_Occurred())
        return NULL;
    if (!self->replay || self->closed || self->end > self->start) {
        PyErr_SetString(PyExc_RuntimeError, "adopt: the login is not over");
        return NULL;
    }
    if (dbp_py_guard((int)fd) < 0)
        return NULL;
    self->replay = dbp_py_api()->replay_free(self->replay);
    self->fd = (int)fd;
    Py_RETURN_NONE;
}

static PyObject *wire_refusal(PyObject *object, PyObject *ignored) {
    wire_object *self = (wire_object *)object;
    const char *why = self->replay ? dbp_py_api()->replay_refusal(self->replay) : NULL;

    (void)ignored;
    return PyUnicode_DecodeUTF8(why ? why : "", (Py_ssize_t)(why ? strlen(why) : 0), "replace");
}

static PyObject *wire_pending(PyObject *object, PyObject *ignored) {
    wire_object *self = (wire_object *)object;

    (void)ignored;
    return PyLong_FromSize_t(self->end - self->start);
}

static PyObject *wire_fileno(PyObject *object, PyObject *ignored) {
    (void)ignored;
    return PyLong_FromLong(((wire_object *)object)->fd);
}

static PyObject *wire_begin(PyObject *object, PyObject *arg) {
    wire_object *self = (wire_object *)object;
    long status = PyLong_AsLong(arg);

    if (status == -1 && PyErr_Occurred())
        return NULL;
    self->status = (unsigned)status & 0xFFFFu;
    self->changed = self->doubt = self->autocommit = self->writes = self->wrote = false;
    Py_RETURN_NONE;
}

static PyObject *wire_mark(PyObject *object, PyObject *ignored) {
    (void)ignored;
    ((wire_object *)object)->changed = true;
    Py_RETURN_NONE;
}

static PyObject *wire_ended(PyObject *object, PyObject *ignored) {
    wire_object *self = (wire_object *)object;
    PyObject *ended = self->ended ? self->ended : Py_None;

    (void)ignored;
    Py_INCREF(ended);
    return ended;
}

static PyObject *wire_close(PyObject *object, PyObject *ignored) {
    (void)ignored;
    wire_shut((wire_object *)object);
    Py_RETURN_NONE;
}

static PyObject *get_status(PyObject *object, void *closure) {
    (void)closure;
    return PyLong_FromUnsignedLong(((wire_object *)object)->status);
}

static int set_status(PyObject *object, PyObject *value, void *closure) {
    long status = value ? PyLong_AsLong(value) : 0;

    (void)closure;
    if (status == -1 && PyErr_Occurred())
        return -1;
    hear((wire_object *)object, (unsigned)status);
    return 0;
}

static PyObject *get_flag(PyObject *object, void *closure) {
    return PyBool_FromLong(*((const char *)object + (size_t)closure));
}

static int set_opaque(PyObject *object, PyObject *value, void *closure) {
    int opaque = value ? PyObject_IsTrue(value) : 0;

    (void)closure;
    if (opaque < 0)
        return -1;
    ((wire_object *)object)->opaque = opaque;
    return 0;
}

static PyGetSetDef wire_getset[] = {
    {"status", get_status, set_status, "server status word, as last heard; PyMySQL sets it from an OK packet", NULL},
    {"changed", get_flag, NULL, "this lease changed its session, by all that is known",
     (void *)offsetof(wire_object, changed)},
    {"doubt", get_flag, NULL, "an error came in this lease: status is older than that",
     (void *)offsetof(wire_object, doubt)},
    {"wrote", get_flag, NULL, "this lease has changed rows in the transaction that is open",
     (void *)offsetof(wire_object, wrote)},
    {"opaque", get_flag, set_opaque, "every statement counts as a change: they cannot be read",
     (void *)offsetof(wire_object, opaque)},
    {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef wire_methods[] = {
    {"over", wire_over, METH_VARARGS | METH_CLASS, "Wire.over(fd, gone): without a login, for tests; takes the fd"},
    {"read", wire_read, METH_O, "read(n) -> n bytes, fewer only at the end of the stream"},
    {"sendall", wire_sendall, METH_O, "sendall(data)"},
    {"settimeout", wire_settimeout, METH_O, "settimeout(seconds or None): of each wait from now on"},
    {"makefile", wire_makefile, METH_VARARGS, "makefile(mode) -> itself"},
    {"adopt", wire_adopt, METH_O, "adopt(fd): the login is over, the session's fd takes its place; takes the fd"},
    {"refusal", wire_refusal, METH_NOARGS, "refusal() -> what did not fit in the login, or ''"},
    {"pending", wire_pending, METH_NOARGS, "pending() -> bytes read from the session that nobody asked for yet"},
    {"fileno", wire_fileno, METH_NOARGS, "fileno() -> fd or -1"},
    {"begin", wire_begin, METH_O, "begin(status): another lease, of a session with this status"},
    {"mark", wire_mark, METH_NOARGS, "mark(): the session counts as changed"},
    {"ended", wire_ended, METH_NOARGS, "ended() -> the exception that ended a wait, or None; the wire is dead then"},
    {"close", wire_close, METH_NOARGS, "close(): closes this process's fd, writes nothing; harmless twice"},
    {NULL, NULL, 0, NULL}};

PyTypeObject dbp_py_wire_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dbpool._dbpool.Wire",
    .tp_basicsize = sizeof(wire_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Wire(facts, charset, status, gone): a session as PyMySQL's socket.",
    .tp_new = wire_new,
    .tp_dealloc = wire_dealloc,
    .tp_methods = wire_methods,
    .tp_getset = wire_getset,
};
