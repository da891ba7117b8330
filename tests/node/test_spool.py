"""The spool: what has a name is whole; kill, full and read-only disks; and the sweep."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from node.errors import ConfigurationError, NotFound, OutOfDisk
from node.ledger import Ledger
from node.part10 import file_head
from node.spool import Spool
from node.unnamed import Unnamed
from tests.node.making import SERIES, files_below, instance
from tests.node.storing_child import content

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        reason = "a tmpfs cannot be mounted here (needs root)"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_stored_image_is_the_parts_under_the_name_of_its_uid(spool: Spool) -> None:
    relative = spool.store_instance(SERIES, "1.2.3", (b"head", b"body"))
    assert relative == f"series/{SERIES}/1.2.3.dcm"
    assert spool.path(relative).read_bytes() == b"headbody"
    assert spool.open_size(relative) == 8
    assert list((spool.root / "tmp").iterdir()) == []


def test_storing_the_same_bytes_twice_makes_two_files_that_go_separately(spool: Spool) -> None:
    """Retention may just be removing the first when the second is acknowledged."""
    first, second = (spool.store_instance(SERIES, "1.2.3", (b"x",)) for _ in range(2))
    assert first != second
    spool.remove(first)
    assert spool.path(second).read_bytes() == b"x"
    spool.remove(second)
    assert not (spool.root / "series" / SERIES).exists()
    spool.remove(second)  # gone already: no error
    with pytest.raises(NotFound, match="send the series again"):
        spool.open_size(second)


def test_a_folder_may_be_dropped_while_others_fill_it(spool: Spool) -> None:
    def come_and_go(n: int) -> None:
        for m in range(40):
            spool.remove(spool.store_instance(SERIES, f"1.{n}.{m}", (b"x",)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, range(4)))
    assert list(files_below(spool.root)) == []


@pytest.mark.parametrize("nameless", [True, False], ids=["without a name first", "with a name under tmp first"])
def test_a_file_that_is_dropped_before_it_has_its_name_leaves_nothing(spool: Spool, nameless: bool) -> None:
    unnamed = Unnamed(spool.root / "tmp")
    if nameless:
        unnamed.look()
        if unnamed.open()[1]:
            pytest.skip("this file system makes no files without a name")
    unnamed.open_spare()
    handle, path = unnamed.open()
    os.write(handle, b"half")
    assert bool(path) is not nameless
    os.close(handle)
    if path:
        Path(path).unlink()
    unnamed.close_spares()
    assert list((spool.root / "tmp").iterdir()) == []


def test_a_file_system_without_nameless_files_stores_all_the_same(spool: Spool) -> None:
    other = Spool(spool.root)  # has not looked: files have names from the first
    for number in range(3):
        relative = other.store_instance(SERIES, f"1.2.{number}", (b"head", b"body"))
        assert spool.path(relative).read_bytes() == b"headbody"
    assert list((spool.root / "tmp").iterdir()) == []


def test_files_are_compared_and_digested_without_their_heads(spool: Spool) -> None:
    def store(calling_ae: str, data: bytes) -> str:
        head = file_head("1.2.840.10008.5.1.4.1.1.4", "1.2.3", "1.2.840.10008.1.2.1", calling_ae)
        return spool.store_instance(SERIES, "1.2.3", (head, data))

    data = bytes(range(256)) * 5000
    one, same, longer, other = store("A", data), store("ANOTHER", data), store("A", data + b"x"), store("A", data[::-1])
    assert spool.sha256(one) == spool.sha256(same) == hashlib.sha256(data).hexdigest()
    assert [spool.same(one, p) for p in (one, same, longer, other)] == [True, True, False, False]
    assert not spool.same(longer, one)
    spool.remove(one)
    for question in (lambda: spool.same(one, same), lambda: spool.same(same, one), lambda: spool.sha256(one)):
        with pytest.raises(NotFound, match="send the series again"):
            question()


def test_one_result_said_twice_is_one_file_and_another_content_is_another(spool: Spool) -> None:
    def bring(data: bytes) -> str:
        source = spool.scratch() / "2.25.1.dcm"
        source.write_bytes(data)
        return spool.store_result("j" * 32, 2, "2.25.1", hashlib.sha256(data).hexdigest(), source)

    first, again, other = bring(b"a"), bring(b"a"), bring(b"b")
    assert first == again != other
    assert [spool.path(p).read_bytes() for p in (first, other)] == [b"a", b"b"]
    spool.remove_results("j" * 32, fence=1)
    assert spool.path(first).exists()
    spool.remove_results("j" * 32)
    assert not spool.path(first).exists()
    spool.remove_results("j" * 32)


def test_preparing_drops_what_was_half_written_and_nothing_else(spool: Spool) -> None:
    kept = spool.store_instance(SERIES, "1.2.3", (b"x",))
    (spool.scratch() / "bundle.tar").write_bytes(b"half")
    (spool.root / "tmp" / "half").write_bytes(b"half")
    again = Spool(spool.root)
    again.prepare()
    assert [str(p.relative_to(spool.root)) for p in files_below(spool.root)] == [kept]
    assert list((spool.root / "tmp").iterdir()) == []


def test_the_sweep_removes_what_the_ledger_does_not_know(ledger: Ledger, spool: Spool) -> None:
    known = spool.store_instance(SERIES, "1.2.3", (b"x",))
    ledger.record(instance(1, path=known))
    orphans = [spool.store_instance(s, "1.2.4", (b"y",)) for s in (SERIES, "1.2.9")]
    result = spool.root / "results" / ("0" * 32) / "1" / "2.25.1.dcm"
    result.parent.mkdir(parents=True)
    result.write_bytes(b"what a purge had no time for")
    (spool.root / "series" / "stray file").write_bytes(b"not ours, and no folder")
    assert spool.set_unknown_aside(ledger.known_paths, older_than=time.time() - 60) == 0, "young: on its way"
    assert spool.set_unknown_aside(ledger.known_paths, older_than=time.time() + 1) == 3
    assert spool.path(known).read_bytes() == b"x"
    assert not any(spool.path(p).exists() for p in orphans)
    assert not (spool.root / "series" / "1.2.9").exists()
    assert not result.exists()
    aside = sorted((spool.root / "unknown").iterdir())
    assert len(aside) == 3, "a ledger restored from a backup must not cost an acknowledged image"
    assert spool.drop_aside(older_than=time.time() - 3600) == 0
    assert spool.drop_aside(older_than=time.time() + 3600) == 3


def test_killing_the_node_loses_nothing_it_acknowledged(tmp_path: Path, sqlite_url: str) -> None:
    """kill -9 at several moments; every acknowledged image is in the ledger and, byte for byte, in the spool."""
    spool = Spool(tmp_path / "spool")
    command = [sys.executable, "-m", "tests.node.storing_child", str(tmp_path)]
    acknowledged: set[int] = set()
    for acknowledgements in (3, 17, 40):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout
            acknowledged |= {int(line) for line in itertools.islice(child.stdout, acknowledgements)}
            child.kill()
            # What it printed before it died counts as well, but for a line cut short.
            acknowledged |= {int(line) for line in child.stdout if line.endswith("\n")}
    # A crash between the link and the commit.
    orphan = spool.store_instance("1.2.0", "1.2.0.999", (b"never acknowledged",))
    ledger = Ledger(sqlite_url)
    spool.prepare()
    spool.set_unknown_aside(ledger.known_paths, older_than=time.time() + 1)
    assert len(acknowledged) >= 40
    stored = {m.sop_uid: m for n in {n // 5 for n in acknowledged} for m in ledger.series_instances(f"1.2.{n}")}
    for number in acknowledged:
        member = stored[f"1.2.{number // 5}.{number}"]
        assert spool.path(member.path).read_bytes() == content(number)
    # The sweep left what the ledger knows and nothing else.
    assert not spool.path(orphan).exists()
    assert spool.drop_aside(older_than=time.time() + 1) > 0
    on_disk = {str(p.relative_to(spool.root)) for p in files_below(spool.root)}
    assert on_disk == ledger.known_paths(on_disk)
    ledger.close()


def test_a_spool_stays_with_its_ledger(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.prepare()
    spool.belongs_to("one")
    spool.store_instance("1.2", "1.2.3", [b"x"])
    spool.belongs_to("one")
    with pytest.raises(ConfigurationError, match="belong to another ledger"):
        spool.belongs_to("two")
    (tmp_path / "ledger.id").unlink()
    with pytest.raises(ConfigurationError, match="belong to another ledger"):
        spool.belongs_to("one")


def test_a_full_disk_leaves_no_debris_and_works_again_after_space_is_freed(tiny_disk: Path) -> None:
    spool = Spool(tiny_disk / "spool")
    spool.prepare()
    stored = spool.store_instance(SERIES, "1.2.1", (b"x" * 600_000,))
    before = set(files_below(tiny_disk))
    for _ in range(3):
        with pytest.raises(OutOfDisk, match="disk is full"):
            spool.store_instance("1.2.7", "1.2.2", (b"y" * 300_000, b"y" * 300_000))
    assert set(files_below(tiny_disk)) == before
    assert spool.free_bytes() < 600_000
    spool.remove(stored)
    again = spool.store_instance("1.2.7", "1.2.2", (b"y" * 600_000,))
    assert spool.open_size(again) == 600_000


def test_a_disk_that_became_read_only_is_out_of_disk_with_the_reason(tiny_disk: Path) -> None:
    spool = Spool(tiny_disk / "spool")
    spool.prepare()
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    for action in (
        lambda: spool.store_instance(SERIES, "1.2.1", (b"x",)),
        spool.scratch,
        spool.prepare,
        Spool(tiny_disk / "new").prepare,
    ):
        if action == spool.prepare:
            action()  # nothing to make, nothing to drop
        else:
            with pytest.raises(OutOfDisk, match="Read-only file system"):
                action()


def test_eight_threads_that_bring_one_image_each_get_a_whole_file(spool: Spool) -> None:
    barrier = threading.Barrier(8)

    def bring(_: int) -> str:
        barrier.wait()
        return spool.store_instance(SERIES, "1.2.3", (b"head", b"x" * 100_000))

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(bring, range(8)))
    assert len(set(paths)) == 8
    assert {spool.open_size(p) for p in paths} == {100_004}
