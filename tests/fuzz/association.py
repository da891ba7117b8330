"""A whole association: bytes through a pair of sockets into `node.ingest`, with a reception, a spool and a ledger.

Laws: each message that the reference decoder finds is answered once, in order, with success where it is an object that
the node takes, and not otherwise; what is answered with success, and nothing else, is in the ledger and lies in the
spool byte by byte; no temporary file, no thread and no file descriptor is left.
"""

from __future__ import annotations

import atexit
import shutil
import socket
import struct
import tempfile
import threading
from functools import cache
from pathlib import Path

from node.errors import InvalidInstance
from node.gate import Gate
from node.header import read_identity
from node.ingest import Association
from node.ledger import Ledger
from node.ledger.schema import metadata
from node.listener import Door
from node.settings import Listener
from node.spool import Spool
from tests.fuzz import exchanges, reference
from tests.node.making import data_set, files_below

LONGEST = 32768
_SETTINGS = Listener(port=0, free_floor_mb=0, max_pdu=16384, max_command=512, artim_s=2.0, pdu_timeout_s=2.0)
_READS = (1 << 20, 4096, 7, 1)
_WITH_REQUEST = 0x80
_ECHO, _STORE, _CANCEL = 0x30, 0x01, 0x0FFF


class _Dripping(socket.socket):
    """Gives at most `most` bytes at a time."""

    most = 1 << 20

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0) -> int:
        return super().recv_into(memoryview(buffer)[: self.most], nbytes, flags)


