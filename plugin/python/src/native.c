/* SPDX-License-Identifier: MIT
 * The MYSQL behind a stock mysqlclient object: taken from its capsule, never linked against. Functions are looked up in
 * MySQLdb's own extension file, so that they are those of the library that made the object. The struct's layout is that
 * of MariaDB's mysql.h and is used only after it was checked against the library's own answers.
 *
 * What it is for:
 *   adopt     puts a session's fd under the object's fd number
 *   install   makes libmariadb wait through us (MARIADB_OPT_IO_WAIT), so that a greenlet waits on its hub
 *   checkout  makes the object's cached state that of the session, which others used meanwhile
 *   query     looks at a statement before the object sends it: may it change the session? (scan.c)
 *   note      gathers what the server reported since (DBP_STATUS_CHANGED); each answer overwrites the one before, so it
 *             comes before every command. Of several results only the last would be seen: scan.c counts what gives
 *             several as a change
 *   settle    says in which state the object leaves the session
 *   fence     takes the session away from the object; drop lets the object die. Without drop it lives for ever: a
 *             MYSQL that dies at interpreter exit would send COM_QUIT on a session that is someone else's by then.
 */
#include "ext.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <structmember.h>
#include <unistd.h>

#if __has_include(<mariadb/mysql.h>)
#include <mariadb/mysql.h>
#define HAVE_LAYOUT 1
#else
#define HAVE_LAYOUT 0
typedef struct st_mysql MYSQL;
#endif

#define CAPSULE "_mysql.connection.native_connection" /* mysqlclient 1.4 to 2.2 */
#define BUFFER_KEPT (1024ul * 1024ul) /* an object whose net buffer grew past this is not worth keeping */

struct library {
    void *handle;
    int (*optionsv)(MYSQL *, int, ...);
    int (*get_optionv)(MYSQL *, int, void *, ...);
    char (*get_infov)(MYSQL *, int, void *, ...);
    int (*get_socket)(MYSQL *);
    unsigned long (*thread_id)(MYSQL *);
    char (*more_results)(const MYSQL *);
    const char *(*error)(MYSQL *);
    const char *(*sqlstate)(MYSQL *);
    const char *(*info)(MYSQL *);
    const char *(*host_info)(MYSQL *);
    const char *(*server_info)(MYSQL *);
    unsigned (*field_count)(MYSQL *);
    unsigned (*warning_count)(MYSQL *);
    unsigned long long (*affected_rows)(MYSQL *);
    unsigned long long (*insert_id)(MYSQL *);
    const void *(*charset_by_name)(const char *); /* a MARIADB_CHARSET_INFO */
};

typedef struct {
    PyObject_HEAD PyObject *connection; /* never given up but by drop() */
    PyObject *exception;                /* what ended a wait; the driver can only say 2013 */
    PyObject *unread; /* a result that is read row by row: kept, since one that dies reads all others */
    MYSQL *mysql;
    int fd; /* the number that adopt() put the session under; -1 before and after */
    bool layout;
    bool changed;    /* in this lease, by all that is known */
    bool doubt;      /* an error came in this lease: it has no status word, and the last one is older */
    bool writes;     /* the last statement was INSERT or its kin */
    bool wrote;      /* one has changed rows in the transaction that is open, by all that is known */
    bool opaque;     /* its character set is none of those that scan.c can read */
    bool autocommit; /* the last statement was SET autocommit: what it reports is no change */
} native_object;

static struct library lib;
static PyObject *query_name; /* "query" */

/* Which object waits on an fd: the callback gets no other argument. GIL held. */
static native_object **by_fd;
static size_t by_fd_size;

static int by_fd_set(int fd, native_object *native) {
    if ((size_t)fd >= by_fd_size) {
        size_t size = ((size_t)fd + 64u) & ~(size_t)63u;
        native_object **grown = PyMem_Realloc(by_fd, size * sizeof(*grown));

        if (!grown) {
            PyErr_NoMemory();
            return -1;
        }
        memset(grown + by_fd_size, 0, (size - by_fd_size) * sizeof(*grown));
        by_fd = grown;
        by_fd_size = size;
    }
    by_fd[fd] = native;
    return 0;
}

/* The number may have a new owner already: then the guard is the new owner's too. */
static void disown(native_object *self) {
    if (self->fd >= 0 && by_fd[self->fd] == self) {
        by_fd[self->fd] = NULL;
        dbp_py_unguard(self->fd);
    }
    self->fd = -1;
}

/* ---- the library ---- */

