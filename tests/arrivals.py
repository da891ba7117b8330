"""How series arrive in life: each pattern sends one series, or two, over real associations and says what it sent."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from tests.node.making import encoded, mr
from tests.presend import Sent, associate, message, pdu, read_pdu, status_of

SLICES = 20
LATE_S = 20.0
PART_S = 3.0
# The pauses of a scanner that sends while it reconstructs.
_STEADY_S, _BURST_S = 0.05, 1.5


@dataclass
class Arrival:
    """One series as it was sent: how many images it has in all, and when the last new one was acknowledged."""

    series_uid: str
    whole: int
    last_at: float = 0.0
    held: list[contextlib.ExitStack] = field(default_factory=list)  # associations that stay open


class Link:
    """An open association, from one of loopback's addresses."""

    def __init__(self, port: int, calling: str, source: str = "127.0.0.1") -> None:
        contexts = [(MRImageStorage.encode(), ExplicitVRLittleEndian.encode())]
        self._connection = associate(port, contexts, source, calling=calling.encode())
        self._number = 0

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._connection.sendall(pdu(5, bytes(4)))
            read_pdu(self._connection)
        self._connection.close()

    def store(self, sent: Sent) -> float:
        """Send one image; return when success was answered, in seconds since 1970."""
        self._number += 1
        self._connection.sendall(message(sent, 1, 131072, self._number))
        kind, answer = read_pdu(self._connection)
        at = time.time()
        if kind != 4 or status_of(answer) != 0:
            raise RuntimeError(f"not stored: PDU type {kind}, {answer.hex()}")
        return at


def images(series_uid: str, numbers: Iterable[int] = range(1, SLICES + 1), **values: object) -> list[Sent]:
    """Return sagittal slices of a series, 4 mm apart, numbered as they lie."""
    return [image(series_uid, n, 4.0 * n, **values) for n in numbers]


def image(series_uid: str, number: int, at_mm: float, **values: object) -> Sent:
    """Return one small sagittal slice."""
    ds = mr(number, series_uid, size=32, ImagePositionPatient=[at_mm, -100, 100], **values)
    uids = (str(MRImageStorage), f"{series_uid}.{number}", str(ExplicitVRLittleEndian))
    return Sent(*(uid.encode() for uid in uids), encoded(ds))


def mute(series_uid: str, count: int = SLICES) -> list[Sent]:
    """Return images that do not tell whether they are all: they have neither numbers nor positions."""
    return images(series_uid, range(1, count + 1), InstanceNumber=None, ImageOrientationPatient=None)


# -- patterns: (port, calling AE title, Series Instance UID) -> what was sent

Pattern = Callable[[int, str, str], list[Arrival]]


def _send(link: Link, sent: Iterable[Sent], gap_s: float = 0.0) -> float:
    at = 0.0
    for one in sent:
        at = link.store(one)
        time.sleep(gap_s)
    return at


def _plain(port: int, calling: str, series_uid: str, sent: list[Sent], gap_s: float = 0.0) -> list[Arrival]:
    with Link(port, calling) as link:
        return [Arrival(series_uid, len(sent), _send(link, sent, gap_s))]


def steady(port: int, calling: str, series_uid: str) -> list[Arrival]:
    """One association, an image every 50 ms."""
    return _plain(port, calling, series_uid, images(series_uid), _STEADY_S)


