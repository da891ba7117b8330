"""Fetching studies: from real archives by every way, and from peers that answer oddly, hang, or go away."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from node.fetching import Fetcher
from node.ledger import Fetch, FetchState, Ledger
from node.listener import Door
from node.scu import Address, describe, send_files
from node.settings import Archive, Listener, Selection
from tests.node.making import SERIES, STUDY, mr, write
from tests.peers import Orthanc, dcmqrscp, orthanc

OTHER, CT = "1.2.3.20", "1.2.3.30"
IMAGES = 5

# pynetdicom leaves the socket of a refused connection to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

OpenDoor = Callable[..., tuple[Door, int]]


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One study: two MR series, and one of CT."""
    folder = tmp_path_factory.mktemp("study")
    found = [write(mr(n), folder / f"{n}.dcm") for n in range(1, IMAGES + 1)]
    found += [write(mr(n, OTHER), folder / f"other{n}.dcm") for n in range(1, 3)]
    ct = mr(1, CT)
    ct.Modality = "CT"
    return [*found, write(ct, folder / "ct.dcm")]


def fill(port: int, title: str, files: list[Path]) -> None:
    refused = send_files([describe(f) for f in files], Address(title, "127.0.0.1", port, "FILLER"), 20, lambda _f, _n: None)
    assert refused == []


def fetcher(archive: Archive, ledger: Ledger, door: Door, **listener: object) -> Fetcher:
    return Fetcher(archive, ledger, door, Listener(**listener), Selection())  # type: ignore[arg-type]


def fetch(one: Fetcher, ledger: Ledger, archive: str = "pacs", study: str = STUDY, *series: str) -> Fetch:
    asked = ledger.ask_fetch(archive, study, series, "tester", time.time())
    one.tick(time.time())
    return ledger.fetch(asked.number)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory, files: list[Path]) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc"), {}) as found:
        fill(found.dicom_port, "ORTHANC", files)
        yield found


@contextlib.contextmanager
def archive_of(way: str, pacs: Orthanc, folder: Path, files: list[Path], ours: int) -> Iterator[Archive]:
    if way == "orthanc by DICOMweb":
        yield Archive(name="pacs", url=f"{pacs.url}/dicom-web", timeout_s=10)
        return
    retrieve = way.rpartition(" ")[2]
    if way.startswith("orthanc"):
        pacs.send("/modalities/ours", {"AET": "PENNODE", "Host": "127.0.0.1", "Port": ours}, "PUT")
        yield Archive(
            name="pacs", ae_title="ORTHANC", host="127.0.0.1", port=pacs.dicom_port, retrieve=retrieve, timeout_s=10
        )
        return
    with dcmqrscp(folder / "dcmqrscp", ("PENNODE", ours)) as port:
        fill(port, "DCMQRSCP", files)
        yield Archive(name="pacs", ae_title="DCMQRSCP", host="127.0.0.1", port=port, retrieve=retrieve, timeout_s=10)


WAYS = ["orthanc by get", "orthanc by move", "orthanc by DICOMweb", "dcmqrscp by get", "dcmqrscp by move"]


@pytest.mark.parametrize("way", WAYS)
def test_a_study_is_fetched(
    tmp_path: Path, ledger: Ledger, open_door: OpenDoor, pacs: Orthanc, files: list[Path], way: str
) -> None:
    door, port = open_door()
    with archive_of(way, pacs, tmp_path, files, port) as archive:
        one = fetcher(archive, ledger, door)
        found = fetch(one, ledger)
        assert (found.state, found.next_step) == (FetchState.DONE, ""), found
        assert found.reason == "7 images of 2 series are here; 1 series left out"
        assert (found.completed, found.failed, found.warned) == (7, 0, 0)
        members = {s.series_uid: s for s in found.series}
        assert {uid: (s.modality, s.here) for uid, s in members.items()} == {
            SERIES: ("MR", IMAGES), OTHER: ("MR", 2), CT: ("CT", 0),
        }  # fmt: skip
        assert members[CT].left_out == "modality is CT, not MR (selection.modalities)"
        received = ledger.series_instances(SERIES)
        assert [one.study_uid for one in received] == [STUDY] * IMAGES
        assert door.associations() == 0

        again = fetch(one, ledger)
        assert (again.state, again.failed) == (FetchState.DONE, 0), again
        assert {s.series_uid: s.revision for s in ledger.receiving()} == {SERIES: 0, OTHER: 0}
        assert ledger.series_instances(SERIES) == received, "the same bytes again: nothing changes"

        only = fetch(one, ledger, "pacs", STUDY, OTHER)
        assert [(s.series_uid, s.left_out) for s in only.series] == [(OTHER, "")]
        unknown = fetch(one, ledger, "pacs", "1.2.3.404")
        assert (unknown.state, unknown.reason) == (FetchState.FAILED, "pacs has no study of this UID")
        assert unknown.next_step == "check it, and which archive holds the study"
        partly = fetch(one, ledger, "pacs", STUDY, OTHER, "1.2.3.404")
        assert (partly.state, partly.next_step) == (FetchState.FAILED, "check these UIDs"), partly
