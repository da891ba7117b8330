"""The worker's child alone loads what calculates: CUDA does not survive a fork, and the node needs none.

Asked of the kernel: what is mapped into each process, and which devices it holds open.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.harness import site, until

HEAVY = re.compile(r"/(libcuda\.so|libcudart|libnvinfer|libtensorrt|libtorch|libc10)|openvino|onnx|/dev/nvidia")
GPU = Path("/dev/nvidiactl").exists()


def touched(pid: int) -> set[str]:
    """Heavy libraries that a process has mapped, and GPU devices that it holds open."""
    process = Path(f"/proc/{pid}")
    files = {line.split(maxsplit=5)[-1] for line in (process / "maps").read_text().splitlines() if "/" in line}
    for descriptor in (process / "fd").iterdir():
        try:
            files.add(str(descriptor.readlink()))
        except OSError:  # closed meanwhile
            continue
    return {file for file in files if HEAVY.search(file)}


def children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


@pytest.mark.parametrize(
    ("backend", "sign"),
    [
        ("openvino", "openvino"),
        pytest.param("torch", "/dev/nvidia", marks=pytest.mark.skipif(not GPU, reason="no GPU here")),
        pytest.param("tensorrt", "/dev/nvidia", marks=pytest.mark.skipif(not GPU, reason="no GPU here")),
    ],
)
def test_only_the_workers_child_loads_what_calculates(tmp_path: Path, backend: str, sign: str) -> None:
    with site(tmp_path, PENNODE_WORKER_BACKEND=backend) as here:
        here.start_node("up")
        here.wait_for_worker()
        (name,) = [worker.name for worker in here.ledger.workers(0)]
        node, parent = here.processes["up"].pid, int(name.rpartition("-")[2])
        assert parent in children(node)

        def working() -> int | None:
            return next((pid for pid in children(parent) if any(sign in file for file in touched(pid))), None)

        child = until(working, f"the child opens its engine\n{here.log('up')}")
        assert child not in (node, parent)
        assert touched(node) == set()
        assert touched(parent) == set()
