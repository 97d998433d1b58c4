/* SPDX-License-Identifier: MIT
 * One login, from the relay to a session that is ready for its pool: see login.h. The only file that calls
 * libmysqlclient (MariaDB Connector/C), but for the set-up of its threads in connector.c.
 *
 * Every login goes through a relay of its own (relay.h), a KILL's too, so that both reach the server in the same way.
 */
#include "login.h"

#include "handshake.h"
#include "relay.h"
#include "reset.h"

#include <errmsg.h>
#include <mysql.h>
#include <mysqld_error.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STATEMENTS_GRACE_US 30000000u /* for init_sql and facts_sql after the login: they are few and short */

void dbp_login_error(struct dbp_error *errorp, uint32_t code, const char *sqlstate, const char *text) {
    memset(errorp, 0, sizeof *errorp);
    errorp->code = code;
    snprintf(errorp->sqlstate, sizeof errorp->sqlstate, "%s", sqlstate);
    snprintf(errorp->text, sizeof errorp->text, "%s", text);
}

static bool take_error(MYSQL *mysql, struct dbp_error *errorp) {
    uint32_t code = mysql_errno(mysql);

    const char *state = mysql_sqlstate(mysql);

    /* The library leaves 00000, success, beside some errors of its own. */
    dbp_login_error(errorp, code ? code : CR_UNKNOWN_ERROR, strcmp(state, "00000") == 0 ? "HY000" : state,
                    mysql_error(mysql));
    return false;
}

/* The library's own text quotes what lies in a buffer by then. */
static bool login_refused(MYSQL *mysql, struct dbp_error *errorp) {
    if (mysql_errno(mysql) != CR_PLUGIN_NOT_ALLOWED)
        return take_error(mysql, errorp);
    dbp_login_error(errorp, CR_AUTH_PLUGIN_CANNOT_LOAD, "HY000",
                    "dbpool: the server asks for the password in clear text (mysql_clear_password, dialog), or by a "
                    "method that is not known: this needs a unix socket");
    return false;
}

/* A server may ask any client that has LOCAL_FILES for any file: sessions may have it, this process never answers. */
static int refuse_file_init(void **data, const char *name, void *arg) {
    (void)name;
    (void)arg;
    *data = NULL;
    return 1;
}

static int refuse_file_read(void *data, char *buf, unsigned int n) {
    (void)data;
    (void)buf;
    (void)n;
    return -1;
}

static void refuse_file_end(void *data) {
    (void)data;
}

static int refuse_file_error(void *data, char *text, unsigned int n) {
    (void)data;
    snprintf(text, n, "dbpool: LOAD DATA LOCAL is not for init statements");
    return CR_UNKNOWN_ERROR;
}

/* A server may ask for the password as it is (mysql_clear_password, and dialog for PAM): not where anybody may listen.
 * All others prove it, or encrypt it with the server's key. */
static bool keep_the_password(MYSQL *mysql) {
    return mysql_options(mysql, MARIADB_OPT_RESTRICTED_AUTH,
                         "mysql_native_password,caching_sha2_password,sha256_password,client_ed25519,parsec,"
                         "auth_gssapi_client") == 0;
}

static bool set_options(MYSQL *mysql, const struct dbp_pool_spec *spec, bool tcp) {
    unsigned int timeout = spec->connect_timeout_s, protocol = tcp ? MYSQL_PROTOCOL_TCP : MYSQL_PROTOCOL_SOCKET;
    unsigned int local_infile = (spec->client_flags & DBP_CAP_LOCAL_FILES) != 0;
    my_bool off = 0;

    /* No MYSQL_READ_DEFAULT_*: nothing of a session comes from files that the workers do not know. */
    return mysql_options(mysql, MYSQL_OPT_CONNECT_TIMEOUT, &timeout) == 0 &&
           mysql_options(mysql, MYSQL_OPT_READ_TIMEOUT, &timeout) == 0 &&
           mysql_options(mysql, MYSQL_OPT_WRITE_TIMEOUT, &timeout) == 0 &&
           mysql_options(mysql, MYSQL_OPT_PROTOCOL, &protocol) == 0 &&
           mysql_options(mysql, MYSQL_OPT_RECONNECT, &off) == 0 &&
           /* The relay offers no TLS; newer libraries insist on it unless told otherwise. */
           mysql_options(mysql, MYSQL_OPT_SSL_VERIFY_SERVER_CERT, &off) == 0 && (!tcp || keep_the_password(mysql)) &&
           mysql_options(mysql, MYSQL_OPT_LOCAL_INFILE, &local_infile) == 0 &&
           (!spec->charset[0] || mysql_options(mysql, MYSQL_SET_CHARSET_NAME, spec->charset) == 0) &&
           mysql_optionsv(mysql, MYSQL_OPT_CONNECT_ATTR_ADD, "program_name", "dbpool") == 0;
}