static int library_open(const char *path) {
    struct {
        const char *name;
        void *slot;
        bool needed;
    } wanted[] = {
        {"mysql_thread_id", &lib.thread_id, true},
        {"mysql_more_results", &lib.more_results, true},
        {"mysql_optionsv", &lib.optionsv, false},
        {"mysql_get_optionv", &lib.get_optionv, false},
        {"mariadb_get_infov", &lib.get_infov, false},
        {"mysql_get_socket", &lib.get_socket, false},
        {"mysql_error", &lib.error, true},
        {"mysql_sqlstate", &lib.sqlstate, true},
        {"mysql_info", &lib.info, true},
        {"mysql_get_host_info", &lib.host_info, true},
        {"mysql_get_server_info", &lib.server_info, true},
        {"mysql_field_count", &lib.field_count, true},
        {"mysql_warning_count", &lib.warning_count, true},
        {"mysql_affected_rows", &lib.affected_rows, true},
        {"mysql_insert_id", &lib.insert_id, true},
        {"mariadb_get_charset_by_name", &lib.charset_by_name, false},
    };
    void *handle;
    size_t i;

    if (lib.handle)
        return 0;
    handle = dlopen(path, RTLD_NOLOAD | RTLD_LAZY);
    if (!handle) {
        PyErr_Format(PyExc_RuntimeError, "%s is not a loaded library", path);
        return -1;
    }
    for (i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        void *symbol = dlsym(handle, wanted[i].name);

        if (!symbol && wanted[i].needed) {
            PyErr_Format(PyExc_RuntimeError, "%s has no %s", path, wanted[i].name);
            dlclose(handle);
            return -1;
        }
        memcpy(wanted[i].slot, &symbol, sizeof(symbol));
    }
    lib.handle = handle;
    return 0;
}

/* Every field that we write lies between ones that are compared here; addresses inside the struct count most. */
static bool layout_agrees(MYSQL *m) {
#if HAVE_LAYOUT
    unsigned status = 0;

    return lib.get_infov && lib.get_socket && lib.error(m) == m->net.last_error && lib.sqlstate(m) == m->net.sqlstate &&
           lib.host_info(m) == m->host_info && lib.server_info(m) == m->server_version && lib.info(m) == m->info &&
           lib.affected_rows(m) == m->affected_rows && lib.insert_id(m) == m->insert_id &&
           lib.thread_id(m) == m->thread_id && lib.field_count(m) == m->field_count &&
           lib.warning_count(m) == m->warning_count && m->status == MYSQL_STATUS_READY &&
           lib.get_infov(m, MARIADB_CONNECTION_SERVER_STATUS, &status) == 0 && status == m->server_status;
#else
    (void)m;
    return false;
#endif
}

static PyObject *native_charset(PyObject *ignored, PyObject *args) {
    const char *path, *name;

    (void)ignored;
    if (!PyArg_ParseTuple(args, "ss:charset", &path, &name) || library_open(path) < 0)
        return NULL;
#if HAVE_LAYOUT
    const MARIADB_CHARSET_INFO *found = lib.charset_by_name ? lib.charset_by_name(name) : NULL;

    if (found && found->csname)
        return PyUnicode_FromString(found->csname);
#endif
    Py_RETURN_NONE;
}

/* ---- the type ---- */

static PyObject *native_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *connection, *capsule;
    native_object *self;
    const char *path;
    MYSQL *mysql;

    if (!PyArg_ParseTuple(args, "Os:Native", &connection, &path) || (kwargs && PyDict_GET_SIZE(kwargs)))
        return NULL;
    if (library_open(path) < 0 || (!query_name && !(query_name = PyUnicode_InternFromString("query"))))
        return NULL;
    capsule = PyObject_CallMethod(connection, "_get_native_connection", NULL);
    if (!capsule)
        return NULL;
    mysql = PyCapsule_GetPointer(capsule, CAPSULE);
    Py_DECREF(capsule); /* points into connection, owns nothing */
    if (!mysql)
        return NULL;
    self = (native_object *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    Py_INCREF(connection);
    self->connection = connection;
    self->mysql = mysql;
    self->fd = -1;
    self->layout = layout_agrees(mysql);
    return (PyObject *)self;
}

static _Atomic int n_kept; /* objects with an exception: written with the GIL, read without */

static void native_dealloc(PyObject *object) {
    native_object *self = (native_object *)object;

    /* connection is leaked on purpose unless drop() was called, and with it a result whose death would read from it. */
    if (self->fd >= 0 && by_fd[self->fd] == self)
        by_fd[self->fd] = NULL;
    if (self->exception)
        n_kept--;
    Py_XDECREF(self->exception);
    if (!self->connection)
        Py_XDECREF(self->unread);
    Py_TYPE(object)->tp_free(object);
}

