"""What the host remembers of files, by a name and the time of their last change."""

from __future__ import annotations

_CACHES = {}


def cache(subsection):
    return _CACHES.setdefault(subsection, {})


def dump_cache():
    pass
