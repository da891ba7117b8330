"""From the files of a series to a checked bundle of results: read, turn, resample, predict, turn back, write, check.

Pure, apart from reading its input: it can be thrown away and done again, and gives the same bytes.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node import settings
from node.errors import ConfigurationError, EngineFailure
from node.records import input_digest
from trt.engine import Engine, EngineError, open_engine
from trt.manifest import Manifest, ManifestError, load
from trt.patches import NonFiniteOutput, Predict, Progress, normalise, predict_slices
from workers.codes import meaning_of
from workers.frames import read_identity
from workers.grid import from_canonical, resampling, to_canonical, to_model, to_native
from workers.readback import check_segmentation
from workers.seg import build_segmentation, present_labels, write
from workers.series import write_series
from workers.volume import Volume, read_series


@dataclass(frozen=True)
class ResultObject:
    """One DICOM object to be delivered: a name for its file, its UIDs, its bytes (PS3.10) and their sha256."""

    name: str
    sop_class_uid: str
    sop_uid: str
    data: bytes
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """What one series gave: objects, seconds per stage, millilitres per label found, and what calculated it."""

    objects: tuple[ResultObject, ...]
    timings_s: dict[str, float]
    volumes_ml: dict[str, float]
    engine: dict[str, str]


@dataclass(frozen=True)
class Pipeline:
    """An open engine with all that it needs to segment series. Close it, or use it as a context."""

    engine: Engine
    manifest: Manifest
    worker: settings.Worker
    seg: settings.Seg

    @property
    def model(self) -> str:
        """Name and version of the model."""
        return f"{self.manifest.name} {self.manifest.version}"

    def segment(self, paths: Sequence[Path], digest: str, progress: Progress | None = None) -> Bundle:
        """Segment the series in `paths`; see `segment_series`."""
        return segment_series(
            paths,
            self.engine,
            self.manifest,
            worker=self.worker,
            seg=self.seg,
            input_digest=digest,
            progress=progress,
        )

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()


def open_pipeline(worker: settings.Worker, seg: settings.Seg) -> Pipeline:
    """Load the model, open the engine, and run everything once, so that the first patient waits no longer.

    Raises
    ------
    ConfigurationError
        There is no such model, it is not what its manifest says, or a label of it has no DICOM code.
    EngineFailure
        The backend is not there or refuses the model.
    """
    try:
        manifest = load(worker.model)
    except ManifestError as error:
        raise ConfigurationError(str(error), "see worker.model") from error
    for label in manifest.labels:
        meaning_of(label.name)
    _warm_up(manifest, seg)
    try:
        engine = open_engine(
            manifest,
            worker.backend,
            threads=worker.threads or None,
            batch=worker.batch,
            precision=worker.precision,
        )
    except EngineError as error:
        raise EngineFailure(str(error), "see worker.backend and worker.precision") from error
    return Pipeline(engine, manifest, worker, seg)


def segment_series(
    paths: Sequence[Path],
    engine: Engine,
    manifest: Manifest,
    *,
    worker: settings.Worker,
    seg: settings.Seg,
    input_digest: str,
    progress: Progress | None = None,
) -> Bundle:
    """Segment one series of MR images.

    `input_digest` is that of `digest_of`, or of the node, over the same instances. `progress` is told patches done and
    patches in all.

    Raises
    ------
    InvalidInstance, Unsuitable
        The files are damaged, form no volume that can be segmented, or show no spine.
    EngineFailure
        The network gives no usable answer.
    InvalidResult
        The result did not pass its check.
    """
    timings: dict[str, float] = {}
    overlap = manifest.overlap if worker.overlap is None else worker.overlap
    with _timed(timings, "read"):
        volume = read_series(paths)
    mask = predict_mask(
        volume, engine, manifest, overlap=overlap, batch=worker.batch, progress=progress, timings=timings
    )
    description = engine.describe()
    with _timed(timings, "write"):
        parameters = {**description, "overlap": f"{overlap:g}"}
        segmentation = build_segmentation(volume, mask, manifest, parameters, input_digest, seg)
        data = write(segmentation)
    with _timed(timings, "check"):
        check_segmentation(data, volume, mask, manifest)
    result = ResultObject(
        name=f"{segmentation.SeriesNumber}.seg.dcm",
        sop_class_uid=str(segmentation.SOPClassUID),
        sop_uid=str(segmentation.SOPInstanceUID),
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return Bundle((result,), timings, volumes_ml(mask, volume, manifest), description)


def predict_mask(
    volume: Volume,
    predict: Predict,
    manifest: Manifest,
    *,
    overlap: float,
    batch: int,
    progress: Progress | None = None,
    timings: dict[str, float] | None = None,
) -> NDArray[np.uint8]:
    """Return the mask (frames, rows, columns) uint8 of label values on the grid of `volume`.

    One slice of logits at a time is on the native grid. `timings` gets the seconds of each stage.

    Raises
    ------
    EngineFailure
        The network raises, or returns NaN or infinity.
    """
    timings = {} if timings is None else timings
    with _timed(timings, "prepare"):
        canonical = to_canonical(volume)
        weights = resampling(canonical, manifest.spacing_mm)
        pixels = normalise(to_model(canonical.voxels, weights), manifest.normalisation)
        mask, axes, flips = np.zeros(canonical.voxels.shape, np.uint8), canonical.axes, canonical.flips
        del canonical  # as large as the volume
    with _timed(timings, "predict"):
        try:
            slices = predict_slices(
                pixels,
                predict,
                patch=manifest.patch,
                channels=manifest.channels,
                overlap=overlap,
                batch=batch,
                progress=progress,
            )
            for z, logits in slices:
                mask[z] = to_native(logits, weights).argmax(axis=0)
        except NonFiniteOutput as error:
            raise EngineFailure(str(error), "set worker.precision to f32, or use another model") from error
        except RuntimeError as error:  # EngineError, and what a backend itself raises
            raise EngineFailure(str(error), "see worker.backend and worker.precision") from error
    return from_canonical(mask, axes, flips)


def volumes_ml(mask: NDArray[np.uint8], volume: Volume, manifest: Manifest) -> dict[str, float]:
    """Return the volume in millilitres of each label found in `mask` (frames, rows, columns), by the label's name."""
    voxel_ml = float(np.prod(volume.spacing)) / 1000
    counts = np.bincount(mask.ravel(), minlength=256)
    return {label.name: float(counts[label.value]) * voxel_ml for label in present_labels(mask, manifest)}


def digest_of(paths: Sequence[Path]) -> str:
    """Return the input digest of files as the node calculates it: over SOP Instance UIDs and their data sets' sha256.

    Raises `InvalidInstance` for a file that is not DICOM.
    """
    digests = [read_identity(path) for path in paths]
    return input_digest((identity.sop_uid, identity.sha256) for identity in digests)


def _warm_up(manifest: Manifest, seg: settings.Seg) -> None:
    """Take a tiny series through all but the engine: libraries load tables and codecs at their first use."""
    image = np.arange(2 * 16 * 16, dtype=np.uint16).reshape(2, 16, 16)
    with tempfile.TemporaryDirectory(prefix="pennode-") as folder:
        volume = read_series(write_series(Path(folder), image, (4.0, *manifest.spacing_mm)))
    first = manifest.labels[0]

    def everything_is_the_first_label(patches: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = np.zeros((len(patches), manifest.classes, *manifest.patch), np.float32)
        logits[:, first.value] = 1
        return logits

    mask = predict_mask(volume, everything_is_the_first_label, manifest, overlap=0, batch=1)
    check_segmentation(write(build_segmentation(volume, mask, manifest, {}, "", seg)), volume, mask, manifest)


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - started
