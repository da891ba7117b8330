"""Which series are segmented: every rule, and the default rules on what a hospital sends."""

from __future__ import annotations

import pytest
from pydicom import uid

from node.records import Instance
from node.selection import plane_of, select_series
from node.settings import Selection
from tests.node.making import instance

SAGITTAL, CORONAL, AXIAL = (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1), (1, 0, 0, 0, 1, 0)
OBLIQUE = (0.1, 0.99, 0.05, 0.05, 0.02, -0.99)


def series(count: int = 15, sop_class: str = uid.MRImageStorage, **header) -> list[Instance]:
    values = {
        "modality": "MR", "body_part": "LSPINE", "series_description": "t2_tse_sag", "orientation": SAGITTAL,
        "image_type": ("ORIGINAL", "PRIMARY", "M"), **header,
    }  # fmt: skip
    return [instance(n, sop_class_uid=sop_class, header=values) for n in range(1, count + 1)]


@pytest.mark.parametrize(
    "members",
    [
        series(),
        series(orientation=OBLIQUE),
        series(orientation=()),
        series(body_part="", series_description="T2 TSE SAG LWS"),
        series(body_part="", protocol_name="C-Spine routine"),
        series(body_part="", study_description="IRM rachis"),
        series(body_part="cspine"),
        series(7),
        series(1, uid.EnhancedMRImageStorage, number_of_frames=15),
        series(contrast_agent="Gadovist"),
    ],
)
def test_spine_series_are_taken_by_default(members: list[Instance]) -> None:
    assert select_series(members, Selection()).wanted


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (series(sop_class=uid.CTImageStorage, modality="CT"), "modality is CT, not MR"),
        (series(modality=""), "modality is none, not MR"),
        (series(sop_class=uid.SecondaryCaptureImageStorage), "holds Secondary Capture Image Storage"),
        (series(sop_class="1.2.3.4"), "holds 1.2.3.4, which is not segmented"),
        (series(3), "3 slices, fewer than 7: a localizer, or a series that did not arrive whole"),
        (series(1025), "1025 slices, more than 1024"),
        (series(1, uid.EnhancedMRImageStorage, number_of_frames=3), "3 slices, fewer than 7"),
        (series(3, series_description="Localizer"), "matches '*localizer*' in selection.exclude_patterns"),
        (series(3, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")), "it is a localizer (Image Type)"),
        (series(series_description="t2_haste_MYELO"), "'*myelo*'"),
        (series(orientation=AXIAL), "slices are axial, not sagittal"),
        (series(orientation=CORONAL), "slices are coronal, not sagittal"),
        (series(body_part="BRAIN"), "body part is BRAIN, which no pattern in selection.body_parts covers"),
        (series(body_part="BRAIN", series_description="spine"), "body part is BRAIN"),
        (series(body_part="", series_description="t2_sag"), "no body part is given, and no description names"),
    ],
)
def test_others_are_skipped_by_default_with_the_reason(members: list[Instance], reason: str) -> None:
    verdict = select_series(members, Selection())
    assert not verdict.wanted
    assert reason in verdict.reason
    assert "retry it, or change [selection]" in verdict.next_step


@pytest.mark.parametrize(
    ("rules", "members", "reason"),
    [
        ({"contrast": "required"}, series(), "no contrast agent is given"),
        ({"contrast": "required"}, series(contrast_agent="Gadovist"), ""),
        ({"contrast": "absent"}, series(contrast_agent="Gadovist"), "a contrast agent is given"),
        ({"contrast": "absent"}, series(), ""),
        ({"modalities": ["mr", "CT"]}, series(), ""),
        ({"modalities": []}, series(modality="XX"), ""),
        ({"modalities": ["CT", "PT"]}, series(), "modality is MR, not CT or PT"),
        ({"sop_classes": []}, series(sop_class="1.2.3.4"), ""),
        ({"sop_classes": ["Enhanced MR Image Storage"]}, series(), "holds MR Image Storage"),
        ({"orientations": []}, series(orientation=AXIAL), ""),
        ({"orientations": ["axial", "coronal"]}, series(), "slices are sagittal, not axial or coronal"),
        ({"min_slices": 15}, series(), ""),
        ({"min_slices": 16}, series(), "fewer than 16"),
        ({"max_slices": 14}, series(), "more than 14"),
        ({"body_parts": []}, series(body_part="BRAIN"), ""),
        ({"description_patterns": ["*knee*"]}, series(body_part=""), "no description names"),
        ({"description_patterns": []}, series(body_part="", series_description="x"), ""),
        ({"exclude_patterns": []}, series(series_description="myelo"), ""),
        ({"exclude_patterns": ["t2_tse_sag"]}, series(), "'t2_tse_sag'"),
    ],
)
def test_each_rule_by_itself(rules: dict[str, object], members: list[Instance], reason: str) -> None:
    verdict = select_series(members, Selection(**rules))  # type: ignore[arg-type]
    assert verdict.wanted is (reason == "")
    assert reason in verdict.reason


def test_one_strange_image_is_enough_to_name_its_modality() -> None:
    verdict = select_series([*series(), *series(1, modality="OT")], Selection())
    assert verdict.reason == "modality is OT, not MR"


def test_mixed_planes_are_left_to_the_worker() -> None:
    assert select_series([*series(8), *series(8, orientation=AXIAL)], Selection()).wanted


@pytest.mark.parametrize(
    ("orientation", "plane"),
    [(SAGITTAL, "sagittal"), (CORONAL, "coronal"), (AXIAL, "axial"), (OBLIQUE, "sagittal"), ((), ""), ((1, 0), "")],
)
def test_planes(orientation: tuple[float, ...], plane: str) -> None:
    assert plane_of(orientation) == plane