/* Runs a statement and reads all its results, so that the status word is that of the last one. row (may be NULL) sees
 * each row of the first result until it answers false. */
static bool run(MYSQL *mysql, const char *sql, bool (*row)(void *arg, MYSQL_RES *res, MYSQL_ROW values), void *arg,
                struct dbp_error *errorp) {
    int more;

    if (mysql_real_query(mysql, sql, strlen(sql)) != 0)
        return take_error(mysql, errorp);
    do {
        MYSQL_RES *res = mysql_use_result(mysql);
        MYSQL_ROW values;
        while (res && (values = mysql_fetch_row(res)))
            if (row && !row(arg, res, values))
                row = NULL;
        row = NULL;
        if (res)
            mysql_free_result(res);
        if (mysql_errno(mysql) != 0)
            return take_error(mysql, errorp);
    } while ((more = mysql_next_result(mysql)) == 0);
    return more < 0 || take_error(mysql, errorp);
}

/* Puts a session on its pool's baseline: no transaction, autocommit as configured. */
static bool settle(MYSQL *mysql, const struct dbp_pool_spec *spec, struct dbp_error *errorp) {
    if ((mysql->server_status & DBP_STATUS_IN_TRANS) &&
        !run(mysql, "COMMIT AND NO CHAIN NO RELEASE", NULL, NULL, errorp))
        return false;
    if (((mysql->server_status & DBP_STATUS_AUTOCOMMIT) != 0) == (spec->autocommit != 0))
        return true;
    return run(mysql, spec->autocommit ? "SET autocommit=1" : "SET autocommit=0", NULL, NULL, errorp);
}

struct facts_row {
    struct dbp_session_facts *facts;
    bool too_long;
};

static bool keep_row(void *arg, MYSQL_RES *res, MYSQL_ROW values) {
    struct facts_row *keep = arg;
    struct dbp_session_facts *facts = keep->facts;
    const unsigned long *lengths = mysql_fetch_lengths(res);
    unsigned int columns = mysql_num_fields(res);

    for (unsigned int i = 0; i < columns; i++) {
        size_t len = values[i] ? lengths[i] : 0;
        uint16_t head = values[i] ? (uint16_t)len : 0xffffu;
        if (len + sizeof head > sizeof facts->row - facts->row_len) {
            keep->too_long = true;
            return false;
        }
        memcpy(facts->row + facts->row_len, &head, sizeof head);
        if (len > 0)
            memcpy(facts->row + facts->row_len + sizeof head, values[i], len);
        facts->row_len += (uint32_t)(sizeof head + len);
    }
    facts->row_columns = columns;
    return false; /* the first row only */
}

/* ---- what a reset will make of the session (DBP_FACT_*) ---- */

#define NAMES_SQL "SELECT CONCAT_WS(' ', @@character_set_client, @@character_set_results, @@collation_connection)"

struct probe {
    char text[256];
    bool null;
};

static bool keep_text(void *arg, MYSQL_RES *res, MYSQL_ROW values) {
    struct probe *probe = arg;

    probe->null = !values[0];
    snprintf(probe->text, sizeof probe->text, "%s", mysql_num_fields(res) > 0 && values[0] ? values[0] : "");
    return false;
}

