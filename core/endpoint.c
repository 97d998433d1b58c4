/* SPDX-License-Identifier: MIT
 * Where a session's server is: see endpoint.h.
 */
#include "endpoint.h"

#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

_Static_assert(sizeof(struct sockaddr_in6) <= sizeof(((struct dbp_endpoint *)0)->address), "an IPv6 address fits");

struct dbp_endpoint dbp_endpoint_of(int fd) {
    struct dbp_endpoint endpoint = {0};
    struct sockaddr_storage addr;
    socklen_t length = sizeof addr;

    if (getpeername(fd, (struct sockaddr *)&addr, &length) != 0 ||
        (addr.ss_family != AF_INET && addr.ss_family != AF_INET6) || length > sizeof endpoint.address)
        return endpoint;
    endpoint.length = (uint32_t)length;
    memcpy(endpoint.address, &addr, length);
    return endpoint;
}
