/* SPDX-License-Identifier: MIT
 * What could not be made when the pool was to start, in words: an error number alone does not say which of twenty
 * system calls it was that a sandbox or a limit refused.
 */
#ifndef DBPOOL_FAILURE_H
#define DBPOOL_FAILURE_H

/* Notes that `what` could not be made, for this thread. error is an errno. Returns -error. */
int dbp_failed(const char *what, int error);

/* What was noted last in this thread, with the error's text; like dlerror(3), for whoever was just told of a failure.
 */
const char *dbp_failure(void);

#endif
