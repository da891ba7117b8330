"""A folder of built engines: NAME.engine, and NAME.json beside it that says what it is and what its bytes must be.

A file that is damaged, cut short, or another than its sidecar says is never handed out: it is built anew. Every file is
written whole or not at all, and by one process at a time: locks are the kernel's (flock) and end with their holder, so
that a killed build leaves nothing to clear away. The folder must be on a local disk, and nobody else's to write.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeAlias

from pydantic import ConfigDict, TypeAdapter, ValidationError

from trt.engine import EngineError
from trt.gate import Gate

log = logging.getLogger(__name__)


class CacheError(EngineError):
    """The cache folder cannot be used, or a file in it is not to be trusted; the message names it and what to do."""


@dataclass(frozen=True)
class Key:
    """All that an engine depends on: an engine with another key is another engine."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    onnx_sha256: str
    library: str
    version: str  # of the library
    capability: str  # of the GPU, as SM86
    shape: tuple[int, int, int, int]  # of the patches, (N, C, H, W)
    precision: str
    recipe: int  # of this package's own part in the building

    @property
    def name(self) -> str:
        """What its files are called."""
        sides = "x".join(map(str, self.shape))
        words = (
            self.onnx_sha256[:16], self.library, self.version, self.capability, sides, self.precision, self.recipe,
        )  # fmt: skip
        return "-".join(map(str, words))


@dataclass(frozen=True)
class Built:
    """What a build gives: the engine as it goes to disk, the builder's timing cache (empty without one), and facts."""

    plan: bytes
    timings: bytes
    facts: Mapping[str, str]


Build: TypeAlias = Callable[[bytes], Built]
"""Builds an engine, given the timing cache of earlier builds or nothing."""


