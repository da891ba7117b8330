"""A served STOW-RS port for the tests, and requests of every kind, made by hand."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydicom import Dataset, uid

from node.http import HttpServer
from node.ledger import Ledger
from node.listener import Door
from node.settings import Listener, Web
from node.spool import Spool
from node.stow import OriginServer
from node.web import Component, Health, create_app
from tests.node.making import data_set, write
from tests.waiting import until

TOKEN = "a token for stow"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
BOUNDARY = "0f3cf5c0-70e0-41ef"
TYPE = f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"'
PART = b"\r\nContent-Type: application/dicom\r\n\r\n"


@dataclass(frozen=True)
class Site:
    """A door, and the site that stores through it."""

    url: str
    door: Door
    dicom_port: int
    ledger: Ledger
    spool: Spool

    @property
    def port(self) -> int:
        found = urlsplit(self.url).port
        assert found is not None
        return found

    def post(
        self, body: bytes | Iterator[bytes], study: str = "", *, content_type: str = TYPE, **headers: str
    ) -> tuple[int, dict[str, Any] | str, HTTPResponse]:
        """POST; return status, what the answer holds, and the answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            sent = {"Content-Type": content_type, **BEARER, **{k.replace("_", "-"): v for k, v in headers.items()}}
            path = f"/dicom-web/studies/{study}" if study else "/dicom-web/studies"
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may answer before it has all
                connection.request("POST", path, body, sent)
            answer = connection.getresponse()
            content = answer.read().decode()
            is_json = answer.headers["content-type"] == "application/dicom+json"
            return answer.status, json.loads(content) if is_json else content, answer

    def held(self) -> dict[str, bytes]:
        """The data sets that the ledger holds, read from the spool, by SOP Instance UID."""
        return {
            member.sop_uid: data_set(self.spool.path(member.path))
            for series in self.ledger.receiving()
            for member in self.ledger.series_instances(series.series_uid)
        }

    def begun(self) -> list[str]:
        """The files that objects are being received into: with a passing name, or open with something in them."""
        folder = self.spool.root / "tmp"
        found = [str(path) for path in folder.iterdir()]
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(link.readlink()).startswith(f"{folder}/") and link.stat().st_size:
                    found.append(str(link.readlink()))
        return found


@contextlib.contextmanager
def served(ledger: Ledger, spool: Spool, web: dict[str, Any] | None = None, **listener: object) -> Iterator[Site]:
    """Open a door and serve STOW-RS through it."""
    limits = Listener(**{"port": 0, "free_floor_mb": 0, **listener})  # type: ignore[arg-type]
    settings = Web(port=0, stow=True, **(web or {}))
    door = Door(ledger, spool, limits, changed=lambda: None)
    app = create_app(
        ledger, token="admin", health=lambda: Health((Component("all", True),)),
        more=OriginServer(door, settings, limits, TOKEN).routes(),
    )  # fmt: skip
    server = HttpServer(app, settings.host, settings.port, "web", lambda _name: None)
    server.start()
    dicom_port = door.start()[1]
    wait_for(server.url)
    try:
        yield Site(server.url, door, dicom_port, ledger, spool)
    finally:
        door.stop()
        server.stop()


def wait_for(url: str) -> None:
    """Wait until somebody accepts connections there."""
    parts = urlsplit(url)

    def accepts() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((parts.hostname, parts.port), 1):
            return True
        return False

    until(accepts)


def file(ds: Dataset, syntax: str = uid.ExplicitVRLittleEndian) -> bytes:
    """The whole Part-10 file of a data set."""
    buffer = BytesIO()
    write(ds, buffer, syntax)  # type: ignore[arg-type]
    return buffer.getvalue()


def related(files: Sequence[bytes], end: bytes = b"--\r\n") -> bytes:
    """A multipart body."""
    delimiter = f"--{BOUNDARY}".encode()
    return b"".join(delimiter + PART + one + b"\r\n" for one in files) + delimiter + end


def references(module: dict[str, Any] | str, sequence: str = "00081199") -> list[str]:
    """The SOP Instance UIDs of a sequence of the response."""
    assert isinstance(module, dict), module
    return [item["00081155"]["Value"][0] for item in module.get(sequence, {}).get("Value", [])]


def reasons(module: dict[str, Any] | str) -> list[int]:
    """The Failure Reasons, of named objects first."""
    assert isinstance(module, dict), module
    items = [i for tag in ("00081198", "0008119A") for i in module.get(tag, {}).get("Value", [])]
    return [item["00081197"]["Value"][0] for item in items]
