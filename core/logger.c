/* SPDX-License-Identifier: MIT
 * Log lines of a thread that may not block: see logger.h.
 */
#include "logger.h"

#include "thread.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LINES 64u
#define LINE_MAX_BYTES (DBP_TEXT_MAX + 128u)

struct line {
    enum dbp_log_level level;
    char text[LINE_MAX_BYTES];
};

struct dbp_logger {
    dbp_log_fn write;
    pthread_t thread;
    pthread_mutex_t lock; /* guards all below; never held while a line is written */
    pthread_cond_t changed;
    bool over, done;
    bool abandoned; /* nobody waits for the thread: it frees this at its end */
    uint32_t first, n, dropped;
    struct line lines[LINES];
};

/* The next line, or what was dropped once there is none before it. False: there will be none any more. */
static bool take(struct dbp_logger *logger, struct line *line) {
    bool got = true;

    pthread_mutex_lock(&logger->lock);
    while (logger->n == 0 && logger->dropped == 0 && !logger->over)
        pthread_cond_wait(&logger->changed, &logger->lock);
    if (logger->n > 0) {
        *line = logger->lines[logger->first];
        logger->first = (logger->first + 1) % LINES;
        logger->n--;
    } else if (logger->dropped > 0) {
        line->level = DBP_LOG_WARNING;
        snprintf(line->text, sizeof line->text, "%u lines are lost: the log could not be written", logger->dropped);
        logger->dropped = 0;
    } else {
        got = false;
        logger->done = true;
        pthread_cond_broadcast(&logger->changed);
    }
    pthread_mutex_unlock(&logger->lock);
    return got;
}

static void destroy(struct dbp_logger *logger) {
    pthread_cond_destroy(&logger->changed);
    pthread_mutex_destroy(&logger->lock);
    free(logger);
}

static void *run(void *arg) {
    struct dbp_logger *logger = arg;
    struct line line;

    while (take(logger, &line))
        logger->write(line.level, line.text);
    if (logger->abandoned) /* set before done, and nobody else has the logger then */
        destroy(logger);
    return NULL;
}

int dbp_logger_new(dbp_log_fn write, struct dbp_logger **loggerp) {
    struct dbp_logger *logger = calloc(1, sizeof *logger);
    pthread_condattr_t attr;

    if (!logger)
        return -ENOMEM;
    logger->write = write;
    pthread_mutex_init(&logger->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&logger->changed, &attr);
    pthread_condattr_destroy(&attr);
    int rc = dbp_thread_start(0, run, logger, &logger->thread);
    if (rc != 0) {
        destroy(logger);
        return rc;
    }
    *loggerp = logger;
    return 0;
}

void dbp_logger_say(struct dbp_logger *logger, enum dbp_log_level level, const char *text) {
    pthread_mutex_lock(&logger->lock);
    if (logger->n == LINES) {
        logger->dropped++;
    } else {
        struct line *line = &logger->lines[(logger->first + logger->n) % LINES];
        line->level = level;
        snprintf(line->text, sizeof line->text, "%s", text);
        logger->n++;
        pthread_cond_signal(&logger->changed);
    }
    pthread_mutex_unlock(&logger->lock);
}

struct dbp_logger *dbp_logger_free(struct dbp_logger *logger, uint64_t wait_us) {
    uint64_t deadline = dbp_now_us() + wait_us;
    struct timespec until = {.tv_sec = (time_t)(deadline / 1000000u), .tv_nsec = (long)(deadline % 1000000u) * 1000};

    if (!logger)
        return NULL;
    pthread_mutex_lock(&logger->lock);
    logger->over = true;
    pthread_cond_broadcast(&logger->changed);
    while (!logger->done && pthread_cond_timedwait(&logger->changed, &logger->lock, &until) == 0)
        continue;
    bool done = logger->done;
    if (!done) { /* inside write: it may come back to its logger at any time */
        logger->abandoned = true;
        pthread_detach(logger->thread);
    }
    pthread_mutex_unlock(&logger->lock);
    if (done) {
        pthread_join(logger->thread, NULL);
        destroy(logger);
    }
    return NULL;
}
