"""Real senders and every transfer syntax that the node takes: what lies in the spool is what went over the wire.

Between sender and listener stands a wire tap, whose record an independent decoder reads. Where a sender sends a file's
data set as it is, the file is the measure too.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset

from node.ledger import Ledger
from node.listener import Door
from node.records import Instance
from node.spool import Spool
from tests import peers
from tests.node.listening import bounded, listening
from tests.node.making import SERIES, data_set, mr, write
from tests.peers import program
from tests.tap import tapped

OpenDoor = Callable[..., tuple[Door, int]]
EACH = 10  # objects in each transfer syntax

# How each is made: pydicom's own writing, one of its encoders with options, or a program of DCMTK.
ENCODINGS: dict[str, tuple[str, dict[str, object]] | list[str] | None] = {
    uid.ExplicitVRLittleEndian: None,
    uid.ImplicitVRLittleEndian: None,
    uid.ExplicitVRBigEndian: None,
    uid.DeflatedExplicitVRLittleEndian: None,
    uid.RLELossless: ("pydicom", {}),
    uid.JPEG2000Lossless: ("pylibjpeg", {}),
    uid.JPEG2000: ("pylibjpeg", {"j2k_cr": [4]}),
    uid.JPEGLSLossless: ("pyjpegls", {}),
    uid.JPEGLSNearLossless: ("pyjpegls", {"jls_error": 2}),
    uid.JPEGLosslessSV1: ["dcmcjpeg", "+e1"],
    uid.JPEGLossless: ["dcmcjpeg", "+el"],
    uid.JPEGBaseline8Bit: ["dcmcjpeg", "+eb"],
    uid.JPEGExtended12Bit: ["dcmcjpeg", "+ee"],
}
# What storescu is to propose. For JPEG Lossless in its first form (process 14, any predictor) it has no option.
STORESCU = {
    uid.ExplicitVRLittleEndian: "-xe", uid.ImplicitVRLittleEndian: "-xi", uid.ExplicitVRBigEndian: "-xb",
    uid.DeflatedExplicitVRLittleEndian: "-xd", uid.RLELossless: "-xr", uid.JPEG2000Lossless: "-xv",
    uid.JPEG2000: "-xw", uid.JPEGLSLossless: "-xt", uid.JPEGLSNearLossless: "-xu", uid.JPEGLosslessSV1: "-xs",
    uid.JPEGBaseline8Bit: "-xy", uid.JPEGExtended12Bit: "-xx",
}  # fmt: skip


# dcmsend converts between these, to the one of them that the node prefers.
_UNCOMPRESSED = {uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian}
# DCMTK, which is in all of them, gives sequences the lengths that it counts: an object that has those goes unchanged.
HAS_DEFINED_LENGTHS = (False, True)


def image(number: int, series: str) -> Dataset:
    """One of several kinds of image, each with something that a careless hand would change."""
    size = (32, 40, 65, 64)[number % 4]
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "C-B03CF", "SRT", "Gadolinium"
    ds = mr(number, series, size=size, AnatomicRegionSequence=[code])
    ds["AnatomicRegionSequence"].is_undefined_length = not HAS_DEFINED_LENGTHS[number % 2]
    block = ds.private_block(0x0019, "MAKER", create=True)
    block.add_new(0x01, "DS", "1.250")
    block.add_new(0x02, "UN", bytes(range(number)) + b"\0" * (number % 2))
    ds.SeriesDescription = "t2 sag " + "x" * number
    texture = np.random.default_rng(number).integers(0, 4096, (size, size), dtype="<u2")
    ds.PixelData = texture.tobytes()
    ds["PixelData"].VR = "OW"
    return ds


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Transfer syntax to files."""
    folder = tmp_path_factory.mktemp("sent")
    made: dict[str, list[Path]] = {}
    for index, (syntax, how) in enumerate(ENCODINGS.items()):
        for number in range(1, EACH + 1):
            ds, path = image(number, f"{SERIES}.{index}"), folder / f"{index}-{number}.dcm"
            write(ds, path, syntax if how is None else uid.ExplicitVRLittleEndian)
            if isinstance(how, tuple):
                ds = pydicom.dcmread(path)
                ds.compress(syntax, encoding_plugin=how[0], generate_instance_uid=False, **how[1])
                ds.save_as(path)
            elif how is not None:
                subprocess.run([program(how[0], "dcmtk"), *how[1:], "+un", path, path], check=True)
            assert str(pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID) == syntax
            made.setdefault(syntax, []).append(path)
    return made


def storescu(port: int, files: dict[str, list[Path]], _: Path) -> None:
    for syntax, paths in files.items():
        if syntax in STORESCU:
            _run("storescu", "-R", STORESCU[syntax], "-aec", "PENNODE", "127.0.0.1", str(port), *paths)


def dcmsend(port: int, files: dict[str, list[Path]], _: Path) -> None:
    everything = [path for paths in files.values() for path in paths]
    _run("dcmsend", "--decompress-never", "-aec", "PENNODE", "127.0.0.1", str(port), *everything)


