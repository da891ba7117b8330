"""A PACS whose answers arrive garbled: nothing is taken for delivered that is not there, and nothing hangs or is lost.

Between us and Orthanc lies a line that changes, drops, adds or cuts off bytes of what Orthanc says, one place in each
connection. What we say arrives as it was sent: what a PACS makes of garbled objects is not ours to know.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from node.states import DeliveryState, JobState
from tests.node.test_proof import Site, emptied, introduce, pacs, start
from tests.node.test_readback import masked, read_back
from tests.peers import Orthanc

# pynetdicom leaves some sockets to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:VR lookup failed:UserWarning"),  # of a garbled tag
]
__all__ = ["emptied", "pacs", "start"]

D, J = DeliveryState, JobState
SEEDS = range(*map(int, os.environ.get("GARBLED_SEEDS", "0 6").split()))  # from the first to before the second
# Of a connection's answers: the acceptance is about 200 bytes long, responses follow, and then perhaps an object.
REACH = (6, 60, 230, 420, 2500)
LONGEST_S = 60.0


class Line:
    """A line to `port` of this machine that garbles what comes back, unless it is `sound`."""

    def __init__(self, port: int, seed: int) -> None:
        self.random, self.sound, self._target = random.Random(seed), False, port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                place = -1 if self.sound else self.random.randrange(self.random.choice(REACH))
                for source, sink, where in ((near, far, -1), (far, near, place)):
                    self._threads.append(threading.Thread(target=self._carry, args=(source, sink, where)))
                    self._threads[-1].start()

    def _carry(self, source: socket.socket, sink: socket.socket, place: int) -> None:
        seen = 0
        with suppress(OSError):
            while data := source.recv(65536):
                if seen <= place < seen + len(data):
                    data = self._garbled(data, place - seen)
                    if not data:
                        break
                seen += len(data)
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _garbled(self, data: bytes, at: int) -> bytes:
        before, one, after = data[:at], data[at : at + 1], data[at + 1 :]
        some = self.random.randbytes(self.random.randint(1, 9))
        return self.random.choice(
            [
                before + bytes([one[0] ^ (1 << self.random.randrange(8))]) + after,
                before + some[:1] + after,
                before + some + one + after,
                before + after[len(some) :],
                before,
                b"",
            ]
        )


@pytest.fixture
def way() -> dict[str, bool]:
    """The listener has no part in this."""
    return {}


@pytest.fixture
def line(request: pytest.FixtureRequest, pacs: Orthanc) -> Iterator[Line]:
    made = Line(pacs.dicom_port, request.param)
    yield made
    made.close()


@pytest.mark.parametrize("line", SEEDS, indirect=True)
def test_garbled_answers_prove_nothing_and_a_sound_line_brings_everything(
    line: Line, start: Callable[..., Site], pacs: Orthanc
) -> None:
    site = start(line.port, "query", title="ORTHANC", timeout_s=1)
    introduce(pacs, site.port)
    (job,) = site.segmented(content=masked)
    sop_uid = site.only().sop_uid

    def there() -> bool:
        return len(pacs.instances(sop_uid)) == 1

    began = time.monotonic()
    for _ in range(3):
        site.send()
        assert site.only().state in (D.PENDING, D.SENT, D.COMMITTED, D.FAILED)
        assert there() or site.only().state in (D.PENDING, D.FAILED), "said to be sent, and it is not there"
        if site.only().state in (D.SENT, D.COMMITTED):
            read_back(site, job)
        item = site.only()
        assert there() or item.state is not D.COMMITTED, "said to be there, and it is not"
        assert item.read_back in ("", "read back and found equal") or item.read_back.startswith(
            ("could not be read back: ", "read back and found different: ")
        ), item.read_back
        site.ahead += 30
    assert time.monotonic() - began < LONGEST_S

    line.sound = True
    if site.ledger.job(job).state is J.FAILED:
        site.ledger.retry(job, "test", site.clock())
    for _ in range(3):
        site.ahead += 600
        site.send()
        read_back(site, job)
    assert there()
    assert (site.only().state, site.only().read_back) == (D.COMMITTED, "read back and found equal")
    assert site.ledger.job(job).state is J.DELIVERED
