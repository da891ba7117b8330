"""Is this a series we segment, and with which model? Typed rules, with reasons in words a technologist understands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pydicom.uid import UID

from node.records import Header, Instance
from node.settings import Model, Selection


@dataclass(frozen=True)
class Verdict:
    """What selection says of a series, and why.

    `model` is the one that the series goes to, by name; empty: the default of whichever worker takes it. `shadows` run
    beside it, whether or not the series is `wanted` by a model of its own.
    """

    wanted: bool
    reason: str
    next_step: str = ""
    model: str = ""
    shadows: tuple[str, ...] = ()


def select_series(members: Sequence[Instance], rules: Selection, models: Sequence[Model] = ()) -> Verdict:
    """Judge a sealed series by `rules`, where the first that disagrees gives the reason, and choose among `models`.

    The first model that is no shadow and whose rules agree takes the series; where only shadows are listed, the
    workers' default does. Only what the headers can tell for sure is judged here. Faults of geometry or pixels are the
    worker's to find: it looks at every image and can name the one at fault.
    """
    header = members[0].header
    refusals = {model.name: _disagreement(members, header, model) for model in models}
    own = [model for model in models if not model.shadow]
    chosen = next((model.name for model in own if not refusals[model.name]), "")
    for check in (_modality, _sop_class, _excluded, _body_part, _contrast, _slices, _orientation):
        reason = check(members, header, rules)
        if reason:
            step = "nothing to do, unless it should be segmented: then retry it, or change [selection]"
            return Verdict(False, reason, step, chosen)
    shadows = tuple(model.name for model in models if model.shadow and not refusals[model.name])
    if chosen:
        return Verdict(
            True, f"agrees with every rule of selection, and with those of model {chosen}", "", chosen, shadows
        )
    if own:
        said = "; ".join(f"{model.name}: {refusals[model.name]}" for model in own)
        step = (
            "nothing to do, unless it should be segmented: then change [[models]]; a retry takes the workers' default"
        )
        return Verdict(False, f"no model is for this series ({said})", step, "", shadows)
    return Verdict(True, "agrees with every rule of selection", shadows=shadows)


def _disagreement(members: Sequence[Instance], header: Header, model: Model) -> str:
    """Return why a series is not for a model, in words; empty: it is."""
    texts = (header.series_description, header.protocol_name, header.study_description)
    if model.body_parts and not _matches(header.body_part, model.body_parts):
        return f"body part is {header.body_part}" if header.body_part else "no body part is given"
    if model.description_patterns and not any(_matches(text, model.description_patterns) for text in texts):
        return "no description matches"
    if _matches(header.series_description, model.exclude_patterns):
        return "the series description is excluded"
    if model.sequence_names and not _matches(header.sequence_name, model.sequence_names):
        return f"sequence name is {header.sequence_name}" if header.sequence_name else "no sequence name is given"
    if model.contrast != "any" and (model.contrast == "required") != bool(header.contrast_agent):
        return "a contrast agent is given" if header.contrast_agent else "no contrast agent is given"
    slices = sum(m.header.number_of_frames for m in members)
    if not model.min_slices <= slices <= model.max_slices:
        return f"{slices} slices"
    planes = {plane_of(m.header.orientation) for m in members} - {""}
    if model.orientations and len(planes) == 1 and not planes <= set(model.orientations):
        return f"slices are {planes.pop()}"
    return ""


def _matches(text: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(text.lower(), pattern.lower()) for pattern in patterns)


def _modality(members: Sequence[Instance], header: Header, rules: Selection) -> str:
    wanted = {m.upper() for m in rules.modalities}
    found = sorted({m.header.modality.upper() or "none" for m in members} - wanted)
    return f"modality is {', '.join(found)}, not {' or '.join(sorted(wanted))}" if wanted and found else ""


def _sop_class(members: Sequence[Instance], header: Header, rules: Selection) -> str:
    found = sorted({UID(m.sop_class_uid).name for m in members} - set(rules.sop_classes))
    return f"holds {', '.join(found)}, which is not segmented" if rules.sop_classes and found else ""


def _excluded(members: Sequence[Instance], header: Header, rules: Selection) -> str:
    for pattern in rules.exclude_patterns:
        if _matches(header.series_description, [pattern]):
            return f"the series description matches {pattern!r} in selection.exclude_patterns"
    if any("LOCALIZER" in (v.upper() for v in m.header.image_type) for m in members):
        return "it is a localizer (Image Type)"
    return ""


def _body_part(members: Sequence[Instance], header: Header, rules: Selection) -> str:
    if header.body_part:
        if rules.body_parts and not _matches(header.body_part, rules.body_parts):
            return f"body part is {header.body_part}, which no pattern in selection.body_parts covers"
        return ""
    texts = (header.series_description, header.protocol_name, header.study_description)
    if rules.description_patterns and not any(_matches(t, rules.description_patterns) for t in texts):
        return "no body part is given, and no description names the spine (selection.description_patterns)"
    return ""


def _contrast(members: Sequence[Instance], header: Header, rules: Selection) -> str:
    if rules.contrast == "required" and not header.contrast_agent:
        return "no contrast agent is given, and selection.contrast is 'required'"
    if rules.contrast == "absent" and header.contrast_agent:
        return "a contrast agent is given, and selection.contrast is 'absent'"
    return ""


def _slices(members: Sequence[Instance], header: Header, rules: Selection) -> str:
    slices = sum(m.header.number_of_frames for m in members)
    if slices < rules.min_slices:
        return f"{slices} slices, fewer than {rules.min_slices}: a localizer, or a series that did not arrive whole"
    if slices > rules.max_slices:
        return f"{slices} slices, more than {rules.max_slices}"
    return ""


def _orientation(members: Sequence[Instance], header: Header, rules: Selection) -> str:
    planes = {plane_of(m.header.orientation) for m in members} - {""}
    # Mixed planes are a fault of the series, not a choice: the worker rejects it and names the images.
    if rules.orientations and len(planes) == 1 and not planes <= set(rules.orientations):
        return f"slices are {planes.pop()}, not {' or '.join(rules.orientations)}"
    return ""


def plane_of(orientation: Sequence[float]) -> str:
    """Name the plane nearest to an ImageOrientationPatient (PS3.3 C.7.6.2.1.1), or '' when there is none."""
    if len(orientation) != 6:
        return ""
    rx, ry, rz, cx, cy, cz = orientation
    normal = (abs(ry * cz - rz * cy), abs(rz * cx - rx * cz), abs(rx * cy - ry * cx))
    return ("sagittal", "coronal", "axial")[normal.index(max(normal))]
