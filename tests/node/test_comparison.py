"""Two segmentations of one series, compared: figures against counted voxels, and objects that are damaged or odd."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.coding import Code

from node.agreement import Agreement
from node.comparison import Comparer, compare
from node.errors import InvalidResult
from node.ledger import Ledger
from node.records import Result
from node.spool import Spool
from tests.node.making import T0, claim, with_shadow
from workers.series import write_series
from workers.volume import read_series

ANATOMY = Code("91723000", "SCT", "Anatomical Structure")
KINDS = {
    1: ("Vertebra", Code("51282000", "SCT", "Vertebra")),
    2: ("Spinal canal", Code("61853006", "SCT", "Vertebral canal")),
}
SHAPE, SPACING = (5, 18, 14), (3.0, 0.5, 0.75)
VOXEL_ML = 3.0 * 0.5 * 0.75 / 1000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    image = np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE)
    return list(read_series(write_series(tmp_path_factory.mktemp("series"), image, SPACING)).sources)


def segmentation(
    source: Sequence[Dataset],
    mask: NDArray[np.uint8],
    kind: str = "BINARY",
    names: dict[int, str] | None = None,
    **more: Any,
) -> Dataset:
    """A Segmentation of a label map (frames, rows, columns) by highdicom, with the labels that are in it."""
    found = [int(v) for v in np.unique(mask) if v]
    labels = np.zeros_like(mask)
    for number, value in enumerate(found, 1):
        labels[mask == value] = number
    algorithm = hd.AlgorithmIdentificationSequence("t", Code("123110", "DCM", "Artificial Intelligence"), "1", "t")
    return hd.seg.Segmentation(
        source_images=source,
        pixel_array=labels,
        segmentation_type=kind,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                number, (names or {}).get(value, KINDS[value][0]), ANATOMY, KINDS[value][1],
                hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC, algorithm,
            )
            for number, value in enumerate(found, 1)
        ],
        series_instance_uid=hd.UID(), sop_instance_uid=hd.UID(), series_number=1, instance_number=1,
        manufacturer="t", manufacturer_model_name="t", software_versions="t", device_serial_number="t", **more,
    )  # fmt: skip


def masks() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Two label maps that agree in part, on different slices too."""
    random = np.random.default_rng(3)
    own = random.integers(0, 3, SHAPE).astype(np.uint8)
    shadow = np.where(random.random(SHAPE) < 0.7, own, random.integers(0, 3, SHAPE)).astype(np.uint8)
    own[0], shadow[4] = 0, 0
    return own, shadow


def counted(own: NDArray[np.uint8], shadow: NDArray[np.uint8]) -> list[Agreement]:
    """The figures, counted on the arrays."""
    found = []
    for value, (label, code) in KINDS.items():
        a, b = int((own == value).sum()), int((shadow == value).sum())
        both = int(((own == value) & (shadow == value)).sum())
        dice = round(2 * both / (a + b), 4)
        volumes = round(a * VOXEL_ML, 3), round(b * VOXEL_ML, 3)
        found.append(Agreement(label, code.value, "SCT", code.meaning, dice, *volumes))
    return found


def saved(path: Path, ds: Dataset) -> Path:
    ds.save_as(path)
    return path


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL"])
@pytest.mark.parametrize("omit", [True, False], ids=["sparse", "all frames"])
def test_figures_are_those_of_the_voxels(tmp_path: Path, source: list[Dataset], kind: str, omit: bool) -> None:
    own, shadow = masks()
    more = {"omit_empty_frames": omit}
    paths = [saved(tmp_path / f"{n}.dcm", segmentation(source, m, kind, **more)) for n, m in enumerate((own, shadow))]
    assert list(compare(*paths)) == counted(own, shadow)


@pytest.mark.parametrize("syntax", [pydicom.uid.RLELossless, pydicom.uid.DeflatedExplicitVRLittleEndian])
def test_compressed_objects_are_read_too(tmp_path: Path, source: list[Dataset], syntax: str) -> None:
    own, shadow = masks()
    kind = "LABELMAP" if syntax == pydicom.uid.RLELossless else "BINARY"
    made = []
    for number, mask in enumerate((own, shadow)):
        more = {"transfer_syntax_uid": syntax} if kind == "LABELMAP" else {}
        ds = segmentation(source, mask, kind, **more)
        ds.file_meta.TransferSyntaxUID = syntax
        made.append(saved(tmp_path / f"{number}.dcm", ds))
    assert list(compare(*made)) == counted(own, shadow)


