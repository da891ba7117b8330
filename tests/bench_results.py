"""`make bench-results`: how long result objects take to build, write and check, and how long dcmqi takes for a SEG.

Ours is a warm process, as a worker is; "from files" reads the series as well. dcmqi is a process of its own that reads
the series, as its users run it, and a label map of the same mask; it checks nothing afterwards. They take turns, so
that what else the machine does falls on all. Medians over rounds; CPU seconds, of children as well, tell more than the
clock where the machine is busy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from rich.console import Console
from rich.table import Table

from node.forms import SEGMENTATIONS, Form, Recipe
from node.settings import Seg
from trt.manifest import load
from trt.phantom import spine_phantom
from workers.case import Case
from workers.grid import from_canonical, to_canonical
from workers.results import BUILDERS, make_objects
from workers.series import write_series
from workers.volume import Volume, read_series

SHAPES = ((24, 512, 512), (192, 512, 512))
SPACING = (0.9, 0.6, 0.6)  # mm: the phantom fills as much of its slices as a spine does of a large field of view
TARGETS_S = {24: 0.5, 192: 2.0}  # of SEG + SR + SC
PARAMETERS = {"backend": "openvino", "precision": "f32"}
TOGETHER = ("SEG", "SR:SEG", "SC")
MANIFEST = load()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slices", type=int, nargs="*", default=[shape[0] for shape in SHAPES])
    parser.add_argument("--only", action="append", help="what has this in its name; repeatable")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    told = {}
    for slices in options.slices:
        told[slices] = seconds = measure((slices, *SHAPES[0][1:]), options.rounds, options.only or [""])
        if not options.json:
            Console(width=120).print(table(slices, seconds))
    if options.json:
        print(json.dumps(told, indent=1))


def measure(shape: tuple[int, int, int], rounds: int, only: list[str]) -> dict[str, list[tuple[float, float]]]:
    """Seconds of each round by the clock and of the CPU, by what was done."""
    phantom = spine_phantom(shape, SPACING, seed=0)
    with tempfile.TemporaryDirectory(prefix="pennode-bench-") as name:
        folder = Path(name)
        paths = write_series(folder / "series", phantom.image, SPACING)
        volume = read_series(paths)
        turned = to_canonical(volume)
        mask = from_canonical(with_lesion(phantom.mask), turned.axes, turned.flips)
        contenders: dict[str, Callable[[], object]] = {}
        for recipes in ([Recipe.parse(key) for key in keys] for keys in wanted()):
            title = " + ".join(recipe.key.partition(":")[0] for recipe in recipes)
            contenders[title] = lambda recipes=recipes: make(volume, mask, recipes)
        contenders["SEG from files"] = lambda: make(read_series(paths), mask, [Recipe(Form.SEG)])
        contenders |= dcmqi(folder, volume, mask)
        contenders = {title: run for title, run in contenders.items() if any(word in title for word in only)}
        seconds: dict[str, list[tuple[float, float]]] = {title: [] for title in contenders}
        for number in range(rounds + 1):
            for title, run in contenders.items():
                began, used = time.perf_counter(), sum(os.times()[:4])
                run()
                if number:  # the first warms up, the disk's cache as well
                    seconds[title].append((time.perf_counter() - began, sum(os.times()[:4]) - used))
    return seconds


def wanted() -> list[tuple[str, ...]]:
    """Each form alone, and what a PACS usually gets together."""
    alone = [(key,) for key in ("SEG", "SEG+deflated", "LABELMAP", "FRACTIONAL")]
    others = [(str(form),) for form in BUILDERS if form not in SEGMENTATIONS]
    return [TOGETHER, *alone, *others]


def with_lesion(labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A mask (Z, Y, X) uint8 with two tumours, so that there is something to report."""
    mask = labels.astype(np.uint8)
    depth, height, width = mask.shape
    z, y, x = np.ogrid[:depth, :height, :width]
    for row, radius in ((height // 3, 16), (2 * height // 3, 9)):
        near = (((z - depth // 2) * SPACING[0]) ** 2 + ((y - row) * SPACING[1]) ** 2) + (
            (x - width // 2) * SPACING[2]
        ) ** 2
        mask[near < radius**2] = 4
    return mask


def make(volume: Volume, mask: np.ndarray[Any, Any], recipes: list[Recipe]) -> None:
    make_objects(Case(volume, mask, MANIFEST, PARAMETERS, "0" * 64, Seg()), recipes)


def dcmqi(folder: Path, volume: Volume, mask: np.ndarray[Any, Any]) -> dict[str, Callable[[], object]]:
    """itkimage2segimage on the same mask, as a process."""
    tool = Path(sys.executable).parent / "itkimage2segimage"
    if not tool.exists():
        raise SystemExit("dcmqi is not installed: make bench-results installs it")
    image = SimpleITK.GetImageFromArray(mask)
    image.SetSpacing([float(v) for v in volume.spacing[::-1]])
    image.SetOrigin([float(v) for v in volume.affine[:3, 3]])
    directions = volume.affine[:3, :3] / np.array(volume.spacing)
    image.SetDirection([float(v) for v in directions[:, ::-1].ravel()])
    SimpleITK.WriteImage(image, str(folder / "mask.nrrd"))
    (folder / "meta.json").write_text(json.dumps(metadata(np.unique(mask[mask > 0]))))

    def run(kind: str, compress: str) -> None:
        subprocess.run(
            [
                tool, "--inputImageList", folder / "mask.nrrd", "--inputMetadata", folder / "meta.json",
                "--inputDICOMDirectory", folder / "series", "--outputDICOM", folder / "dcmqi.dcm",
                "--segmentationType", kind, "--compress", compress, "--skip", "1",
            ],
            check=True, capture_output=True,
        )  # fmt: skip

    return {
        "dcmqi SEG, end to end": lambda: run("binary", "none"),
        "dcmqi LABELMAP, end to end": lambda: run("labelmap", "none"),
    }


def metadata(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    def code(value: str, meaning: str) -> dict[str, str]:
        return {"CodeValue": value, "CodingSchemeDesignator": "SCT", "CodeMeaning": meaning}

    return {
        "ContentCreatorName": "bench", "SeriesDescription": "bench", "SeriesNumber": "301", "InstanceNumber": "1",
        "segmentAttributes": [[
            {
                "labelID": int(value), "SegmentDescription": f"label {value}", "SegmentLabel": f"label {value}",
                "SegmentAlgorithmType": "AUTOMATIC", "SegmentAlgorithmName": "bench",
                "SegmentedPropertyCategoryCodeSequence": code("91723000", "Anatomical Structure"),
                "SegmentedPropertyTypeCodeSequence": code("51282000", "Vertebra"),
            }
            for value in values
        ]],
    }  # fmt: skip


def table(slices: int, seconds: dict[str, list[tuple[float, float]]]) -> Table:
    rows = Table(title=f"{slices} x 512 x 512, seconds; every one of ours read back and checked")
    for heading in ("what", "median", "least", "most", "CPU median"):
        rows.add_column(heading, justify="left" if heading == "what" else "right")
    for title, values in seconds.items():
        target = f", target {TARGETS_S[slices]} s" if title.startswith("SEG + SR") and slices in TARGETS_S else ""
        clock, cpu = zip(*values, strict=True)
        figures = (statistics.median(clock), min(clock), max(clock), statistics.median(cpu))
        rows.add_row(title + target, *(f"{figure:.3f}" for figure in figures))
    return rows


if __name__ == "__main__":
    main()