def bursty(port: int, calling: str, series_uid: str) -> list[Arrival]:
    """One association, four bursts 1.5 s apart."""
    sent = images(series_uid)
    with Link(port, calling) as link:
        for start in range(0, SLICES, SLICES // 4):
            time.sleep(_BURST_S if start else 0)
            at = _send(link, sent[start : start + SLICES // 4])
    return [Arrival(series_uid, SLICES, at)]


def reversed_order(port: int, calling: str, series_uid: str) -> list[Arrival]:
    """One association, the last slice first."""
    return _plain(port, calling, series_uid, images(series_uid)[::-1], _STEADY_S)


def two_associations(port: int, calling: str, series_uid: str) -> list[Arrival]:
    """Two associations at once, every other slice on each."""
    return _split(port, calling, series_uid, ("127.0.0.1", "127.0.0.1"))


def two_hosts(port: int, calling: str, series_uid: str) -> list[Arrival]:
    """Two hosts at once, every other slice from each."""
    return _split(port, calling, series_uid, ("127.0.0.2", "127.0.0.3"))


def _split(port: int, calling: str, series_uid: str, sources: tuple[str, str]) -> list[Arrival]:
    ends: list[float] = []

    def half(which: int) -> None:
        with Link(port, calling, sources[which]) as link:
            ends.append(_send(link, images(series_uid)[which::2], _STEADY_S * (1 + which)))

    threads = [threading.Thread(target=half, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(ends) < 2:
        raise RuntimeError("half of a series was not stored")
    return [Arrival(series_uid, SLICES, max(ends))]


def one_slice_late(port: int, calling: str, series_uid: str) -> list[Arrival]:
    """One slice of the middle comes 20 s after all others, on an association of its own."""
    sent = images(series_uid)
    late = sent.pop(SLICES // 2)
    _plain(port, calling, series_uid, sent)
    time.sleep(LATE_S)
    (arrival,) = _plain(port, calling, series_uid, [late])
    return [Arrival(series_uid, SLICES, arrival.last_at)]


def sent_again(port: int, calling: str, series_uid: str) -> list[Arrival]:
    """All of it once more right after, slowly, on an association that outlives the seal."""
    sent = images(series_uid)
    (arrival,) = _plain(port, calling, series_uid, sent)
    _plain(port, calling, series_uid, sent, 0.1)
    return [arrival]


def image_by_image(port: int, calling: str, series_uid: str) -> list[Arrival]:
    """An association for each image, 0.3 s apart, as many modalities send."""
    for sent in images(series_uid):
        (arrival,) = _plain(port, calling, series_uid, [sent])
        time.sleep(0.3)
    return [Arrival(series_uid, SLICES, arrival.last_at)]


def part_by_part(port: int, calling: str, series_uid: str) -> list[Arrival]:
    """Four associations of five images each, 3 s apart, as senders do that send what is reconstructed so far."""
    sent = images(series_uid)
    for start in range(0, SLICES, SLICES // 4):
        time.sleep(PART_S if start else 0)
        (arrival,) = _plain(port, calling, series_uid, sent[start : start + SLICES // 4])
    return [Arrival(series_uid, SLICES, arrival.last_at)]


def interleaved(port: int, calling: str, series_uid: str) -> list[Arrival]:
    """Two series image by image in turn on one association."""
    both = [Arrival(f"{series_uid}.{n}", SLICES) for n in (1, 2)]
    with Link(port, calling) as link:
        for pair in zip(*(images(a.series_uid) for a in both), strict=True):
            for arrival, sent in zip(both, pair, strict=True):
                arrival.last_at = link.store(sent)
    return both


def two_echoes(port: int, calling: str, series_uid: str) -> list[Arrival]:
    """Two echoes at each position, one after the other; Images in Acquisition counts both."""
    half = SLICES // 2
    sent = [
        image(series_uid, e * half + p + 1, 4.0 * p, ImagesInAcquisition=SLICES) for e in (0, 1) for p in range(half)
    ]
    return _plain(port, calling, series_uid, sent, _STEADY_S)


def never_released(port: int, calling: str, series_uid: str) -> list[Arrival]:
    """All of it, but the association stays open."""
    stack = contextlib.ExitStack()
    link = stack.enter_context(Link(port, calling))
    return [Arrival(series_uid, SLICES, _send(link, images(series_uid)), [stack])]


def never_whole(port: int, calling: str, series_uid: str) -> list[Arrival]:
    """One slice of the middle never comes."""
    sent = images(series_uid)
    del sent[SLICES // 2]
    return _plain(port, calling, series_uid, sent)


def telling_nothing(port: int, calling: str, series_uid: str) -> list[Arrival]:
    """Images without numbers and positions."""
    return _plain(port, calling, series_uid, mute(series_uid), _STEADY_S)


@contextlib.contextmanager
def finished(arrivals: list[Arrival]) -> Iterator[None]:
    """Close at the end what patterns left open."""
    try:
        yield
    finally:
        for arrival in arrivals:
            for stack in arrival.held:
                stack.close()
