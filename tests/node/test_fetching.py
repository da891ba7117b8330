"""Fetching studies: from real archives by every way, and from peers that answer oddly, hang, or go away."""

from __future__ import annotations

import contextlib
import gc
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_ECHO, C_GET, C_MOVE
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from node.errors import Permanent
from node.fetching import Fetcher
from node.ledger import Fetch, FetchState, Ledger
from node.listener import Door
from node.outgoing import describe
from node.records import JournalEntry
from node.scu import Address, send_files
from node.settings import Archive, Listener, Selection
from tests.authority import Authority
from tests.node.making import SERIES, STUDY, mr, write
from tests.peers import Orthanc, dcmqrscp, orthanc

OTHER, CT = "1.2.3.20", "1.2.3.30"
IMAGES = 5

# pynetdicom leaves the socket of a refused connection to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

OpenDoor = Callable[..., tuple[Door, int]]


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
    refused = send_files(
        [describe(f) for f in files], Address(title, "127.0.0.1", port, "FILLER"), 20, lambda _f, _n: None
    )
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
        assert {uid: (s.modality, s.announced, s.here) for uid, s in members.items()} == {
            SERIES: ("MR", IMAGES, IMAGES), OTHER: ("MR", 2, 2), CT: ("CT", 1, 0),
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


# -- peers that answer oddly

Answers = Iterator[object]


def image(number: int, series: str = SERIES, **values: object) -> Dataset:
    """An image as pynetdicom sends it."""
    ds = mr(number, series, **values)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


@contextlib.contextmanager
def odd_peer(
    retrieve: Callable[[evt.Event], Answers],
    images: object = IMAGES,
    *,
    way: str = "get",
    finds: bool = True,
    tls: ssl.SSLContext | None = None,
    answer: dict[str, str] | None = None,
    also: str = "",
) -> Iterator[Archive]:
    """An archive of one series whose retrieve service does what `retrieve` says."""

    def on_find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        match = Dataset()
        match.QueryRetrieveLevel, match.StudyInstanceUID, match.SeriesInstanceUID = "SERIES", STUDY, SERIES
        match.Modality, match.SeriesDescription, match.NumberOfSeriesRelatedInstances = "MR", "t2_sag", images
        for name, value in (answer or {}).items():
            setattr(match, name, value)
        yield 0xFF00, match
        if also:
            match.SeriesInstanceUID = also
            yield 0xFF00, match

    ae = AE("ODD")
    models = (StudyRootQueryRetrieveInformationModelGet, StudyRootQueryRetrieveInformationModelMove)
    for model in (*([StudyRootQueryRetrieveInformationModelFind] if finds else [Verification]), models[way == "move"]):
        ae.add_supported_context(model)
    ae.add_supported_context(MRImageStorage, scu_role=True, scp_role=True)
    handlers = [(evt.EVT_C_FIND, on_find), (evt.EVT_C_GET, retrieve), (evt.EVT_C_MOVE, retrieve)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=tls)
    port = server.socket.getsockname()[1]
    try:
        yield Archive(name="odd", ae_title="ODD", host="127.0.0.1", port=port, retrieve=way, timeout_s=2)
    finally:
        server.shutdown()


def odd(ledger: Ledger, door: Door, archive: Archive) -> Fetch:
    return fetch(fetcher(archive, ledger, door), ledger, "odd")


def sends(*numbers: int, then: int | None = None, said: int | None = None) -> Callable[[evt.Event], Answers]:
    """A C-GET that sends these images, says that there were `said`, and ends with a status."""

    def on_get(_event: evt.Event) -> Answers:
        yield len(numbers) if said is None else said
        for number in numbers:
            yield 0xFF00, image(number)
        if then is not None:
            yield then, None

    return on_get


@pytest.mark.parametrize(
    ("status", "reason", "step"),
    [
        (0xA701, "out of resources and could not count", "try again later"),
        (0xA702, "out of resources and could not send", "whether it reaches us"),
        (0xA801, "does not know the move destination PENNODE", "add that AE title with our host and port there"),
        (0xA900, "does not fit its service", "look into its log"),
        (0xC000, "unable to process", "try again"),
        (0xC1FF, "unable to process", "try again"),
        (0xFE00, "it cancelled the retrieval", "try again"),
        (0x0122, "switched off", "set another way"),
        (0x0124, "not authorised", "let our AE title retrieve"),
    ],
)
@pytest.mark.parametrize("way", ["get", "move"])
def test_a_status_that_ends_a_retrieval_is_put_into_words(
    ledger: Ledger, open_door: OpenDoor, way: str, status: int, reason: str, step: str
) -> None:
    with raw_answer(status, way) as archive:
        found = odd(ledger, open_door()[0], archive)
    assert found.state is FetchState.FAILED
    assert reason in found.reason
    assert f"(0x{status:04X})" in found.reason
    assert found.reason.startswith(f"0 of {IMAGES} images are here: odd does not send the series: ")
    assert step in found.next_step


@contextlib.contextmanager
def raw_answer(status: int, way: str) -> Iterator[Archive]:
    """An archive that ends every retrieval at once with this status, which pynetdicom's own service would not."""

    def on_retrieve(event: evt.Event) -> Answers:
        answer = C_GET() if way == "get" else C_MOVE()
        answer.MessageIDBeingRespondedTo = event.request.MessageID
        answer.AffectedSOPClassUID = event.request.AffectedSOPClassUID
        answer.Status = status
        event.assoc.dimse.send_msg(answer, event.context.context_id)
        time.sleep(0.5)
        yield 0xC000

    with odd_peer(on_retrieve, way=way) as archive:
        yield archive


def test_fewer_images_than_announced_are_visible(ledger: Ledger, open_door: OpenDoor) -> None:
    with odd_peer(sends(1, 2, 3)) as archive:
        found = odd(ledger, open_door()[0], archive)
    assert found.state is FetchState.FAILED
    assert found.reason == "3 of 5 images are here: odd said that it had sent all"
    assert found.next_step == "fetch again"
    lines = [(e.subject, e.after, e.by) for e in journal_of(ledger, SERIES)]
    assert ("fetch", "RUNNING", "tester") in lines
    assert ("fetch", "FAILED", "fetch") in lines


def test_a_number_that_is_not_told_leaves_it_to_what_comes(ledger: Ledger, open_door: OpenDoor) -> None:
    door, _ = open_door()
    with odd_peer(sends(), images=None) as archive:
        assert odd(ledger, door, archive).reason == "0 images are here: odd said that it had sent all"
    with odd_peer(sends(1, 2), images=None) as archive:
        found = odd(ledger, door, archive)
        assert (found.state, found.reason) == (FetchState.DONE, "2 images of 1 series are here")


def test_an_image_of_another_study_is_not_taken(ledger: Ledger, open_door: OpenDoor) -> None:
    def on_get(_event: evt.Event) -> Answers:
        yield 2
        yield 0xFF00, image(1)
        yield 0xFF00, image(2, StudyInstanceUID="1.2.3.2")

    with odd_peer(on_get, 2) as archive:
        found = odd(ledger, open_door()[0], archive)
    assert found.state is FetchState.FAILED
    assert "1 images were not taken here: the data set is of another study than announced" in found.reason
    assert [one.sop_uid for one in ledger.series_instances(SERIES)] == [f"{SERIES}.1"]


def test_another_object_under_a_known_uid_is_told_and_the_first_kept(ledger: Ledger, open_door: OpenDoor) -> None:
    door, _ = open_door()
    with odd_peer(sends(1, 2), 2) as archive:
        assert odd(ledger, door, archive).state is FetchState.DONE
    before = ledger.series_instances(SERIES)

    def on_get(_event: evt.Event) -> Answers:
        yield 1
        yield 0xFF00, image(1, PatientName="Another^One")

    with odd_peer(on_get, 2) as archive:
        found = odd(ledger, door, archive)
    assert found.state is FetchState.DONE
    assert "another object is here under its SOP Instance UID" in found.reason
    assert ledger.series_instances(SERIES) == before


def test_a_series_that_fails_does_not_keep_others_from_coming(ledger: Ledger, open_door: OpenDoor) -> None:
    """Where we take none of a series the peer says 0xA702, as if it were out of resources itself."""

    def on_get(event: evt.Event) -> Answers:
        yield 1
        first = event.identifier.SeriesInstanceUID == SERIES
        yield 0xFF00, image(1, StudyInstanceUID="1.2.3.2") if first else image(1, series=OTHER)

    with odd_peer(on_get, 1, also=OTHER) as archive:
        found = odd(ledger, open_door()[0], archive)
    assert found.state is FetchState.FAILED
    assert "1 of 2 images are here: 1 images were not taken here: the data set is of another study" in found.reason
    assert {s.series_uid: s.here for s in found.series} == {SERIES: 0, OTHER: 1}


def test_a_peer_that_hangs_is_given_up(ledger: Ledger, open_door: OpenDoor) -> None:
    ended = threading.Event()

    def on_get(_event: evt.Event) -> Answers:
        yield 3
        yield 0xFF00, image(1)
        ended.wait(20)
        yield 0xFF00, image(2)

    with odd_peer(on_get) as archive:
        begun = time.monotonic()
        found = odd(ledger, open_door()[0], archive)
        assert 2 <= time.monotonic() - begun < 8
        ended.set()
    assert found.reason == "nothing was heard of the peer for 2 s"
    assert len(ledger.series_instances(SERIES)) == 1, "what came before stays"


def test_a_peer_that_aborts_half_way(ledger: Ledger, open_door: OpenDoor) -> None:
    def on_get(event: evt.Event) -> Answers:
        yield 3
        yield 0xFF00, image(1)
        event.assoc.abort()
        yield 0xFF00, image(2)

    with odd_peer(on_get) as archive:
        found = odd(ledger, open_door()[0], archive)
    assert found.state is FetchState.FAILED
    assert found.reason == "the peer ended the association half way"
    assert len(ledger.series_instances(SERIES)) == 1


def test_a_message_that_has_no_place_here_ends_it(ledger: Ledger, open_door: OpenDoor) -> None:
    def on_get(event: evt.Event) -> Answers:
        echo = C_ECHO()
        echo.MessageID, echo.AffectedSOPClassUID = 9, Verification
        event.assoc.dimse.send_msg(echo, event.context.context_id)
        time.sleep(0.5)
        yield 0

    with odd_peer(on_get) as archive:
        found = odd(ledger, open_door()[0], archive)
    assert (found.state, found.next_step) == (FetchState.FAILED, "look into its log")
    assert found.reason == "the peer breaks the protocol: command 0x0030 has no place here"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"StudyInstanceUID": "1.2.3.2"}, "with another study than asked for"),
        ({"SeriesInstanceUID": "../../etc"}, "with a series without a UID"),
        ({"SeriesInstanceUID": ""}, "with a series without a UID"),
    ],
)
def test_odd_answers_to_the_query(ledger: Ledger, open_door: OpenDoor, answer: dict[str, str], reason: str) -> None:
    with odd_peer(sends(1), answer=answer) as archive:
        found = odd(ledger, open_door()[0], archive)
    assert found.state is FetchState.FAILED
    assert reason in found.reason
    assert found.series == ()


