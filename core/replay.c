/* SPDX-License-Identifier: MIT
 * The server's side of a login, played from a session's facts: see dbpool.h. Bytes in, bytes out.
 *
 * What a driver believes after its login must be true of the session that it is then given. So its flags must be those
 * that the session was opened with, and the few statements that drivers send on their own are answered only where the
 * session is already in the state that they ask for. All else is refused in words that reach the user as the driver's
 * own exception.
 */
#include "handshake.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define PACKET_MAX 16384u /* a login with connection attributes is a few hundred bytes */
#define OUT_MAX 2048u     /* drivers wait for each answer: one greeting or one ERR at a time */
#define TEXT_MAX 400u

#define COM_QUIT 0x01
#define COM_QUERY 0x03
#define COM_PING 0x0e

#define ER_UNKNOWN 1105 /* HY000: the code that servers use when none fits */

/* Bits that change what statements mean or how replies are read: driver and session must agree. */
static const struct {
    uint32_t bit;
    const char *name;
} matched[] = {
    {DBP_CAP_FOUND_ROWS, "FOUND_ROWS"},
    {DBP_CAP_NO_SCHEMA, "NO_SCHEMA"},
    {DBP_CAP_LOCAL_FILES, "LOCAL_FILES"},
    {DBP_CAP_IGNORE_SPACE, "IGNORE_SPACE"},
    {DBP_CAP_INTERACTIVE, "INTERACTIVE"},
    {DBP_CAP_MULTI_STATEMENTS, "MULTI_STATEMENTS"},
    {DBP_CAP_DEPRECATE_EOF, "DEPRECATE_EOF"},
    {DBP_CAP_OPTIONAL_METADATA, "OPTIONAL_RESULTSET_METADATA"},
    {DBP_CAP_QUERY_ATTRIBUTES, "QUERY_ATTRIBUTES"},
    {DBP_CAP_COMPRESS, "COMPRESS"},
    {DBP_CAP_ZSTD, "ZSTD_COMPRESSION"},
    {DBP_CAP_SSL, "SSL"},
};

/* Bits by which replies are laid out: what the session does not have is not offered, so that a driver which asks for
 * all it knows gets what fits. A driver without SESSION_TRACK is fine on a session with it: it reads an OK's trailing
 * bytes as free text (PyMySQL), and without MULTI_RESULTS it only misses what a CALL would send. */
#define SHAPES                                                                                              \
    (DBP_CAP_SESSION_TRACK | DBP_CAP_DEPRECATE_EOF | DBP_CAP_OPTIONAL_METADATA | DBP_CAP_QUERY_ATTRIBUTES | \
     DBP_CAP_COMPRESS | DBP_CAP_ZSTD | DBP_CAP_SSL)

enum state {
    GREETED,  /* waits for the driver's answer */
    SWITCHED, /* waits for its answer to the auth switch */
    COMMAND,  /* logged in */
    OVER,     /* nothing more is answered: refused, or COM_QUIT */
    DEAD      /* what came was not MySQL */
};

struct dbp_replay {
    enum state state;
    uint32_t session;   /* the session's capabilities */
    uint32_t offered;   /* the greeting's */
    uint32_t collation; /* of the session's login */
    uint16_t status;
    char charset[64];
    char refusal[TEXT_MAX]; /* the first one; "" is none */
    size_t n_in, n_out;
    uint8_t in[DBP_PACKET_HEAD + PACKET_MAX];
    uint8_t out[OUT_MAX];
};

