/* SPDX-License-Identifier: MIT
 * Lines in uWSGI's log, from any thread of the master and of the connector's process.
 */
#ifndef DBPOOL_PLUGIN_LOG_H
#define DBPOOL_PLUGIN_LOG_H

#include "../core/dbpool.h"

/* Once in the master, before there are threads of ours. */
void plugin_log_init(void);
/* Writes a line as uwsgi_log_verbose() does, with its date. May block, as any write to the log; a fork at that moment
 * is no harm to the child. */
void plugin_log(enum dbp_log_level level, const char *text);

#endif
