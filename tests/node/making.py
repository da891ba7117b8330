"""What the node's tests make: instances for the ledger, images for the network, jobs in any state."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pynetdicom.dsutils import split_dataset

from node.errors import NotFound
from node.ledger import Ledger
from node.records import RESEARCH_NOTICE, Claim, Header, Instance, Result
from node.states import JobState

T0 = 1_700_000_000.0
SERIES, STUDY = "1.2.3.10", "1.2.3.1"


def instance(number: int = 1, series: str = SERIES, *, content: str = "", at: float = T0, **values) -> Instance:
    """One received MR image, number `number` of its series; `content` stands for its bytes."""
    sop = f"{series}.{number}"
    digest = hashlib.sha256(f"{sop} {content}".encode()).hexdigest()
    header = {"modality": "MR", "series_description": "t2_sag", "instance_number": number, **values.pop("header", {})}
    fields = {
        "sop_uid": sop, "sop_class_uid": uid.MRImageStorage, "series_uid": series, "study_uid": STUDY,
        "transfer_syntax_uid": uid.ExplicitVRLittleEndian, "sha256": digest, "size": 1000,
        "path": f"series/{series}/{sop}-{digest[:16]}.dcm", "calling_ae": "SCANNER", "called_ae": "PENNODE",
        "peer": "127.0.0.1", "received_at": at,
    }  # fmt: skip
    return Instance(**{**fields, **values}, header=Header(**header))


def seal(ledger: Ledger, series: str = SERIES, *, wanted: bool = True, now: float = T0 + 10, **models) -> str | None:
    """Seal a series as it stands; `models` are the `model` and the `shadows` it is for."""
    seen = next(s for s in ledger.receiving() if s.series_uid == series)
    verdict, step = ("agrees", "") if wanted else ("it is a localizer", "nothing to do")
    return ledger.seal(
        seen,
        ledger.series_instances(series),
        "complete",
        wanted=wanted,
        verdict=verdict,
        next_step=step,
        now=now,
        **models,
    )


def sealed(
    ledger: Ledger, series: str = SERIES, images: int = 3, *, wanted: bool = True, now: float = T0 + 10, **models
) -> str:
    """Receive a series, seal it, and return its own job's id."""
    for number in range(1, images + 1):
        ledger.record(instance(number, series))
    job = seal(ledger, series, wanted=wanted, now=now, **models)
    assert job is not None
    return job


def with_shadow(ledger: Ledger, series: str = SERIES, *, model: str = "own", now: float = T0 + 10) -> tuple[str, str]:
    """Receive and seal a series that two models are for; return the ids of its own job and of its shadow."""
    own = sealed(ledger, series, now=now, model=model, shadows=["other"])
    (shadow,) = (one.id for one in ledger.siblings(ledger.job(own)) if one.revision == ledger.job(own).revision)
    return own, shadow


def claim(
    ledger: Ledger, job: str, worker: str = "w1", *, now: float = T0 + 20, lease_s: float = 60.0, cap: int = 3, **more
):
    """Claim a job for a worker, which has the model that the job is for."""
    with contextlib.suppress(NotFound):
        more.setdefault("served", [ledger.job(job).wanted_model])
    return ledger.claim(job, worker, lease_s=lease_s, max_attempts=cap, now=now, **more)


def results(job: str, count: int = 1, fence: int = 1) -> list[Result]:
    """Results as a worker would bring them."""
    return [
        Result(f"2.25.{n}", uid.SegmentationStorage, job, f"results/{job}/{fence}/2.25.{n}.dcm", 10, "0" * 64)
        for n in range(1, count + 1)
    ]


def finish(ledger: Ledger, held: Claim, to: tuple[str, ...] = ("pacs",), *, count: int = 1, now: float = T0 + 30):
    """Bring the results of a claimed job."""
    ledger.finish(
        held.job_id,
        held.fence,
        results(held.job_id, count, held.fence),
        {name: ["SEG"] for name in to},
        model="penn",
        note="segmented",
        now=now,
    )