def test_who_cancels_stops_the_peer(ledger: Ledger, open_door: OpenDoor) -> None:
    cancelled = threading.Event()

    def on_get(event: evt.Event) -> Answers:
        yield 500
        for number in range(1, 501):
            if event.is_cancelled:
                cancelled.set()
                yield 0xFE00, None
                return
            time.sleep(0.02)
            yield 0xFF00, image(number)

    door, _ = open_door()
    with odd_peer(on_get, 500) as archive:
        asked = ledger.ask_fetch("odd", STUDY, (), "tester", time.time())
        one = fetcher(archive, ledger, door)
        running = threading.Thread(target=one.tick, args=(time.time(),))
        running.start()
        give_up = time.monotonic() + 20
        while ledger.fetch(asked.number).completed < 5:
            assert time.monotonic() < give_up
            time.sleep(0.05)
        ledger.cancel_fetch(asked.number, "somebody", time.time())
        running.join(20)
        assert not running.is_alive()
        assert cancelled.wait(5), "the peer was asked to stop"
    found = ledger.fetch(asked.number)
    assert (found.state, found.reason) == (FetchState.CANCELLED, "stopped by somebody")
    assert 5 <= len(ledger.series_instances(SERIES)) < 500
    with pytest.raises(Permanent, match="is CANCELLED"):
        ledger.cancel_fetch(asked.number, "somebody", time.time())


