/* SPDX-License-Identifier: MIT
 * Does a statement change the session in a way that the server does not report? Part of reset_on_return 'auto'.
 *
 * The server reports, by a bit in its answers, what SET, USE, temporary tables and PREPARE did, also inside of
 * functions and triggers. It does not report user variables that are set in an expression (SELECT @v := 1, SELECT ..
 * INTO @v), GET_LOCK(), LOCK TABLES, HANDLER, FLUSH .. WITH READ LOCK, SET TRANSACTION, nor anything in the middle of
 * several results (measured: MariaDB 10.11). So the text is looked at as well. It must never be wrong in one direction:
 * a statement is quiet only when it begins with a word of the list below, is alone, and has nothing in it that this
 * scanner does not know to be harmless. All else counts as a change, which costs a reset and nothing more.
 *
 * What is inside of string literals and comments does not count, so their ends must be found as the server finds them:
 *   '...'    a backslash escapes unless the session has NO_BACKSLASH_ESCAPES (the server tells, in its status word);
 *   "..."    a literal or, with ANSI_QUOTES, a name: both end at the same place unless there is a backslash in it, and
 *            then it counts as a change;
 *   `...`    a name, which may be that of a function;
 *   comments: #, -- (with a space or control character after it) and slash-star. Those that the server executes count
 *            as a change.
 * This holds for character sets in which no byte of a longer character looks like ASCII: the caller sees to it.
 */
#include "ext.h"

#include <string.h>

enum class {
    OTHER, /* nothing to look at */
    BLANK,
    WORD,
    QUOTE,  /* ' " ` */
    SIGN,   /* # - / @ : ; */
    STRANGE /* outside of quotes nothing that we know uses it: NUL, backslash, bytes above ASCII */
};

#define B BLANK
#define W WORD
#define Q QUOTE
#define S SIGN
#define X STRANGE
static const unsigned char classes[256] = {
    /* clang-format off */
    X, X, X, X, X, X, X, X, X, B, B, B, B, B, X, X,   X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X,
    B, 0, Q, S, W, 0, 0, Q, 0, 0, 0, 0, 0, S, 0, S,   W, W, W, W, W, W, W, W, W, W, S, S, 0, 0, 0, 0,
    S, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W,   W, W, W, W, W, W, W, W, W, W, W, 0, X, 0, 0, W,
    Q, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W,   W, W, W, W, W, W, W, W, W, W, W, 0, 0, 0, 0, X,
    X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X,   X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X,
    X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X,   X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X,
    X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X,   X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X,
    X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X,   X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X,
    /* clang-format on */
};
#undef B
#undef W
#undef Q
#undef S
#undef X

/* Is this word, of n bytes, the name, in any case? name is in capitals. */
static bool is(const unsigned char *p, size_t n, const char *name) {
    size_t i;

    for (i = 0; i < n; i++) {
        unsigned char c = p[i] >= 'a' && p[i] <= 'z' ? (unsigned char)(p[i] - 32) : p[i];

        if (c != (unsigned char)name[i]) /* also at the name's end */
            return false;
    }
    return name[n] == '\0';
}

/* Functions that take a lock which outlives the statement; the last ones are MySQL's plugins. */
static bool locks(const unsigned char *p, size_t n) {
    return n >= 8 &&
           (is(p, n, "GET_LOCK") || is(p, n, "SERVICE_GET_READ_LOCKS") || is(p, n, "SERVICE_GET_WRITE_LOCKS") ||
            is(p, n, "VERSION_TOKENS_LOCK_SHARED") || is(p, n, "VERSION_TOKENS_LOCK_EXCLUSIVE"));
}

