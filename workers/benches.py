"""The models of one worker: which there are, and which are open and warm."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from node import settings
from node.errors import ConfigurationError, DeviceLost, ModelUnavailable, PennodeError
from node.forms import Recipe
from trt.engine import EngineError, require_precision
from trt.manifest import Manifest, ManifestError, load

if TYPE_CHECKING:
    from workers.pipeline import Bundle

log = logging.getLogger(__name__)

# A model that could not be opened is not asked for so long, so that another worker may.
_LEFT_S = 60.0

Segment = Callable[[list[Path], str, Sequence[Recipe], Callable[[int, int], None], Path | None], "Bundle"]


@dataclass(frozen=True)
class Bench:
    """The pipeline with a warm engine, the name and version of its model, and how to close it."""

    segment: Segment
    model: str
    close: Callable[[], None] = lambda: None


class Benches:
    """A worker's benches by name of the model; `most` are open at once, and the one not used for longest is closed.

    Used by one thread. `openers` open a bench each, the first that of the default model.
    """

    def __init__(
        self, openers: Mapping[str, Callable[[], Bench]], most: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._openers = dict(openers)
        self._default = next(iter(openers))
        self._most = most
        self._clock = clock
        self._open: OrderedDict[str, Bench] = OrderedDict()
        self._failed: dict[str, float] = {}  # until when it is left alone
        self._tried = False

    def claimable(self) -> tuple[str, ...]:
        """Return the names of models whose jobs may be claimed; the empty one is of jobs for the default.

        The default is opened here, the first time and whenever it could not be: a worker that cannot run it leaves
        jobs to others.

        Raises
        ------
        PennodeError
            It cannot be opened, and there is no other model.
        """
        now = self._clock()
        names = [name for name in self._openers if name != self._default and now >= self._failed.get(name, now)]
        if not self._tried or self._default in self._failed:
            try:
                self._opened(self._default)
            except PennodeError as error:
                if not names:
                    raise
                log.error("model %s: %s", self._default, error)
                return tuple(names)
        return ("", self._default, *names)

    def get(self, name: str) -> Bench:
        """Return the bench of a model, open and warm; an empty name is that of the default.

        Raises
        ------
        ModelUnavailable
            It cannot be opened here now; for a while it is not among the `claimable`.
        DeviceLost
            The GPU failed, and this process cannot use it any more.
        """
        name = name or self._default
        if name not in self._openers:
            raise ModelUnavailable(f"this worker has no model {name}", "check the node's version")
        try:
            return self._opened(name)
        except DeviceLost:
            raise
        except PennodeError as error:
            raise ModelUnavailable(
                f"the model {name} cannot be opened here: {error.reason}", error.next_step
            ) from error

    def _opened(self, name: str) -> Bench:
        if name == self._default:
            self._tried = True
        if name not in self._open:
            while len(self._open) >= self._most:
                closed, bench = self._open.popitem(last=False)
                bench.close()
                log.info("model %s is closed: %d may be open", closed, self._most)
            try:
                self._open[name] = self._openers[name]()
            except PennodeError:
                self._failed[name] = self._clock() + _LEFT_S
                raise
            log.info("model %s is open", self._open[name].model)
        self._failed.pop(name, None)
        self._open.move_to_end(name)
        return self._open[name]


def manifests(worker: settings.Worker) -> dict[str, Manifest]:
    """Return the manifests of a worker's models by the setting that names each, the default first; all are checked.

    Raises
    ------
    ConfigurationError
        There is no such model, it is not what its manifest says, it has no version in `worker.precision`, or two have
        the same name.
    """
    found: dict[str, Manifest] = {}
    for given, key in ((worker.model, "worker.model"), *((model, "worker.models") for model in worker.models)):
        try:
            manifest = load(given)
            require_precision(manifest, worker.backend, worker.precision)
        except ManifestError as error:
            raise ConfigurationError(f"the model cannot be used: {error}", f"check {key}") from error
        except EngineError as error:
            raise ConfigurationError(str(error), f"check worker.backend, worker.precision and {key}") from error
        if manifest.name in {other.name for other in found.values()}:
            raise ConfigurationError(
                f"two of worker.model and worker.models are named {manifest.name!r}", "leave one of them out"
            )
        found[given] = manifest
    return found


def open_benches(given: settings.Settings) -> Benches:
    """Return the benches of the configured models; none is open yet. Raises as `manifests` does."""
    openers = {manifest.name: partial(_open_bench, given, model) for model, manifest in manifests(given.worker).items()}
    return Benches(openers, given.worker.open_models)


def _open_bench(given: settings.Settings, model: str) -> Bench:
    """Load a model and warm everything up, so that the first patient waits no longer than the second."""
    # Heavy libraries are imported here, in the child that works: the parent process stays small, and CUDA, which does
    # not survive a fork, is started only after it.
    from workers.pipeline import open_pipeline

    worker = given.worker.model_copy(update={"model": model})
    stack = ExitStack()
    pipeline = stack.enter_context(open_pipeline(worker, given.seg, given.state_dir / "engines"))
    return Bench(pipeline.segment, pipeline.model, stack.close)