int dbp_replay_new(const struct dbp_session_facts *facts, const char *charset, uint16_t status,
                   struct dbp_replay **replayp) {
    struct dbp_greeting greeting;
    size_t len;

    if (facts->greeting_len > sizeof facts->greeting || strlen(charset) >= sizeof((struct dbp_replay *)0)->charset ||
        dbp_greeting_parse(facts->greeting, facts->greeting_len, &greeting) != 0)
        return DBP_E_INVALID;
    struct dbp_replay *r = calloc(1, sizeof *r);
    if (!r)
        return -ENOMEM;
    r->session = facts->capabilities;
    r->offered = greeting.capabilities & (facts->capabilities | ~SHAPES);
    r->collation = facts->charset;
    r->status = status;
    memcpy(r->charset, charset, strlen(charset) + 1);
    if (dbp_greeting_rebuild(facts->greeting, facts->greeting_len, r->offered, status, r->out + DBP_PACKET_HEAD,
                             sizeof r->out - DBP_PACKET_HEAD, &len) != 0) {
        free(r);
        return DBP_E_INVALID;
    }
    /* What the rebuilt greeting always has. */
    r->offered |= DBP_CAP_PROTOCOL_41 | DBP_CAP_SECURE_CONNECTION | DBP_CAP_PLUGIN_AUTH;
    dbp_packet_head(r->out, len, 0);
    r->n_out = DBP_PACKET_HEAD + len;
    *replayp = r;
    return 0;
}

struct dbp_replay *dbp_replay_free(struct dbp_replay *r) {
    if (r)
        explicit_bzero(r, sizeof *r); /* the driver's answer was made from a password */
    free(r);
    return NULL;
}

const char *dbp_replay_refusal(const struct dbp_replay *r) {
    return r->refusal[0] ? r->refusal : NULL;
}

static int die(struct dbp_replay *r, const char *why) {
    r->state = DEAD;
    if (!r->refusal[0])
        snprintf(r->refusal, sizeof r->refusal, "dbpool: %s", why);
    return DBP_E_INVALID;
}

static int sent(struct dbp_replay *r, size_t n) {
    if (n == 0)
        return die(r, "the driver does not read its answers");
    r->n_out += n;
    return 0;
}

static int say_ok(struct dbp_replay *r, uint8_t seq) {
    return sent(r, dbp_build_ok(r->out + r->n_out, sizeof r->out - r->n_out, seq, r->status));
}

static int refuse(struct dbp_replay *r, uint8_t seq, const char *text) {
    if (!r->refusal[0])
        snprintf(r->refusal, sizeof r->refusal, "%s", text);
    return sent(r, dbp_build_err(r->out + r->n_out, sizeof r->out - r->n_out, seq, ER_UNKNOWN, "HY000", text));
}

/* ---- the login ---- */

static bool flags_fit(const struct dbp_replay *r, const struct dbp_login *login, char *text, size_t n) {
    /* A driver that sends these does them, offered or not; the others count only where the server knows them. */
    uint32_t counts = r->offered | DBP_CAP_COMPRESS | DBP_CAP_ZSTD | DBP_CAP_SSL;
    uint32_t driver = login->capabilities & counts, differ = driver ^ r->session;
    bool fit = true;
    int at = snprintf(text, n, "dbpool: the driver's client flags do not fit the pool's session:");

    for (size_t i = 0; i < sizeof matched / sizeof *matched; i++)
        if (differ & matched[i].bit) {
            at += snprintf(text + at, n - (size_t)at, "%s %s is %s", fit ? "" : ",", matched[i].name,
                           driver & matched[i].bit ? "asked for, the session is without"
                                                   : "not asked for, the session has it");
            fit = false;
            if ((size_t)at >= n)
                return false;
        }
    if (login->extended != 0) {
        snprintf(text + at, n - (size_t)at, "%s MariaDB's extended capabilities are asked for", fit ? "" : ",");
        fit = false;
    }
    return fit;
}

/* The character set of a collation id, for the sets of which two libraries log in with different collations by default
 * (ids as in information_schema.collations of MariaDB 10.11 and MySQL 8); any other id stands for itself. */
static uint32_t family(uint32_t id) {
    if (id == 45 || id == 46 || (id >= 224 && id <= 247) || id == 255)
        return 45; /* utf8mb4 */
    if (id == 33 || id == 76 || id == 83 || (id >= 192 && id <= 215) || id == 223)
        return 33; /* utf8mb3 */
    if (id == 5 || id == 8 || id == 15 || id == 31 || (id >= 47 && id <= 49) || id == 94)
        return 8; /* latin1 */
    return id;
}

