"""Whose turn it is: all who use the model wait in one line, and stand behind the others again after each turn."""

import threading
from collections import deque


class Turns:
    """A lock that is given in the order in which it was asked for. `with turns:` is one turn."""

    def __init__(self):
        self._mutex = threading.Lock()
        self._line: deque[threading.Lock] = deque()
        self._taken = False

    def __enter__(self) -> None:
        with self._mutex:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._line.append(mine)
        mine.acquire()  # opened by the one before

    def __exit__(self, *exception) -> None:
        with self._mutex:
            if self._line:
                self._line.popleft().release()
            else:
                self._taken = False

    def rest(self) -> None:
        """Inside a turn: let those who wait go first."""
        if self._line:
            self.__exit__()
            self.__enter__()
