"""A lock that is given to whoever waited longest; like the host's, no timeout and no re-entry."""

from __future__ import annotations

import collections
import threading


class FIFOLock:
    def __init__(self):
        self._taken = False
        self._guard = threading.Lock()
        self._waiting = collections.deque()

    def acquire(self, blocking=True):
        with self._guard:
            if not self._taken:
                self._taken = True
                return True
            if not blocking:
                return False
            mine = threading.Event()
            self._waiting.append(mine)
        mine.wait()
        return True

    def release(self):
        with self._guard:
            if not self._taken:
                raise RuntimeError("release unlocked lock")
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._taken = False

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *error):
        self.release()
