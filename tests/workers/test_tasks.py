"""What becomes of a job whose worker cannot go on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.errors import DeviceLost
from workers.tasks import Bench, run


class Node:
    """The worker API as far as one failing job needs it."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def claim(self, job_id: str, _name: str) -> Any:
        return SimpleNamespace(
            job_id=job_id, series_uid="1.2", input_digest="0", fence=1, lease_s=60.0, heartbeat_s=60.0
        )

    def fetch_input(self, _claim: Any, _folder: Path) -> list[Path]:
        return []

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
