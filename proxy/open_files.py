"""How many files, and so connections, one process may have open."""

import resource

# Files that are not connections: LMDB, the engine's socket, logs, libraries being loaded.
RESERVED = 100
# systemd's own hard limit; what some containers allow (a billion) makes libraries that loop over it crawl.
ENOUGH = 524_288


def raise_limit() -> None:
    """As far as it goes without privileges: the usual soft limit, 1,024, is for programs that still use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connection_limit() -> int:
    """Beyond it, accepting would fail without a word to the client, and so would whatever else opens a file."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ENOUGH if soft == resource.RLIM_INFINITY else max(soft - RESERVED, soft // 2)
