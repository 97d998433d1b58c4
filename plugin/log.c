/* SPDX-License-Identifier: MIT
 * Lines in uWSGI's log: see log.h.
 *
 * Not by uwsgi_log_verbose(): it asks for the local time, for which libc holds a lock, and a child that is forked at
 * that moment inherits it locked: its own first line would wait for ever. Here a fork waits until the date is made, and
 * never for the write.
 */
#include <uwsgi.h>

#include "log.h"

#include <pthread.h>
#include <time.h>

extern struct uwsgi_server uwsgi;

static pthread_mutex_t date_lock = PTHREAD_MUTEX_INITIALIZER;

static void before_fork(void) {
    pthread_mutex_lock(&date_lock);
}

static void after_fork(void) {
    pthread_mutex_unlock(&date_lock);
}

void plugin_log_init(void) {
    if (pthread_atfork(before_fork, after_fork, after_fork) != 0)
        uwsgi_log("[dbpool] error: no memory for a fork handler\n");
}

void plugin_log(enum dbp_log_level level, const char *text) {
    static const char *const names[] = {
        [DBP_LOG_INFO] = "", [DBP_LOG_WARNING] = "warning: ", [DBP_LOG_ERROR] = "error: "};
    char date[64] = "", line[sizeof date + DBP_TEXT_MAX + 256];
    time_t now = time(NULL);
    struct tm tm;

    pthread_mutex_lock(&date_lock);
    if (localtime_r(&now, &tm))
        strftime(date, sizeof date, uwsgi.log_strftime ? uwsgi.log_strftime : "%a %b %e %H:%M:%S %Y", &tm);
    pthread_mutex_unlock(&date_lock);
    int n = snprintf(line, sizeof line, "%s - [dbpool] %s%s\n", date, names[level], text);
    if (n > 0 && write(2, line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1) < 0)
        return; /* there is nowhere to say so */
}