def test_a_stop_of_the_node_leaves_it_to_the_next_start(ledger: Ledger, open_door: OpenDoor) -> None:
    door, _ = open_door()

    def on_get(_event: evt.Event) -> Answers:
        yield IMAGES
        for number in range(1, IMAGES + 1):
            time.sleep(0.4)
            yield 0xFF00, image(number)

    with odd_peer(on_get) as archive:
        asked = ledger.ask_fetch("odd", STUDY, (), "tester", time.time())
        one = fetcher(archive, ledger, door)
        threading.Timer(0.5, one.stop).start()
        one.tick(time.time())
        assert ledger.fetch(asked.number).state is FetchState.RUNNING
        fetcher(archive, ledger, door).tick(time.time())
    found = ledger.fetch(asked.number)
    assert (found.state, found.attempts) == (FetchState.DONE, 2)


def test_what_is_broken_off_again_and_again_is_given_up(ledger: Ledger, open_door: OpenDoor) -> None:
    asked = ledger.ask_fetch("odd", STUDY, (), "tester", time.time())
    for _ in range(5):
        assert ledger.claim_fetch("odd", time.time())
    with odd_peer(sends(1)) as archive:
        fetcher(archive, ledger, open_door()[0]).tick(time.time())
    assert ledger.fetch(asked.number).reason == "it was broken off 5 times"


