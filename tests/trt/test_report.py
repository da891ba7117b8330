from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trt.dataset import Case
from trt.lesions import TUMOUR, Weighting
from trt.manifest import Label
from trt.phantom import spine_phantom
from trt.report import markdown, sections, title
from trt.scores import NEOPLASM, measure, row, summary
from trt.trials import plan

LABELS = (Label(1, "vertebra"), Label(2, "spinal canal"), Label(3, "intervertebral disc"), Label(TUMOUR, NEOPLASM))


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """Of a model that knows the truth, and of one beside it that knows no tumours."""
    phantom = spine_phantom((6, 200, 160), (3.0, 0.9375, 0.9375), seed=4)
    case = Case("pt1", phantom.image.astype(np.float32), phantom.mask, (3.0, 0.9375, 0.9375))
    trials = [planned.build() for planned in plan([case], 1, (Weighting.T1_GADOLINIUM,))]
    models = []
    for name, labels in (("penn", LABELS), ("u-net", LABELS[:3])):
        scores = [measure(t, t.mask, labels, patch=(64, 64), patches=8, seconds=2.0) for t in trials]
        models.append(
            {
                "name": name,
                "version": "1.0.0",
                "sha256": "ab" * 32,
                "labels": [label.name for label in labels],
                "overlap": 0.5,
                "extraction": "all",
                "engine": "openvino f32",
                "figures": summary(scores, labels),
                "series": [row(score) for score in scores],
            }
        )
    return {
        "notice": "For research, not for diagnosis.",
        "scored": "held back",
        "patients": ["pt1"],
        "trials": {"series": 5, "simulated_per_patient": 2, "patches": 8},
        "rules": {"found_iou": 0.1, "min_volume_mm3": 14.0, "sizes_mm": (3.0, 8.0, 15.0, 40.0), "tta": False},
        "models": models,
        "seconds": 1.0,
    }


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_every_table_is_whole(report: dict[str, Any]) -> None:
    text = markdown(report)
    for part in text.split("\n\n"):
        widths = {len(cells) for cells in rows(part)}
        assert len(widths) <= 1, part
    assert "None" not in text
    assert "nan" not in text
    assert text.endswith("\n")


def test_the_papers_figures_stand_first_and_are_its_own(report: dict[str, Any]) -> None:
    table = rows(sections(report)["The paper's way: class-balanced patches"])
    assert table[2][4:] == ["90.6", "91.1", "93.2", "91.3", "83.8", "91.1"]
    assert [cells[0] for cells in table[3:]] == ["penn 1.0.0"] * 3 + ["u-net 1.0.0"] * 3 + ["penn 1.0.0"] * 3
    assert [cells[2] for cells in table[3:6]] == [
        "one pixel of each patch, that it was put about",
        "all pixels pooled",
        "mean over patches",
    ]


def test_what_is_simulated_is_called_so(report: dict[str, Any]) -> None:
    parts = sections(report)
    for cells in rows(parts["The paper's way: class-balanced patches"])[3:] + rows(parts["Labels in 3-D"]):
        if any("tumour" in cell for cell in cells):
            assert any("simulated" in cell for cell in cells), cells
    assert "No real tumour is among them" in parts["Lesions"]
    sizes, false = (rows(part) for part in parts["Lesions"].split("\n\n")[1:])
    assert all("simulated" in cells[0] for cells in sizes[2:])
    assert [cells[0] for cells in false[2:]] == [
        "as acquired, real",
        "inverted",
        "T1-like",
        "simulated, T1 after gadolinium",
    ]


def test_false_lesions_stand_there_without_any_true_one(report: dict[str, Any]) -> None:
    model = report["models"][0]
    figures = model["figures"] | {"tumour": {"as acquired": model["figures"]["tumour"]["as acquired"]}}
    text = sections(report | {"models": [model | {"figures": figures}]})["Lesions"]
    assert "sensitivity %" not in text
    assert "| as acquired, real | penn 1.0.0 | 1 | 0.0 | 1 | 0.0 | 0 |" in text


def test_figures_rendered_from_the_truth_are_said_to_flatter(report: dict[str, Any]) -> None:
    parts = sections(report)
    for heading in ("The paper's way: class-balanced patches", "Labels in 3-D", "Lesions", "Renderings"):
        assert "only 'inverted' is free of this" in parts[heading]
    alone = sections(report | {"models": report["models"][1:]})
    assert "flatter" not in alone["Labels in 3-D"]
    assert "flatter" in alone["Renderings"]


def test_a_model_without_tumours_has_no_rows_of_them(report: dict[str, Any]) -> None:
    alone = report | {"models": report["models"][1:]}
    parts = sections(alone)
    assert "Lesions" not in parts
    assert "tumour," not in "".join(" ".join(cells) for cells in rows(markdown(alone))[3:])


def test_the_title_owns_up(report: dict[str, Any]) -> None:
    assert title(report) == "penn 1.0.0 on 1 patient held back from training"
    assert "flatter" in title(report | {"scored": "trained on in part"})
    unknown = title(report | {"scored": "not known by name"})
    assert "not known to it by name" in unknown
    assert "held back" not in unknown
    assert "**For research, not for diagnosis.**" in markdown(report)


def test_the_share_of_foreground_is_counted(report: dict[str, Any]) -> None:
    model = report["models"][0]
    spine = model["figures"]["patches"]["spine"] | {"foreground_of_pixels": 0.375}
    model = model | {"figures": model["figures"] | {"patches": {"spine": spine}}}
    table = rows(sections(report | {"models": [model]})["The paper's way: class-balanced patches"])
    assert table[3][3] == "37.5"


def test_differences_stand_beside_other_renderings(report: dict[str, Any]) -> None:
    table = {cells[0]: cells for cells in rows(sections(report)["Renderings"])}
    assert table["as acquired"][3] == "100.0"
    assert table["inverted"][3] == "100.0 (+0.0)"
