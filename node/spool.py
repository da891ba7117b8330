"""The spool: bytes on disk, nothing else. Where a series stands is the ledger's to know.

A file is written under ``tmp/``, flushed to disk, then linked under its final name, whose folder is flushed too: what
has a name is whole. The name holds the digest, so one name never means two contents and nothing is ever overwritten.
`store_instance` does all of that for one image; the listener does the steps itself, to flush for many at once.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from node.errors import ConfigurationError, NotFound, OutOfDisk

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Say `OutOfDisk` for any error of the operating system within the block."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise OutOfDisk("the state folder's disk is full", "free some space; nothing was accepted") from error
        raise OutOfDisk(
            f"the state folder cannot be written ({error.strerror})", "check its owner, mount and disk"
        ) from error


class Spool:
    """Received images under ``series/``, results under ``results/``, all below `root`.

    Parameters
    ----------
    sync
        Brings an open file or folder to disk. Only a benchmark gives another one.
    """

    def __init__(self, root: Path, sync: Callable[[int], None] = os.fsync) -> None:
        self.root = root
        self._sync = sync
        # Names of temporary files: no two of this process, or of one that was killed, are the same.
        self._numbers = itertools.count()
        self._mark = secrets.token_hex(6)
        self._tmp = root / "tmp"
        self._folders = threading.Lock()  # held while a folder is made, filled or dropped

    def prepare(self) -> None:
        """Make the folders and drop what an earlier process left half-written."""
        with disk_errors():
            for name in ("series", "results", "unknown", "tmp"):
                (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o750)
            for leftover in self._tmp.iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)

    def path(self, relative: str) -> Path:
        """Return the file's place on this host."""
        return self.root / relative

    def free_bytes(self) -> int:
        """Return what an ordinary user may still write on this disk."""
        with disk_errors():
            return shutil.disk_usage(self.root).free

    def scratch(self) -> Path:
        """Return a new empty folder on the spool's file system; `prepare` drops it if its user does not."""
        with disk_errors():
            return Path(tempfile.mkdtemp(dir=self._tmp))

    def store_instance(self, series_uid: str, sop_uid: str, sha256: str, parts: Iterable[bytes]) -> str:
        """Store one image durably and return its path relative to the spool. The UIDs have been checked.

        Every call makes a file of its own: to remove it takes nothing from another receipt of the same bytes.

        Raises
        ------
        OutOfDisk
            Nothing is left behind then.
        """
        with disk_errors():
            handle, temporary = self.open_temporary()
            try:
                with os.fdopen(handle, "wb") as file:
                    file.writelines(parts)
                    file.flush()
                    self.flush(file.fileno())
                relative = self.give_name(temporary, series_uid, sop_uid, sha256)
            finally:
                temporary.unlink(missing_ok=True)
        self.flush_folder(relative)
        return relative

    def open_temporary(self) -> tuple[int, Path]:
        """Open a new file for writing and reading; the caller closes and removes it, or else `prepare` does."""
        path = self._tmp / f"{self._mark}-{next(self._numbers)}.part"
        with disk_errors():
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640), path

    def flush(self, handle: int) -> None:
        """Bring the content of an open file to disk."""
        with disk_errors():
            self._sync(handle)

    def give_name(self, temporary: Path, series_uid: str, sop_uid: str, sha256: str) -> str:
        """Link a flushed file under a name of its own; return its path relative to the spool.

        The name is on disk after `flush_folder` only.
        """
        with disk_errors():
            for again in itertools.count():
                name = f"{sop_uid}-{sha256[:16]}{f'-{again}' if again else ''}.dcm"
                with contextlib.suppress(FileExistsError):
                    return self._link(temporary, Path("series") / series_uid / name)
        raise AssertionError("unreachable")

    def flush_folder(self, relative: str) -> None:
        """Bring to disk which names the folder of this file holds."""
        with disk_errors():
            self._flush_folder((self.root / relative).parent)

    def store_result(self, job_id: str, fence: int, sop_uid: str, sha256: str, source: Path) -> str:
        """Store one result object durably, copied by link from `source` on the same file system."""
        relative = Path("results") / job_id / str(fence) / f"{sop_uid}-{sha256[:16]}.dcm"
        with disk_errors():
            with source.open("rb+") as file:
                os.fsync(file.fileno())
            # The same name means the same bytes: a worker says it again when our answer was lost.
            with contextlib.suppress(FileExistsError):
                self._link(source, relative)
                self._flush_folder((self.root / relative).parent)
        return str(relative)

    def _link(self, temporary: Path, relative: Path) -> str:
        target = self.root / relative
        with self._folders:
            if not target.parent.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
                for folder in target.parent.relative_to(self.root).parents:
                    self._flush_folder(self.root / folder)
            target.hardlink_to(temporary)
        return str(relative)

    def _flush_folder(self, folder: Path) -> None:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._sync(handle)
        finally:
            os.close(handle)

    def remove(self, relative: str) -> None:
        """Remove one file, and its folder when it was the last."""
        path = self.root / relative
        with disk_errors(), self._folders:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()

    def remove_results(self, job_id: str, fence: int | None = None) -> None:
        """Remove the results of one job, or of one of its attempts."""
        folder = self.root / "results" / job_id
        shutil.rmtree(folder if fence is None else folder / str(fence), ignore_errors=True)

    def belongs_to(self, identity: str) -> None:
        """Make sure that this spool and the ledger named `identity` belong together; an empty spool joins any.

        Raises
        ------
        ConfigurationError
            The files here are another ledger's: it would take them for strangers.
        """
        mark = self.root / "ledger.id"
        with disk_errors():
            found = mark.read_text(encoding="ascii", errors="replace").strip() if mark.exists() else ""
            if not found and not any((self.root / "series").iterdir()):
                mark.write_text(identity, encoding="ascii")
                found = identity
        if found != identity:
            raise ConfigurationError(
                f"the images in {self.root} belong to another ledger",
                "set ledger.url to the one they were received with, or move the folder away",
            )

    def set_unknown_aside(self, known: Callable[[set[str]], set[str]], older_than: float) -> int:
        """Move images whose receipt was never acknowledged, and results that never counted, to ``unknown/``.

        `known` returns which of some paths the ledger holds. Files changed after `older_than` (seconds since 1970) are
        left: they may be on their way into the ledger. Nothing is deleted, since a ledger restored from a backup knows
        less than was acknowledged; `drop_aside` does that when their time is up.
        """
        moved = 0
        series = (folder.glob("*") for folder in self.root.glob("series/*/"))
        for files in (*series, self.root.glob("results/*/*/*")):
            with disk_errors():
                paths = {str(f.relative_to(self.root)): f for f in files}
            kept = known(set(paths))
            for relative, file in paths.items():
                if relative not in kept and file.stat().st_mtime < older_than:
                    with disk_errors():
                        aside = file.rename(self.root / "unknown" / relative.replace("/", "_"))
                        os.utime(aside)  # its time here begins now
                    self.remove(relative)
                    moved += 1
        return moved

    def drop_aside(self, older_than: float) -> int:
        """Delete what was set aside and is older than this, in seconds since 1970; return how many files."""
        aged = [f for f in (self.root / "unknown").iterdir() if f.stat().st_mtime < older_than]
        for file in aged:
            file.unlink(missing_ok=True)
        return len(aged)

    def holds(self, relative: str) -> bool:
        """Tell whether there is such a file."""
        with disk_errors():
            return (self.root / relative).is_file()

    def open_size(self, relative: str) -> int:
        """Return the size in bytes of one file.

        Raises
        ------
        NotFound
            Retention, or somebody by hand, has removed it.
        """
        try:
            return (self.root / relative).stat().st_size
        except FileNotFoundError as error:
            raise NotFound("an image of this series is no longer in the spool", "send the series again") from error
