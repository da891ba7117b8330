"""The least that passes as a result object of each form, as Part-10 files."""

from __future__ import annotations

from io import BytesIO

from pydicom import Dataset, uid

from node.forms import SOP_CLASSES, Form, Recipe
from node.records import RESEARCH_NOTICE
from tests.node.making import SERIES, STUDY, mr, seg, write


def items(*each: dict[str, object]) -> list[Dataset]:
    """Return sequence items with these attributes."""
    made = []
    for values in each:
        item = Dataset()
        for name, value in values.items():
            setattr(item, name, value)
        made.append(item)
    return made


def result(
    key: str, sop: str, *, series: str = SERIES, study: str = STUDY, of: str = "",
    syntax: str = uid.ExplicitVRLittleEndian, **values: object,
) -> bytes:  # fmt: skip
    """One object of the recipe that `key` names. `of` is the SOP Instance UID of the segmentation a report is of."""
    form = Recipe.parse(key).form
    if form in (Form.SEG, Form.LABELMAP, Form.FRACTIONAL):
        return seg(sop, series=series, study=study, **{"SOPClassUID": SOP_CLASSES[form], **values})
    ds = mr()
    if form is not Form.SC:
        del ds.PixelData
    ds.SOPClassUID, ds.SOPInstanceUID, ds.StudyInstanceUID = SOP_CLASSES[form], sop, study
    ds.SeriesInstanceUID = f"2.25.{list(Form).index(form) + 70}"
    image = {"ReferencedSOPClassUID": uid.MRImageStorage, "ReferencedSOPInstanceUID": f"{series}.1"}
    match form:
        case Form.SR:
            ds.Modality, ds.ContentSequence = "SR", items({"ValueType": "CONTAINER"})
            ds.ContentSequence[0].ContentSequence = items({"ValueType": "TEXT", "TextValue": RESEARCH_NOTICE})
            other = {"ReferencedSOPClassUID": uid.SegmentationStorage, "ReferencedSOPInstanceUID": of}
            named = [{"SeriesInstanceUID": series, "ReferencedSOPSequence": items(image)}]
            named += [{"SeriesInstanceUID": "2.25.7", "ReferencedSOPSequence": items(other)}] if of else []
            ds.CurrentRequestedProcedureEvidenceSequence = items(
                {"StudyInstanceUID": study, "ReferencedSeriesSequence": items(*named)}
            )
        case Form.SC | Form.SC_MULTIFRAME:
            ds.Modality, ds.ImageComments, ds.SourceImageSequence = "OT", RESEARCH_NOTICE, items(image)
        case Form.RTSTRUCT:
            ds.Modality, ds.StructureSetDescription = "RTSTRUCT", RESEARCH_NOTICE
            of_study = {
                "ReferencedSOPClassUID": "1.2.840.10008.3.1.2.3.1", "ReferencedSOPInstanceUID": study,
                "RTReferencedSeriesSequence": items({"SeriesInstanceUID": series}),
            }  # fmt: skip
            ds.ReferencedFrameOfReferenceSequence = items(
                {"FrameOfReferenceUID": "1.2.3.99", "RTReferencedStudySequence": items(of_study)}
            )
        case Form.GSPS:
            ds.Modality, ds.ContentDescription = "PR", RESEARCH_NOTICE
            ds.ReferencedSeriesSequence = items({"SeriesInstanceUID": series})
    for name, value in values.items():
        setattr(ds, name, value)
    buffer = BytesIO()
    write(ds, buffer, syntax)  # type: ignore[arg-type]
    return buffer.getvalue()
