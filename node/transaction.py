"""One Store transaction (PS3.18 section 10.5): the parts of a request on their way into the spool, in constant memory.

Each part is an object like one that C-STORE brings, from `Reception.begin` to `finish`; its data set is kept as sent.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.message import Message

from node import statuses
from node.errors import InvalidInstance, InvalidRequest, RequestTooLarge
from node.incoming import Incoming, Origin, Receiver
from node.multipart import Event, Multipart, PartBegins, PartEnds
from node.part10 import Head, read_head
from node.records import is_uid
from node.storage_classes import STORAGE_CLASSES, TRANSFER_SYNTAXES

log = logging.getLogger(__name__)

DICOM = "application/dicom"
_AS_THEY_ARE = frozenset({"binary", "8bit", "7bit"})


@dataclass(frozen=True)
class Outcome:
    """What became of one part.

    `status` is what C-STORE would be answered (PS3.4 B.2.3). The UIDs are empty where the part did not tell them.
    """

    sop_class_uid: str
    sop_uid: str
    status: int
    reason: str = ""
    oversized: bool = False


class Transaction:
    """Takes the body of one request; every method may block on the disk.

    Parameters
    ----------
    parser
        Of a body of parts; None: the body is one object.
    max_object
        What `reception` takes of one object, in bytes; only to tell what is too large from what came at a bad time.
    """

    def __init__(
        self, reception: Receiver, origin: Origin, parser: Multipart | None, max_parts: int, max_object: int
    ) -> None:
        self._reception = reception
        self._origin = origin
        self._max_parts = max_parts
        self._max_object = max_object
        self._parser = parser
        self._lock = threading.Lock()
        self._closed = False
        self._head = bytearray()
        self._incoming: Incoming | None = None
        self._refusal = ""
        self.outcomes: list[Outcome] = []

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body.

        Raises
        ------
        InvalidRequest, RequestTooLarge
            The body is malformed, or has too many parts. What came before is stored, as `outcomes` tell.
        """
        with self._lock:
            if self._closed:
                return
            for event in self._events(data):
                match event:
                    case PartBegins(headers):
                        self._begin(headers)
                    case PartEnds():
                        self._end()
                    case _:
                        self._take(event)

    def finish(self) -> None:
        """The body has come whole.

        Raises
        ------
        InvalidRequest
            It ends before its last delimiter line, so that the last part may be cut short, or it holds no part.
        """
        with self._lock:
            if self._parser is None and not self._closed:
                self._end()
            elif self._parser is not None and not self._parser.finished:
                raise InvalidRequest("the body ends before its last boundary", "send it again: it was cut short")
            if not self.outcomes:
                raise InvalidRequest("the body has no parts", "send at least one object")

    def close(self) -> None:
        """Drop what is half received. Safe at any time; nothing is taken afterwards."""
        with self._lock:
            self._closed = True
            if self._incoming is not None:
                self._incoming.drop()
                self._incoming = None

    def _events(self, data: bytes) -> Iterable[Event]:
        return self._parser.feed(data) if self._parser is not None else [memoryview(data)]

    def _begin(self, headers: Mapping[str, str]) -> None:
        if len(self.outcomes) == self._max_parts:
            raise RequestTooLarge("the request has more parts than web.max_stow_parts", "send fewer at a time")
        self._head, self._incoming, self._refusal = bytearray(), None, ""
        fields = Message()
        fields["content-type"] = headers.get("content-type", DICOM)
        if fields.get_content_type() != DICOM:
            self._refusal = f"a part is not {DICOM}"
        elif headers.get("content-transfer-encoding", "binary").lower() not in _AS_THEY_ARE:
            self._refusal = "a part has a Content-Transfer-Encoding: send it binary"

    def _take(self, data: memoryview) -> None:
        if self._refusal:
            return
        if self._incoming is None:
            self._head += data
            try:
                head = read_head(bytes(self._head))
            except InvalidInstance as error:
                self._refusal = str(error)
                return
            if head is None:
                return
            self._incoming = self._admit(head)
            data = memoryview(bytes(self._head[head.length :]))
            self._head.clear()
        if data:
            self._reception.append(self._incoming, [data])

    def _admit(self, head: Head) -> Incoming:
        """Let an object in as a presentation context would: by its class and its transfer syntax."""
        uids = head.sop_class_uid, head.sop_uid, head.transfer_syntax_uid
        incoming = Incoming(self._origin, *uids)
        if is_uid(head.sop_class_uid) and head.sop_class_uid not in STORAGE_CLASSES:
            incoming.refuse(statuses.SOP_CLASS_NOT_SUPPORTED, "its SOP class is not one that is stored here")
        elif head.transfer_syntax_uid not in TRANSFER_SYNTAXES:
            incoming.refuse(
                statuses.TRANSFER_SYNTAX_NOT_SUPPORTED, "its transfer syntax is not one that is stored here"
            )
        else:
            incoming = self._reception.begin(self._origin, *uids)
        return incoming

    def _end(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is None:
            reason = self._refusal or "a part ends within the head of its file"
            log.warning("refused a part from %s at %s: %s", self._origin.calling_ae, self._origin.address, reason)
            self.outcomes.append(Outcome("", "", statuses.CANNOT_UNDERSTAND, reason))
            return
        try:
            status = self._reception.finish(incoming)
        finally:
            self._reception.tidy(incoming)
        reason = ""
        if incoming.refusal is not None:
            _, reason = incoming.refusal
        elif status != statuses.SUCCESS:
            reason = "another object is stored under this SOP Instance UID"
        named = is_uid(incoming.sop_class_uid) and is_uid(incoming.sop_uid)
        uids = (incoming.sop_class_uid, incoming.sop_uid) if named else ("", "")
        self.outcomes.append(Outcome(*uids, status, reason, oversized=incoming.size > self._max_object))