@pytest.mark.parametrize(
    ("archive", "reason", "step"),
    [
        ({"ae_title": "ODD", "host": "127.0.0.1", "port": 9}, "does not answer", "firewall"),
        ({"ae_title": "ODD", "host": "no.such.host.invalid", "port": 104}, "cannot be found", "DNS"),
        ({"url": "http://127.0.0.1:9/dicom-web"}, "odd does not answer", "its url"),
    ],
)
def test_an_archive_that_is_not_there(
    ledger: Ledger, open_door: OpenDoor, archive: dict[str, object], reason: str, step: str
) -> None:
    found = odd(ledger, open_door()[0], Archive(name="odd", timeout_s=2, **archive))  # type: ignore[arg-type]
    assert found.state is FetchState.FAILED
    assert reason in found.reason
    assert step in found.next_step


def test_a_wrong_ae_title_and_a_missing_service_are_told(ledger: Ledger, open_door: OpenDoor) -> None:
    door, _ = open_door()
    with odd_peer(sends(1), way="move") as archive:
        found = odd(ledger, door, archive.model_copy(update={"retrieve": "get"}))
        assert "does not accept C-GET from us" in found.reason
        assert found.next_step == 'let it accept that, or set retrieve = "move" of the archive'
    with odd_peer(sends(1), finds=False) as archive:
        assert "accepts none of the SOP classes" in odd(ledger, door, archive).reason


def test_orthanc_aborts_where_it_does_not_know_the_destination(
    ledger: Ledger, open_door: OpenDoor, pacs: Orthanc
) -> None:
    archive = Archive(
        name="odd", ae_title="ORTHANC", host="127.0.0.1", port=pacs.dicom_port, retrieve="move", timeout_s=10
    )
    door, _ = open_door(ae_title="NOBODY")
    found = fetch(fetcher(archive, ledger, door, ae_title="NOBODY"), ledger, "odd")
    assert (found.state, found.reason) == (FetchState.FAILED, "the peer ended the association half way")
    assert found.next_step.startswith("does it know the move destination NOBODY?")


