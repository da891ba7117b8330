"""Counting images at the sender: against a real PACS, and against peers that answer oddly or not at all."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, Verification

from node.census import Census, Wanted, censuses
from node.errors import PeerRefused, PeerUnavailable
from node.outgoing import describe
from node.query import count_images
from node.scu import Address, send_files
from node.settings import Settings
from node.weighing import Counted
from tests.authority import Authority
from tests.node.making import SERIES, STUDY, T0, mr, write
from tests.peers import orthanc

OTHER = "1.2.3.20"

# pynetdicom leaves the socket of a refused connection to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def address(port: int, title: str = "PACS") -> Address:
    return Address(title, "127.0.0.1", port, "PENNODE")


def test_orthanc_tells_how_many_images_of_a_series_it_has(tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc") as pacs:
        peer = address(pacs.dicom_port, "ORTHANC")
        images = [write(mr(n), tmp_path / f"{n}.dcm") for n in range(1, 4)]
        images += [write(mr(n, OTHER), tmp_path / f"other{n}.dcm") for n in range(1, 3)]
        assert send_files([describe(f) for f in images], peer, 10, lambda _f, _n: None) == []
        asked = {SERIES: STUDY, OTHER: STUDY, "1.2.3.404": STUDY}
        assert count_images(peer, asked, 10) == {SERIES: 3, OTHER: 2, "1.2.3.404": 0}
        census = Census("orthanc", peer, lambda: None, lambda: None)
        census.want({SERIES: Wanted(STUDY, T0)})
        begun = time.time()
        census.tick(begun)
        found = census.answer(SERIES)
        assert found
        assert (found.peer, found.number, found.trouble) == ("orthanc", 3, "")
        assert begun <= found.at <= time.time()


@contextlib.contextmanager
def find_scp(
    answers: Callable[[Dataset], Iterator[tuple[int, Dataset | None]]],
    sop_class: str = "",
    tls: ssl.SSLContext | None = None,
) -> Iterator[int]:
    """A Query SCP that answers as `answers` says."""

    def on_find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        yield from answers(event.identifier)

    ae = AE("PACS")
    ae.add_supported_context(sop_class or StudyRootQueryRetrieveInformationModelFind)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, on_find)], ssl_context=tls)
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()


def match(series: str = SERIES, number: str | None = "3") -> Dataset:
    found = Dataset()
    found.QueryRetrieveLevel, found.SeriesInstanceUID = "SERIES", series
    if number is not None:
        found.add_new(0x00201209, "IS", number)
    return found


def forever(_asked: Dataset) -> Iterator[tuple[int, Dataset | None]]:
    while True:
        yield 0xFF00, match(OTHER)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([(0xFF00, match())], {SERIES: 3}),
        ([(0xFF01, match(number=" 3 "))], {SERIES: 3}),
        ([(0xFF00, match(OTHER, "9")), (0xFF00, match())], {SERIES: 3}),
        ([], {SERIES: 0}),
        ([(0xFF00, match(OTHER))], {SERIES: 0}),
        ([(0xFF00, match(number=None))], {}),
        ([(0xFF00, match(number=""))], {}),
        ([(0xFF00, match(number="-3"))], {}),
        ([(0xA700, None)], "answered C-FIND with 0xA700"),
        ([(0xC001, None)], "answered C-FIND with 0xC001"),
    ],
)
def test_odd_answers(answers: list[tuple[int, Dataset | None]], expected: dict[str, int] | str) -> None:
    with find_scp(lambda _: iter(answers)) as port:
        if isinstance(expected, str):
            with pytest.raises(PeerRefused, match=expected):
                count_images(address(port), {SERIES: STUDY}, 5)
        else:
            assert count_images(address(port), {SERIES: STUDY}, 5) == expected


def test_what_is_asked_is_one_series_and_nothing_else() -> None:
    asked: list[Dataset] = []

    def note(identifier: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        asked.append(identifier)
        return iter([])

    with find_scp(note) as port:
        count_images(address(port), {SERIES: STUDY}, 5)
    values = {e.keyword: str(e.value or "") for e in asked[0]}
    assert values == {
        "QueryRetrieveLevel": "SERIES", "StudyInstanceUID": STUDY, "SeriesInstanceUID": SERIES,
        "NumberOfSeriesRelatedInstances": "",
    }  # fmt: skip


def test_a_peer_that_sends_matches_without_end_is_left() -> None:
    with find_scp(forever) as port, pytest.raises(PeerRefused, match="other series than asked for"):
        count_images(address(port), {SERIES: STUDY}, 5)


def test_a_peer_without_query_service_is_refused_in_words() -> None:
    with find_scp(forever, Verification) as port, pytest.raises(PeerRefused, match="accepts none of the SOP classes"):
        count_images(address(port), {SERIES: STUDY}, 5)


def test_a_peer_that_nobody_hears_of_is_unavailable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(PeerUnavailable, match="does not answer"):
            count_images(address(unused.getsockname()[1]), {SERIES: STUDY}, 2)


def test_a_peer_that_says_nothing_costs_its_timeout() -> None:
    def silent(_asked: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        time.sleep(2)
        yield 0xFF00, match()

    with find_scp(silent) as port:
        begun = time.monotonic()
        with pytest.raises(PeerUnavailable):
            count_images(address(port), {SERIES: STUDY}, 0.5)
        assert 0.5 <= time.monotonic() - begun < 2


# -- the census


class Desk:
    """A census with a clock and a peer of our own."""

    def __init__(self) -> None:
        self.now = T0
        self.numbers: dict[str, int] | Exception = {}
        self.asked: list[tuple[float, list[str]]] = []
        self.woken = self.hurried = 0
        self.census = Census("pacs", address(104), self.hurry, self.wake, count=self.count, clock=lambda: self.now)

    def hurry(self) -> None:
        self.hurried += 1

    def wake(self) -> None:
        self.woken += 1

    def count(self, peer: Address, series, timeout_s: float) -> dict[str, int]:
        self.asked.append((self.now - T0, sorted(series)))
        if isinstance(self.numbers, Exception):
            raise self.numbers
        return self.numbers

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += self.census.tick(self.now)


def test_questions_are_asked_together_and_again_less_and_less_often() -> None:
    desk = Desk()
    desk.run(5)
    assert desk.asked == []
    desk.census.want({SERIES: Wanted(STUDY, T0), OTHER: Wanted(STUDY, T0)})
    desk.numbers = {SERIES: 3}
    desk.run(110)
    assert [at for at, _ in desk.asked] == [5, 7, 11, 19, 35, 65, 95]
    assert all(uids == [SERIES, OTHER] for _, uids in desk.asked)
    assert desk.woken == len(desk.asked)
    assert desk.census.answer(SERIES) == Counted("pacs", T0 + 95, 3)
    assert desk.census.answer(OTHER) == Counted("pacs", T0 + 95, None, "it was asked and left it out")


def test_a_further_image_is_reason_to_ask_at_once_and_who_is_sealed_is_forgotten() -> None:
    desk = Desk()
    desk.numbers = {SERIES: 3}
    desk.census.want({SERIES: Wanted(STUDY, T0)})
    desk.run(20)
    asked = len(desk.asked)
    desk.census.want({SERIES: Wanted(STUDY, T0)})
    assert desk.hurried == 1
    desk.census.want({SERIES: Wanted(STUDY, T0 + 20)})
    assert desk.hurried == 2
    assert desk.census.answer(SERIES) == Counted("pacs", T0 + 14, 3), "until it is answered anew"
    desk.run(0.5)
    assert len(desk.asked) == asked + 1
    desk.census.want({})
    assert desk.census.answer(SERIES) is None
    desk.run(60)
    assert len(desk.asked) == asked + 1


def test_trouble_is_said_once_and_costs_no_number_that_was_known(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    desk.numbers = {SERIES: 3}
    desk.census.want({SERIES: Wanted(STUDY, T0)})
    desk.run(1)
    desk.numbers = PeerUnavailable("it does not answer", "look")
    desk.census.want({SERIES: Wanted(STUDY, T0), OTHER: Wanted(STUDY, T0)})
    desk.run(60)
    assert desk.census.answer(SERIES) == Counted("pacs", T0, 3)
    assert desk.census.answer(OTHER) == Counted("pacs", T0 + 31, None, "it does not answer")
    assert [r.levelname for r in caplog.records if "cannot be asked" in r.message] == ["WARNING"]
    with caplog.at_level("INFO"):
        desk.numbers = {SERIES: 4}
        desk.run(40)
    assert "says again how many images it has" in caplog.text


def test_a_crowd_is_asked_in_turns() -> None:
    desk = Desk()
    desk.census.want({f"1.2.{n}": Wanted(STUDY, T0) for n in range(80)})
    desk.run(1.5)
    assert sorted(len(uids) for _, uids in desk.asked) == [16, 32, 32]


def test_a_peer_that_listens_with_tls_is_asked_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    own = authority.issue("pacs")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(own.certificate, own.key)
    with find_scp(lambda _: iter([(0xFF00, match())]), tls=tls) as port:
        peer = {
            "name": "pacs", "ae_title": "PACS", "host": "localhost", "port": port, "count": True, "tls": True,
            "tls_ca_file": str(authority.certificate),
        }  # fmt: skip
        for ca_file, number, trouble in ((authority.certificate, 3, ""), (tmp_path / "none.pem", None, "none.pem")):
            settings = Settings(peers=({**peer, "tls_ca_file": str(ca_file)},))
            census = censuses(settings, lambda _name: None)["PACS"]
            census.want({SERIES: Wanted(STUDY, T0)})
            census.tick(T0)
            found = census.answer(SERIES)
            assert found
            assert found.number == number
            assert trouble in found.trouble


def test_only_peers_that_may_be_asked_are() -> None:
    settings = Settings(
        peers=(
            {"name": "mr1", "ae_title": "MR1"},
            {"name": "mr2", "ae_title": "MR2", "host": "h", "port": 105},
            {"name": "pacs", "ae_title": "PACS", "host": "h", "count": True},
            {"name": "again", "ae_title": "PACS", "host": "other", "count": True},
        ),
        listener={"ae_title": "SPINE"},
    )
    woken: list[str] = []
    found = censuses(settings, woken.append)
    assert {title: census.name for title, census in found.items()} == {"PACS": "pacs"}
    assert found["PACS"]._peer == Address("PACS", "h", 104, "SPINE")
    found["PACS"].want({SERIES: Wanted(STUDY, T0)})
    assert woken == ["count at pacs"]
    with pytest.raises(ValueError, match="set host too"):
        Settings(peers=({"name": "pacs", "ae_title": "PACS", "count": True},))