def test_the_same_object_agrees_wholly_and_an_absent_segment_not_at_all(tmp_path: Path, source: list[Dataset]) -> None:
    own, _ = masks()
    only = np.where(own == 1, own, 0).astype(np.uint8)
    first, second = (saved(tmp_path / f"{n}.dcm", segmentation(source, m)) for n, m in enumerate((own, only)))
    assert [a.dice for a in compare(first, first)] == [1.0, 1.0]
    vertebra, canal = compare(first, second)
    assert (vertebra.dice, canal.dice, canal.shadow_ml) == (1.0, 0.0, 0.0)
    assert canal.own_ml > 0


def test_segments_are_told_apart_by_code_and_label(tmp_path: Path, source: list[Dataset]) -> None:
    own, _ = masks()
    first = saved(tmp_path / "a.dcm", segmentation(source, own))
    second = saved(tmp_path / "b.dcm", segmentation(source, own, names={1: "Vertebra L4\x1b[31m"}))
    found = {a.label: a.dice for a in compare(first, second)}
    assert found == {"Vertebra": 0.0, "Vertebra L4?[31m": 0.0, "Spinal canal": 1.0}


def test_frames_that_do_not_begin_at_a_byte_are_read_bit_by_bit(tmp_path: Path) -> None:
    shape = (3, 7, 9)
    folder = tmp_path / "odd"
    folder.mkdir()
    odd = list(read_series(write_series(folder, np.arange(189, dtype=np.uint16).reshape(shape), SPACING)).sources)
    mask = (np.random.default_rng(1).random(shape) < 0.5).astype(np.uint8)
    path = saved(tmp_path / "a.dcm", segmentation(odd, mask))
    (found,) = compare(path, path)
    assert (found.dice, found.own_ml) == (1.0, round(int(mask.sum()) * VOXEL_ML, 3))


def shifted(ds: Dataset) -> None:
    for group in ds.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence[0].ImagePositionPatient[1] += 1.0


def cut(ds: Dataset) -> None:
    ds.PixelData = ds.PixelData[:10]


def foreign_number(ds: Dataset) -> None:
    ds.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 9


def spacing(value: float) -> Callable[[Dataset], None]:
    def change(ds: Dataset) -> None:
        ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [value, value]

    return change


def other(**values: Any) -> Callable[[Dataset], None]:
    def change(ds: Dataset) -> None:
        for name, value in values.items():
            if value is None:
                delattr(ds, name)
            else:
                setattr(ds, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (shifted, "different grids"),
        (spacing(0.6), "different grids"),
        (spacing(0.0), "the geometry of shadow's result is not usable"),
        (other(FrameOfReferenceUID="1.2.3"), "different grids"),
        (other(SegmentSequence=None), r"the shadow's result cannot be read \(AttributeError\)"),
        (other(SegmentationType="ODD"), "is not whole"),
        (other(NumberOfFrames=99), "is not whole"),
        (other(NumberOfFrames=0), "is not whole"),
        (other(Rows=1000), "is not whole"),
        (cut, "is not whole"),
        (foreign_number, "is not whole"),
        (other(PerFrameFunctionalGroupsSequence=None), "cannot be read"),
        (other(PixelData=None), "cannot be read"),
        (other(NumberOfFrames=None), "cannot be read"),
    ],
)
def test_an_odd_object_gives_a_reason_and_no_figures(
    tmp_path: Path, source: list[Dataset], change: Callable[[Dataset], None], says: str
) -> None:
    own, shadow = masks()
    ds = segmentation(source, shadow)
    change(ds)
    first, second = saved(tmp_path / "a.dcm", segmentation(source, own)), saved(tmp_path / "b.dcm", ds)
    with pytest.raises(InvalidResult, match=says):
        compare(first, second)