/* Statements that change nothing but data and transactions, and what the server reports. */
static enum dbp_py_effect of_first_word(const unsigned char *p, size_t n) {
    static const struct {
        const char *word;
        enum dbp_py_effect effect;
    } words[] = {{"SELECT", DBP_PY_QUIET},    {"INSERT", DBP_PY_WRITES},  {"UPDATE", DBP_PY_WRITES},
                 {"DELETE", DBP_PY_WRITES},   {"REPLACE", DBP_PY_WRITES}, {"COMMIT", DBP_PY_QUIET},
                 {"ROLLBACK", DBP_PY_QUIET},  {"START", DBP_PY_QUIET},    {"RELEASE", DBP_PY_QUIET},
                 {"SAVEPOINT", DBP_PY_QUIET}, {"SHOW", DBP_PY_QUIET},     {"WITH", DBP_PY_QUIET},
                 {"VALUES", DBP_PY_QUIET},    {"EXPLAIN", DBP_PY_QUIET},  {"DO", DBP_PY_QUIET},
                 {"DESCRIBE", DBP_PY_QUIET},  {"DESC", DBP_PY_QUIET}};
    size_t i;

    for (i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if ((p[0] & 0xdf) == words[i].word[0] && is(p, n, words[i].word))
            return words[i].effect;
    return DBP_PY_CHANGES;
}

struct cursor {
    const unsigned char *at, *end;
};

/* Past the literal or name that begins at c->at. False: it has no end, or its end depends on the sql_mode. */
static bool skip_quoted(struct cursor *c, bool backslash) {
    unsigned char quote = *c->at++;
    const unsigned char *from = c->at;

    const unsigned char *close = memchr(from, quote, (size_t)(c->end - from)), *escape;

    if (quote != '\'' && close &&
        (locks(from, (size_t)(close - from)) || (quote == '"' && memchr(from, '\\', (size_t)(close - from)))))
        return false;
    if (quote == '\'' && backslash)
        while (close && (escape = memchr(c->at, '\\', (size_t)(close - c->at)))) {
            c->at = escape + 2;
            if (c->at > close) /* it was the quote that was escaped */
                close = memchr(c->at, quote, (size_t)(c->end - c->at));
        }
    if (!close)
        return false;
    c->at = close + 1; /* a doubled quote is another literal that begins here: the same text is skipped */
    return true;
}

/* Past a comment that begins at c->at, if one does; *was says so. False: it counts as a change. */
static bool skip_comment(struct cursor *c, bool *was) {
    const unsigned char *p = c->at;
    size_t left = (size_t)(c->end - p);

    *was = true;
    if (*p == '#' || (*p == '-' && left >= 2 && p[1] == '-' && (left == 2 || p[2] <= ' ' || p[2] == 0x7f))) {
        p = memchr(p, '\n', left);
        c->at = p ? p + 1 : c->end;
        return true;
    }
    if (*p == '/' && left >= 2 && p[1] == '*') {
        if (left >= 3 && (p[2] == '!' || (p[2] == 'M' && left >= 4 && p[3] == '!')))
            return false;
        p = memmem(p + 2, left - 2, "*/", 2);
        if (!p)
            return false;
        c->at = p + 2;
        return true;
    }
    *was = false;
    return true;
}

/* Past blanks, comments and, when they may stand there, opening parentheses. False: a change. */
static bool skip_blanks(struct cursor *c, bool parentheses) {
    while (c->at < c->end) {
        bool comment;

        if (classes[*c->at] == BLANK || (parentheses && *c->at == '(')) {
            c->at++;
            continue;
        }
        if (!skip_comment(c, &comment))
            return false;
        if (!comment)
            break;
    }
    return true;
}

/* Nothing comes but the end: it may have one semicolon. */
static bool over(struct cursor *c) {
    if (!skip_blanks(c, false))
        return false;
    if (c->at < c->end && *c->at == ';') {
        c->at++;
        if (!skip_blanks(c, false))
            return false;
    }
    return c->at == c->end;
}

static size_t word_length(const struct cursor *c) {
    const unsigned char *p = c->at;

    while (p < c->end && classes[*p] == WORD)
        p++;
    return (size_t)(p - c->at);
}

/* After SET: is it nothing but "autocommit = 0" or 1? Both drivers say it so. */
static bool only_autocommit(struct cursor c) {
    size_t n;

    if (!skip_blanks(&c, false) || !is(c.at, n = word_length(&c), "AUTOCOMMIT"))
        return false;
    c.at += n;
    if (!skip_blanks(&c, false) || c.at == c.end || *c.at++ != '=' || !skip_blanks(&c, false) || c.at == c.end ||
        (*c.at != '0' && *c.at != '1'))
        return false;
    c.at++;
    return over(&c);
}

enum dbp_py_effect dbp_py_scan(const char *sql, size_t n, bool backslash) {
    struct cursor c = {(const unsigned char *)sql, (const unsigned char *)sql + n};
    enum dbp_py_effect effect;
    bool comment;
    size_t length;

