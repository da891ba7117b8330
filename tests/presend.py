"""An SCU that has encoded everything before it connects, so that a benchmark sees the receiver and little else."""

from __future__ import annotations

import socket
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pydicom

from tests.node.making import data_set

_ELEMENT = struct.Struct("<HHL")


@dataclass(frozen=True)
class Sent:
    """One object as C-STORE carries it."""

    sop_class: bytes
    sop_uid: bytes
    syntax: bytes
    data: bytes


def load(path: Path) -> Sent:
    """Read a Part-10 file."""
    ds = pydicom.dcmread(path, stop_before_pixels=True)
    uids = (ds.SOPClassUID, ds.SOPInstanceUID, ds.file_meta.TransferSyntaxUID)
    return Sent(*(uid.encode() for uid in uids), data_set(path))


def pdu(kind: int, body: bytes) -> bytes:
    """Encode a PDU (PS3.8 section 9.3.1)."""
    return struct.pack(">BxL", kind, len(body)) + body


def pdv(context: int, header: int, payload: bytes) -> bytes:
    """Encode a presentation data value (PS3.8 section 9.3.5.1)."""
    return struct.pack(">LBB", len(payload) + 2, context, header) + payload


def command(elements: list[tuple[int, bytes]]) -> bytes:
    """Encode a command set with its group length."""
    padded = [(element, value + b"\0" * (len(value) % 2)) for element, value in elements]
    body = b"".join(_ELEMENT.pack(0, element, len(value)) + value for element, value in padded)
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<L", len(body)) + body


def store_request(sent: Sent, message_id: int = 1, data_set_type: bytes = b"\0\0") -> bytes:
    """Encode the command set of a C-STORE-RQ."""
    return command([
        (0x0002, sent.sop_class), (0x0100, b"\1\0"), (0x0110, struct.pack("<H", message_id)), (0x0700, b"\0\0"),
        (0x0800, data_set_type), (0x1000, sent.sop_uid),
    ])  # fmt: skip


def echo_request() -> bytes:
    """Encode the command set of a C-ECHO-RQ."""
    return command([(0x0002, b"1.2.840.10008.1.1"), (0x0100, b"\x30\0"), (0x0110, b"\1\0"), (0x0800, b"\1\1")])


def message(sent: Sent, context: int, maximum: int, message_id: int = 1) -> bytes:
    """Encode a whole C-STORE-RQ in PDUs of at most `maximum` bytes."""
    step = maximum - 6
    parts = [pdu(4, pdv(context, 3, store_request(sent, message_id)))]
    for start in range(0, len(sent.data), step):
        last = start + step >= len(sent.data)
        parts.append(pdu(4, pdv(context, 2 if last else 0, sent.data[start : start + step])))
    return b"".join(parts)


def association_request(contexts: list[tuple[bytes, bytes]], calling: bytes = b"PRESEND") -> bytes:
    """Encode an A-ASSOCIATE-RQ; contexts are (abstract syntax, transfer syntax), with IDs 1, 3, 5..."""

    def part(kind: int, body: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(body)) + body

    body = struct.pack(">HH16s16s32x", 1, 0, b"PENNODE".ljust(16), calling.ljust(16))
    body += part(0x10, b"1.2.840.10008.3.1.1.1")
    for index, (abstract, transfer) in enumerate(contexts):
        body += part(0x20, bytes([2 * index + 1, 0, 0, 0]) + part(0x30, abstract) + part(0x40, transfer))
    return pdu(1, body + part(0x50, part(0x51, struct.pack(">L", 131072)) + part(0x52, b"1.2.3.4")))


def read_pdu(connection: socket.socket) -> tuple[int, bytes]:
    """Read one PDU; ConnectionError when the peer closes instead."""
    kind, length = struct.unpack(">BxL", _exactly(connection, 6))
    return kind, _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    whole = b""
    while len(whole) < count:
        more = connection.recv(count - len(whole))
        if not more:
            raise ConnectionError("closed by the peer")
        whole += more
    return whole


def connect(port: int, source: str = "127.0.0.1", timeout: float = 60.0) -> socket.socket:
    """Connect to loopback from one of its addresses."""
    connection = socket.create_connection(("127.0.0.1", port), timeout, source_address=(source, 0))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def associate(
    port: int,
    contexts: list[tuple[bytes, bytes]],
    source: str = "127.0.0.1",
    timeout: float = 60.0,
    calling: bytes = b"PRESEND",
) -> socket.socket:
    """Connect and negotiate; return the connection of an established association."""
    connection = connect(port, source, timeout)
    try:
        connection.sendall(association_request(contexts, calling))
        kind, _ = read_pdu(connection)
        if kind != 2:
            raise ConnectionError(f"PDU type {kind} instead of an acceptance")
    except BaseException:
        connection.close()
        raise
    return connection


def status_of(answer: bytes) -> int:
    """Return the Status (0000,0900) of a response's P-DATA-TF body, which holds one PDV."""
    position = 6
    while position < len(answer):
        _, element, length = _ELEMENT.unpack_from(answer, position)
        position += _ELEMENT.size + length
        if element == 0x0900:
            return int.from_bytes(answer[position - length : position], "little")
    raise ValueError("a response without status")


def send(port: int, objects: list[Sent], associations: int = 1, maximum: int = 131072) -> list[float]:
    """Send objects over several associations at the same time; return the seconds that each took to be answered."""
    taken: list[float] = []
    failed: list[str] = []

    def one(share: list[Sent]) -> None:
        contexts = sorted({(o.sop_class, o.syntax) for o in share})
        try:
            with associate(port, contexts) as connection:
                for number, item in enumerate(share):
                    context = 2 * contexts.index((item.sop_class, item.syntax)) + 1
                    whole = message(item, context, maximum, number % 60000 + 1)
                    start = time.perf_counter()
                    connection.sendall(whole)
                    kind, answer = read_pdu(connection)
                    taken.append(time.perf_counter() - start)
                    if kind != 4 or status_of(answer) != 0:
                        failed.append(f"PDU type {kind}, {answer.hex()}")
                connection.sendall(pdu(5, bytes(4)))
                read_pdu(connection)
        except OSError as error:
            failed.append(repr(error))

    threads = [threading.Thread(target=one, args=(objects[n::associations],)) for n in range(associations)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed or len(taken) != len(objects):
        raise RuntimeError(f"{len(taken)} of {len(objects)} sent; {failed[:1]}")
    return taken


def send_large(port: int, beginning: Sent, length: int, maximum: int = 131072) -> None:
    """Send one object of which `beginning` holds all before the pixels; `length` bytes of zero are its pixels."""
    with associate(port, [(beginning.sop_class, beginning.syntax)], timeout=600) as connection:
        head = beginning.data + struct.pack("<HH2sxxL", 0x7FE0, 0x0010, b"OW", length)
        connection.sendall(pdu(4, pdv(1, 3, store_request(beginning))) + pdu(4, pdv(1, 0, head)))
        step = maximum - 6
        whole = pdu(4, pdv(1, 0, bytes(step)))
        for _ in range(length // step):
            connection.sendall(whole)
        connection.sendall(pdu(4, pdv(1, 2, bytes(length % step))))
        kind, answer = read_pdu(connection)
        if kind != 4 or status_of(answer) != 0:
            raise RuntimeError(f"PDU type {kind}, {answer.hex()}")
        connection.sendall(pdu(5, bytes(4)))
        read_pdu(connection)
