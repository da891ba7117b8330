"""Helpers of the workers' tests: a small lopsided volume, a network that is a formula, and the DICOM tools."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydicom import dcmread

from node.settings import Seg
from trt.manifest import load
from workers.case import Case
from workers.codes import meaning_of
from workers.enhanced import write_enhanced
from workers.series import Storage, write_series
from workers.volume import read_series

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("SPINE_DATA", ROOT.parent / "shared" / "data"))
SPACING = (0.9, 0.9375, 0.9375)
ENGINE = {"backend": "openvino", "precision": "f32", "overlap": "0.5", "threads": "2", "device": "a CPU"}
DIGEST = "ab" * 32
TILTED = (1, 0, 0, 0, 0.9945218953682733, -0.10452846326765347, 0, 0.10452846326765347, 0.9945218953682733)


def lopsided(shape=(6, 30, 24), seed=0):
    """An image (Z, Y, X) uint16 without any symmetry: blobs on a slope, with noise."""
    random = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    blobs = np.exp(-((y - 0.3) ** 2 + (x - 0.6) ** 2 + (z - 0.2) ** 2) * 12) + 0.7 * np.exp(
        -((y - 0.75) ** 2 * 30 + (x - 0.3) ** 2 * 9 + (z - 0.8) ** 2 * 4)
    )
    return (900 * blobs + 200 * x + 60 * z + random.normal(0, 15, shape) + 60).clip(0, 4095).astype(np.uint16)


def formula(patches):
    """Logits (N, 5, H, W) that tell every axis and direction of their input apart; no network, no state."""
    centre, before = patches[:, patches.shape[1] // 2], patches[:, 0]
    down = centre - np.roll(centre, 1, axis=1)
    across = centre - np.roll(centre, 2, axis=2)
    none, fourth = np.full_like(centre, 0.12), 2 * down - across
    return np.stack([none, centre - 0.4, 3 * across, before - centre + down + 0.1, fourth], axis=1)


class FormulaEngine:
    """The formula with what an engine says of itself."""

    backend = "formula"
    flexible = False

    def __call__(self, patches):
        return formula(patches)

    def describe(self):
        return {"backend": "formula", "precision": "f32", "threads": str(os.cpu_count()), "device": "this host"}

    def close(self):
        pass


def labels(shape):
    """A mask without symmetry that leaves the last slices and many pixels free."""
    mask = np.zeros(shape, np.uint8)
    mask[1:4, 3:9, 2:7] = 1
    mask[2:5, 10:14, 8:15] = 2
    mask[1:3, 20:, 5:9] = 3
    mask[3:5, 22:27, 14:18] = 4
    mask[range(1, 5), 11, range(9, 13)] = mask[range(1, 4), 4, range(3, 6)] = 0  # no two slices are alike
    return mask


def case_of(volume, mask, manifest, settings=None, engine=ENGINE, digest=DIGEST):
    """The case of a mask, as a pipeline makes it."""
    return Case(volume, mask, manifest, engine, digest, settings or Seg())


def as_labels(read, segments, manifest):
    """A mask of segment numbers as one of label values: each lesion is a segment of its own."""
    values = np.zeros(256, np.uint8)
    for segment in segments:
        (label,) = [one for one in manifest.labels if segment.label.startswith(meaning_of(one).words)]
        values[segment.number] = label.value
    return values[read]


def tampered(change):
    """What `change` does to a data set, done to the bytes of one."""

    def apply(data):
        dataset = dcmread(io.BytesIO(data))
        change(dataset)
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        return buffer.getvalue()

    return apply


@pytest.fixture(params=["classic", "enhanced"])
def volume(request, tmp_path):
    """A tilted sagittal series that was stored against the order of its slices."""
    storage = Storage(axes=(0, 1, 2), flips=(0,), rotation=TILTED, reverse=True)
    if request.param == "classic":
        return read_series(write_series(tmp_path, lopsided(), SPACING, storage=storage))
    return read_series([write_enhanced(tmp_path / "e.dcm", lopsided(), SPACING, storage=storage)])


@pytest.fixture
def mask(volume):
    return labels(volume.voxels.shape)


@pytest.fixture(scope="session")
def manifest():
    """The model's manifest with a patch small enough for the small volume, and parts of any size left in it."""
    shipped = load()
    labels = tuple(dataclasses.replace(label, least_mm3=0.0) for label in shipped.labels)
    return dataclasses.replace(shipped, patch=(32, 32), labels=labels)


@pytest.fixture(scope="session")
def dciodvfy() -> Callable[[Path], list[str]]:
    """What dciodvfy says of a file, errors and warnings. It is skipped where the tool is absent, but never in CI."""
    if shutil.which("dciodvfy") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("dciodvfy is not installed: apt-get install dicom3tools")
        pytest.skip("dciodvfy is not installed")

    def lines(path: Path) -> list[str]:
        done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False, timeout=60)
        return [line for line in done.stderr.splitlines() if line.startswith(("Error", "Warning"))]

    return lines


@pytest.fixture(scope="session")
def real() -> Callable[[str], list[Path]]:
    """The files of a folder of real data, which is not part of the repository."""

    def files(name: str) -> list[Path]:
        folder = DATA / "dicom" / name
        if not folder.is_dir():
            pytest.skip(f"no real data in {folder}")
        return sorted(folder.iterdir())

    return files


@pytest.fixture(scope="session")
def small() -> SimpleNamespace:
    """The functions above, since conftest cannot be imported."""
    return SimpleNamespace(
        lopsided=lopsided, formula=formula, FormulaEngine=FormulaEngine, SPACING=SPACING, ENGINE=ENGINE, DIGEST=DIGEST,
        TILTED=TILTED, labels=labels, case=case_of, as_labels=as_labels, tampered=tampered,
    )  # fmt: skip
