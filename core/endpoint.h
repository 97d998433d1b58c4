/* SPDX-License-Identifier: MIT
 * Where a session's server is. A host name may lead to another server tomorrow, or at the next look; the address that a
 * session's own socket is connected to does not.
 */
#ifndef DBPOOL_ENDPOINT_H
#define DBPOOL_ENDPOINT_H

#include <stdint.h>

/* Plain data: part of messages. */
struct dbp_endpoint {
    uint32_t length;     /* of address; 0: there is none (a unix socket), and the pool's settings are all there is */
    uint8_t address[28]; /* a struct sockaddr_in or sockaddr_in6 */
};

/* What fd is connected to; none when that is not the Internet. */
struct dbp_endpoint dbp_endpoint_of(int fd);

#endif
