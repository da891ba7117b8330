"""The spool: bytes on disk, nothing else. Where a series stands is the ledger's to know.

A file is written without a name (or under ``tmp/``, where the file system knows no other way), linked under its final
name, and then it and the folder of its name are flushed to disk: in this order a file system that keeps a log writes it
once instead of twice. So only what the ledger knows is sure to be whole; at start, names that it does not know are set
aside. A link takes no name that is taken: nothing is ever overwritten.
`store_instance` does all of that for one image; the listener does the steps itself, to flush for many at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BufferedReader
from pathlib import Path

from node.errors import ConfigurationError, NotFound, OutOfDisk
from node.part10 import skip_head
from node.unnamed import Unnamed, disk_errors, link

_PIECE = 1 << 20


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
        self.unnamed = Unnamed(root / "tmp")
        self._folders = threading.Lock()  # held while a folder is made, filled or dropped

    def prepare(self) -> None:
        """Make the folders and drop what an earlier process left half-written."""
        with disk_errors():
            for name in ("series", "results", "unknown", "tmp"):
                (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o750)
            for leftover in (self.root / "tmp").iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
            self.unnamed.look()

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
            return Path(tempfile.mkdtemp(dir=self.root / "tmp"))

    def store_instance(self, series_uid: str, sop_uid: str, parts: Iterable[bytes]) -> str:
        """Store one image durably and return its path relative to the spool. The UIDs have been checked.

        Every call makes a file of its own: to remove it takes nothing from another receipt of the same bytes.

        Raises
        ------
        OutOfDisk
            Nothing is left behind then.
        """
        with disk_errors():
            handle, temporary = self.unnamed.open()
            try:
                with os.fdopen(handle, "wb") as file:
                    file.writelines(parts)
                    file.flush()
                    relative = self.give_name(file.fileno(), temporary, series_uid, sop_uid)
            finally:
                if temporary:
                    Path(temporary).unlink(missing_ok=True)
        self.flush_folder(relative)
        return relative

    def begin_flush(self, handle: int, start: int, length: int) -> None:
        """Have the disk begin with what was just written into an open file: nothing is sure yet, but less is to do."""
        if self._sync is os.fsync:
            # Linux takes this advice by writing out the pages that are dirty; those stay in memory.
            with contextlib.suppress(OSError):
                os.posix_fadvise(handle, start, length, os.POSIX_FADV_DONTNEED)

    def give_name(self, handle: int, temporary: str, series_uid: str, sop_uid: str) -> str:
        """Link an open file under a name of its own and flush it; return its path relative to the spool.

        The name is sure to be on disk after `flush_folder` only.

        Raises
        ------
        OutOfDisk
            It has no name then.
        """
        relative = self._link_new(self.unnamed.path(handle, temporary), series_uid, sop_uid)
        try:
            with disk_errors():
                self._sync(handle)
        except OutOfDisk:
            with contextlib.suppress(OutOfDisk):
                self.remove(relative)
            raise
        return relative

    def _link_new(self, temporary: str, series_uid: str, sop_uid: str) -> str:
        with disk_errors():
            for again in itertools.count():
                relative = f"series/{series_uid}/{sop_uid}{f'-{again}' if again else ''}.dcm"
                with contextlib.suppress(FileExistsError):
                    return self._link(temporary, relative)
        raise AssertionError("unreachable")

    def flush_folder(self, relative: str) -> None:
        """Bring to disk which names the folder of this file holds."""
        with disk_errors():
            self._flush_folder(f"{self.root}/{relative.rpartition('/')[0]}")

    def store_result(self, job_id: str, fence: int, sop_uid: str, sha256: str, source: Path) -> str:
        """Store one result object durably, copied by link from `source` on the same file system."""
        relative = f"results/{job_id}/{fence}/{sop_uid}-{sha256[:16]}.dcm"
        with disk_errors():
            with source.open("rb+") as file:
                os.fsync(file.fileno())
            # The same name means the same bytes: a worker says it again when our answer was lost.
            with contextlib.suppress(FileExistsError):
                self._link(str(source), relative)
                self.flush_folder(relative)
        return relative

    def _link(self, temporary: str, relative: str) -> str:
        target = f"{self.root}/{relative}"
        with self._folders:
            try:
                link(temporary, target)
            except FileNotFoundError:
                self._make_folder(Path(target).parent)
                link(temporary, target)
        return relative

    def _make_folder(self, folder: Path) -> None:
        missing = [folder, *itertools.takewhile(lambda parent: not parent.is_dir(), folder.parents)]
        for one in reversed(missing):
            one.mkdir(exist_ok=True, mode=0o750)
            self._flush_folder(str(one.parent))

    def _flush_folder(self, folder: str) -> None:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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

    def same(self, one: str, other: str) -> bool:
        """Tell whether two files hold the same data set, whatever their file meta information.

        Raises
        ------
        NotFound, OutOfDisk
        """
        with self._data_set(one) as first, self._data_set(other) as second, disk_errors():
            return all(a == b for a, b in itertools.zip_longest(_pieces(first), _pieces(second)))

    def sha256(self, relative: str) -> str:
        """Return the sha256 of the data set in one file, in hexadecimal.

        Raises
        ------
        NotFound, OutOfDisk
        """
        with self._data_set(relative) as file, disk_errors():
            return hashlib.file_digest(file, "sha256").hexdigest()

    @contextlib.contextmanager
    def _data_set(self, relative: str) -> Iterator[BufferedReader]:
        """Open an image after its file meta information."""
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context((self.root / relative).open("rb"))
            except FileNotFoundError as error:
                raise _gone() from error
            except OSError as error:
                raise OutOfDisk(f"an image cannot be read ({error.strerror})", "check the disk") from error
            skip_head(file)
            yield file

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
            raise _gone() from error


def _gone() -> NotFound:
    return NotFound("an image of this series is no longer in the spool", "send the series again")


def _pieces(file: BufferedReader) -> Iterator[bytes]:
    return iter(partial(file.read, _PIECE), b"")