@pytest.mark.parametrize("content", [b"", b"no DICOM", b"\0" * 128 + b"DICM" + b"\xff" * 300])
def test_what_is_no_dicom_gives_a_reason(tmp_path: Path, source: list[Dataset], content: bytes) -> None:
    first = saved(tmp_path / "a.dcm", segmentation(source, masks()[0]))
    (tmp_path / "b.dcm").write_bytes(content)
    with pytest.raises(InvalidResult, match="the shadow's result cannot be read"):
        compare(first, tmp_path / "b.dcm")
    with pytest.raises(InvalidResult, match="the series' own result cannot be read"):
        compare(tmp_path / "none.dcm", first)


@pytest.mark.parametrize("step", [37, 61])
def test_a_cut_file_gives_a_reason_wherever_it_ends(tmp_path: Path, source: list[Dataset], step: int) -> None:
    first = saved(tmp_path / "a.dcm", segmentation(source, masks()[0]))
    data = first.read_bytes()
    for end in range(140, len(data), step * 7):
        (tmp_path / "b.dcm").write_bytes(data[:end])
        with pytest.raises(InvalidResult):
            compare(first, tmp_path / "b.dcm")


# -- the loop


def stored(ledger: Ledger, spool: Spool, job: str, path: Path, form: str = "SEG") -> None:
    """Bring a result as the worker API does."""
    held = claim(ledger, job)
    uid = f"2.25.{int(job, 16) % 10**9}"
    copy = spool.scratch() / "x.dcm"
    copy.write_bytes(path.read_bytes())
    kept = spool.store_result(job, held.fence, uid, "0" * 64, copy)
    ledger.finish(
        job, held.fence, [Result(uid, "1.2", job, kept, 1, "0" * 64, form)], {}, model="m", note="n", now=T0 + 30
    )


def test_a_shadow_is_compared_as_soon_as_both_results_are_here(
    ledger: Ledger, spool: Spool, tmp_path: Path, source: list[Dataset]
) -> None:
    comparer = Comparer(ledger, spool)
    own, shadow = with_shadow(ledger)
    first, second = masks()
    stored(ledger, spool, shadow, saved(tmp_path / "b.dcm", segmentation(source, second)))
    comparer.tick(T0 + 40)
    assert ledger.comparisons(ledger.job(shadow)) == []
    stored(ledger, spool, own, saved(tmp_path / "a.dcm", segmentation(source, first)))
    comparer.tick(T0 + 50)
    (found,) = ledger.comparisons(ledger.job(own))
    assert list(found.segments) == counted(first, second)
    assert (found.job_id, found.own_id, found.at, found.reason) == (shadow, own, T0 + 50, "")
    assert dataclasses.asdict(found) == found.to_json()


@pytest.mark.parametrize("kind", ["damaged", "gone", "other form"])
def test_what_cannot_be_compared_says_why_once(
    ledger: Ledger, spool: Spool, tmp_path: Path, source: list[Dataset], kind: str
) -> None:
    own, shadow = with_shadow(ledger)
    path = saved(tmp_path / "a.dcm", segmentation(source, masks()[0]))
    stored(ledger, spool, own, path)
    stored(ledger, spool, shadow, path, "SC" if kind == "other form" else "SEG")
    (result,) = ledger.results(shadow)
    if kind == "damaged":
        spool.path(result.path).write_bytes(b"x")
    elif kind == "gone":
        spool.path(result.path).unlink()
    comparer = Comparer(ledger, spool)
    comparer.tick(T0 + 40)
    (found,) = ledger.comparisons(ledger.job(shadow))
    assert found.segments == ()
    assert found.reason
    assert ledger.uncompared() == []


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL"])
def test_a_file_with_a_few_wrong_bytes_gives_figures_or_a_reason_and_nothing_else(
    tmp_path: Path, source: list[Dataset], kind: str
) -> None:
    """Any other exception would stop the node."""
    first = saved(tmp_path / "a.dcm", segmentation(source, masks()[0], kind))
    data, chance, told = first.read_bytes(), random.Random(kind), set()
    for _ in range(250):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(132, len(data))] = chance.choice((0, 1, 0x20, 0x31, 0xFF, chance.randrange(256)))
        (tmp_path / "b.dcm").write_bytes(damaged)
        try:
            told.add(len(compare(first, tmp_path / "b.dcm")))
        except InvalidResult as error:
            told.add(error.reason)
    assert len(told) > 2