class _Home:
    """The node behind the association, put together as a door does it, below the folder for temporary files."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="pennode-fuzz-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        self.spool = Spool(folder / "spool")
        self.spool.prepare()
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite3'}")
        self.ledger.migrate()
        atexit.register(self.ledger.close)
        self.door = Door(self.ledger, self.spool, _SETTINGS, changed=lambda: None)
        self.door.start()
        atexit.register(self.door.stop)
        assert isinstance(self.door._server, Gate)
        self.house = self.door._server._house


def held(ledger: Ledger) -> dict[bytes, tuple[str, str]]:
    """What a ledger has: SOP Instance UID to path and class."""
    table = metadata.tables["instance"]
    with ledger._db.read() as connection:
        return {row.sop_uid.encode(): (row.path, row.sop_class_uid) for row in connection.execute(table.select())}


def forget(ledger: Ledger, spool: Spool) -> None:
    """Drop what was stored."""
    with ledger._db.write() as connection:
        for table in reversed(metadata.sorted_tables):
            if table.name in ("instance", "series", "journal"):
                connection.execute(table.delete())
    for folder in (spool.root / "series").iterdir():
        shutil.rmtree(folder, ignore_errors=True)


@cache
def _at_home() -> _Home:
    return _Home()


def check(data: bytes) -> None:
    """Byte 0 chooses how much is read at a time and whether a valid request goes before; the rest is what comes."""
    if not data:
        return
    stream = data[1:]
    if data[0] & _WITH_REQUEST:
        stream = exchanges.association_requests()["small"] + stream
    home = _at_home()
    answers = _converse(home, stream, _READS[data[0] % len(_READS)])
    assert not home.door.associations(), "an association is open still"
    assert not home.house.admission.everyone(), "a connection is counted still"
    assert not list((home.spool.root / "tmp").iterdir()), "a temporary file is left"
    acknowledged = _acknowledged(stream, answers)
    if not acknowledged and not list((home.spool.root / "series").iterdir()):
        assert not held(home.ledger)
        return
    try:
        rows = held(home.ledger)
        assert set(rows) == set(acknowledged), "the ledger has something else than was acknowledged"
        files = {str(f.relative_to(home.spool.root)) for f in files_below(home.spool.root / "series")}
        assert files == {path for path, _ in rows.values()}
        for sop_uid, (path, sop_class) in rows.items():
            assert (sop_class.encode(), data_set(home.spool.path(path))) == acknowledged[sop_uid], "other bytes"
    finally:
        forget(home.ledger, home.spool)


def _converse(home: _Home, stream: bytes, most: int) -> bytes:
    """Send all of it, close our side, and return what comes back."""
    ours, theirs = socket.socketpair()
    with ours:
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        dripping = _Dripping(fileno=theirs.detach())
        dripping.most = most
        association = Association(1, dripping, "127.0.0.9", home.house)
        home.house.admission.enter(association)
        ours.settimeout(10)
        ours.sendall(stream)
        ours.shutdown(socket.SHUT_WR)
        thread = threading.Thread(target=association.run, daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive(), "the association does not end"
        assert dripping.fileno() == -1, "the connection is open still"
        answers = b""
        while more := ours.recv(65536):
            answers += more
    return answers


def _acknowledged(stream: bytes, answers: bytes) -> dict[bytes, tuple[bytes, bytes]]:
    """Hold answers against requests; return what was acknowledged: SOP Instance UID to class and data set."""
    sent = reference.decode(
        stream, longest_pdu=_SETTINGS.max_pdu, longest_command=_SETTINGS.max_command, established=False
    )
    if not answers or answers[0] != reference.ASSOCIATE_AC:
        assert not answers or answers[0] in (3, reference.ABORT)
        return {}
    length = int.from_bytes(answers[2:6], "big")
    results = reference.accepted_contexts(answers[6 : 6 + length])
    accepted = {number: syntax.decode() for number, (result, syntax) in results.items() if result == 0}
    first = next(e for e in sent.events if isinstance(e, reference.Pdu))
    asked = reference.asked_contexts(first.body)
    said, last = _answers(answers[6 + length :])
    expected: list[reference.Message] = []
    for message in (e for e in sent.events if isinstance(e, reference.Message)):
        if message.context not in accepted or message.number(0x0100) & 0x8000:
            assert last == reference.ABORT, "what may not come must be aborted"
            break
        if message.whole and message.number(0x0100) != _CANCEL:
            expected.append(message)
    else:
        assert not sent.broken or last == reference.ABORT, "a violation must be aborted"
    assert len(said) == len(expected), "not each message is answered once"
    found: dict[bytes, tuple[bytes, bytes]] = {}
    for request, response in zip(expected, said, strict=True):
        assert response.context == request.context
        assert response.number(0x0100) == request.number(0x0100) | 0x8000
        assert response.number(0x0120) == request.number(0x0110)
        assert response.data is None
        status = response.elements[0x0900]
        if request.number(0x0100) == _ECHO:
            assert status == b"\0\0"
        if request.number(0x0100) != _STORE:
            continue
        sop_uid = request.text(0x1000, 0x1001).rstrip(b"\0 ")
        stored = (request.text(0x0002, 0x0003).rstrip(b"\0 "), request.data or b"")
        if asked.get(request.context) is None:  # its abstract syntax is not plain to see
            if status == b"\0\0":
                found[sop_uid] = stored
        elif _is_object(request, sop_uid, stored[0], asked[request.context], accepted[request.context]):
            is_other = found.setdefault(sop_uid, stored) != stored
            assert status == (b"\x11\1" if is_other else b"\0\0"), "an object was not taken"
        else:
            assert status != b"\0\0", "what is no object was taken for one"
    return found


def _is_object(
    request: reference.Message, sop_uid: bytes, sop_class: bytes, abstract: bytes | None, syntax: str
) -> bool:
    """Tell whether this C-STORE-RQ has the very object that it announces, in a context for its class."""
    if request.data is None or sop_class != abstract:
        return False
    try:
        identity = read_identity(request.data, syntax)
    except InvalidInstance:
        return False
    return (identity.sop_uid.encode(), identity.sop_class_uid.encode()) == (sop_uid, sop_class)


def _answers(stream: bytes) -> tuple[list[reference.Message], int]:
    """Return the responses, and the type of the PDU after them."""
    messages: list[reference.Message] = []
    collected = b""
    while stream:
        kind, length = struct.unpack(">BxL", stream[:6])
        body, stream = stream[6 : 6 + length], stream[6 + length :]
        assert len(body) == length, "an answer ends early"
        if kind != reference.P_DATA_TF:
            assert not collected
            assert not stream, "something comes after the last word"
            return messages, kind
        size, context, control = struct.unpack(">LBB", body[:6])
        assert size == length - 4
        collected += body[6:]
        if control == 3:
            messages.append(reference.Message(context, reference.read_response(collected), None, True))
            collected = b""
    return messages, 0


def seeds() -> dict[str, bytes]:
    """Exchanges after a valid request, and whole ones."""
    found = {f"{name}-{n}": bytes([_WITH_REQUEST | n]) + s for name, s in exchanges.streams().items() for n in (0, 2)}
    return found | {
        "whole": b"\0" + exchanges.whole_exchange(),
        "request-only": b"\2" + exchanges.whole_exchange()[:400],
    }


mutate = exchanges.mutate
HEADER = 1
