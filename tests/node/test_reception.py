"""What becomes of an object whose UID is here already, and of files whose way into the ledger ended in doubt."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node import statuses
from node.errors import LedgerUnavailable, OutOfDisk
from node.incoming import Origin
from node.ledger import Ledger
from node.reception import Reception
from node.settings import Listener
from node.spool import Spool
from tests.node.making import SERIES, data_set, encoded, files_below, mr, seal

MR, EXPLICIT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2.1"
ORIGIN = Origin(1, "SCANNER", "PENNODE", "127.0.0.1")


@pytest.fixture
def reception(ledger: Ledger, spool: Spool) -> Reception:
    nothing: Callable[[int, str], None] = lambda _number, _series: None  # noqa: E731
    return Reception(ledger, spool, Listener(free_floor_mb=0), nothing, nothing, lambda: None)


def receive(reception: Reception, data: bytes, number: int = 1) -> int:
    incoming = reception.begin(ORIGIN, MR, f"{SERIES}.{number}", EXPLICIT)
    reception.append(incoming, [memoryview(data)])
    try:
        return reception.finish(incoming)
    finally:
        reception.tidy(incoming)
        reception.rest()


def the_one(ledger: Ledger, spool: Spool) -> Path:
    """The only image, whose row and whose file must both be there."""
    (row,) = ledger.series_instances(SERIES)
    (path,) = files_below(spool.root)
    assert path == spool.path(row.path)
    return path


def test_an_image_that_retention_takes_while_it_comes_again_is_recorded_anew(
    reception: Reception, ledger: Ledger, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(mr())
    same = spool.same
    for early in (True, False):
        assert receive(reception, data) == statuses.SUCCESS
        job = seal(ledger, wanted=False)
        assert job is not None

        def purge(one: str, other: str, job: str = job, early: bool = early) -> bool:
            """What retention does, of which the files come last."""
            monkeypatch.undo()
            paths = ledger.forget_files(ledger.job(job), 0.0)
            for path in paths if early else ():
                spool.remove(path)
            return same(one, other)

        monkeypatch.setattr(spool, "same", purge)
        assert receive(reception, data) == statuses.SUCCESS
        (row,) = ledger.series_instances(SERIES)
        assert data_set(spool.path(row.path)) == data


def test_a_lost_file_comes_again(reception: Reception, ledger: Ledger, spool: Spool) -> None:
    data = encoded(mr())
    assert receive(reception, data) == statuses.SUCCESS
    the_one(ledger, spool).unlink()
    assert receive(reception, data) == statuses.SUCCESS
    assert data_set(the_one(ledger, spool)) == data


@pytest.mark.parametrize("harm", ["cut short", "gone"])
def test_a_damaged_copy_is_replaced_by_what_came_first_and_by_nothing_else(
    reception: Reception, ledger: Ledger, spool: Spool, harm: str
) -> None:
    data, other = encoded(mr()), encoded(mr(SeriesDescription="other"))
    assert receive(reception, data) == statuses.SUCCESS
    path = the_one(ledger, spool)
    ledger.note_digests({f"{SERIES}.1": spool.sha256(str(path.relative_to(spool.root)))})
    if harm == "gone":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 100)
    assert receive(reception, other) == statuses.DUPLICATE_SOP_INSTANCE
    assert receive(reception, data) == statuses.SUCCESS
    assert data_set(the_one(ledger, spool)) == data
    assert receive(reception, other) == statuses.DUPLICATE_SOP_INSTANCE
    assert data_set(the_one(ledger, spool)) == data


def test_what_a_ledger_that_was_away_left_lying_goes_when_it_is_back(
    reception: Reception, ledger: Ledger, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise LedgerUnavailable("away")

    data = encoded(mr())
    monkeypatch.setattr(ledger, "record_all", away)
    for _ in range(3):
        assert receive(reception, data) == statuses.OUT_OF_RESOURCES
    assert len(list(files_below(spool.root))) == 3, "it is not known whether the ledger has them"
    monkeypatch.undo()
    assert receive(reception, data) == statuses.SUCCESS
    assert data_set(the_one(ledger, spool)) == data


def test_a_name_that_was_freed_by_a_failure_is_not_swept_from_under_the_next(
    reception: Reception, ledger: Ledger, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt has the name of the first; what comes between must not take its file for the first's."""

    def fail(_relative: str) -> None:
        raise OutOfDisk("no", "")

    first, second = encoded(mr(1)), encoded(mr(2))
    monkeypatch.setattr(spool, "flush_folder", fail)
    assert receive(reception, first) == statuses.OUT_OF_RESOURCES
    assert list(files_below(spool.root)) == []
    monkeypatch.undo()
    give_name = spool.give_name

    def interrupted(*arguments: Any) -> str:
        monkeypatch.undo()
        path = give_name(*arguments)
        assert receive(reception, second, 2) == statuses.SUCCESS
        return path

    monkeypatch.setattr(spool, "give_name", interrupted)
    assert receive(reception, first) == statuses.SUCCESS
    assert {data_set(spool.path(m.path)) for m in ledger.series_instances(SERIES)} == {first, second}


def test_a_folder_whose_own_name_could_not_be_flushed_is_flushed_with_the_next_image(tmp_path: Path) -> None:
    flushed: list[str] = []
    failing = False

    def sync(handle: int) -> None:
        target = str(Path(f"/proc/self/fd/{handle}").readlink())
        if failing and target.endswith("/series"):
            raise OSError(errno.EIO, "no")
        flushed.append(target)

    spool = Spool(tmp_path, sync)
    spool.prepare()
    failing = True
    with pytest.raises(OutOfDisk):
        spool.store_instance(SERIES, "1.2.3", (b"x",))
    failing = False
    spool.store_instance(SERIES, "1.2.3", (b"x",))
    assert str(tmp_path / "series") in flushed
    assert len(list(files_below(tmp_path))) == 1


def test_a_spool_below_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spool = Spool(Path("here"))
    spool.prepare()
    monkeypatch.chdir("/")
    relative = spool.store_instance(SERIES, "1.2.3", (b"x",))
    source = spool.scratch() / "a.dcm"
    source.write_bytes(b"result")
    result = spool.store_result("j" * 32, 1, "2.25.1", "0" * 64, source)
    assert [(tmp_path / "here" / p).read_bytes() for p in (relative, result)] == [b"x", b"result"]
