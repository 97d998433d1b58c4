/* SPDX-License-Identifier: MIT
 * The methods of proxies and of their cursors that are called several times per query: each is a descriptor that makes
 * sure that the lease lasts, and then calls what it stands for.
 *
 *   command(name)      of a proxy: the driver object's method, which may use the wire: nobody else meanwhile
 *   query()            of a proxy: Native.query
 *   ask(name)          of a proxy: the driver object's method, which only looks at memory
 *   value(name)        of a proxy: the driver object's attribute
 *   checked(function)  of a cursor: the function
 *   guarded(function)  of a cursor: the function, which uses the wire
 *   closing(function)  of a cursor: the function, unless there is nothing to tidy up any more
 */
#include "ext.h"

#include <stddef.h>
#include <string.h>
#include <structmember.h>

#define ARGUMENTS_MOST 16 /* more than any of these methods takes */

typedef struct {
    PyObject_HEAD vectorcallfunc call;
    PyObject *what; /* a name, or a function */
} method_object;

static PyTypeObject method_type, value_type;
static PyObject *name_query, *name_proxy, *name_connection;

static dbp_py_proxy *proxy_of(PyObject *const *args, size_t n) {
    if (PyVectorcall_NARGS(n) >= 1 && PyObject_TypeCheck(args[0], &dbp_py_proxy_type))
        return (dbp_py_proxy *)args[0];
    PyErr_SetString(PyExc_TypeError, "dbpool: this is a method of a leased connection");
    return NULL;
}

/* Tests have other drivers. */
static bool is_ours(const dbp_py_proxy *proxy) {
    return PyObject_TypeCheck(proxy->driver, &dbp_py_driver_type);
}

/* Borrowed: mysqlclient's Native; NULL with PyMySQL. */
static PyObject *native_of(const dbp_py_proxy *proxy) {
    PyObject *native = is_ours(proxy) ? ((dbp_py_driver *)proxy->driver)->native : NULL;

    return native && Py_TYPE(native) == &dbp_py_native_type ? native : NULL;
}

/* receiver.name(*args[1:], **names) */
static PyObject *call_on(PyObject *receiver, PyObject *name, PyObject *const *args, size_t n, PyObject *names) {
    size_t all = (size_t)PyVectorcall_NARGS(n) + (size_t)(names ? PyTuple_GET_SIZE(names) : 0);
    PyObject *stack[ARGUMENTS_MOST], *answer;

    if (all > ARGUMENTS_MOST) {
        PyErr_SetString(PyExc_TypeError, "too many arguments");
        return NULL;
    }
    stack[0] = receiver;
    memcpy(stack + 1, args + 1, (all - 1) * sizeof(PyObject *));
    Py_INCREF(receiver);
    answer = PyObject_VectorcallMethod(name, stack, (size_t)PyVectorcall_NARGS(n), names);
    Py_DECREF(receiver);
    return answer;
}

static PyObject *command_call(PyObject *method, PyObject *const *args, size_t n, PyObject *names) {
    dbp_py_proxy *proxy = proxy_of(args, n);
    PyObject *driver;

    if (!proxy || dbp_py_proxy_begin(proxy, &driver) < 0)
        return NULL;
    if (native_of(proxy))
        dbp_py_native_note(native_of(proxy));
    return dbp_py_proxy_end(proxy, driver, call_on(proxy->target, ((method_object *)method)->what, args, n, names));
}

static PyObject *query_call(PyObject *method, PyObject *const *args, size_t n, PyObject *names) {
    dbp_py_proxy *proxy = proxy_of(args, n);
    PyObject *driver;

    if (!proxy || dbp_py_proxy_begin(proxy, &driver) < 0)
        return NULL;
    if (!native_of(proxy)) {
        PyErr_SetString(PyExc_TypeError, "dbpool: query() is for mysqlclient's connections");
        return dbp_py_proxy_end(proxy, driver, NULL);
    }
    return dbp_py_proxy_end(proxy, driver, call_on(native_of(proxy), ((method_object *)method)->what, args, n, names));
}

