"""Every bad series ends in a named state with an understandable reason, and the next good one still works."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import CTImageStorage, RLELossless, generate_uid

from node.records import Job
from node.states import JobState
from tests.harness import clean_environment, pennode, site
from workers.series import write_phantom

PATIENT_NAME, PATIENT_ID = "Phantom^Spine", "PHANTOM-"  # what the phantoms carry

Change = Callable[[list[Dataset]], list[Dataset]]


def each(change: Callable[[Dataset], object]) -> Change:
    def apply(images: list[Dataset]) -> list[Dataset]:
        for image in images:
            change(image)
        return images

    return apply


def one(index: int, change: Callable[[Dataset], object]) -> Change:
    def apply(images: list[Dataset]) -> list[Dataset]:
        change(images[index])
        return images

    return apply


def make_ct(image: Dataset) -> None:
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = CTImageStorage
    image.Modality = "CT"


def make_colour(image: Dataset) -> None:
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit = 7
    image.PixelData = bytes(3 * image.Rows * image.Columns)


def make_8_bit(image: Dataset) -> None:
    pixels = (image.pixel_array / 16).astype(np.uint8)
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit = 7
    image.PixelData = pixels.tobytes()
    image["PixelData"].VR = "OW"


def make_flat(image: Dataset) -> None:
    image.PixelData = bytes(len(image.PixelData))


def damage_compressed_pixels(image: Dataset) -> None:
    """Whole on the wire, so the node takes it; only who decodes it finds out."""
    image.compress(RLELossless)
    data = bytearray(image.PixelData)
    data[16:80] = b"\xff" * 64  # the RLE header with its segment offsets (PS3.5 annex G)
    image.PixelData = bytes(data)


def move_onto_the_first(images: list[Dataset]) -> list[Dataset]:
    images[4].ImagePositionPatient = images[3].ImagePositionPatient
    return images


def turn_one(image: Dataset) -> None:
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]


BAD: dict[str, tuple[Change, JobState, str]] = {
    "ct": (each(make_ct), JobState.SKIPPED, "modality is CT"),
    "localizer": (lambda images: images[:3], JobState.SKIPPED, "3 slices"),
    "described as a localizer": (
        each(lambda i: setattr(i, "SeriesDescription", "Localizer")), JobState.SKIPPED, "localizer",
    ),
    "brain": (each(lambda i: setattr(i, "BodyPartExamined", "BRAIN")), JobState.SKIPPED, "body part is BRAIN"),
    "mixed orientations": (one(3, turn_one), JobState.REJECTED, "orientation"),
    "a missing slice": (lambda images: images[:4] + images[5:], JobState.REJECTED, "missing"),
    "duplicate positions": (move_onto_the_first, JobState.REJECTED, "position"),
    "two frames of reference": (
        one(5, lambda i: setattr(i, "FrameOfReferenceUID", generate_uid())), JobState.REJECTED, "rame",
    ),
    "colour": (each(make_colour), JobState.REJECTED, "colour"),
    "8 bit": (each(make_8_bit), JobState.REJECTED, "8"),
    "damaged compressed pixels": (one(4, damage_compressed_pixels), JobState.REJECTED, "pixel"),
    "zero variance": (each(make_flat), JobState.REJECTED, "same value"),
    "no pixel spacing": (each(lambda i: delattr(i, "PixelSpacing")), JobState.REJECTED, "Pixel Spacing"),
    "no position": (one(2, lambda i: delattr(i, "ImagePositionPatient")), JobState.REJECTED, "has no position"),
}  # fmt: skip


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """Send every bad series and, last, a good one to one node; return the jobs by name."""
    folder = tmp_path_factory.mktemp("bad")
    names: dict[str, str] = {}
    for seed, name in enumerate([*BAD, "good"]):
        files = write_phantom(folder / f"series{seed}", shape=(9, 160, 128), seed=seed)
        images = [pydicom.dcmread(f) for f in files]
        names[str(images[0].SeriesInstanceUID)] = name
        changed = BAD[name][0](images) if name in BAD else images
        for file in files:
            file.unlink()
        for number, image in enumerate(changed):
            image.save_as(folder / f"series{seed}" / f"{number:03}.dcm")
    command = [sys.executable, "-m", "node.cli", "sink", "--out", str(folder / "pacs")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=clean_environment()) as pacs:
        assert pacs.stdout is not None
        port = json.loads(pacs.stdout.readline())["port"]
        quiet = {f"PENNODE_ASSEMBLY_{n}_S": s for n, s in (("QUIET", "3"), ("PATIENCE", "3"), ("SETTLE", "0.5"))}
        with site(folder, [("pacs", "PACS", port)], **quiet) as here:
            address = here.start_node("up")
            for seed in range(len(names)):
                sent = pennode("send", str(folder / f"series{seed}"), "--to", address)
                assert sent.returncode == 0, sent.stderr
            jobs = here.wait_finished(len(names))
            log = here.log("up")
            remembered = [f for f in here.state.rglob("*") if f.is_file() and here.state / "spool" not in f.parents]
            told = {f.name: f.read_bytes() for f in remembered}
        pacs.terminate()
    assert "ledger.sqlite3" in told
    for name, content in {**told, "log": log.encode()}.items():
        assert PATIENT_NAME.encode() not in content, name
        assert PATIENT_ID.encode() not in content, name
    assert "Traceback" not in log
    return {names[uid]: job for uid, job in jobs.items()}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_series_ends_in_a_named_state(judged: dict[str, Job], name: str) -> None:
    _, state, word = BAD[name]
    job = judged[name]
    assert job.state is state, job.reason
    assert word in job.reason
    assert job.next_step
    assert job.attempts <= 1


def test_a_good_series_after_all_the_bad_ones_is_delivered(judged: dict[str, Job]) -> None:
    assert judged["good"].state is JobState.DELIVERED, judged["good"].reason
