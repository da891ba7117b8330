"""What travels between node and worker: the images of a series out, the result objects of a job in, each as a tar."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from node.errors import Damaged, InvalidResult, OutOfDisk
from node.forms import SEGMENTATIONS, SOP_CLASSES, Recipe
from node.inspection import Origin, check_forms, inspect
from node.records import is_uid

MANIFEST = "result.json"
_CHUNK = 1 << 20
_BLOCK = tarfile.BLOCKSIZE
_MAX_OBJECTS = 4096
_MAX_MANIFEST = 1 << 21


@dataclass(frozen=True)
class ResultFile:
    """One checked result object on disk."""

    path: Path
    sop_uid: str
    sop_class_uid: str
    size: int
    sha256: str
    form: str


def tar_stream(files: Iterable[tuple[str, Path]]) -> Iterator[bytes]:
    """Yield an uncompressed tar of `(name, file)` pairs, chunk by chunk, in constant memory."""
    for name, path in files:
        with path.open("rb") as file:
            entry = tarfile.TarInfo(name)
            entry.size = path.stat().st_size
            yield entry.tobuf()
            while chunk := file.read(_CHUNK):
                yield chunk
        yield b"\0" * (-entry.size % _BLOCK)
    yield b"\0" * (2 * _BLOCK)


def unpack_result(
    archive: Path, folder: Path, origin: Origin, wanted: Collection[str]
) -> tuple[list[ResultFile], dict[str, Any]]:
    """Unpack a worker's bundle into `folder` and check that it is what it says, what was asked for, and of this series.

    `wanted` are the keys of the recipes. Objects are read one at a time, and no more of each than is checked.

    Raises
    ------
    InvalidResult
        It is no bundle, holds too little or too much, or an object did not pass `node.inspection`.
    Damaged
        A digest differs.
    OutOfDisk
        It cannot be unpacked.
    """
    try:
        with tarfile.open(archive, mode="r:") as tar:
            manifest = _manifest(tar)
            objects = manifest["objects"]
            if not 0 < len(objects) <= _MAX_OBJECTS:
                raise InvalidResult(f"a bundle of {len(objects)} objects", f"it must hold 1 to {_MAX_OBJECTS}")
            check_forms([str(entry["form"]) for entry in objects], wanted)
            files = [_extract(tar, folder, entry) for entry in objects]
    except OSError as error:
        raise OutOfDisk(f"the result cannot be unpacked ({error.strerror})", "free some space") from error
    except (tarfile.TarError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InvalidResult(f"the result bundle cannot be read ({type(error).__name__})", "check the worker") from error
    if len({file.sop_uid for file in files}) < len(files):
        raise InvalidResult("the result bundle names one object twice", "check the worker")
    recipes = [Recipe.parse(file.form) for file in files]
    segmentations = {r.key: file.sop_uid for r, file in zip(recipes, files, strict=True) if r.form in SEGMENTATIONS}
    for file, recipe in zip(files, recipes, strict=True):
        inspect(file.path, file.sop_class_uid, file.sop_uid, recipe, origin, segmentations)
    return files, manifest


def _manifest(tar: tarfile.TarFile) -> dict[str, Any]:
    stream = _member(tar, MANIFEST)
    manifest = json.loads(stream.read(_MAX_MANIFEST).decode())
    if not isinstance(manifest, dict):
        raise InvalidResult("the result bundle's manifest is not usable", "check the worker")
    return manifest


def _member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    """Open a plain member; links could lead round in circles, and a sparse one could fill the disk."""
    member = tar.getmember(name)
    stream = tar.extractfile(member) if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) else None
    if stream is None or member.issparse():
        raise InvalidResult("the result bundle holds something that is no plain file", "check the worker")
    return stream


def _extract(tar: tarfile.TarFile, folder: Path, entry: dict[str, Any]) -> ResultFile:
    # The worker's file names are not used as paths: the UID names the file, and it is checked.
    sop_uid, sop_class, form = str(entry["sop_uid"]), str(entry["sop_class_uid"]), str(entry["form"])
    if SOP_CLASSES[Recipe.parse(form).form] != sop_class:
        raise InvalidResult("a result object is of another class than its form", "check the worker")
    if not is_uid(sop_uid):
        raise InvalidResult("a result object has no valid SOP Instance UID", "check the worker")
    source = _member(tar, str(entry["name"]))
    target, digest, size = folder / f"{sop_uid}.dcm", hashlib.sha256(), 0
    with target.open("wb") as file:
        while chunk := source.read(_CHUNK):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    if digest.hexdigest() != entry["sha256"]:
        raise Damaged("a result object was damaged on its way", "it is sent again")
    return ResultFile(target, sop_uid, sop_class, size, digest.hexdigest(), form)


def pack_result(objects: Iterable[tuple[str, str, bytes]], facts: dict[str, Any]) -> Iterator[bytes]:
    """Yield the bundle of `(key of the recipe, SOP Instance UID, Part-10 bytes)` objects, and `facts` beside them."""
    listed = list(objects)
    manifest = facts | {
        "objects": [
            {
                "name": f"{n}.dcm",
                "form": form,
                "sop_class_uid": SOP_CLASSES[Recipe.parse(form).form],
                "sop_uid": sop,
                "sha256": hashlib.sha256(data).hexdigest(),
            }
            for n, (form, sop, data) in enumerate(listed)
        ]
    }
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in [
            (MANIFEST, json.dumps(manifest).encode()),
            *((f"{n}.dcm", o[2]) for n, o in enumerate(listed)),
        ]:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, BytesIO(data))
    view = buffer.getbuffer()
    for start in range(0, len(view), _CHUNK):
        yield bytes(view[start : start + _CHUNK])
