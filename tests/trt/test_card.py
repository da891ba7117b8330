from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

from trt import card
from trt.card import CardError, ablation_table, pareto_table, render, write_card
from trt.manifest import load
from trt.scores import SIZES, summary


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The committed model, without figures."""
    folder = tmp_path / "model"
    folder.mkdir()
    source = load().path.parent
    for path in (*source.glob("*.onnx"), source / "manifest.json", source / "split.json"):
        shutil.copy(path, folder)
    return folder


def test_a_card_without_figures_says_so(model: Path) -> None:
    text = render(load(model))
    assert "Not yet measured" in text
    assert "For research, not for diagnosis" in text
    assert load(model).digest in text
    assert "\n\n\n\n" not in text


def test_the_committed_model_has_words_of_its_own(model: Path) -> None:
    shutil.copy(load().path.with_name("MODEL_CARD.md.jinja"), model)
    text = render(load(model))
    assert "SPIDER" in text
    assert "reconstruction" in text
    assert text.startswith(f"# {load(model).name} {load(model).version}\n")


def test_figures_of_other_weights_are_refused(model: Path) -> None:
    (model / "figures.json").write_text(json.dumps({"models": [{"sha256": "0" * 64}]}))
    with pytest.raises(CardError, match="other weights"):
        render(load(model))


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_file_is_named(model: Path, content: str) -> None:
    (model / "ablation.json").write_text(content)
    with pytest.raises(CardError, match=r"ablation\.json"):
        render(load(model))


def test_what_the_template_asks_for_and_no_file_has_is_an_error(model: Path) -> None:
    (model / "MODEL_CARD.md.jinja").write_text("{{ model.figures.dice }} {{ sensitivity }}")
    with pytest.raises(CardError, match="model"):
        render(load(model))


def test_the_ablation_is_mean_and_sd_over_seeds(model: Path) -> None:
    seeds = {"0": {"vertebra": 0.9, "tumour": 0.5}, "1": {"vertebra": 0.8, "tumour": float("nan")}}
    ablation = {
        "steps": 600,
        "rows": [{"row": "whole", "seeds": seeds, "patch_ms": 8.04}, {"row": "no skips", "seeds": {}, "patch_ms": 7.0}],
    }
    text = ablation_table(ablation)
    assert "| whole | 85.0 ± 7.1 | 50.0 | 8.0 |" in text
    assert "| no skips | - | - | 7.0 |" in text
    assert "simulated" in text
    assert "rendered from the true masks" in text
    assert "mean ± sd over up to 2 seeds" in text
    (model / "ablation.json").write_text(json.dumps(ablation))
    (model / "training.json").write_text(json.dumps({"steps": 12000}))
    card_text = write_card(load(model)).read_text(encoding="utf-8")
    assert "85.0 ± 7.1" in card_text
    assert "| steps | 12000 |" in card_text


def test_one_seed_has_no_spread() -> None:
    text = ablation_table(
        {"steps": 600, "rows": [{"row": "whole", "seeds": {"0": {"vertebra": 0.9}}, "patch_ms": 8.0}]}
    )
    assert "one seed, no spread" in text
    assert "±" not in text


def figures_of(model: Path, pictures: list[str]) -> dict[str, Any]:
    manifest = load(model)
    return {
        "scored": "held back",
        "patients": ["p0"],
        "trials": {"series": 0, "simulated_per_patient": 0, "patches": 8},
        "rules": {"found_iou": 0.1, "min_volume_mm3": 14.0, "sizes_mm": SIZES, "tta": False},
        "models": [
            {
                "name": manifest.name,
                "version": manifest.version,
                "sha256": manifest.digest,
                "overlap": 0.25,
                "extraction": "spine",
                "engine": "openvino f32",
                "figures": summary([], manifest.labels),
                "series": [],
            }
        ],
        "pictures": pictures,
    }


def test_pictures_that_belong_to_the_figures_are_shown(model: Path) -> None:
    (model / "pictures").mkdir()
    for name in ("simulated-missed", "worst"):
        (model / "pictures" / f"{name}.png").write_bytes(b"")
    assert ".png" not in render(load(model))
    (model / "figures.json").write_text(json.dumps(figures_of(model, ["simulated-missed", "good"])))
    text = render(load(model))
    assert "(pictures/simulated-missed.png)" in text
    assert "worst.png" not in text
    assert "good.png" not in text


def test_figures_of_an_earlier_form_are_refused(model: Path) -> None:
    figures = figures_of(model, [])
    del figures["models"][0]["figures"]["series"]
    (model / "figures.json").write_text(json.dumps(figures))
    with pytest.raises(CardError, match=r"figures\.json.*--record again"):
        render(load(model))


def test_what_flatters_is_among_the_limits(model: Path) -> None:
    assert "only 'inverted' is free of this" in " ".join(render(load(model)).split())
    shutil.copy(load().path.with_name("MODEL_CARD.md.jinja"), model)
    assert "only 'inverted' is free of this" in " ".join(render(load(model)).split())


def test_the_command_line_writes_the_card_or_says_why_not(model: Path) -> None:
    app = Typer()
    app.command()(card.main)
    run = CliRunner().invoke(app, ["--model", str(model)], catch_exceptions=False)
    assert run.exit_code == 0
    assert (model / "MODEL_CARD.md").is_file()
    (model / "split.json").unlink()
    assert CliRunner().invoke(app, ["--model", str(model)]).exit_code == 2


def pareto_row(extraction: str, fitted: bool, cpu_s: float) -> dict[str, Any]:
    return {
        "extraction": extraction,
        "overlap": 0.25,
        "fitted": fitted,
        "precision": "f32",
        "patches": 21.0,
        "pixels": 1_070_000.0,
        "cpu_s": cpu_s,
        "select_s": 0.1,
        "kept": 0.9999,
        "dice": {"vertebra": 0.9375},
        "mean": 0.91,
    }


def test_what_a_selection_saves_is_told_beside_the_same_patches_run_everywhere() -> None:
    rows = [
        pareto_row("all", False, 3.0),
        pareto_row("spine", False, 2.0),
        pareto_row("all", True, 1.5),
        pareto_row("spine", True, 1.1),
    ]
    lines = pareto_table({"series": 6, "rows": rows}).splitlines()
    assert "| spine | own | f32 | 0.25 | 21 | 1.07 | 2.00 | 1.00 | 93.75 | 91.00 | 99.990 |" in lines
    assert "| spine | fitted | f32 | 0.25 | 21 | 1.07 | 1.10 | 0.40 | 93.75 | 91.00 | 99.990 |" in lines


def test_a_table_of_patches_of_other_weights_is_refused(model: Path) -> None:
    (model / "pareto.json").write_text(json.dumps({"sha256": "0" * 64, "rows": []}))
    with pytest.raises(CardError, match=r"pareto\.json: figures of other weights"):
        render(load(model))
