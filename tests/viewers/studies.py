"""Studies in a PACS whose overlays are known: the demo's, as node and worker made it, and one with a made lesion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from node.forms import Form, Recipe
from node.records import derived_uid
from node.settings import Seg, Worker
from node.states import JobState
from tests.harness import pennode, site
from tests.peers import Orthanc
from tests.viewers.pixels import Colour
from trt.manifest import load
from trt.phantom import spine_phantom
from workers.codes import meaning_of
from workers.grid import from_canonical, to_canonical
from workers.identity import digest_of
from workers.pipeline import Arrived, open_pipeline
from workers.prediction import Prediction
from workers.readback import read_segmentation
from workers.results import ResultObject
from workers.series import Storage, write_phantom, write_series
from workers.volume import Volume, read_series

NEOPLASM = 4

# Series descriptions of segmentations of the lesion alone.
ALONE, SPOILT = "lesion alone", "lesion alone, spoilt"

# The lesion, in slices of the model's Z of 20: an ellipse that wanders, so that no two slices have it in one place.
FIRST, LAST = 8, 13
SPACING = (3.3, 0.9375, 0.9375)
SHAPE = (20, 320, 256)
# Tilted and numbered against its order in space, so that nothing is right by chance.
STORAGE = Storage(rotation=(0.9903, -0.1392, 0, 0.1392, 0.9903, 0, 0, 0, 1), reverse=True)


@dataclass(frozen=True, eq=False)
class Study:
    """A series in the PACS, and its results: `mask` (frames, rows, columns) uint8 are the labels its overlay has.

    `results` are the headers of the result objects that the PACS holds, by form, in order of their instance numbers.
    """

    volume: Volume
    mask: NDArray[np.uint8]
    results: Mapping[str, Sequence[Dataset]]

    @property
    def uid(self) -> str:
        """The Study Instance UID."""
        return str(self.volume.sources[0].StudyInstanceUID)

    def sop(self, frame: int) -> str:
        """The SOP Instance UID of a frame's image."""
        return str(self.volume.sources[frame].SOPInstanceUID)

    def description(self, form: Form) -> str:
        """The series description of a form's results."""
        return str(self.results[form][0].SeriesDescription)

    def frames_of(self, value: int) -> list[int]:
        """The frames that hold a label."""
        return [int(frame) for frame in np.flatnonzero((self.mask == value).any(axis=(1, 2)))]


def palette() -> dict[int, Colour]:
    """Return the colour that we recommend for each label of the model."""
    return {label.value: meaning_of(label).colour for label in load().labels}


def names() -> dict[int, str]:
    """Return the words for each label of the model."""
    return {label.value: meaning_of(label).words for label in load().labels}


def demo_study(pacs: Orthanc, folder: Path) -> Study:
    """Send the demo's phantom to the PACS and to a node, whose worker's segmentation the node delivers there.

    Pictures of that segmentation are stored beside it.
    """
    files = write_phantom(folder / "phantom")
    address = f"ORTHANC@127.0.0.1:{pacs.dicom_port}"
    send(folder / "phantom", address)
    with site(folder, [("pacs", "ORTHANC", pacs.dicom_port)]) as here:
        send(folder / "phantom", here.start_node("up"))
        (job,) = here.wait_finished(1).values()
        assert job.state is JobState.DELIVERED, job.reason
        deliveries = here.ledger.deliveries(job.id)
    volume = read_series(files)
    (delivered,) = deliveries
    segmentation = _held(pacs, delivered.sop_uid)
    numbers, segments = read_segmentation(segmentation, volume)
    mask = np.zeros_like(numbers)
    for segment in segments:
        mask[numbers == segment.number] = _label_of(segment.colour)
    pictures = _objects(volume, mask, digest_of(files), [Form.SC])
    store(pictures, folder / "pictures", address)
    return Study(volume, mask, _by_form([(Form.SEG, segmentation), *((one.form, one.data) for one in pictures)]))


