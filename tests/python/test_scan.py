# SPDX-License-Identifier: MIT
"""What counts as a change of the session that the server does not report: the scanner of reset_on_return 'auto'."""

import random
import re
import unittest

from tests.python import BUILD  # noqa: F401 (finds the package)

from dbpool import _dbpool

QUIET = [
    "SELECT 1", "  select\n1", "\t\r\n\v\fSELECT 1", "(SELECT 1)", "((SELECT 1) UNION (SELECT 2))", "/* a */ SELECT 1",
    "-- a\nSELECT 1", "--\nSELECT 1", "# a 'b\nSELECT 1", "( /* a */ ( -- b\n SELECT 1))", "SELECT 1;", "SELECT 1 ; -- end",
    "SELECT 1; /* end */ ", "SELECT 1 -- don't", "SELECT 1 # don't", "SELECT /* don't */ 1", "SELECT /*+ NO_ICP(t) */ 1",
    "COMMIT", "ROLLBACK", "ROLLBACK TO SAVEPOINT `s1_x2`",
    "SAVEPOINT `s1_x2`", "RELEASE SAVEPOINT `s1_x2`", "START TRANSACTION", "BEGIN", "BEGIN WORK", "begin ;", "BEGIN -- x",
    "SHOW TABLES", "EXPLAIN SELECT 1", "DESCRIBE t", "DESC t", "WITH a AS (SELECT 1) SELECT * FROM a", "VALUES (1)",
    "DO SLEEP(0)", "SELECT * FROM t FOR UPDATE", "SELECT * FROM t FOR UPDATE SKIP LOCKED",
    "SELECT * FROM t LOCK IN SHARE MODE", "SELECT locked, `lock`, clock FROM blocks", "SELECT is_get_lock, get_lock_at FROM t",
    "SELECT @@autocommit, @@session.sql_mode", "SELECT 'it''s', 'a\\'b', '\\\\', 'x'", "SELECT '@a', \"@a\", `@a`",
    "SELECT 'a' '@b'", "SELECT a->'$.x', a->>'$.y', 5-1, 5--1, 6/2, a:b FROM t", "SELECT 'größe'", "SELECT `größe` FROM t",
    "SELECT ''", "SELECT `a``b`", "SELECT \"a\"\"b\"", "SELECT N'a', _utf8mb4'@', x'41', b'01', 1e5, .5",
    "SELECT '/*!', '--', '#', ';'", "SELECT '\\'; SET @a=1; -- '",
]

WRITES = [
    "INSERT INTO t VALUES (1)", "insert into `t` (`a`) values ('x; y @z := GET_LOCK(1) LOCK')", "UPDATE t SET a=1",
    "DELETE FROM t", "REPLACE INTO t VALUES (1);", "/* a */ Insert INTO t SELECT 1 -- b",
]

CHANGES = [
    "", " ", "()", ";", "/* only */", "-- only", "SET @a=1", "set names latin1", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET autocommit=0, @a=1", "SET autocommit=2", "SET autocommit=ON", "SET SESSION autocommit=1", "SET autocommit=1; SET @a=1",
    "SET autocommit", "SET autocommit=", "SET", "SET autocommit=10", "SET autocommit=(SELECT 1)",
    "SELECT @a:=1", "SELECT 1 INTO @a", "SELECT 1 into\n@a", "SELECT 1 INTO/**/@a", "SELECT 1 INTO @`a`", "SELECT 1 INTO @'a'",
    "SELECT @a", "SELECT @@@a", "SELECT 1 INTO -- x\n @a", "INSERT INTO t VALUES (@a:=1)", "UPDATE t SET a=(@b := 2)",
    "SELECT :=", "SELECT GET_LOCK('a',0)", "select get_lock('a',0)", "DO Get_Lock ('a', 0)", "SELECT 1,GET_LOCK('a',0)",
    "SELECT `GET_LOCK`('a',0)", 'SELECT "get_lock"(1,0)', "SELECT/**/GET_LOCK/**/('a',0)", "SELECT(GET_LOCK('a',0))",
    "SELECT -- '\nGET_LOCK('a',0)", "SELECT # '\nGET_LOCK('a',0) -- '", "SELECT /* ' */ GET_LOCK('a',0) /* ' */",
    "SELECT 'a''' , GET_LOCK('b',0) , ''''", "SELECT '\\\\', GET_LOCK('a',0), '\\\\'", "SELECT '\\'', GET_LOCK('a',0)",
    "SELECT 1--1, GET_LOCK('a',0)", "SELECT service_get_write_locks('n','a',1)", "SELECT version_tokens_lock_shared('a',1)",
    "LOCK TABLES t WRITE", "UNLOCK TABLES", "/* a */ lock tables t read", "HANDLER t OPEN", "FLUSH TABLES WITH READ LOCK",
    "FLUSH STATUS", "USE other", "CALL p()", "PREPARE p FROM 'SELECT 1'", "EXECUTE p", "EXECUTE IMMEDIATE 'SET @a=1'",
    "DEALLOCATE PREPARE p", "CREATE TEMPORARY TABLE t (a INT)", "CREATE TABLE t (a INT)", "DROP TABLE t", "ALTER TABLE t",
    "XA START 'a'", "LOAD DATA LOCAL INFILE 'x' INTO TABLE t", "BACKUP LOCK t", "KILL 1", "SELEKT 1", "SELECTED", "1", "@a",
    "BEGIN NOT ATOMIC SET @a=1; END", "BEGIN SET @a=1", "BEGIN WORK; SET @a=1", "BEGIN; SELECT 1", "BEGIN;;", "SET autocommit=1;;", "BEGIN /*! NOT ATOMIC */",
    "SELECT 1; SET @a=1", "SELECT 1; SELECT 2", "SELECT 1;;SELECT 2", "SELECT ';' ; LOCK TABLES t WRITE",
    "SELECT 1; /* a */ DO 1", "/*! SET @a=1 */", "SELECT /*!50000 @a:= */ 1", "SELECT 1 /*M! INTO @a */", "SELECT /*!99999 1 */ 1",
    "SELECT 'open", "SELECT 'open\\'", "SELECT `open", 'SELECT "open', "SELECT 1 /* open", "SELECT 'a\\", "SELECT \"a\\\"\"",
    'SELECT "a\\" , GET_LOCK("b",0) , "c"', "SELECT \\N", "SELECT 1\0; SET @a=1", "SELECT größe FROM t", "SELECT\xa0GET_LOCK('a',0)",
    "{SELECT 1}", "@@a", "'SELECT' 1", "`SELECT` 1",
]

