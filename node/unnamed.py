"""Files that have no name yet: they vanish with the process unless they are given one."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
from collections import deque
from pathlib import Path

from node.errors import OutOfDisk

_FULL = {errno.ENOSPC, errno.EDQUOT}
# Files kept ready at most.
_SPARES = 8
_FLAGS = os.O_RDWR | os.O_CLOEXEC


class disk_errors:  # noqa: N801 - used like a function; a generator would cost more than the calls it guards
    """Say `OutOfDisk` for any error of the operating system within the block."""

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Translate what was raised."""
        if not isinstance(error, OSError):
            return
        if error.errno in _FULL:
            raise OutOfDisk("the state folder's disk is full", "free some space; nothing was accepted") from error
        raise OutOfDisk(
            f"the state folder cannot be written ({error.strerror})", "check its owner, mount and disk"
        ) from error


class Unnamed:
    """Makes files in `folder`, without a name where the file system can (``O_TMPFILE``), else with a passing one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # No two names of this process, or of one that was killed, are the same.
        self._numbers = itertools.count()
        self._mark = secrets.token_hex(6)
        self._nameless = False
        self._spares: deque[int] = deque()

    def look(self) -> None:
        """Find out what the file system can; before that, files have names."""
        probe = self._folder / f"{self._mark}.probe"
        with contextlib.suppress(OSError):
            handle = os.open(self._folder, _FLAGS | os.O_TMPFILE, 0o640)
            try:
                link(self.path(handle, ""), str(probe))
                probe.unlink()
                self._nameless = True
            finally:
                os.close(handle)

    def open(self) -> tuple[int, str]:
        """Open a new file for writing and reading; return its handle, and its path if it has one.

        The caller closes the one and removes the other.

        Raises
        ------
        OutOfDisk
        """
        with contextlib.suppress(IndexError):
            return self._spares.popleft(), ""
        with disk_errors():
            if self._nameless:
                return os.open(self._folder, _FLAGS | os.O_TMPFILE, 0o640), ""
            path = f"{self._folder}/{self._mark}-{next(self._numbers)}.part"
            return os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o640), path

    def path(self, handle: int, path: str) -> str:
        """Return by what to `link` a file that `open` returned."""
        return path or f"/proc/self/fd/{handle}"

    def open_spare(self) -> None:
        """Have a file ready for `open`: for a moment when nobody waits."""
        if self._nameless and len(self._spares) < _SPARES:
            with contextlib.suppress(OSError):  # who needs one will hear of it
                self._spares.append(os.open(self._folder, _FLAGS | os.O_TMPFILE, 0o640))

    def close_spares(self) -> None:
        """Close what `open_spare` opened and nobody took."""
        with contextlib.suppress(IndexError):
            while True:
                os.close(self._spares.popleft())


def link(path: str, target: str) -> None:
    """Give a file a name, never one that is taken; `path` may lead through /proc to an open file."""
    # With any folder given, Python calls linkat(2) so that it follows links; an absolute path needs none.
    os.link(path, target, src_dir_fd=0)
