"""What becomes of a job whose worker cannot go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.errors import DeviceLost, EngineFailure, InvalidInstance, OutOfDisk, PennodeError, Unsuitable
from node.records import input_digest
from workers.benches import Bench, Benches
from workers.identity import read_identity
from workers.series import write_phantom
from workers.tasks import run


class Node:
    """The worker API as far as one failing job needs it."""

    def __init__(self, model: str = "") -> None:
        self.model = model
        self.told: list[tuple[Any, ...]] = []
        self.asked: list[tuple[str, ...]] = []

    def claim(self, job_id: str, _name: str, models: Sequence[str]) -> Any:
        self.asked.append(tuple(models))
        return SimpleNamespace(
            job_id=job_id, series_uid="1.2", input_digest=input_digest([]), fence=1, lease_s=60.0, heartbeat_s=60.0,
            forms=("SEG",), model=self.model,
        )  # fmt: skip

    def fetch_input(self, _claim: Any, _folder: Path) -> list[Path]:
        return []

    def fetch_earlier(self, _claim: Any, _folder: Path) -> None:
        return None

    def heartbeat(self, *_: Any) -> bool:
        return True

    def fail(self, claim: Any, kind: str, *words: str) -> None:
        self.told.append((claim.job_id, kind, *words))


def failing(error: PennodeError) -> Callable[[], Benches]:
    """A worker whose one model raises this error."""

    def fails(*_: Any) -> Any:
        raise error

    benches = Benches({"model": lambda: Bench(fails, "model 1.0.0")}, 1)
    return lambda: benches


def test_a_lost_gpu_gives_the_job_back_and_ends_the_process() -> None:
    node = Node()
    with pytest.raises(SystemExit):
        run("7", failing(DeviceLost("the GPU failed: CUDA error", "see nvidia-smi")), node, "worker")  # type: ignore[arg-type]
    assert node.told == [("7", "retryable", "segment", "the GPU failed: CUDA error", "see nvidia-smi")]
    assert node.asked == [("", "model")]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EngineFailure("the network returned NaN or infinity", "set worker.precision to f32"), "failed"),
        (EngineFailure("no device memory left, not even at a batch of 4", "see worker.batch"), "failed"),
        (Unsuitable("no spine", ""), "rejected"),
        (InvalidInstance("damaged", ""), "rejected"),
        (OutOfDisk("no space", ""), "retryable"),
    ],
)
def test_what_a_series_ends_in_is_told_once_and_nothing_is_sent(error: PennodeError, kind: str) -> None:
    """The stand-in has no `send_result`: to call it would end the job otherwise."""
    node = Node()
    run("7", failing(error), node, "worker")  # type: ignore[arg-type]
    assert node.told == [("7", kind, "segment", error.reason, error.next_step)]


def no_driver() -> Bench:
    raise EngineFailure("no NVIDIA driver on this machine", "see worker.backend and worker.precision")


def test_an_engine_that_cannot_be_opened_leaves_the_job_to_others() -> None:
    class Untouched(Node):
        def claim(self, *_: Any) -> Any:
            raise AssertionError

    benches = Benches({"model": no_driver}, 1)
    run("7", lambda: benches, Untouched(), "worker")  # type: ignore[arg-type]


def test_a_model_that_cannot_be_opened_gives_its_job_back_and_is_not_asked_for_again_for_a_while() -> None:
    now = [100.0]
    openers = {"good": lambda: Bench(lambda *_: None, "good 1.0.0"), "bad": no_driver}  # type: ignore[arg-type,return-value]
    benches = Benches(openers, 2, lambda: now[0])
    node = Node("bad")
    for _ in range(2):
        run("7", lambda: benches, node, "worker")  # type: ignore[arg-type]
    now[0] += 61
    run("7", lambda: benches, node, "worker")  # type: ignore[arg-type]
    assert node.asked == [("", "good", "bad"), ("", "good"), ("", "good", "bad")]
    told = ("7", "retryable", "segment", "the model bad cannot be opened here: no NVIDIA driver on this machine")
    assert [said[:4] for said in node.told] == [told] * 3


def test_a_worker_without_the_model_of_a_claim_gives_it_back() -> None:
    benches = Benches({"good": lambda: Bench(lambda *_: None, "good 1.0.0")}, 1)  # type: ignore[arg-type,return-value]
    node = Node("unknown")
    run("7", lambda: benches, node, "worker")  # type: ignore[arg-type]
    assert node.told[0][1:4] == ("retryable", "segment", "this worker has no model unknown")


def test_images_that_are_not_those_of_the_job_give_it_back_and_are_not_segmented(tmp_path: Path) -> None:
    paths = write_phantom(tmp_path, (3, 32, 32))
    identities = [read_identity(path) for path in paths]
    digest = input_digest((identity.sop_uid, identity.sha256) for identity in identities)
    segmented: list[str] = []

    def segment(found: list[Path], *_: Any) -> Any:
        segmented.extend(path.name for path in found)
        raise Unsuitable("no spine", "")

    class Changed(Node):
        def claim(self, job_id: str, name: str, models: Sequence[str]) -> Any:
            return SimpleNamespace(**{**vars(super().claim(job_id, name, models)), "input_digest": digest})

        def fetch_input(self, _claim: Any, _folder: Path) -> list[Path]:
            return paths

    benches = Benches({"model": lambda: Bench(segment, "model 1.0.0")}, 1)
    node = Changed()
    run("7", lambda: benches, node, "worker")  # type: ignore[arg-type]
    assert node.told == [("7", "rejected", "segment", "no spine", "")]
    assert len(segmented) == 3

    data = bytearray(paths[1].read_bytes())
    data[-7] ^= 1  # a pixel
    paths[1].write_bytes(data)
    run("8", lambda: benches, node, "worker")  # type: ignore[arg-type]
    assert node.told[1][:3] == ("8", "retryable", "segment")
    assert "not those that the job was made for" in node.told[1][3]
    assert len(segmented) == 3, "the network was not asked"