static PyObject *ask_call(PyObject *method, PyObject *const *args, size_t n, PyObject *names) {
    dbp_py_proxy *proxy = proxy_of(args, n);

    if (!proxy || dbp_py_proxy_check(proxy) < 0)
        return NULL;
    return call_on(proxy->target, ((method_object *)method)->what, args, n, names);
}

/* A cursor's proxy (lease.py's cursor() sets it): 1 with a new reference, 0 while the cursor is made, or -1. */
static int of_cursor(PyObject *const *args, size_t n, dbp_py_proxy **proxyp) {
    PyObject *proxy;

    if (PyVectorcall_NARGS(n) < 1) {
        PyErr_SetString(PyExc_TypeError, "dbpool: this is a method of a cursor");
        return -1;
    }
    proxy = PyObject_GetAttr(args[0], name_proxy);
    *proxyp = (dbp_py_proxy *)proxy;
    if (!proxy || PyObject_TypeCheck(proxy, &dbp_py_proxy_type))
        return proxy ? 1 : -1;
    Py_DECREF(proxy);
    return 0;
}

static PyObject *checked_call(PyObject *method, PyObject *const *args, size_t n, PyObject *names) {
    dbp_py_proxy *proxy;
    int rc = of_cursor(args, n, &proxy);

    if (rc > 0) {
        rc = dbp_py_proxy_check(proxy);
        Py_DECREF(proxy);
    }
    return rc < 0 ? NULL : PyObject_Vectorcall(((method_object *)method)->what, args, n, names);
}

static PyObject *guarded_call(PyObject *method, PyObject *const *args, size_t n, PyObject *names) {
    PyObject *what = ((method_object *)method)->what, *driver, *answer = NULL;
    dbp_py_proxy *proxy;
    int rc = of_cursor(args, n, &proxy);

    if (rc <= 0)
        return rc < 0 ? NULL : PyObject_Vectorcall(what, args, n, names);
    if (dbp_py_proxy_begin(proxy, &driver) == 0)
        answer = dbp_py_proxy_end(proxy, driver, PyObject_Vectorcall(what, args, n, names));
    Py_DECREF(proxy);
    return answer;
}

/* close() is harmless after the return, as the connection's is. And on a session that something broke off, to tidy up
 * would only put another error in the place of what did. */
