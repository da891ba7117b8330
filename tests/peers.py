"""Real peers for the tests: DCMTK, Orthanc, Redis, PostgreSQL, dicom3tools, each started from its Debian package.

An absent program skips its tests on a laptop and fails them in CI (``CI=true``), where everything must run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

DATA = Path(os.environ.get("SPINE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def program(name: str, package: str) -> str:
    """Return the path of a program, or skip (in CI: fail) saying which package holds it."""
    folders = os.pathsep.join(
        [os.environ.get("PATH", ""), "/usr/sbin", *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    )
    found = shutil.which(name, path=folders)
    if found is None:
        reason = f"{name} is not installed (Debian package {package})"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def library(name: str, package: str) -> Path:
    """Return the path of a plugin below ``/usr/share``, or skip (in CI: fail) saying which package holds it."""
    found = Path("/usr/share") / name
    if not found.exists():
        reason = f"{name} is not installed (Debian package {package})"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return found


def real_data(*parts: str) -> Path:
    """Return a folder or file of the real data; skip where it is absent, since it is no part of the product."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {Path(*parts)} of the spine data (SPINE_DATA)")
    return path


def free_port() -> int:
    """Return a port nobody listens on, below those given to outgoing connections, one of which might else take it."""
    for port in random.sample(range(20000, 32000), 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


@contextlib.contextmanager
def running(command: Sequence[str], log: Path, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for the length of the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options)  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path, seconds: float = 20.0) -> None:
    """Wait until somebody listens on a port of loopback."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise AssertionError(f"it ended with {process.returncode}: {log.read_text(errors='replace')[-2000:]}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.05)
    raise AssertionError(f"nobody listens on port {port}: {log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def redis_server(
    folder: Path, port: int | None = None, options: Sequence[str] = ()
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run Redis with an append-only file below `folder`; yield its URL and process. Later `options` win."""
    binary, port, log = program("redis-server", "redis-server"), port or free_port(), folder / "redis.log"
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        binary,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(folder),
        "--save",
        "",
        "--appendonly",
        "yes",
    ]
    with running([*command, *options], log) as process:
        wait_for_port(port, process, log)
        yield f"redis://127.0.0.1:{port}/0", process


