"""A folder of DICOM files to train on: MR series with the Segmentations that a site's PACS holds as their masks.

Found by `trt` through the entry point group `pennode.datasets`; see `trt.sources`. Files may have any name and lie in
any folder. Patients are told apart by Patient ID and its issuer and go by a pseudonym; messages name files and UIDs.

The pseudonym derives from the patient's first Series Instance UID, not from the Patient ID, which could be found again
by trying all numbers. A series that is added or taken away may thus give a patient another name: a split.json is for
the folder it was drawn from, unchanged.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import UID, EnhancedMRImageStorage, MRImageStorage, SegmentationStorage

from node.errors import PennodeError
from trt.cases import Arrays, DatasetError, Source, Tell, broken
from workers.frames import readable
from workers.grid import to_canonical, turn
from workers.masks import add_mask, label_values
from workers.volume import read_series

_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "PatientID", "IssuerOfPatientID", "FrameOfReferenceUID",
    "ReferencedSeriesSequence", "Manufacturer", "SegmentSequence",
]  # fmt: skip
_IMAGES = frozenset({MRImageStorage, EnhancedMRImageStorage})
_MASKS = frozenset({SegmentationStorage, UID("1.2.840.10008.5.1.4.1.1.66.7")})  # the latter for label maps
_LISTED = 10


@dataclass
class _Series:
    """One series of images: `files` by SOP Instance UID; `twice` are further files of the same instances."""

    uid: str
    sop_class: UID
    patient: str
    frame_of_reference: str
    files: dict[str, Path] = field(default_factory=dict)
    twice: list[Path] = field(default_factory=list)

    @property
    def where(self) -> str:
        return f"series {self.uid} ({min(path.name for path in self.files.values())}, {len(self.files)} files)"


@dataclass(frozen=True)
class _Mask:
    """One Segmentation: its header without pixels."""

    path: Path
    header: Dataset
    patient: str
    uid: str

    @property
    def where(self) -> str:
        return f"{self.path.name} (SEG {self.uid})"


@dataclass
class _Found:
    """What a folder holds: series by UID, Segmentations, files that could not be read, and what is left out."""

    series: dict[str, _Series] = field(default_factory=dict)
    masks: list[_Mask] = field(default_factory=list)
    damaged: list[Source] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def list_sources(folder: Path, names: Sequence[str], tell: Tell) -> list[Source]:
    """Return the MR series of `folder` that have a Segmentation, by pseudonym; an empty list where nothing is DICOM.

    Only headers are read. `names` are those of the labels, value i + 1 being `names[i]`. `tell` is told of series and
    objects that are left out. What is wrong with a file is raised when its source is read.

    Raises
    ------
    DatasetError
        `names` is empty, or no MR series has a Segmentation.
    """
    found = _scan(folder)
    if not (found.series or found.masks or found.damaged):
        return []
    if not names:
        raise DatasetError(f"{folder}: DICOM segmentations are read by the names of labels; give these")
    pairs, sources = _match(found)
    for uid, masks in pairs.items():
        sources.append(_source(found.series[uid], masks, names))
        if any(str(mask.header.get("Manufacturer", "")) == "pennode" for mask in masks):
            tell(f"{_all(masks)}: made by pennode itself; train on it only where a person has corrected it")
    _tell_of_the_rest(found, set(pairs), tell)
    if not sources and not found.damaged:
        raise DatasetError(f"{folder}: none of {len(found.series)} image series is MR with a segmentation (DICOM SEG)")
    return sorted(sources, key=lambda source: source.name) + found.damaged


def _identity(header: Dataset) -> str:
    """Return Patient ID and issuer, or "" for a patient without ID. It may stand in no message and no name."""
    number, issuer = (str(header.get(keyword) or "").strip() for keyword in ("PatientID", "IssuerOfPatientID"))
    return f"{number}\\{issuer}" if number else ""


def _name_patients(found: _Found) -> None:
    """Replace the identity of each patient by a pseudonym: twelve hexadecimal digits, of the lexically first series.

    A Segmentation's own series counts only for a patient without images, so that a new mask leaves the name as it was.
    """
    first: dict[str, str] = {}
    for one in sorted(found.series.values(), key=lambda one: one.uid):
        first.setdefault(one.patient, one.uid)
    for mask in sorted(found.masks, key=lambda mask: mask.uid):
        first.setdefault(mask.patient, str(mask.header.get("SeriesInstanceUID") or mask.uid))
    names = {patient: hashlib.sha256(uid.encode()).hexdigest()[:12] for patient, uid in first.items()} | {"": ""}
    for one in found.series.values():
        one.patient = names[one.patient]
    found.masks = [replace(mask, patient=names[mask.patient]) for mask in found.masks]


def _scan(folder: Path) -> _Found:
    found = _Found()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            with readable(path.name, "is DICOM, but damaged or cut short"):
                with path.open("rb") as file:
                    if file.read(132)[128:] != b"DICM":
                        found.others["no DICOM"] += 1
                        continue
                header = dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
                sop_class = UID(str(header.get("SOPClassUID") or header.file_meta.MediaStorageSOPClassUID))
                if sop_class in _MASKS:
                    found.masks.append(_Mask(path, header, _identity(header), str(header.SOPInstanceUID)))
                elif "SeriesInstanceUID" in header:
                    _add(found.series, path, header, sop_class)
                elif sop_class in _IMAGES:
                    found.damaged.append(broken(path.name, "has no Series Instance UID; it is damaged or cut short"))
                else:  # DICOMDIR, say
                    found.others[sop_class.name] += 1
        except PennodeError as error:
            found.damaged.append(broken(path.name, str(error).removeprefix(f"{path.name} ")))
    _name_patients(found)
    return found


def _add(series: dict[str, _Series], path: Path, header: Dataset, sop_class: UID) -> None:
    uid, instance = str(header.SeriesInstanceUID), str(header.SOPInstanceUID)
    one = series.setdefault(uid, _Series(uid, sop_class, _identity(header), str(header.get("FrameOfReferenceUID", ""))))
    if instance in one.files:
        one.twice.append(path)
    else:
        one.files[instance] = path


def _match(found: _Found) -> tuple[dict[str, list[_Mask]], list[Source]]:
    """Return the Segmentations of each MR series, and a source that fails for each that has none."""
    pairs: dict[str, list[_Mask]] = {}
    lost = []
    for mask in found.masks:
        try:
            with readable(mask.where, "is damaged or cut short"):
                candidates = _candidates(mask, found.series)
        except PennodeError as error:
            lost.append(broken(mask.where, str(error).removeprefix(f"{mask.where} "), mask.patient))
            continue
        suited = [one for one in candidates if one.sop_class in _IMAGES]
        if len(suited) == 1:
            pairs.setdefault(suited[0].uid, []).append(mask)
            continue
        if suited:
            reason = (
                f"belongs to {len(suited)} series, {' and '.join(one.uid for one in suited)}; keep one of them here"
            )
        elif candidates:
            reason = f"was made on {candidates[0].sop_class.name}, not on MR images; remove it"
        else:
            reason = "its series is not in the folder; add the MR images it was made on, or remove it"
        lost.append(broken(mask.where, reason, mask.patient))
    return pairs, lost


def _candidates(mask: _Mask, series: dict[str, _Series]) -> list[_Series]:
    """Return the series that a Segmentation names, else those whose images it names, else those in its place."""
    named = [str(item.SeriesInstanceUID) for item in mask.header.get("ReferencedSeriesSequence") or ()]
    found = [series[uid] for uid in dict.fromkeys(named) if uid in series]
    if not found:
        images = set(_references(dcmread(mask.path, stop_before_pixels=True)))
        found = [one for one in series.values() if images & set(one.files)]
    if not found and not named:
        place = str(mask.header.get("FrameOfReferenceUID", ""))
        found = [one for one in series.values() if place and one.frame_of_reference == place]
    return found


def _references(dataset: Dataset) -> Iterable[str]:
    """Yield the SOP Instance UIDs that the frames of a Segmentation were derived from."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or ()
    for group in (dataset, *shared, *(dataset.get("PerFrameFunctionalGroupsSequence") or ())):
        for holder in (group, *(group.get("DerivationImageSequence") or ())):
            for item in holder.get("SourceImageSequence") or ():
                yield str(item.ReferencedSOPInstanceUID)