static PyObject *closing_call(PyObject *method, PyObject *const *args, size_t n, PyObject *names) {
    dbp_py_proxy *proxy;
    int rc = of_cursor(args, n, &proxy);

    if (rc > 0) {
        rc = dbp_py_proxy_lasts(proxy);
        if (rc > 0 && is_ours(proxy) && ((dbp_py_driver *)proxy->driver)->broken)
            rc = 0;
        Py_DECREF(proxy);
    }
    if (rc > 0)
        return PyObject_Vectorcall(((method_object *)method)->what, args, n, names);
    if (rc < 0 || PyObject_SetAttr(args[0], name_connection, Py_None) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* ---- the types ---- */

static PyObject *method_get(PyObject *method, PyObject *object, PyObject *type) {
    (void)type;
    if (!object) {
        Py_INCREF(method);
        return method;
    }
    return PyMethod_New(method, object);
}

static PyObject *value_get(PyObject *value, PyObject *object, PyObject *type) {
    (void)type;
    if (!object) {
        Py_INCREF(value);
        return value;
    }
    if (!PyObject_TypeCheck(object, &dbp_py_proxy_type)) {
        PyErr_SetString(PyExc_TypeError, "dbpool: this is an attribute of a leased connection");
        return NULL;
    }
    if (dbp_py_proxy_check((dbp_py_proxy *)object) < 0)
        return NULL;
    return PyObject_GetAttr(((dbp_py_proxy *)object)->target, ((method_object *)value)->what);
}

static int value_set(PyObject *value, PyObject *object, PyObject *to) {
    (void)object;
    (void)to;
    PyErr_Format(PyExc_AttributeError, "dbpool: %U of a leased connection cannot be set",
                 ((method_object *)value)->what);
    return -1;
}

static PyObject *method_name(PyObject *object, void *closure) {
    PyObject *what = ((method_object *)object)->what;

    (void)closure;
    if (!PyUnicode_Check(what))
        return PyObject_GetAttrString(what, "__name__");
    Py_INCREF(what);
    return what;
}

static PyObject *method_doc(PyObject *object, void *closure) {
    PyObject *what = ((method_object *)object)->what;

    (void)closure;
    if (!PyUnicode_Check(what))
        return PyObject_GetAttrString(what, "__doc__");
    return PyUnicode_FromFormat("%U() of the driver's connection.", what);
}

static void method_dealloc(PyObject *object) {
    Py_XDECREF(((method_object *)object)->what);
    PyObject_Free(object);
}

static PyGetSetDef method_getset[] = {{"__name__", method_name, NULL, NULL, NULL},
                                      {"__doc__", method_doc, NULL, NULL, NULL},
                                      {NULL, NULL, NULL, NULL, NULL}};

static PyTypeObject method_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dbpool._dbpool.Method",
    .tp_basicsize = sizeof(method_object),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_dealloc = method_dealloc,
    .tp_vectorcall_offset = offsetof(method_object, call),
    .tp_call = PyVectorcall_Call,
    .tp_descr_get = method_get,
    .tp_getset = method_getset,
};

static PyTypeObject value_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "dbpool._dbpool.Value",
    .tp_basicsize = sizeof(method_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = method_dealloc,
    .tp_descr_get = value_get,
    .tp_descr_set = value_set,
    .tp_getset = method_getset,
};

/* ---- making them ---- */

static PyObject *make(PyTypeObject *type, vectorcallfunc call, PyObject *what) {
    method_object *self = PyObject_New(method_object, type);

    if (!self)
        return NULL;
    Py_INCREF(what);
    self->what = what;
    self->call = call;
    return (PyObject *)self;
}

static PyObject *make_named(PyTypeObject *type, vectorcallfunc call, PyObject *name) {
    PyObject *made;

    if (!PyUnicode_Check(name)) {
        PyErr_SetString(PyExc_TypeError, "the name of a method is wanted");
        return NULL;
    }
    Py_INCREF(name);
    PyUnicode_InternInPlace(&name);
    made = make(type, call, name);
    Py_DECREF(name);
    return made;
}

static PyObject *command(PyObject *module, PyObject *name) {
    (void)module;
    return make_named(&method_type, command_call, name);
}

static PyObject *ask(PyObject *module, PyObject *name) {
    (void)module;
    return make_named(&method_type, ask_call, name);
}

static PyObject *value(PyObject *module, PyObject *name) {
    (void)module;
    return make_named(&value_type, NULL, name);
}

static PyObject *query(PyObject *module, PyObject *ignored) {
    (void)module;
    (void)ignored;
    return make(&method_type, query_call, name_query);
}

static PyObject *checked(PyObject *module, PyObject *function) {
    (void)module;
    return make(&method_type, checked_call, function);
}

static PyObject *guarded(PyObject *module, PyObject *function) {
    (void)module;
    return make(&method_type, guarded_call, function);
}

static PyObject *closing(PyObject *module, PyObject *function) {
    (void)module;
    return make(&method_type, closing_call, function);
}

PyMethodDef dbp_py_method_methods[] = {{"command", command, METH_O, "command(name): see src/methods.c"},
                                       {"query", query, METH_NOARGS, "query(): see src/methods.c"},
                                       {"ask", ask, METH_O, "ask(name): see src/methods.c"},
                                       {"value", value, METH_O, "value(name): see src/methods.c"},
                                       {"checked", checked, METH_O, "checked(function): see src/methods.c"},
                                       {"guarded", guarded, METH_O, "guarded(function): see src/methods.c"},
                                       {"closing", closing, METH_O, "closing(function): see src/methods.c"},
                                       {NULL, NULL, 0, NULL}};

int dbp_py_methods_init(void) {
    name_query = PyUnicode_InternFromString("query");
    name_proxy = PyUnicode_InternFromString("_dbpool_proxy");
    name_connection = PyUnicode_InternFromString("connection");
    return name_query && name_proxy && name_connection && PyType_Ready(&method_type) == 0 &&
                   PyType_Ready(&value_type) == 0
               ? 0
               : -1;
}