@contextlib.contextmanager
def postgresql_server(folder: Path) -> Iterator[str]:
    """Run PostgreSQL below `folder`; yield the URL of an empty database."""
    initdb, postgres = program("initdb", "postgresql"), program("postgres", "postgresql")
    createdb = program("createdb", "postgresql-client")
    folder.mkdir(parents=True, exist_ok=True)
    data, sockets, log, port = folder / "data", folder / "run", folder / "postgresql.log", free_port()
    sockets.mkdir(exist_ok=True)
    as_user: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        as_user = [program("runuser", "util-linux"), "-u", "postgres", "--"]
        for parent in [folder, *folder.parents]:
            if parent == Path("/tmp"):
                break
            parent.chmod(parent.stat().st_mode | 0o055)
        shutil.chown(folder, "postgres")
        shutil.chown(sockets, "postgres")
    subprocess.run(
        [*as_user, initdb, "-D", str(data), "-U", "pennode", "--auth=trust", "--no-sync"],
        check=True,
        capture_output=True,
    )
    command = [*as_user, postgres, "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(sockets)]
    with running(command, log) as process:
        wait_for_port(port, process, log)
        give_up = time.monotonic() + 20
        create = [createdb, "-h", "127.0.0.1", "-p", str(port), "-U", "pennode", "pennode"]
        while subprocess.run(create, capture_output=True, check=False).returncode:
            assert time.monotonic() < give_up, log.read_text(errors="replace")[-2000:]
            time.sleep(0.1)
        try:
            yield f"postgresql://pennode@127.0.0.1:{port}/pennode"
        finally:
            # Open connections hold up the shutdown that SIGTERM asks for.
            stop = [*as_user, program("pg_ctl", "postgresql"), "stop", "-D", str(data), "-m", "fast"]
            subprocess.run(stop, capture_output=True, check=False)


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc: its DICOM port, its REST API, and its process."""

    dicom_port: int
    url: str
    pid: int = 0

    def get(self, path: str) -> bytes:
        """GET from the REST API."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=20) as answer:
            body: bytes = answer.read()
            return body

    def send(self, path: str, body: object, method: str = "POST") -> bytes:
        """POST or PUT JSON to the REST API."""
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode(), method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            answered: bytes = answer.read()
            return answered

    def instances(self, sop_uid: str) -> list[str]:
        """Return Orthanc's ids of the instances with this SOP Instance UID."""
        request = urllib.request.Request(f"{self.url}/tools/lookup", data=sop_uid.encode())
        with urllib.request.urlopen(request, timeout=20) as answer:
            return [found["ID"] for found in json.load(answer) if found["Type"] == "Instance"]


@contextlib.contextmanager
def orthanc(
    folder: Path, dicomweb: Mapping[str, object] | None = None, configured: Mapping[str, object] | None = None
) -> Iterator[Orthanc]:
    """Run Orthanc below `folder`, storing in memory-less SQLite with the class of every object accepted.

    `configured` goes before that configuration. `dicomweb` names the DICOMweb servers that its plugin knows; None: the
    plugin is not loaded.
    """
    binary, log = program("Orthanc", "orthanc"), folder / "orthanc.log"
    folder.mkdir(parents=True, exist_ok=True)
    dicom_port, http_port = free_port(), free_port()
    configuration = {
        "Name": "test", "StorageDirectory": str(folder / "store"), "IndexDirectory": str(folder / "store"),
        "DicomAet": "ORTHANC", "DicomPort": dicom_port, "HttpPort": http_port, "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False, "DicomCheckCalledAet": False, "UnknownSopClassAccepted": True,
        "DicomAlwaysAllowFind": True, "OverwriteInstances": True, "Plugins": [],
    }  # fmt: skip
    if dicomweb is not None:
        plugin = library("orthanc/plugins/libOrthancDicomWeb.so", "orthanc-dicomweb")
        configuration |= {"Plugins": [str(plugin)], "DicomWeb": {"Enable": True, "Servers": dicomweb}}
    (folder / "orthanc.json").write_text(json.dumps(configuration | dict(configured or {})))
    with running([binary, str(folder / "orthanc.json")], log) as process:
        wait_for_port(http_port, process, log)
        wait_for_port(dicom_port, process, log)
        yield Orthanc(dicom_port, f"http://127.0.0.1:{http_port}", process.pid)


@contextlib.contextmanager
def storescp(folder: Path, ae_title: str = "STORESCP", classes: Sequence[str] = ()) -> Iterator[int]:
    """Run DCMTK's storescp, which writes what it gets below `folder` bit by bit as received; yield its port.

    It takes the SOP classes named, uncompressed, or without names all that it knows.
    """
    binary, port, log = program("storescp", "dcmtk"), free_port(), folder / "storescp.log"
    (folder / "received").mkdir(parents=True, exist_ok=True)
    command = [binary, "-aet", ae_title, "-od", str(folder / "received"), "+B", "+uf"]
    if classes:
        taken = "".join(f"PresentationContext{n} = {name}\\Plain\n" for n, name in enumerate(classes, 1))
        (folder / "storescp.cfg").write_text(
            "[[TransferSyntaxes]]\n[Plain]\nTransferSyntax1 = LittleEndianImplicit\n"
            "TransferSyntax2 = LittleEndianExplicit\n"
            f"[[PresentationContexts]]\n[Some]\n{taken}[[Profiles]]\n[Only]\nPresentationContexts = Some\n"
        )
        command += ["-xf", str(folder / "storescp.cfg"), "Only"]
    with running([*command, str(port)], log) as process:
        wait_for_port(port, process, log)
        yield port


@contextlib.contextmanager
def dcmqrscp(folder: Path, destination: tuple[str, int] | None = None) -> Iterator[int]:
    """Run DCMTK's archive below `folder` as DCMQRSCP, which takes, finds and sends; yield its port.

    `destination` is an AE title that it knows for C-MOVE, and its port on loopback.
    """
    binary, port, log = program("dcmqrscp", "dcmtk"), free_port(), folder / "dcmqrscp.log"
    (folder / "store").mkdir(parents=True, exist_ok=True)
    host = [f"ours = ({destination[0]}, localhost, {destination[1]})"] if destination else []
    lines = [f"NetworkTCPPort = {port}", "MaxPDUSize = 16384", "MaxAssociations = 16", "HostTable BEGIN", *host]
    lines += ["HostTable END", "VendorTable BEGIN", "VendorTable END", "AETable BEGIN"]
    lines += [f"DCMQRSCP {folder / 'store'} RW (1000, 1024mb) ANY", "AETable END", ""]
    (folder / "dcmqrscp.cfg").write_text("\n".join(lines))
    with running([binary, "-c", str(folder / "dcmqrscp.cfg")], log) as process:
        wait_for_port(port, process, log)
        yield port


def dcmtk(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of DCMTK's tools to its end."""
    tool, environment = program(name, "dcmtk"), os.environ | {"TCP_NODELAY": "1"}
    command = [tool, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def dciodvfy(path: Path) -> list[str]:
    """Return the errors that dicom3tools' validator finds in a file."""
    tool = program("dciodvfy", "dicom3tools")
    done = subprocess.run([tool, "-new", str(path)], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
