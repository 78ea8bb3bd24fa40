"""Memory that a process gives back is overwritten: what it has had of a request cannot be read there afterwards.

A node's process passes tokens between a worker and the engine. By default Python and the C library leave memory as it
was until somebody needs it: tokens of hours ago are found there. Both can be told otherwise, and only before a program
starts, in its environment. Only glibc knows these settings; with another C library they change nothing.
"""

from collections.abc import Mapping

_TUNABLES = "GLIBC_TUNABLES"
_OVERWRITE = "glibc.malloc.perturb=165:glibc.malloc.tcache_count=0"
"""A byte that freed memory is filled with, and no caches of freed memory, which is not filled."""


def overwriting(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which Python gives all memory back to the C library, and that overwrites it."""
    others = [each for each in environment.get(_TUNABLES, "").split(":") if each and each not in _OVERWRITE.split(":")]
    return {**environment, "PYTHONMALLOC": "malloc", _TUNABLES: ":".join([*others, _OVERWRITE])}