/* True with the answer. False with the session still in order: the server does not know what was asked (error codes
 * from 1000: servers'), or errorp->code is the library's, and the session is lost. */
static bool ask(MYSQL *mysql, const char *sql, struct probe *probe, struct dbp_error *errorp) {
    *probe = (struct probe){.null = true};
    return run(mysql, sql, keep_text, probe, errorp);
}

static bool lost(const struct dbp_error *error) {
    return error->code >= CR_MIN_ERROR && error->code <= CR_MAX_ERROR;
}

/* COM_RESET_CONNECTION loses what init_connect did at the login, and keeps a role. */
static bool can_be_reset(MYSQL *mysql, struct dbp_session_facts *facts, struct dbp_error *errorp) {
    struct probe probe;

    if (!ask(mysql, "SELECT @@GLOBAL.init_connect", &probe, errorp) || probe.text[0] != '\0')
        return false;
    if (!ask(mysql, "SELECT CURRENT_ROLE()", &probe, errorp))
        return !lost(errorp);                           /* no roles before MariaDB 10.0, MySQL 8.0 */
    if (!probe.null && strcmp(probe.text, "NONE") != 0) /* MySQL says it as a word */
        return false;
    facts->status |= DBP_FACT_ROLE_NONE;
    return true;
}

/* The session is reset once before its first use: what the pool hands out is then the same after the login and after
 * each reset, and that the server can do it is known. */
static bool reset_once(MYSQL *mysql, struct dbp_session_facts *facts, struct dbp_error *errorp) {
    struct probe before, after;
    char names[DBP_RESET_NAMES_MAX], *collation;

    memset(errorp, 0, sizeof *errorp);
    if (!can_be_reset(mysql, facts, errorp) || !ask(mysql, NAMES_SQL, &before, errorp)) {
        facts->status |= DBP_FACT_NO_RESET;
        return !lost(errorp);
    }
    if (mysql_reset_connection(mysql) != 0) {
        facts->status |= DBP_FACT_NO_RESET; /* before MariaDB 10.2, MySQL 5.7 */
        take_error(mysql, errorp);
        return !lost(errorp);
    }
    if (!ask(mysql, NAMES_SQL, &after, errorp))
        return false;
    if (strcmp(before.text, after.text) == 0)
        return true;
    /* The collation too: a server's default for the character set may be another than the login's (MySQL 8). */
    collation = strrchr(before.text, ' ');
    if (!collation || !collation[1] || strlen(collation + 1) >= sizeof facts->collation) {
        facts->status |= DBP_FACT_NO_RESET;
        return true;
    }
    facts->status |= DBP_FACT_NAMES;
    snprintf(facts->collation, sizeof facts->collation, "%s", collation + 1);
    dbp_reset_names(names, sizeof names, facts->collation);
    return run(mysql, names, NULL, NULL, errorp);
}

static bool track(MYSQL *mysql, struct dbp_session_facts *facts, struct dbp_error *errorp) {
    if (!run(mysql, DBP_TRACKING_SQL, NULL, NULL, errorp))
        return errorp->code == ER_UNKNOWN_SYSTEM_VARIABLE; /* it reports nothing, that is all */
    /* Proved, not assumed: this statement is a change itself. */
    if (mysql->server_status & DBP_STATUS_CHANGED)
        facts->status |= DBP_FACT_TRACKED;
    return true;
}

/* All that a new session needs before anyone has it. What stands here after reset_once() stands in reset.c too. */
static bool prepare(MYSQL *mysql, const struct dbp_pool_spec *spec, struct dbp_session_facts *facts,
                    struct dbp_error *errorp) {
    struct facts_row keep = {.facts = facts};

    if (!reset_once(mysql, facts, errorp) || !track(mysql, facts, errorp) || !settle(mysql, spec, errorp))
        return false;
    for (const char *sql = spec->init_sql; sql < spec->init_sql + sizeof spec->init_sql && *sql; sql += strlen(sql) + 1)
        if (!run(mysql, sql, NULL, NULL, errorp))
            return false;
    if (spec->facts_sql[0] && !run(mysql, spec->facts_sql, keep_row, &keep, errorp))
        return false;
    if (keep.too_long) {
        dbp_login_error(errorp, CR_UNKNOWN_ERROR, "HY000",
                        "dbpool: the row of facts_sql is longer than a session can carry");
        return false;
    }
    return settle(mysql, spec, errorp);
}