static int current_fd(native_object *self) {
    /* Asked each time: libmariadb closes its socket after an error. Oracle's library cannot be asked; there the Python
     * side calls lost() in that case. */
    if (!self->connection)
        return -1;
    return lib.get_socket ? lib.get_socket(self->mysql) : self->fd;
}

static PyObject *native_adopt(PyObject *object, PyObject *args) {
    native_object *self = (native_object *)object;
    int fd, under;

    if (!PyArg_ParseTuple(args, "ii:adopt", &fd, &under))
        return NULL;
    if (lib.get_socket)
        under = lib.get_socket(self->mysql);
    if (under < 0) {
        PyErr_SetString(PyExc_RuntimeError, "the driver object has no socket");
        return NULL;
    }
    if (by_fd_set(under, self) < 0)
        return NULL;
    self->fd = under;
    if (dbp_py_guard(under) < 0) {
        disown(self);
        return NULL;
    }
    if (dup3(fd, under, O_CLOEXEC) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        disown(self);
        return NULL;
    }
    Py_RETURN_NONE;
}

/* ---- cooperative waiting ---- */

/* GIL held, the exception set: it cannot pass through libmariadb. */
static void keep_exception(int fd) {
    native_object *native = fd >= 0 && (size_t)fd < by_fd_size ? by_fd[fd] : NULL;
    PyObject *value;
#if PY_VERSION_HEX >= 0x030c0000
    value = PyErr_GetRaisedException();
#else
    PyObject *type, *traceback;

    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (value && traceback)
        PyException_SetTraceback(value, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
#endif
    if (native && !native->exception && value) {
        native->exception = value;
        n_kept++;
    } else {
        Py_XDECREF(value);
    }
}

#if HAVE_LAYOUT
/* Something has ended a wait on fd, and the library has not returned since. */
static bool broken_off(int fd) {
    PyGILState_STATE state = PyGILState_Ensure();
    native_object *native = fd >= 0 && (size_t)fd < by_fd_size ? by_fd[fd] : NULL;
    bool yes = native && native->exception;

    PyGILState_Release(state);
    return yes;
}

static int io_wait(my_socket fd, my_bool reading, int timeout_ms) {
    /* After a failed write of LOAD DATA LOCAL the library waits for the server's answer, which never comes. */
    if (n_kept > 0 && broken_off(fd)) {
        errno = ETIMEDOUT;
        return 0;
    }
    return dbp_py_wait_unlocked(fd, reading != 0, timeout_ms == 0 ? -1 : timeout_ms, keep_exception);
}
#endif

static PyObject *native_install(PyObject *object, PyObject *ignored) {
    (void)ignored;
#if HAVE_LAYOUT
    native_object *self = (native_object *)object;
    int (*installed)(my_socket, my_bool, int) = NULL;

    if (lib.optionsv && lib.get_optionv && lib.optionsv(self->mysql, MARIADB_OPT_IO_WAIT, io_wait) == 0 &&
        lib.get_optionv(self->mysql, MARIADB_OPT_IO_WAIT, &installed) == 0 && installed == io_wait)
        Py_RETURN_TRUE;
#else
    (void)object;
#endif
    Py_RETURN_FALSE;
}

static PyObject *native_take_exception(PyObject *object, PyObject *ignored) {
    native_object *self = (native_object *)object;
    PyObject *exception = self->exception;

    (void)ignored;
    if (!exception)
        Py_RETURN_NONE;
    self->exception = NULL;
    n_kept--;
    return exception;
}

/* ---- the cached state ---- */

static bool layout_known(const native_object *self) {
    if (!self->layout)
        PyErr_SetString(PyExc_RuntimeError, "the layout of this client library's MYSQL is not known");
    return self->layout;
}

int dbp_py_native_begin(PyObject *native, uint16_t status) {
    native_object *self = (native_object *)native;

    if (!layout_known(self))
        return -1;
#if HAVE_LAYOUT
    self->changed = self->doubt = self->autocommit = self->writes = self->wrote = false;
    self->mysql->server_status = status;
    self->mysql->affected_rows = 0;
    self->mysql->insert_id = 0;
    self->mysql->warning_count = 0;
    self->mysql->info = NULL;
    self->mysql->net.last_errno = 0;
    self->mysql->net.last_error[0] = '\0';
    memcpy(self->mysql->net.sqlstate, "00000", 6);
#endif
    return 0;
}

static PyObject *native_checkout(PyObject *object, PyObject *arg) {
    long status = PyLong_AsLong(arg);

    if ((status == -1 && PyErr_Occurred()) || dbp_py_native_begin(object, (uint16_t)status) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static void note(native_object *self) {
#if HAVE_LAYOUT
    if (self->layout && (self->mysql->server_status & DBP_STATUS_CHANGED)) {
        self->mysql->server_status &= ~DBP_STATUS_CHANGED;
        if (!self->autocommit)
            self->changed = true;
    }
    if (self->layout && !(self->mysql->server_status & SERVER_STATUS_IN_TRANS))
        self->wrote = false;
    else if (self->writes && self->mysql->affected_rows + 1 > 1) /* ~0: it failed */
        self->wrote = true;
    self->writes = false;
    /* Of a result object, say, whose exceptions do not come past us. */
    if (self->layout && self->mysql->net.last_errno)
        self->changed = self->doubt = true;
#endif
    self->autocommit = false;
}

void dbp_py_native_note(PyObject *native) {
    note((native_object *)native);
}

static PyObject *native_note(PyObject *object, PyObject *ignored) {
    (void)ignored;
    note((native_object *)object);
    Py_RETURN_NONE;
}

static PyObject *native_mark(PyObject *object, PyObject *ignored) {
    (void)ignored;
    ((native_object *)object)->changed = true;
    Py_RETURN_NONE;
}

static PyObject *native_fail(PyObject *object, PyObject *ignored) {
    (void)ignored;
    ((native_object *)object)->changed = ((native_object *)object)->doubt = true;
    Py_RETURN_NONE;
}

/* The next command is SET autocommit, by the library itself. */
static PyObject *native_expect_autocommit(PyObject *object, PyObject *ignored) {
    (void)ignored;
    note((native_object *)object);
    ((native_object *)object)->autocommit = true;
    Py_RETURN_NONE;
}

static PyObject *native_query(PyObject *object, PyObject *sql) {
    native_object *self = (native_object *)object;
    enum dbp_py_effect effect = DBP_PY_CHANGES;

    if (!self->connection) {
        PyErr_SetString(PyExc_RuntimeError, "query: the object was dropped");
        return NULL;
    }
    /* A result that the user dropped unread: its rows are read now, as the stock driver reads them when it dies. */
    if (self->unread && Py_REFCNT(self->unread) == 1)
        Py_CLEAR(self->unread);
    note(self);
#if HAVE_LAYOUT
    if (self->layout && !self->opaque)
        effect = dbp_py_scan_object(sql, !(self->mysql->server_status & SERVER_STATUS_NO_BACKSLASH_ESCAPES));
#endif
    if (effect == DBP_PY_CHANGES)
        self->changed = true;
    self->autocommit = effect == DBP_PY_AUTOCOMMIT;
    self->writes = effect == DBP_PY_WRITES;
    return PyObject_CallMethodObjArgs(self->connection, query_name, sql, NULL);
}

enum dbp_return dbp_py_native_verdict(PyObject *native, bool autocommit, uint16_t *status, bool *grown, bool *changed) {
#if HAVE_LAYOUT
    native_object *self = (native_object *)native;
    const MYSQL *m = self->mysql;

    note(self);
    *status = (uint16_t)m->server_status;
    *grown = m->net.max_packet > BUFFER_KEPT;
    *changed = self->changed;
    if (self->exception || !m->net.pvio || m->status != MYSQL_STATUS_READY ||
        (m->server_status & SERVER_MORE_RESULTS_EXIST))
        return DBP_RETURN_DOOM;
    /* A procedure, or several statements at once, may begin a transaction and then fail. */
    if (self->doubt)
        *status |= SERVER_STATUS_IN_TRANS;
    else if (self->wrote)
        *status |= DBP_STATUS_WROTE;
    if ((*status & SERVER_STATUS_IN_TRANS) || ((m->server_status & SERVER_STATUS_AUTOCOMMIT) != 0) != autocommit)
        return DBP_RETURN_RESET;
    return DBP_RETURN_CLEAN;
#else
    (void)native, (void)autocommit, (void)status, (void)grown, (void)changed;
    return DBP_RETURN_DOOM;
#endif
}

static PyObject *native_settle(PyObject *object, PyObject *arg) {
    int autocommit = PyObject_IsTrue(arg);
    enum dbp_return how;
    bool grown, changed;
    uint16_t status;

    if (autocommit < 0 || !layout_known((native_object *)object))
        return NULL;
    how = dbp_py_native_verdict(object, autocommit, &status, &grown, &changed);
    return Py_BuildValue("(iIOO)", (int)how, (unsigned)status, grown ? Py_True : Py_False,
                         changed ? Py_True : Py_False);
}

static PyObject *native_more_results(PyObject *object, PyObject *ignored) {
    (void)ignored;
    return PyBool_FromLong(lib.more_results(((native_object *)object)->mysql));
}

/* ---- the end ---- */

static PyObject *native_socket(PyObject *object, PyObject *ignored) {
    (void)ignored;
    return PyLong_FromLong(current_fd((native_object *)object));
}

static PyObject *native_lost(PyObject *object, PyObject *ignored) {
    (void)ignored;
    disown((native_object *)object);
    Py_RETURN_NONE;
}

static PyObject *native_fence(PyObject *object, PyObject *ignored) {
    native_object *self = (native_object *)object;
    int fd = current_fd(self);

    (void)ignored;
    if (fd >= 0 && dbp_py_fence(fd) < 0)
        return NULL;
    disown(self);
    Py_RETURN_NONE;
}

static PyObject *native_drop(PyObject *object, PyObject *ignored) {
    native_object *self = (native_object *)object;

    (void)ignored;
    if (self->fd >= 0) {
        PyErr_SetString(PyExc_RuntimeError, "drop: the object still has the session, fence it first");
        return NULL;
    }
    Py_CLEAR(self->connection);
    Py_RETURN_NONE;
}

static PyObject *native_layout(PyObject *object, void *closure) {
    (void)closure;
    return PyBool_FromLong(((native_object *)object)->layout);
}

static PyObject *native_get_opaque(PyObject *object, void *closure) {
    (void)closure;
    return PyBool_FromLong(((native_object *)object)->opaque);
}

static int native_set_opaque(PyObject *object, PyObject *value, void *closure) {
    int opaque = value ? PyObject_IsTrue(value) : 0;

    (void)closure;
    if (opaque < 0)
        return -1;
    ((native_object *)object)->opaque = opaque;
    return 0;
}

static PyMemberDef native_members[] = {
    {"unread", T_OBJECT, offsetof(native_object, unread), 0, "the result that is read row by row, or None"},
    {NULL, 0, 0, 0, NULL}};

static PyGetSetDef native_getset[] = {
    {"opaque", native_get_opaque, native_set_opaque, "every statement counts as a change: they cannot be read", NULL},
    {"layout", native_layout, NULL, "checkout() and settle() can be used with this client library", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef native_methods[] = {
    {"adopt", native_adopt, METH_VARARGS, "adopt(fd, under): puts fd under the object's own fd number; fd stays open"},
    {"install", native_install, METH_NOARGS, "install() -> bool: the library waits through us from now on"},
    {"take_exception", native_take_exception, METH_NOARGS, "take_exception() -> what ended a wait, or None"},
    {"checkout", native_checkout, METH_O, "checkout(status): the object knows nothing of its last use any more"},
    {"charset", native_charset, METH_VARARGS | METH_STATIC,
     "charset(path, name) -> the library's own name of this character set; None: it has none, or cannot be asked"},
    {"query", native_query, METH_O, "query(sql): the object's own query(), looked at before"},
    {"note", native_note, METH_NOARGS, "note(): before any other command: what the server said so far is kept in mind"},
    {"mark", native_mark, METH_NOARGS, "mark(): the session counts as changed"},
    {"fail", native_fail, METH_NOARGS, "fail(): an error came: as mark(), and the status word is not to be believed"},
    {"expect_autocommit", native_expect_autocommit, METH_NOARGS,
     "expect_autocommit(): as note(); SET autocommit is next"},
    {"settle", native_settle, METH_O, "settle(autocommit) -> (how, status, grown, changed)"},
    {"more_results", native_more_results, METH_NOARGS, "more_results() -> bool"},
    {"socket", native_socket, METH_NOARGS, "socket() -> the fd that the object writes to now, or -1"},
    {"lost", native_lost, METH_NOARGS, "lost(): the library has closed its socket"},
    {"fence", native_fence, METH_NOARGS, "fence(): whatever the object still writes goes nowhere"},
    {"drop", native_drop, METH_NOARGS, "drop(): the object may die; only after fence()"},
    {NULL, NULL, 0, NULL}};

PyTypeObject dbp_py_native_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dbpool._dbpool.Native",
    .tp_basicsize = sizeof(native_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Native(connection, extension file): the MYSQL of a mysqlclient object.",
    .tp_new = native_new,
    .tp_dealloc = native_dealloc,
    .tp_methods = native_methods,
    .tp_members = native_members,
    .tp_getset = native_getset,
};