@dataclass(frozen=True)
class CachedEngine:
    """What the sidecar says of an engine. `gate` is None until the engine was compared with its reference."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    key: Key
    model: str  # name and version, for people
    sha256: str
    size: int  # bytes
    facts: Mapping[str, str]
    gate: Gate | None = None


@dataclass(frozen=True)
class Entry:
    """One engine found in a folder: by its name, with what is known of it, or what is wrong with it."""

    name: str
    engine: CachedEngine | None
    fault: str = ""


_SIDECAR: TypeAdapter[CachedEngine] = TypeAdapter(CachedEngine)


def obtain(folder: Path, key: Key, model: str, build: Build) -> tuple[CachedEngine, bytes]:
    """The engine of `key` and its bytes, checked: from the folder, or built where there is none to be trusted.

    `model` names the model for people. While another process builds the same engine this one waits, and takes what it
    made. Raises `CacheError` where the folder cannot be written, and whatever `build` raises.
    """
    with contextlib.suppress(CacheError):
        found = _read(folder, key)
        if found is not None:
            return found
    _make(folder)
    with _locked(folder, key.name):
        try:
            found = _read(folder, key)
            if found is not None:
                return found
        except CacheError as error:
            log.warning("%s: built anew", error)
        built = build(_kept(_timings_path(folder, key), "this build measures anew"))
        engine = CachedEngine(key, model, hashlib.sha256(built.plan).hexdigest(), len(built.plan), built.facts)
        _write(folder / f"{key.name}.engine", built.plan)  # first: a sidecar speaks of bytes that are there
        _write(folder / f"{key.name}.json", _encode(engine))
    if built.timings:
        try:
            _keep(_timings_path(folder, key), built.timings)
        except CacheError as error:
            log.warning("%s; the engine is in place, and the next build measures anew", error)
    return engine, built.plan


def load(folder: Path, key: Key) -> tuple[CachedEngine, bytes]:
    """The engine of `key` and its bytes, checked. Raises `CacheError` where there is none, or none to be trusted."""
    found = _read(folder, key)
    if found is None:
        raise CacheError(f"{folder}: no engine {key.name}; build it with `pennode engine build`")
    return found


def record_gate(folder: Path, judged: CachedEngine, gate: Gate) -> CachedEngine:
    """Write what the gate found of an engine into its sidecar, passed or not.

    Raises as `load`, and `CacheError` where other bytes than those that were `judged` stand there by now.
    """
    key = judged.key
    load(folder, key)
    with _locked(folder, key.name):
        there = load(folder, key)[0]
        if there.sha256 != judged.sha256:
            raise CacheError(f"{folder}: engine {key.name} was built anew since it was judged; judge it again")
        engine = replace(there, gate=gate)
        _write(folder / f"{key.name}.json", _encode(engine))
    return engine


def entries(folder: Path) -> list[Entry]:
    """Every engine in a folder, by name, each read and checked; none where there is no folder.

    Raises `CacheError` where the folder cannot be read.
    """
    try:
        files = [path for path in folder.iterdir() if path.suffix in (".engine", ".json")] if folder.is_dir() else []
    except OSError as error:
        raise CacheError(f"{folder}: cannot be read: {error.strerror}") from error
    return [_entry(folder, name) for name in sorted({path.stem for path in files})]


def _entry(folder: Path, name: str) -> Entry:
    try:
        engine = _decode(folder / f"{name}.json")
        if engine is None:
            return Entry(name, None, "no sidecar says what it is")
        if engine.key.name != name:
            return Entry(name, None, f"its sidecar speaks of {engine.key.name}")
        _read(folder, engine.key)
    except CacheError as error:
        return Entry(name, None, str(error))
    return Entry(name, engine)


def _read(folder: Path, key: Key) -> tuple[CachedEngine, bytes] | None:
    """The engine and the very bytes that were checked; None where there is nothing; `CacheError` for what is wrong."""
    path = folder / f"{key.name}.engine"
    engine = _decode(path.with_name(f"{key.name}.json"))
    try:
        plan = path.read_bytes()
    except FileNotFoundError:
        if engine is None:
            return None
        raise CacheError(f"{path}: missing, its sidecar is there") from None
    except OSError as error:
        raise CacheError(f"{path}: cannot be read: {error.strerror}") from error
    if engine is None:
        raise CacheError(f"{path}: no sidecar says what it is")
    if engine.key != key:
        raise CacheError(f"{path}: its sidecar speaks of another engine")
    if len(plan) != engine.size or hashlib.sha256(plan).hexdigest() != engine.sha256:
        raise CacheError(f"{path}: damaged: {len(plan)} bytes that are not the {engine.size} its sidecar speaks of")
    return engine, plan


def _encode(engine: CachedEngine) -> bytes:
    return (json.dumps(asdict(engine), indent=1) + "\n").encode()


def _decode(path: Path) -> CachedEngine | None:
    try:
        return _SIDECAR.validate_python(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise CacheError(f"{path}: no sidecar of an engine: {where}: {first['msg']}") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise CacheError(f"{path}: not readable as JSON: {error}") from error


def _timings_path(folder: Path, key: Key) -> Path:
    return folder / f"{key.library}-{key.version}-{key.capability}.timings"


def kernels_of(folder: Path, key: Key) -> bytes:
    """What TensorRT-RTX compiled for an engine and `keep_kernels` kept; empty where there is nothing, or it is damaged.

    Raises `CacheError` where it cannot be read.
    """
    return _kept(folder / f"{key.name}.kernels", "they are compiled anew")


def keep_kernels(folder: Path, key: Key, kernels: bytes) -> None:
    """Keep the kernels compiled for an engine beside it. Raises `CacheError` where that cannot be written."""
    _keep(folder / f"{key.name}.kernels", kernels)


def _keep(path: Path, data: bytes) -> None:
    with _locked(path.parent, path.name):
        _write(path, hashlib.sha256(data).digest() + data)


def _kept(path: Path, otherwise: str) -> bytes:
    """What `_keep` kept; nothing where there is none or it is damaged, since the libraries parse it unchecked."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise CacheError(f"{path}: cannot be read: {error.strerror}") from error
    if hashlib.sha256(data[32:]).digest() == data[:32]:
        return data[32:]
    log.warning("%s: damaged; %s", path, otherwise)
    return b""


def _unwritable(path: Path, error: OSError) -> CacheError:
    return CacheError(f"{path}: cannot be written: {error.strerror}; mend that, or choose another folder for engines")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # an engine is code: nobody else's to write
    except OSError as error:
        raise _unwritable(folder, error) from error


@contextlib.contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """Alone with the files of a name. The lock's own file stays: to remove it would let two in."""
    path = folder / f"{name}.lock"
    try:
        file = path.open("ab")
    except OSError as error:
        raise _unwritable(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: another process is at it; waiting", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks
            raise _unwritable(path, error) from error
        yield


def _write(path: Path, data: bytes) -> None:
    """Put a file in place, whole and on disk, or not at all. Whoever holds its lock writes alone."""
    draft = path.with_name(f"{path.name}.draft")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unwritable(path, error) from error
