"""Objects of ours that a PACS was asked to send back here by C-MOVE (PS3.4 C.4.2): they go to who asked for them.

The listener receives them as it does all others; but what we hold already is neither stored again nor made a series.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from node.incoming import Incoming


class Returns:
    """Who waits for which object, by its SOP Instance UID."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._awaited: dict[str, list[bytes]] = {}

    @contextlib.contextmanager
    def awaiting(self, sop_uid: str) -> Iterator[list[bytes]]:
        """Have an object that comes while the block runs put into the list yielded, as a DICOM file (PS3.10 7).

        One waits for an object at a time: of two archives that send it, nobody could say whose it is.
        """
        with self._changed:
            self._changed.wait_for(lambda: sop_uid not in self._awaited)
            came = self._awaited[sop_uid] = []
        try:
            yield came
        finally:
            with self._changed:
                del self._awaited[sop_uid]
                self._changed.notify_all()

    def take(self, incoming: Incoming) -> bool:
        """Give an object that has come whole to who waits for it; False: nobody does.

        Raises `OutOfDisk` where its bytes cannot be read.
        """
        if incoming.sop_uid not in self._awaited:  # looked at for each image that comes: without the lock
            return False
        content = incoming.content()
        with self._changed:
            came = self._awaited.get(incoming.sop_uid)
            if came is not None:
                came.append(content)
            return came is not None
