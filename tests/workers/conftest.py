"""Helpers of the workers' tests: a small lopsided volume, a network that is a formula, and the DICOM tools."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from trt.manifest import load

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("SPINE_DATA", ROOT.parent / "shared" / "data"))
SPACING = (0.9, 0.9375, 0.9375)


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
    return SimpleNamespace(lopsided=lopsided, formula=formula, FormulaEngine=FormulaEngine, SPACING=SPACING)
