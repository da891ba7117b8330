from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from trt import card
from trt.card import CardError, ablation_table, render, write_card
from trt.manifest import load


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
    ablation = {"steps": 600, "rows": [{"row": "whole", "seeds": seeds}, {"row": "no skips", "seeds": {}}]}
    text = ablation_table(ablation)
    assert "| whole | 85.0 ± 7.1 | 50.0 |" in text
    assert "| no skips | - | - |" in text
    assert "simulated" in text
    (model / "ablation.json").write_text(json.dumps(ablation))
    (model / "training.json").write_text(json.dumps({"steps": 12000}))
    card_text = write_card(load(model)).read_text(encoding="utf-8")
    assert "85.0 ± 7.1" in card_text
    assert "| steps | 12000 |" in card_text


def test_pictures_that_are_there_are_shown(model: Path) -> None:
    (model / "pictures").mkdir()
    (model / "pictures" / "simulated-missed.png").write_bytes(b"")
    text = render(load(model))
    assert "(pictures/simulated-missed.png)" in text
    assert "good.png" not in text


def test_the_command_line_writes_the_card_or_says_why_not(model: Path) -> None:
    app = Typer()
    app.command()(card.main)
    run = CliRunner().invoke(app, ["--model", str(model)], catch_exceptions=False)
    assert run.exit_code == 0
    assert (model / "MODEL_CARD.md").is_file()
    (model / "split.json").unlink()
    assert CliRunner().invoke(app, ["--model", str(model)]).exit_code == 2
