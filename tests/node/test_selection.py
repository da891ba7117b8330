"""Which series are segmented: every rule, and the default rules on what a hospital sends."""

from __future__ import annotations

import pytest
from pydicom import uid

from node.records import Instance
from node.selection import plane_of, select_series
from node.settings import Model, Selection
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


# -- models


SAG, AX, SHADOW = Model(name="sag", orientations=("sagittal",)), Model(name="ax"), Model(name="new", shadow=True)
ANY = Selection(orientations=(), body_parts=(), description_patterns=())


def test_without_models_a_series_goes_to_the_workers_default() -> None:
    verdict = select_series(series(), Selection())
    assert (verdict.wanted, verdict.model, verdict.shadows) == (True, "", ())


def test_the_first_model_that_is_no_shadow_and_agrees_takes_the_series() -> None:
    models = [SHADOW, SAG, AX]
    assert select_series(series(), ANY, models).model == "sag"
    assert select_series(series(orientation=AXIAL), ANY, models).model == "ax"
    assert select_series(series(), ANY, models[::-1]).model == "ax"


@pytest.mark.parametrize(
    ("rules", "agrees", "disagrees", "says"),
    [
        ({"body_parts": ["*SPINE*"]}, {"body_part": "cspine"}, {"body_part": "PELVIS"}, "body part is PELVIS"),
        ({"body_parts": ["*SPINE*"]}, {}, {"body_part": ""}, "no body part is given"),
        ({"description_patterns": ["*stir*"]}, {"series_description": "T2 STIR"}, {}, "no description matches"),
        (
            {"description_patterns": ["*stir*"]},
            {"protocol_name": "STIR"},
            {"body_part": "STIR"},
            "no description matches",
        ),
        (
            {"exclude_patterns": ["*dixon*"]},
            {},
            {"series_description": "t2 DIXON"},
            "the series description is excluded",
        ),
        ({"sequence_names": ["*se2d*"]}, {"sequence_name": "*SE2D1"}, {"sequence_name": "tfl"}, "sequence name is tfl"),
        ({"sequence_names": ["*se2d*"]}, {"sequence_name": "se2d"}, {}, "no sequence name is given"),
        ({"orientations": ["axial"]}, {"orientation": AXIAL}, {}, "slices are sagittal"),
        ({"orientations": ["axial"]}, {"orientation": ()}, {"orientation": CORONAL}, "slices are coronal"),
        ({"contrast": "required"}, {"contrast_agent": "Gd"}, {}, "no contrast agent is given"),
        ({"contrast": "absent"}, {}, {"contrast_agent": "Gd"}, "a contrast agent is given"),
        ({"min_slices": 16}, {"number_of_frames": 2}, {}, "15 slices"),
        ({"max_slices": 15}, {}, {"number_of_frames": 2}, "30 slices"),
    ],
)
def test_each_rule_of_a_model(rules: dict[str, object], agrees: dict, disagrees: dict, says: str) -> None:
    models = [Model(name="m", **rules)]  # type: ignore[arg-type]
    verdict = select_series(series(**agrees), ANY, models)
    assert (verdict.wanted, verdict.model) == (True, "m")
    assert "model m" in verdict.reason
    verdict = select_series(series(**disagrees), ANY, models)
    assert (verdict.wanted, verdict.model) == (False, "")
    assert verdict.reason == f"no model is for this series (m: {says})"
    assert "[[models]]" in verdict.next_step


def test_every_shadow_that_agrees_runs_beside_whether_or_not_the_series_has_a_model() -> None:
    shadows = [SHADOW, Model(name="a", shadow=True, orientations=("axial",))]
    assert select_series(series(), ANY, [AX, *shadows]).shadows == ("new",)
    verdict = select_series(series(orientation=AXIAL), ANY, [SAG, *shadows])
    assert (verdict.wanted, verdict.model, verdict.shadows) == (False, "", ("new", "a"))
    assert verdict.reason == "no model is for this series (sag: slices are axial)"


def test_where_only_shadows_are_listed_the_workers_default_serves() -> None:
    verdict = select_series(series(), ANY, [SHADOW])
    assert (verdict.wanted, verdict.model, verdict.shadows) == (True, "", ("new",))


def test_what_selection_does_not_want_has_no_shadow_but_keeps_its_model_for_a_retry() -> None:
    verdict = select_series(series(3), ANY, [AX, SHADOW])
    assert (verdict.wanted, verdict.model, verdict.shadows) == (False, "ax", ())
    assert "3 slices" in verdict.reason


def test_mixed_planes_are_no_choice_of_a_model_either() -> None:
    assert select_series([*series(8), *series(8, orientation=AXIAL)], ANY, [SAG, AX]).model == "sag"