def made_study(pacs: Orthanc, folder: Path, forms: Sequence[Form]) -> Study:
    """Store a phantom with a lesion drawn into it, and the worker's objects of that very mask.

    Beside them lie segmentations of the lesion alone: one as the worker makes it, and one whose frames do not say from
    which images they were derived.
    """
    phantom = spine_phantom(SHAPE, SPACING, seed=1)
    image, labels = phantom.image.copy(), phantom.mask.copy()
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    for z in range(FIRST, LAST + 1):
        inside = ((y - 120 - 7 * (z - FIRST)) / 15) ** 2 + ((x - 148 + 2 * (z - FIRST)) / 10) ** 2 < 1
        labels[z][inside], image[z][inside] = NEOPLASM, image[z][inside] // 4 + 500
    files = write_series(folder / "series", image, SPACING, seed=1, storage=STORAGE)
    volume = read_series(files)
    canonical = to_canonical(volume)
    mask = from_canonical(labels, canonical.axes, canonical.flips)
    lesion = np.where(mask == NEOPLASM, mask, 0).astype(np.uint8)
    made = _objects(volume, mask, digest_of(files), forms)
    (alone,) = _objects(volume, lesion, digest_of(files), [Form.SEG])
    address = f"ORTHANC@127.0.0.1:{pacs.dicom_port}"
    send(folder / "series", address)
    store(made, folder / "objects", address)
    (folder / "alone").mkdir()
    for description in (ALONE, SPOILT):
        _rewrite(alone.data, description, folder / "alone" / f"{description}.dcm")
    send(folder / "alone", address)
    return Study(volume, mask, _by_form((one.form, one.data) for one in made))


def send(folder: Path, address: str) -> None:
    """Send all files of a folder by C-STORE."""
    done = pennode("send", str(folder), "--to", address)
    assert done.returncode == 0, done.stderr


def store(objects: Sequence[ResultObject], folder: Path, address: str) -> None:
    """Send results of the worker by C-STORE, by way of files in a new folder."""
    folder.mkdir()
    for one in objects:
        (folder / one.name).write_bytes(one.data)
    send(folder, address)


def _objects(volume: Volume, mask: NDArray[np.uint8], digest: str, forms: Sequence[Form]) -> tuple[ResultObject, ...]:
    """Let the worker's pipeline write and check its objects of a mask that no network predicted."""
    prediction = Prediction(mask, "tissue", "", patches=0, patch=(0, 0), share=0.0, saved_s=0.0)
    recipes = [Recipe(form) for form in forms]
    with open_pipeline(Worker(), Seg()) as pipeline:
        return pipeline.write(Arrived(volume, None, {}, ahead=False), prediction, digest, recipes).objects


def _rewrite(data: bytes, description: str, target: Path) -> None:
    """Write a Segmentation as a series of its own; `SPOILT`, without what its frames were derived from."""
    dataset = dcmread(BytesIO(data))
    if description == SPOILT:
        for group in dataset.PerFrameFunctionalGroupsSequence:
            del group.DerivationImageSequence
    dataset.SOPInstanceUID = derived_uid(description, dataset.SOPInstanceUID)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SeriesInstanceUID = derived_uid(description, dataset.SeriesInstanceUID)
    dataset.SeriesDescription = description
    dataset.save_as(target)


def _held(pacs: Orthanc, sop_uid: str) -> bytes:
    """Return what the PACS holds under a SOP Instance UID."""
    (found,) = pacs.instances(sop_uid)
    return pacs.get(f"/instances/{found}/file")


def _by_form(objects: Iterable[tuple[str, bytes]]) -> dict[str, list[Dataset]]:
    """Return the headers of `(form, Part-10 bytes)` by form."""
    found: dict[str, list[Dataset]] = {}
    for form, data in objects:
        found.setdefault(form, []).append(dcmread(BytesIO(data), stop_before_pixels=True))
    for headers in found.values():
        headers.sort(key=lambda header: int(header.InstanceNumber))
    return found


def _label_of(colour: Colour) -> int:
    """Return the label whose recommended colour that is, CIELab's rounding aside."""
    distances = {value: max(abs(a - b) for a, b in zip(colour, own, strict=True)) for value, own in palette().items()}
    value = min(distances, key=lambda v: distances[v])
    assert distances[value] <= 2, f"{colour} is none of our colours"
    return value
