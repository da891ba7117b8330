"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from node.errors import ConfigurationError, OutOfDisk


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` beside `path` and rename it there; the folder is made. On failure nothing is left behind.

    Raises
    ------
    OutOfDisk
        The disk is full.
    ConfigurationError
        The folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).chmod(0o644)
                Path(file.name).replace(path)
            finally:
                Path(file.name).unlink(missing_ok=True)  # there only if it did not get its name
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfDisk(f"no space left to write {path.name}", "free some disk space") from error
        raise ConfigurationError(
            f"cannot write {path}: {error.strerror}", "choose a folder you may write to"
        ) from error