def test_dcmqrscp_names_the_destination_that_it_does_not_know(
    tmp_path: Path, ledger: Ledger, open_door: OpenDoor, files: list[Path]
) -> None:
    with dcmqrscp(tmp_path / "dcmqrscp") as port:
        fill(port, "DCMQRSCP", files)
        archive = Archive(name="odd", ae_title="DCMQRSCP", host="127.0.0.1", port=port, retrieve="move", timeout_s=10)
        door, _ = open_door()
        found = odd(ledger, door, archive)
        wrong = odd(ledger, door, archive.model_copy(update={"ae_title": "WRONG"}))
    assert "rejects us: it does not know the AE title we called" in wrong.reason
    assert wrong.next_step == "check its ae_title in the settings"
    assert "it does not know the move destination PENNODE (0xA801)" in found.reason
    assert found.next_step.startswith("add that AE title with our host and port there")


@pytest.mark.parametrize("way", ["orthanc by move", "dcmqrscp by move"])
def test_an_archive_that_is_not_let_in_is_told_so(
    tmp_path: Path, ledger: Ledger, open_door: OpenDoor, pacs: Orthanc, files: list[Path], way: str
) -> None:
    door, port = open_door(unknown_peers="reject")
    with archive_of(way, pacs, tmp_path, files, port) as archive:
        found = fetch(fetcher(archive, ledger, door), ledger)
    assert found.state is FetchState.FAILED
    assert found.reason.startswith("0 of 7 images are here: ")
    assert "pennode peers list" in found.next_step, found


def test_an_archive_is_asked_over_tls(tmp_path: Path, ledger: Ledger, open_door: OpenDoor) -> None:
    authority, stranger = Authority(tmp_path / "ca"), Authority(tmp_path / "other", "Somebody")
    own = authority.issue("pacs.example")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(own.certificate, own.key)
    door, _ = open_door()
    with odd_peer(sends(1, 2), 2, tls=tls) as plain:
        secured = plain.model_copy(update={"tls": True, "tls_ca_file": stranger.certificate})
        assert "have no TLS: its certificate is not good" in odd(ledger, door, secured).reason
        secured = secured.model_copy(update={"tls_ca_file": authority.certificate})
        found = odd(ledger, door, secured)
    assert (found.state, found.completed) == (FetchState.DONE, 2), found


def test_an_image_that_is_too_large_is_refused_in_words(ledger: Ledger, open_door: OpenDoor) -> None:
    with odd_peer(sends_one(image(1, size=2048)), 1) as archive:
        door, _ = open_door(max_object_mb=2)
        found = fetch(fetcher(archive, ledger, door, max_object_mb=2), ledger, "odd")
    assert "1 images were not taken here: it is larger than listener.max_object_mb" in found.reason
    assert ledger.series_instances(SERIES) == []


@pytest.mark.parametrize("way", ["dcmqrscp by get", "orthanc by DICOMweb"])
def test_a_large_image_does_not_lie_in_memory(tmp_path: Path, ledger: Ledger, open_door: OpenDoor, way: str) -> None:
    door, port = open_door()
    large = [write(mr(1, size=5000), tmp_path / "large.dcm")]  # 50 MB
    with orthanc(tmp_path / "orthanc", {}) as pacs, archive_of(way, pacs, tmp_path, large, port) as archive:
        if way.startswith("orthanc"):
            fill(pacs.dicom_port, "ORTHANC", large)
        gc.collect()
        tracemalloc.start()
        try:
            found = fetch(fetcher(archive, ledger, door), ledger)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert found.state is FetchState.DONE, found
    assert ledger.series_instances(SERIES)[0].size > 50_000_000
    assert peak < 12_000_000


def sends_one(ds: Dataset) -> Callable[[evt.Event], Answers]:
    def on_get(_event: evt.Event) -> Answers:
        yield 1
        yield 0xFF00, ds

    return on_get


def journal_of(ledger: Ledger, series_uid: str) -> list[JournalEntry]:
    (seen,) = [s for s in ledger.receiving() if s.series_uid == series_uid]
    job = ledger.seal(
        seen, ledger.series_instances(series_uid), "test", wanted=False, verdict="", next_step="", now=time.time()
    )
    assert job
    return ledger.journal(job)
