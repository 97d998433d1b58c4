/* SPDX-License-Identifier: MIT
 * Where the extension finds core's header: in the checkout, or beside this file in a source distribution (setup.py
 * copies it there).
 */
#ifndef DBPOOL_PY_CORE_H
#define DBPOOL_PY_CORE_H

#if __has_include("../../../core/dbpool.h")
#include "../../../core/dbpool.h"
#else
#include "dbpool.h"
#endif

#endif