def in_state(ledger: Ledger, state: JobState, series: str = SERIES) -> str:
    """A job brought to `state` by the moves that lead there in life."""
    if state is JobState.STORED:
        _, job = with_shadow(ledger, series)
    else:
        job = sealed(ledger, series, wanted=state is not JobState.SKIPPED)
    if state in (JobState.READY, JobState.SKIPPED):
        return job
    if state is JobState.QUEUED:
        ledger.mark_queued(job, T0 + 15)
    elif state is JobState.CANCELLED:
        ledger.cancel(job, "test", T0 + 15)
    elif state is JobState.SUPERSEDED:
        ledger.record(instance(99, series))
        seal(ledger, series)
    else:
        held = claim(ledger, job)
        if state in (JobState.REJECTED, JobState.FAILED):
            ledger.fail(job, held.fence, state, "segment", "no good", "look", now=T0 + 30)
        elif state is not JobState.RUNNING:
            finish(ledger, held)
            if state is JobState.DELIVERED:
                for item in ledger.deliveries(job):
                    ledger.start_sending(item.id, T0 + 40)
                    ledger.sent(item.id, "stored", T0 + 40)
    assert ledger.job(job).state is state
    return job


# -- DICOM objects


def mr(number: int = 1, series: str = SERIES, *, size: int = 16, **values) -> Dataset:
    """One classic sagittal MR image with a patient in it."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    ds.SOPClassUID, ds.SOPInstanceUID = uid.MRImageStorage, f"{series}.{number}"
    ds.StudyDate, ds.Modality, ds.Manufacturer = "20260101", "MR", "Maker"
    ds.StudyDescription, ds.SeriesDescription = "LSPINE", "t2_sag"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Secretname^Zoe", "PID-73519", "19700101"
    ds.BodyPartExamined = "LSPINE"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = STUDY, series, "1.2.3.99"
    ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = 5, 1, number
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [4.0 * number, -100, 100], [0, 1, 0, 0, 0, -1]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = size
    ds.PixelSpacing, ds.SliceThickness = [0.5, 0.5], 4
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    pixels = np.arange(size * size, dtype="<u2") % 4096 + number
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW"
    for name, value in values.items():
        setattr(ds, name, value)
    return ds


def write(ds: Dataset, path: Path, syntax: str = uid.ExplicitVRLittleEndian) -> Path:
    """Write a Part-10 file in an uncompressed (or the deflated) transfer syntax."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
    if syntax == uid.ExplicitVRBigEndian:
        ds["PixelData"].value = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    return path


def encoded(ds: Dataset, syntax: str = uid.ExplicitVRLittleEndian) -> bytes:
    """The bytes of a data set alone, as C-STORE carries them."""
    buffer = BytesIO()
    write(ds, buffer, syntax)  # type: ignore[arg-type]
    return data_set(buffer.getvalue())


def data_set(file: Path | bytes) -> bytes:
    """The bytes of a Part-10 file after its file meta information."""
    if isinstance(file, bytes):
        length = int.from_bytes(file[140:144], "little")  # (0002,0000) comes first, explicit VR little endian
        return file[144 + length :]
    return file.read_bytes()[split_dataset(file)[1] :]


def seg(sop: str = "2.25.77", *, series: str = SERIES, study: str = STUDY, **values) -> bytes:
    """The least that passes as a segmentation of a series, as a Part-10 file."""
    ds = mr()
    del ds.PixelData
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = uid.SegmentationStorage, sop, "SEG"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, "2.25.7"
    referenced = Dataset()
    referenced.SeriesInstanceUID = series
    ds.ReferencedSeriesSequence = [referenced]
    ds.ContentDescription = RESEARCH_NOTICE
    for name, value in values.items():
        setattr(ds, name, value)
    buffer = BytesIO()
    write(ds, buffer)  # type: ignore[arg-type]
    return buffer.getvalue()


def open_below(folder: Path) -> list[str]:
    """The files below `folder` that this process has open, those without a name included."""
    targets = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            targets.append(str(link.readlink()))
    return [target for target in targets if target.startswith(f"{folder}/")]


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder."""
    return (p for p in folder.rglob("*") if p.is_file())