def _run(name: str, *arguments: str | Path) -> None:
    done = subprocess.run(
        [program(name, "dcmtk"), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "TCP_NODELAY": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def orthanc(port: int, files: dict[str, list[Path]], folder: Path) -> None:
    with peers.orthanc(folder) as running:

        def ask(method: str, path: str, body: bytes) -> bytes:
            request = urllib.request.Request(f"{running.url}{path}", data=body, method=method)
            with urllib.request.urlopen(request, timeout=120) as answer:
                return bytes(answer.read())

        kept = []
        for paths in files.values():
            kept += [json.loads(ask("POST", "/instances", path.read_bytes()))["ID"] for path in paths]
        modality = {"AET": "PENNODE", "Host": "127.0.0.1", "Port": port, "AllowTranscoding": False}
        ask("PUT", "/modalities/pennode", json.dumps(modality).encode())
        order = {"Resources": kept, "Synchronous": True}
        told = json.loads(ask("POST", "/modalities/pennode/store", json.dumps(order).encode()))
        assert told["FailedInstancesCount"] == 0


def held(ledger: Ledger) -> list[Instance]:
    return [m for series in ledger.receiving() for m in ledger.series_instances(series.series_uid)]


@pytest.mark.parametrize("fast_path", [True, False], ids=["fast", "stock"])
@pytest.mark.parametrize("sender", [storescu, dcmsend, orthanc])
def test_what_lies_in_the_spool_is_what_went_over_the_wire(
    sender: Callable[[int, dict[str, list[Path]], Path], None],
    fast_path: bool,
    files: dict[str, list[Path]],
    open_door: OpenDoor,
    ledger: Ledger,
    spool: Spool,
    tmp_path: Path,
) -> None:
    sent = {syntax: paths[: EACH if fast_path else 2] for syntax, paths in files.items()}
    _, port = open_door(fast_path=fast_path)
    with tapped(port) as tap:
        sender(tap.port, sent, tmp_path / "sender")
    carried = {one.sop_uid: one for one in tap.carried()}
    stored = {one.sop_uid: one for one in held(ledger)}
    expected = {s: paths for s, paths in sent.items() if sender is not storescu or s in STORESCU}
    assert len(stored) == len(carried) == sum(map(len, expected.values()))
    assert len(expected) >= 12
    as_in_file = 0
    arrived: set[str] = set()
    for syntax, paths in expected.items():
        converts = sender is dcmsend and syntax in _UNCOMPRESSED
        deflated = syntax == uid.DeflatedExplicitVRLittleEndian  # DCMTK deflates anew
        arrives = uid.ExplicitVRLittleEndian if converts else syntax
        for path in paths:
            sop_uid = str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)
            one, file = carried[sop_uid], spool.path(stored[sop_uid].path)
            assert one.transfer_syntax == stored[sop_uid].transfer_syntax_uid == arrives
            assert data_set(file) == one.data
            assert pydicom.dcmread(file, stop_before_pixels=True).file_meta.TransferSyntaxUID == arrives
            if HAS_DEFINED_LENGTHS[int(path.stem.split("-")[1]) % 2] and syntax == arrives and not deflated:
                assert one.data == data_set(path), "the sender sends it as it is in the file"
                as_in_file += 1
        arrived.add(arrives)
    assert len(arrived) >= 10
    assert as_in_file >= len(stored) / 3


def test_a_large_enhanced_mr_comes_from_storescu_in_constant_memory(tmp_path: Path, empty_sqlite: Path) -> None:
    size, frames = 400, 1000
    groups, measures = Dataset(), Dataset()
    measures.PixelSpacing = [0.5, 0.5]
    groups.PixelMeasuresSequence = [measures]
    ds = mr(SOPClassUID=uid.EnhancedMRImageStorage, NumberOfFrames=frames, SharedFunctionalGroupsSequence=[groups])
    ds.Rows = ds.Columns = size
    path = write(ds, tmp_path / "large.dcm")
    mark, length = b"\xe0\x7f\x10\x00OW\0\0", frames * size * size * 2
    whole = path.read_bytes()
    texture = np.random.default_rng(1).bytes(1 << 20)
    with path.open("wb") as file:
        file.write(whole[: whole.index(mark)] + mark + length.to_bytes(4, "little"))
        for start in range(0, length, len(texture)):
            file.write(texture[: length - start])
    with listening(tmp_path, empty_sqlite, fast_path=True, max_object_mb=1000) as child:
        with bounded(child):
            _run(
                "storescu",
                "-aec",
                "PENNODE",
                "-R",
                "-xe",
                "-pdu",
                "131072",
                "--max-send-pdu",
                "131072",
                "-aec",
                "PENNODE",
                "127.0.0.1",
                str(child.port),
                path,
            )
        ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
        one = next(m for m in held(ledger) if m.sop_class_uid == uid.EnhancedMRImageStorage)
        ledger.close()
    assert (one.size, one.header.number_of_frames) == (path.stat().st_size - len(whole) + len(data_set(whole)), frames)
    kept = tmp_path / "spool" / one.path
    assert digest(kept, skip=kept.stat().st_size - one.size) == digest(path, skip=path.stat().st_size - one.size)
    for large in (path, kept):
        large.unlink()


def digest(path: Path, skip: int) -> str:
    with path.open("rb") as file:
        file.seek(skip)
        return hashlib.file_digest(file, "sha256").hexdigest()