/* A login in progress; both members go together, the library's handle first. */
struct login {
    MYSQL *mysql;
    struct dbp_relay *relay;
};

static void logout(struct login *l) {
    if (l->mysql) {
        if (l->mysql->passwd)
            explicit_bzero(l->mysql->passwd, strlen(l->mysql->passwd)); /* the library frees it as it is */
        mysql_close(l->mysql);
    }
    dbp_relay_free(l->relay);
    *l = (struct login){NULL, NULL};
}

/* db: NULL for a KILL, which must work after the database was dropped. endpoint may be NULL. */
static bool login(int stop_fd, const struct dbp_pool_spec *spec, const struct dbp_endpoint *endpoint, const char *db,
                  struct login *l, struct dbp_error *errorp) {
    uint64_t now = dbp_now_us(), timeout_us = (uint64_t)spec->connect_timeout_s * 1000000u;
    struct dbp_relay_route route = {.host = spec->host,
                                    .port = spec->port,
                                    .unix_socket = spec->unix_socket,
                                    .endpoint = endpoint,
                                    .connect_deadline_us = now + timeout_us,
                                    .deadline_us = now + 2 * timeout_us + STATEMENTS_GRACE_US,
                                    .stop_fd = stop_fd};
    char text[DBP_TEXT_MAX];

    int rc = dbp_relay_start(&route, errorp, &l->relay);
    if (rc == DBP_E_FAILED)
        return false;
    if (rc != 0) {
        snprintf(text, sizeof text, "dbpool: the connector cannot log in: %s",
                 rc < 0 ? strerror(-rc) : "it is being stopped");
        dbp_login_error(errorp, CR_UNKNOWN_ERROR, "HY000", text);
        return false;
    }
    const char *path = dbp_relay_socket(l->relay);
    if (!(l->mysql = mysql_init(NULL)) || !set_options(l->mysql, spec, path == NULL)) {
        dbp_login_error(errorp, CR_OUT_OF_MEMORY, "HY000", "dbpool: the connector has no memory for a login");
        return false;
    }
    mysql_set_local_infile_handler(l->mysql, refuse_file_init, refuse_file_read, refuse_file_end, refuse_file_error,
                                   NULL);
    if (!mysql_real_connect(l->mysql, path ? NULL : "127.0.0.1", spec->user, spec->password, db,
                            dbp_relay_port(l->relay), path, spec->client_flags))
        return login_refused(l->mysql, errorp);
    return true;
}

/* ---- killing ---- */

#define STARTED_SLACK_US 2000000u /* the server tells its age in whole seconds, and the question takes its time */

struct dbp_killer {
    struct login l;
    int stop_fd;
    uint64_t patience_us;
    bool aged;            /* the server told its age */
    uint64_t begun_by_us; /* then: it was started at this time at the latest */
};

static bool keep_age(void *arg, MYSQL_RES *res, MYSQL_ROW values) {
    struct dbp_killer *killer = arg;
    unsigned long long age_s = 0;

    if (mysql_num_fields(res) < 2 || !values[1] || sscanf(values[1], "%llu", &age_s) != 1)
        return false;
    uint64_t now = dbp_now_us(), age_us = age_s * 1000000u;
    killer->aged = true;
    killer->begun_by_us = age_us < now ? now - age_us : 0;
    return false;
}