static int on_login(struct dbp_replay *r, const struct dbp_packet *p) {
    struct dbp_login login;
    char text[TEXT_MAX];

    if (p->seq != 1 || dbp_login_parse(p->payload, p->len, r->offered, &login) != 0)
        return die(r, "the driver's answer to the greeting is not understood");
    uint8_t seq = (uint8_t)(p->seq + 1);
    if (login.ssl_request) {
        r->state = OVER;
        return refuse(r, seq, "dbpool: the driver asks for TLS, the pool's session is without");
    }
    if (!flags_fit(r, &login, text, sizeof text)) {
        r->state = OVER;
        return refuse(r, seq, text);
    }
    /* A driver that encodes and escapes in another character set than its session has is worse than none. */
    if (family(login.charset) != family(r->collation)) {
        snprintf(text, sizeof text,
                 "dbpool: the driver logs in with collation %u, the pool's sessions have %u (character set %s)",
                 login.charset, r->collation, r->charset);
        r->state = OVER;
        return refuse(r, seq, text);
    }
    if ((login.capabilities & DBP_CAP_PLUGIN_AUTH) && login.plugin[0] &&
        strcmp(login.plugin, DBP_NATIVE_PASSWORD) != 0) {
        r->state = SWITCHED;
        return sent(r, dbp_build_auth_switch(r->out + r->n_out, sizeof r->out - r->n_out, seq));
    }
    r->state = COMMAND;
    return say_ok(r, seq);
}

/* ---- the driver's own statements ---- */

/* A statement as words: [A-Za-z0-9_] runs, quoted words, and single other characters. */
struct words {
    const char *p, *end;
};

