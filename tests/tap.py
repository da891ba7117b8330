"""A wire tap: stands between a real sender and a listener, passes everything on, and keeps what went by."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.fuzz import reference


@dataclass
class Conversation:
    """One connection: what the sender said, and what it was answered."""

    said: bytearray = field(default_factory=bytearray)
    answered: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True)
class Carried:
    """One object as it went over the wire."""

    sop_uid: str
    transfer_syntax: str
    data: bytes


class Tap:
    """Listens on `port`, and connects to another for each who comes."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.conversations: list[Conversation] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def close(self) -> None:
        """Take no more connections, and wait for those that are to end."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listening.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                sender, _ = self._listening.accept()
            except OSError:
                return
            receiver = socket.create_connection(("127.0.0.1", self._target))
            for end in (sender, receiver):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            conversation = Conversation()
            self.conversations.append(conversation)
            ended = threading.Barrier(2, lambda s=sender, r=receiver: (s.close(), r.close()))
            for source, sink, kept in (
                (sender, receiver, conversation.said), (receiver, sender, conversation.answered)
            ):  # fmt: skip
                thread = threading.Thread(target=_pump, args=(source, sink, kept, ended))
                self._threads.append(thread)
                thread.start()

    def carried(self) -> list[Carried]:
        """Every object that was sent whole, as the reference decoder reads it."""
        found = []
        for one in self.conversations:
            length = int.from_bytes(one.answered[2:6], "big")
            results = reference.accepted_contexts(bytes(one.answered[6 : 6 + length]))
            meaning = reference.decode(bytes(one.said), longest_pdu=1 << 20, longest_command=1 << 16, established=False)
            assert not meaning.broken
            for message in meaning.messages:
                if message.number(0x0100) == 1:
                    result, syntax = results[message.context]
                    assert result == 0
                    uid = message.text(0x1000).rstrip(b"\0").decode()
                    found.append(Carried(uid, syntax.rstrip(b"\0").decode(), message.data or b""))
        return found


def _pump(source: socket.socket, sink: socket.socket, kept: bytearray, ended: threading.Barrier) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(1 << 18):
            kept += piece
            sink.sendall(piece)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
    ended.wait()


@contextlib.contextmanager
def tapped(target: int) -> Iterator[Tap]:
    """A tap for the length of the block; leave the block before looking at what it has."""
    tap = Tap(target)
    try:
        yield tap
    finally:
        tap.close()
