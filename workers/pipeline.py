"""From the files of a series to a checked bundle of results: read, turn, resample, predict, turn back, write, check.

Pure, apart from reading its input: it can be thrown away and done again, and gives the same bytes.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node import settings
from node.errors import ConfigurationError, EngineFailure
from node.forms import DEFAULT, Recipe
from trt.engine import Engine, EngineError, finder_precision
from trt.extraction import Extraction, finder_model
from trt.manifest import Manifest, ManifestError, load
from trt.patches import Progress
from trt.serving import open_serving
from workers.case import Case
from workers.codes import meaning_of
from workers.earlier import read_earlier
from workers.prediction import Arrival, Prediction, arrive, predict_mask, timed
from workers.results import BUILDERS, ResultObject, make_objects
from workers.series import write_series
from workers.volume import Volume, read_series

log = logging.getLogger(__name__)

_OF_FINDER = ("backend", "version", "precision", "gate_agreement", "gate_difference", "fallback_from")


@dataclass(frozen=True)
class Bundle:
    """What one series gave: objects, seconds per stage, millilitres per label found, and what calculated it.

    `patches` of `patch` (y, x) pixels were run, `share` of the pixels that run where nothing is left out; `saved_s`
    estimates the seconds that this spared.
    """

    objects: tuple[ResultObject, ...]
    timings_s: dict[str, float]
    volumes_ml: dict[str, float]
    engine: dict[str, str]
    patches: int
    patch: tuple[int, int]
    share: float
    saved_s: float


@dataclass(eq=False)
class Arrived:
    """A series that was read: its volume, seconds of each stage so far, and, until handed over, what arrived of it."""

    volume: Volume
    arrival: Arrival | None
    timings_s: dict[str, float]
    ahead: bool

    def hand_over(self) -> Arrival:
        """What arrived, once: as large as the volume, it is not to stay until the result is written."""
        arrival, self.arrival = self.arrival, None
        assert arrival is not None, "handed over already"
        return arrival


@dataclass(frozen=True)
class Pipeline:
    """Open engines with all that they need to segment series. Close it, or use it as a context.

    Without a `finder`, `worker.extraction` "spine" is "tissue". `facts` go into objects as what calculated them, or, if
    None, how the engine describes itself.
    """

    engine: Engine
    manifest: Manifest
    worker: settings.Worker
    seg: settings.Seg
    finder: Engine | None = None
    facts: Mapping[str, str] | None = None

    @property
    def model(self) -> str:
        """Name and version of the model."""
        return f"{self.manifest.name} {self.manifest.version}"

    @property
    def overlap(self) -> float:
        """Share of a patch that neighbours repeat."""
        return self.manifest.overlap if self.worker.overlap is None else self.worker.overlap

    @property
    def extraction(self) -> Extraction:
        """Where the model is to run."""
        return "tissue" if self.worker.extraction == "spine" and self.finder is None else self.worker.extraction

    def segment(
        self,
        paths: Sequence[Path],
        digest: str,
        recipes: Sequence[Recipe] = DEFAULT,
        progress: Progress | None = None,
        earlier: Path | None = None,
    ) -> Bundle:
        """Segment one series of MR images: `read`, `calculate` and `write`, which may overlap those of other series.

        `digest` is `digest_of` the instances, or the node's. `progress` is told patches done and patches in all.
        `earlier` is a result to compare with; see `workers.earlier`.

        Raises
        ------
        InvalidInstance, Unsuitable
            The files are damaged, form no volume that can be segmented, or show no spine.
        EngineFailure
            The network gives no usable answer.
        DeviceLost
            The GPU failed, and this process cannot use it any more.
        InvalidResult
            The result did not pass its check.
        """
        arrived = self.read(paths)
        return self.write(arrived, self.calculate(arrived, progress), digest, recipes, earlier)

    def read(self, paths: Sequence[Path], *, ahead: bool = False) -> Arrived:
        """Read a series of MR images, and turn it; `ahead`, while another is calculated, its voxels go to the device.

        These then take a quarter of `worker.slab_mb`, which the other does without.
        """
        timings: dict[str, float] = {}
        with timed(timings, "read"):
            volume = read_series(paths)
        with timed(timings, "prepare"):
            arrival = arrive(volume, self.engine, self.manifest, ahead_mb=self.worker.slab_mb / 4 if ahead else 0)
        return Arrived(volume, arrival, timings, ahead)

    def calculate(self, arrived: Arrived, progress: Progress | None = None) -> Prediction:
        """Predict the mask of what `read` gave, once, in the engines' own thread."""
        prediction = predict_mask(
            arrived.hand_over(),
            self.engine,
            self.manifest,
            overlap=self.overlap,
            batch=self.worker.batch,
            extraction=self.extraction,
            finder=self.finder,
            flexible=self.engine.flexible,
            progress=progress,
            timings=arrived.timings_s,
            slab_mb=self.worker.slab_mb * (3 / 4 if arrived.ahead else 1),
        )
        _tell(arrived.volume, prediction)
        return prediction

    def write(
        self,
        arrived: Arrived,
        prediction: Prediction,
        digest: str,
        recipes: Sequence[Recipe] = DEFAULT,
        earlier: Path | None = None,
    ) -> Bundle:
        """Make the result objects of a series, and check their bytes."""
        manifest, volume, mask = self.manifest, arrived.volume, prediction.mask
        description = dict(self.engine.describe() if self.facts is None else self.facts)
        before = read_earlier(earlier, volume) if earlier is not None else None
        case = Case(volume, mask, manifest, self._parameters(description), digest, self.seg, before)
        return Bundle(
            objects=make_objects(case, recipes, arrived.timings_s),
            timings_s=arrived.timings_s,
            volumes_ml=volumes_ml(mask, volume, manifest),
            engine=description,
            patches=prediction.patches,
            patch=prediction.patch,
            share=prediction.share,
            saved_s=prediction.saved_s,
        )

    def _parameters(self, description: Mapping[str, str]) -> dict[str, str]:
        """What was asked, not what was found: it must be the same wherever the job is done again."""
        parameters = {**description, "overlap": f"{self.overlap:g}", "extraction": self.extraction}
        height, width = self.manifest.patch
        if description.get("precision") == "int8" and self.manifest.quantised is not None:
            parameters["int8_sha256"] = self.manifest.quantised.digest
        parameters["patch"] = f"fitted from {height}x{width}" if self.engine.flexible else f"{height}x{width}"
        least = [f"{label.name} {label.least_mm3:g}" for label in self.manifest.labels if label.least_mm3]
        if least:
            parameters["least_mm3"] = ", ".join(least)
        if self.extraction == "spine" and self.manifest.finder is not None:
            parameters["finder_sha256"] = self.manifest.finder.digest
        return parameters

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
        if self.finder is not None:
            self.finder.close()