static bool word_char(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static bool next_word(struct words *w, char *word, size_t n) {
    while (w->p < w->end && (*w->p == ' ' || *w->p == '\t' || *w->p == '\n' || *w->p == '\r'))
        w->p++;
    if (w->p == w->end)
        return false;
    const char *from = w->p;
    size_t len;
    if (*from == '\'' || *from == '"') {
        const char *close = memchr(from + 1, *from, (size_t)(w->end - from - 1));
        if (!close)
            return false;
        w->p = close + 1;
        len = (size_t)(close - ++from);
    } else {
        while (w->p < w->end && word_char(*w->p))
            w->p++;
        if (w->p == from)
            w->p++;
        len = (size_t)(w->p - from);
    }
    if (len >= n)
        len = 0; /* longer than all that we know: matches nothing */
    memcpy(word, from, len);
    word[len] = 0;
    return true;
}

static bool expect(struct words *w, const char *what) {
    char word[32];

    return next_word(w, word, sizeof word) && strcasecmp(word, what) == 0;
}

static const char *plain_utf8(const char *charset) {
    return strcasecmp(charset, "utf8mb3") == 0 ? "utf8" : charset;
}

/* SET NAMES x [COLLATE y]: x is the pool's. A collation is taken on trust as long as it is one of that character set's
 * (facts name the login's collation only by number): who uses one has it in the pool's init_sql. */
static bool names_fit(const struct dbp_replay *r, struct words w) {
    char word[64], collation[64];

    if (!expect(&w, "SET") || !expect(&w, "NAMES") || !next_word(&w, word, sizeof word) || !word[0] ||
        strcasecmp(plain_utf8(word), plain_utf8(r->charset)) != 0)
        return false;
    if (!next_word(&w, collation, sizeof collation))
        return true;
    if (strcasecmp(collation, "COLLATE") != 0 || !next_word(&w, collation, sizeof collation))
        return false;
    size_t n = strcspn(collation, "_");
    if (n < strlen(collation) && n < sizeof word)
        collation[n] = 0;
    return strcasecmp(plain_utf8(collation), plain_utf8(r->charset)) == 0 && !next_word(&w, word, sizeof word);
}

static bool autocommit_fits(const struct dbp_replay *r, struct words w) {
    char word[8];

    if (!expect(&w, "SET") || !expect(&w, "autocommit") || !expect(&w, "=") || !next_word(&w, word, sizeof word))
        return false;
    return strcmp(word, r->status & DBP_STATUS_AUTOCOMMIT ? "1" : "0") == 0 && !next_word(&w, word, sizeof word);
}

static int on_query(struct dbp_replay *r, const char *sql, size_t n) {
    char text[TEXT_MAX];
    int shown = 0;

    while (n > 0 && (sql[n - 1] == ';' || sql[n - 1] == ' ' || sql[n - 1] == '\n'))
        n--;
    struct words w = {sql, sql + n};
    if (names_fit(r, w) || autocommit_fits(r, w))
        return say_ok(r, 1);
    /* Only the head of a statement is repeated: what comes after '=' or a quote may be a secret (I9). */
    while ((size_t)shown < n && shown < 40 && (word_char(sql[shown]) || strchr(" @.,*(", sql[shown])) && sql[shown])
        shown++;
    snprintf(text, sizeof text,
             "dbpool: the driver's own statement after its login, '%.*s%s', is not what the pool's sessions are in "
             "(character set %s, autocommit %d)",
             shown, sql, (size_t)shown < n ? "..." : "", r->charset, r->status & DBP_STATUS_AUTOCOMMIT ? 1 : 0);
    return refuse(r, 1, text);
}

static int on_command(struct dbp_replay *r, const struct dbp_packet *p) {
    char text[TEXT_MAX];

    if (p->seq != 0 || p->len == 0)
        return die(r, "the driver's command is not understood");
    switch (p->payload[0]) {
    case COM_QUIT:
        r->state = OVER;
        return 0;
    case COM_PING:
        return say_ok(r, 1);
    case COM_QUERY:
        return on_query(r, (const char *)p->payload + 1, p->len - 1);
    default:
        snprintf(text, sizeof text, "dbpool: command %u cannot be answered while the driver logs in", p->payload[0]);
        return refuse(r, 1, text);
    }
}

static int on_packet(struct dbp_replay *r, const struct dbp_packet *p) {
    switch (r->state) {
    case GREETED:
        return on_login(r, p);
    case SWITCHED:
        if (p->seq != 3)
            return die(r, "the driver's answer to the auth switch is not understood");
        r->state = COMMAND;
        return say_ok(r, 4);
    case COMMAND:
        return on_command(r, p);
    case OVER:
    case DEAD:
        break;
    }
    return 0;
}

int dbp_replay_feed(struct dbp_replay *r, const void *data, size_t n) {
    const uint8_t *from = data;

    while (n > 0 && r->state != OVER && r->state != DEAD) {
        size_t part = sizeof r->in - r->n_in < n ? sizeof r->in - r->n_in : n;
        memcpy(r->in + r->n_in, from, part);
        r->n_in += part;
        from += part;
        n -= part;

        struct dbp_packet p;
        int rc = 0;
        while (r->n_in > 0 && r->state != OVER && (rc = dbp_packet_peek(r->in, r->n_in, PACKET_MAX, &p)) == 0) {
            if ((rc = on_packet(r, &p)) != 0)
                return rc;
            size_t used = DBP_PACKET_HEAD + p.len;
            r->n_in -= used;
            memmove(r->in, r->in + used, r->n_in);
        }
        if (rc == DBP_E_INVALID)
            return die(r, "the driver sends more than a login has");
    }
    return r->state == DEAD ? DBP_E_INVALID : 0;
}

size_t dbp_replay_take(struct dbp_replay *r, void *buf, size_t max) {
    size_t n = r->n_out < max ? r->n_out : max;

    memcpy(buf, r->out, n);
    r->n_out -= n;
    memmove(r->out, r->out + n, r->n_out);
    return n;
}
