"""What becomes of a job whose worker cannot go on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.errors import DeviceLost, EngineFailure, InvalidInstance, OutOfDisk, PennodeError, Unsuitable
from node.records import input_digest
from workers.frames import read_identity
from workers.series import write_phantom
from workers.tasks import Bench, run


class Node:
    """The worker API as far as one failing job needs it."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def claim(self, job_id: str, _name: str) -> Any:
        return SimpleNamespace(
            job_id=job_id,
            series_uid="1.2",
            input_digest=input_digest([]),
            fence=1,
            lease_s=60.0,
            heartbeat_s=60.0,
            forms=("SEG",),
        )

    def fetch_input(self, _claim: Any, _folder: Path) -> list[Path]:
        return []

    def fetch_earlier(self, _claim: Any, _folder: Path) -> None:
        return None

    def heartbeat(self, *_: Any) -> bool:
        return True

    def fail(self, claim: Any, kind: str, *words: str) -> None:
        self.told.append((claim.job_id, kind, *words))


def test_a_lost_gpu_gives_the_job_back_and_ends_the_process() -> None:
    def lost(*_: Any) -> Any:
        raise DeviceLost("the GPU failed: CUDA error", "see nvidia-smi")

    node = Node()
    with pytest.raises(SystemExit):
        run("7", lambda: Bench(lost, "model 1.0.0"), node, "worker")  # type: ignore[arg-type]
    assert node.told == [("7", "retryable", "segment", "the GPU failed: CUDA error", "see nvidia-smi")]


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

    def fails(*_: Any) -> Any:
        raise error

    node = Node()
    run("7", lambda: Bench(fails, "model 1.0.0"), node, "worker")  # type: ignore[arg-type]
    assert node.told == [("7", kind, "segment", error.reason, error.next_step)]


def test_an_engine_that_cannot_be_opened_leaves_the_job_to_others() -> None:
    def no_bench() -> Bench:
        raise EngineFailure("no NVIDIA driver on this machine", "see worker.backend and worker.precision")

    class Untouched(Node):
        def claim(self, *_: Any) -> Any:
            raise AssertionError

    run("7", no_bench, Untouched(), "worker")  # type: ignore[arg-type]


def test_images_that_are_not_those_of_the_job_give_it_back_and_are_not_segmented(tmp_path: Path) -> None:
    paths = write_phantom(tmp_path, (3, 32, 32))
    identities = [read_identity(path) for path in paths]
    digest = input_digest((identity.sop_uid, identity.sha256) for identity in identities)
    segmented: list[str] = []

    def segment(found: list[Path], *_: Any) -> Any:
        segmented.extend(path.name for path in found)
        raise Unsuitable("no spine", "")

    class Changed(Node):
        def claim(self, job_id: str, name: str) -> Any:
            return SimpleNamespace(**{**vars(super().claim(job_id, name)), "input_digest": digest})

        def fetch_input(self, _claim: Any, _folder: Path) -> list[Path]:
            return paths

    node = Changed()
    run("7", lambda: Bench(segment, "model 1.0.0"), node, "worker")  # type: ignore[arg-type]
    assert node.told == [("7", "rejected", "segment", "no spine", "")]
    assert len(segmented) == 3

    data = bytearray(paths[1].read_bytes())
    data[-7] ^= 1  # a pixel
    paths[1].write_bytes(data)
    run("8", lambda: Bench(segment, "model 1.0.0"), node, "worker")  # type: ignore[arg-type]
    assert node.told[1][:3] == ("8", "retryable", "segment")
    assert "not those that the job was made for" in node.told[1][3]
    assert len(segmented) == 3, "the network was not asked"