    if (!skip_blanks(&c, true))
        return DBP_PY_CHANGES;
    length = word_length(&c);
    if (length == 0)
        return DBP_PY_CHANGES;
    if (is(c.at, length, "SET")) {
        c.at += length;
        return only_autocommit(c) ? DBP_PY_AUTOCOMMIT : DBP_PY_CHANGES;
    }
    if (is(c.at, length, "BEGIN")) {
        /* BEGIN NOT ATOMIC, or a block in sql_mode ORACLE, may do anything. */
        c.at += length;
        if (!skip_blanks(&c, false))
            return DBP_PY_CHANGES;
        length = word_length(&c);
        if (is(c.at, length, "WORK"))
            c.at += length;
        return over(&c) ? DBP_PY_QUIET : DBP_PY_CHANGES;
    }
    effect = of_first_word(c.at, length);
    if (effect == DBP_PY_CHANGES)
        return DBP_PY_CHANGES;
    c.at += length;

    while (c.at < c.end) {
        switch ((enum class)classes[*c.at]) {
        case OTHER:
        case BLANK:
            c.at++;
            break;
        case WORD:
            length = word_length(&c);
            if (locks(c.at, length))
                return DBP_PY_CHANGES;
            c.at += length;
            break;
        case QUOTE:
            if (!skip_quoted(&c, backslash))
                return DBP_PY_CHANGES;
            break;
        case SIGN:
            if (*c.at == ';')
                return over(&c) ? effect : DBP_PY_CHANGES;
            if (*c.at == '@') {
                /* @@name is a system variable that is read; @name is the user's, and may be written. */
                for (length = 0; c.at < c.end && *c.at == '@'; c.at++)
                    length++;
                if (length != 2)
                    return DBP_PY_CHANGES;
                break;
            }
            if (*c.at == ':' && c.end - c.at >= 2 && c.at[1] == '=')
                return DBP_PY_CHANGES;
            if (!skip_comment(&c, &comment))
                return DBP_PY_CHANGES;
            if (!comment)
                c.at++;
            break;
        case STRANGE:
            return DBP_PY_CHANGES;
        }
    }
    return effect;
}

enum dbp_py_effect dbp_py_scan_object(PyObject *sql, bool backslash) {
    enum dbp_py_effect effect;
    Py_buffer view;

    if (PyBytes_Check(sql))
        return dbp_py_scan(PyBytes_AS_STRING(sql), (size_t)PyBytes_GET_SIZE(sql), backslash);
    if (PyUnicode_Check(sql)) {
        Py_ssize_t n;
        const char *text = PyUnicode_AsUTF8AndSize(sql, &n);

        if (text)
            return dbp_py_scan(text, (size_t)n, backslash);
        PyErr_Clear(); /* lone surrogates: bytes that somebody smuggles through */
        return DBP_PY_CHANGES;
    }
    if (PyObject_GetBuffer(sql, &view, PyBUF_SIMPLE) < 0) {
        PyErr_Clear(); /* the driver will say what is wrong with it */
        return DBP_PY_CHANGES;
    }
    effect = dbp_py_scan(view.buf, (size_t)view.len, backslash);
    PyBuffer_Release(&view);
    return effect;
}

PyObject *dbp_py_scan_method(PyObject *module, PyObject *args) {
    static const char *const names[] = {"quiet", "changes", "writes", "autocommit"};
    int backslash = 1;
    PyObject *sql;

    (void)module;
    if (!PyArg_ParseTuple(args, "O|p:scan", &sql, &backslash))
        return NULL;
    return PyUnicode_FromString(names[dbp_py_scan_object(sql, backslash)]);
}