def open_pipeline(worker: settings.Worker, seg: settings.Seg, engines: Path | None = None) -> Pipeline:
    """Load the model, open the engine, let it be judged, and run everything once: the first patient waits no longer.

    `engines` is the folder of TensorRT's engines, without which that backend cannot serve.

    Raises
    ------
    ConfigurationError
        There is no such model, it is not what its manifest says, or a label of it has no DICOM code.
    EngineFailure
        The backend, and every one to fall back to, is not there, refuses the model, or calculates something else.
    """
    try:
        manifest = load(worker.model)
    except ManifestError as error:
        raise ConfigurationError(str(error), "see worker.model") from error
    for label in manifest.labels:
        meaning_of(label)
    _warm_up(manifest, seg)
    models = [(manifest, worker.precision, 1)]
    if worker.extraction == "spine" and manifest.finder is not None:
        models.append((finder_model(manifest), finder_precision(worker.precision), manifest.finder.factor))
    served = []
    with ExitStack() as opened:  # closes the first engine where the second cannot be opened
        try:
            for model, precision, factor in models:
                serving = open_serving(
                    model,
                    worker.backend,
                    fallback=worker.fallback,
                    threads=worker.threads or None,
                    batch=worker.batch,
                    precision=precision,
                    cache=engines,
                    factor=factor,
                )
                opened.callback(serving.engine.close)
                served.append(serving)
        except EngineError as error:
            raise EngineFailure(str(error), "see worker.backend and worker.precision") from error
        except ManifestError as error:  # the file was replaced since it was loaded
            raise ConfigurationError(str(error), "see worker.model") from error
        opened.pop_all()
    facts, finder = served[0].facts(), None
    if len(served) > 1:  # what it leaves out is background: what ran it is to be told as well
        finder, told = served[1].engine, served[1].facts()
        facts |= {f"finder_{name}": told[name] for name in _OF_FINDER if name in told}
    return Pipeline(served[0].engine, manifest, worker, seg, finder, facts)


def _tell(volume: Volume, prediction: Prediction) -> None:
    log.info(
        "series=%s extraction=%s patches=%d of=%dx%d share=%.2f saved=%.2fs",
        volume.series_uid, prediction.extraction, prediction.patches, *prediction.patch, prediction.share,
        prediction.saved_s,
    )  # fmt: skip
    if prediction.reason:
        log.warning("series=%s all patches run: %s", volume.series_uid, prediction.reason)


def volumes_ml(mask: NDArray[np.uint8], volume: Volume, manifest: Manifest) -> dict[str, float]:
    """Return the volume in millilitres of each label found in `mask` (frames, rows, columns), by the label's name."""
    voxel_ml = float(np.prod(volume.spacing)) / 1000
    counts = np.bincount(mask.ravel(), minlength=256)
    return {label.name: float(counts[label.value]) * voxel_ml for label in manifest.labels if counts[label.value]}


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

    mask = predict_mask(volume, everything_is_the_first_label, manifest, overlap=0, batch=1).mask
    make_objects(Case(volume, mask, manifest, {}, "", seg), [Recipe(form) for form in BUILDERS])