bool dbp_killer_login(const struct dbp_pool_spec *spec, const struct dbp_endpoint *endpoint, int stop_fd,
                      struct dbp_killer **killerp, struct dbp_error *errorp) {
    struct dbp_killer *killer = calloc(1, sizeof *killer);

    if (!killer) {
        dbp_login_error(errorp, CR_OUT_OF_MEMORY, "HY000", "dbpool: the connector has no memory for a login");
        return false;
    }
    killer->stop_fd = stop_fd;
    killer->patience_us = (uint64_t)spec->connect_timeout_s * 1000000u;
    /* Whoever does not know the question is not asked for its age (dbp_killer_may). */
    if (!login(stop_fd, spec, endpoint, NULL, &killer->l, errorp) ||
        (!run(killer->l.mysql, "SHOW GLOBAL STATUS LIKE 'Uptime'", keep_age, killer, errorp) && lost(errorp))) {
        dbp_killer_logout(killer);
        return false;
    }
    *killerp = killer;
    return true;
}

bool dbp_killer_may(const struct dbp_killer *killer, uint64_t opened_us, uint32_t connection_id,
                    struct dbp_error *errorp) {
    /* Without the age: numbers only grow in one life of a server, until they wrap, so one above our own is most likely
     * of a former life. */
    if (killer->aged ? opened_us + STARTED_SLACK_US >= killer->begun_by_us
                     : connection_id < mysql_thread_id(killer->l.mysql))
        return true;
    dbp_login_error(errorp, CR_UNKNOWN_ERROR, "HY000",
                    "dbpool: not killed: the server was started after this session was opened");
    return false;
}

bool dbp_killer_run(struct dbp_killer *killer, struct dbp_kill *kills, size_t n) {
    size_t done = dbp_kills_run(mysql_get_socket(killer->l.mysql), killer->stop_fd, killer->patience_us, kills, n);

    for (size_t i = done; i < n; i++)
        dbp_login_error(&kills[i].error, CR_SERVER_LOST, "HY000",
                        "dbpool: lost the connection that was to kill the session");
    return done == n;
}

struct dbp_killer *dbp_killer_logout(struct dbp_killer *killer) {
    if (!killer)
        return NULL;
    logout(&killer->l);
    free(killer);
    return NULL;
}

/* A statement that took too long goes on at the server, in a session that nobody counts any more (I3). */
static void kill_leftover(const struct dbp_pool_spec *spec, const struct dbp_endpoint *endpoint, int stop_fd,
                          uint32_t connection_id) {
    struct dbp_kill kill = {.connection_id = connection_id};
    struct dbp_killer *killer;
    struct dbp_error second; /* the first one is the cause */

    if (!dbp_killer_login(spec, endpoint, stop_fd, &killer, &second))
        return;
    bool done = dbp_killer_run(killer, &kill, 1);
    (void)done; /* as above */
    dbp_killer_logout(killer);
}

bool dbp_login_open(const struct dbp_pool_spec *spec, int stop_fd, struct dbp_session_facts *facts,
                    struct dbp_endpoint *endpointp, int *fdp, struct dbp_error *errorp) {
    struct dbp_relay_session session;
    struct login l = {NULL, NULL};

    memset(facts, 0, sizeof *facts);
    bool done = login(stop_fd, spec, NULL, spec->database[0] ? spec->database : NULL, &l, errorp) &&
                prepare(l.mysql, spec, facts, errorp);
    struct dbp_endpoint endpoint = l.relay ? dbp_relay_endpoint(l.relay) : (struct dbp_endpoint){0};
    if (done && dbp_relay_detach(l.relay, mysql_get_socket(l.mysql), &session) != 0) {
        dbp_login_error(errorp, CR_UNKNOWN_ERROR, "HY000",
                        "dbpool: the session was lost between its login and its first use");
        done = false;
    }
    if (done) {
        facts->connection_id = (uint32_t)mysql_thread_id(l.mysql);
        facts->capabilities = session.capabilities;
        facts->charset = session.charset;
        facts->status |= l.mysql->server_status & DBP_STATUS_LASTING;
        facts->greeting_len = session.greeting_len;
        memcpy(facts->greeting, session.greeting, session.greeting_len);
        *endpointp = endpoint;
        *fdp = session.fd;
    }
    uint32_t left = !done && l.mysql && errorp->code == CR_SERVER_LOST ? (uint32_t)mysql_thread_id(l.mysql) : 0;
    logout(&l);
    if (left != 0)
        kill_leftover(spec, &endpoint, stop_fd, left);
    return done;
}