AUTOCOMMIT = ["SET autocommit=0", "SET autocommit=1", "SET AUTOCOMMIT = 1", "set  Autocommit\t=\n0", "SET autocommit=0;",
              "/* a */ SET autocommit=0 -- b"]


class Scan(unittest.TestCase):
    def check(self, effect, statements, *more):
        for sql in statements:
            for given in (sql, sql.encode(), bytearray(sql.encode())):
                with self.subTest(given):
                    self.assertEqual(_dbpool.scan(given, *more), effect)

    def test_quiet(self):
        self.check('quiet', QUIET)

    def test_changes(self):
        self.check('changes', CHANGES)

    def test_writes(self):
        self.check('writes', WRITES)
        self.check('changes', [sql.replace(';', '') + extra for sql in WRITES[:-1]
                               for extra in ('; DO 1', ' + (@a := 1)', " + GET_LOCK('a', 0)")])

    def test_autocommit(self):
        self.check('autocommit', AUTOCOMMIT)

    def test_without_backslash_escapes(self):
        """NO_BACKSLASH_ESCAPES: the literal ends at the quote."""
        self.check('changes', ["SELECT '\\', GET_LOCK('a',0)", "SELECT '\\'; SET @a=1; -- '", "SELECT 'a\\''"], False)
        self.check('quiet', ["SELECT '\\'", "SELECT 'a\\', 'GET_LOCK'"], False)

    def test_what_is_no_text(self):
        for given in (None, 5, '\ud800', object(), [b'SELECT 1']):
            self.assertEqual(_dbpool.scan(given), 'changes')
        self.assertEqual(_dbpool.scan(memoryview(b'SELECT 1')), 'quiet')

    def test_every_start_of_a_statement_is_read_within_its_bounds(self):
        """Under valgrind or the address sanitizer this is what finds a byte too many."""
        for sql in QUIET + WRITES + CHANGES:
            data = sql.encode()
            for end in range(len(data)):
                self.assertIn(_dbpool.scan(data[:end]), ('quiet', 'changes', 'writes', 'autocommit'))

    def test_against_a_slow_and_simple_lexer(self):
        """Pieces in a random order; what is left outside of literals and comments decides."""
        chosen = random.Random(20261122)
        pieces = ["'", "''", '"', '`', '\\', "\\'", '@', '@@', ':=', ';', '#', '\n', '-- ', '--', '/*', '*/', '/*!', 'GET_LOCK',
                  'get_lock', ' ', 'a', '(', ')', ',', '1', 'ü', 'LOCK', 'SELECT', '-', '/', ':', '*', '\0']
        quiet = 0
        for _ in range(60000):
            sql = 'SELECT ' + ''.join(chosen.choice(pieces) for _ in range(chosen.randrange(1, 9)))
            got, risky = _dbpool.scan(sql), _risky(sql)
            if risky:
                self.assertEqual(got, 'changes', sql)
            quiet += got == 'quiet'
        self.assertGreater(quiet, 5000)


_TOKEN = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\])*"|`[^`]*`|\#[^\n]*\n?|--(?=[\s\x00-\x1f]|$)[^\n]*\n?|/\*(?!!|M!).*?\*/|.""",
                    re.DOTALL)


def _risky(sql):
    """As the server's lexer would see it, by a regular expression: is there anything that 'auto' must not miss?"""
    live, names = [], []
    for token in _TOKEN.findall(sql):
        if len(token) > 1 and token[0] in '`"':
            names.append(token[1:-1])
            live.append(' ')
        elif len(token) > 1 and (token[0] == "'" or token.startswith('/*')):
            live.append(' ')
        elif token[0] == '#' or (token.startswith('--') and len(token) >= 2):
            live.append(' ')
        else:
            live.append(token)
    text = ''.join(live)
    return bool(re.search(r"(?<!@)@(?!@)|:=|(?<![\w$])get_lock(?![\w$])|/\*!|;\s*[^\s]", text, re.I | re.A)
                or any(name.lower() == 'get_lock' for name in names))


if __name__ == '__main__':
    unittest.main()