def _source(series: _Series, masks: Sequence[_Mask], names: Sequence[str]) -> Source:
    where = f"{_all(masks)} on {series.where}"
    if not series.patient:
        return broken(
            where, "has no Patient ID, so nobody can tell whose it is; give each patient one, a pseudonym, say"
        )
    if any(mask.patient != series.patient for mask in masks):
        return broken(where, "image and segmentation name different patients (Patient ID)", series.patient)
    # UIDs and Patient IDs may lead to a person; names of cases go into reports.
    name = f"{series.patient}_{hashlib.sha256(series.uid.encode()).hexdigest()[:8]}"
    return Source(where, name, series.patient, partial(_read, where, series, masks, tuple(names)))


def _read(where: str, series: _Series, masks: Sequence[_Mask], names: Sequence[str]) -> Arrays:
    """Read one series and its mask, turned to the model's axes. Raises `DatasetError`."""
    try:
        marked: dict[int, _Mask] = {}
        for mask in masks:
            for value in set(label_values(mask.header, names).values()) - {0}:
                if value in marked:
                    both, label = _all([marked[value], mask]), names[value - 1]
                    raise DatasetError(f"{both}: both mark {label} on {series.where}; keep the one to train on")
                marked[value] = mask
            missing = _named(mask.header, series.uid) - set(series.files)
            if missing:
                raise DatasetError(f"{where}: {len(missing)} images of the series are missing; export the whole series")
        volume = read_series([*series.files.values(), *series.twice])
        values = np.zeros(volume.voxels.shape, np.uint8)
        for mask in masks:
            add_mask(values, mask.path, volume, names)
    except PennodeError as error:
        raise DatasetError(f"{where}: {error}") from error
    canonical = to_canonical(volume)
    return Arrays(canonical.voxels, turn(values, canonical.axes, canonical.flips), canonical.spacing)


def _named(header: Dataset, series_uid: str) -> set[str]:
    """Return the instances of a series that a Segmentation names in its Common Instance Reference module."""
    return {
        str(item.ReferencedSOPInstanceUID)
        for one in header.get("ReferencedSeriesSequence") or ()
        if str(one.SeriesInstanceUID) == series_uid
        for item in one.get("ReferencedInstanceSequence") or ()
    }


def _all(masks: Sequence[_Mask]) -> str:
    return " and ".join(mask.where for mask in masks)


def _tell_of_the_rest(found: _Found, used: set[str], tell: Tell) -> None:
    rest = [one for one in found.series.values() if one.uid not in used]
    left = [one.where for one in rest if one.sop_class in _IMAGES]
    if left:
        more = f" and {len(left) - _LISTED} more" if len(left) > _LISTED else ""
        tell(f"no segmentation, left out: {', '.join(left[:_LISTED])}{more}")
    others = Counter(found.others)
    for one in rest:
        if one.sop_class not in _IMAGES:
            others[one.sop_class.name] += len(one.files)
    if others:
        tell(f"other files, left out: {', '.join(f'{count} {kind}' for kind, count in sorted(others.items()))}")
