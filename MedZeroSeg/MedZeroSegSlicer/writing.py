"""Files for the engine, written in a thread so that the window stays alive; nothing of the scene is touched."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Writing(threading.Thread):
    """Has begun when it is made; ``fault`` is what the system said where a file could not be written."""

    def __init__(self, *writes: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.fault: OSError | None = None
        self._writes = writes
        self.start()

    def run(self) -> None:
        """Write one file after the other."""
        try:
            for write in self._writes:
                write()
        except OSError as error:
            self.fault = error
