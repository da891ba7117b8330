from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from trt import evaluate as evaluating
from trt.candidates import Candidate, mirrored
from trt.dataset import Case, DatasetError, read_folder, read_split
from trt.engine import open_engine
from trt.evaluate import choose_cases, evaluate, require_alike, require_recordable
from trt.manifest import ManifestError, load
from trt.patches import NonFiniteOutput
from trt.phantom import spine_phantom
from trt.scores import summary
from trt.trials import Plan, Rendering, plan

BOUNDS = {"vertebra": 0.85, "spinal canal": 0.85, "intervertebral disc": 0.75}


def spine_data() -> Path:
    root = Path(os.environ.get("SPINE_DATA", Path(__file__).parents[3] / "shared" / "data"))
    folder = root / "spider_t2space"
    if not folder.is_dir():
        pytest.skip(f"no spine data in {folder} (SPINE_DATA)")
    return folder


def test_the_folder_of_spine_data_is_the_root_for_all_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spider_t2space").mkdir()
    monkeypatch.setenv("SPINE_DATA", str(tmp_path))
    assert spine_data() == tmp_path / "spider_t2space"


def test_the_data_to_judge_a_model_on_are_named_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPINE_DATA", str(tmp_path))
    app = Typer()
    app.command()(evaluating.main)
    run = CliRunner().invoke(app, [])
    assert run.exit_code == 2
    assert "--data" in run.output


@pytest.mark.slow
def test_the_committed_model_on_patients_held_back() -> None:
    folder, manifest = spine_data(), load()
    split = read_split(manifest.path.with_name("split.json"))
    cases = read_folder(folder, len(manifest.labels), split.validation)
    plans = [Plan(case, Rendering.ACQUIRED) for case in cases]
    with open_engine(manifest) as engine:
        (scores,) = evaluate(plans, [Candidate(manifest, engine, overlap=0.25)])
    figures = {name: label["dice"] for name, label in summary(scores, manifest.labels)["labels"].items()}
    assert {case.patient for case in cases} == set(split.validation)
    for name, bound in BOUNDS.items():
        assert figures[name]["mean"] >= bound, figures
        assert figures[name]["worst"] >= bound - 0.15, figures


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "penn-spline"],
        ["--backend", "cuda"],
        ["--precision", "f64"],
        ["--data", "/nowhere"],
        ["--overlap", "0.8"],
        ["--extraction", "bone"],
        ["--patients", "p9"],
        ["--patients", "p1,nobody"],
        ["--baseline", "/nowhere"],
        ["--training-too", "--record"],
        ["--patients", "p1", "--record"],
        ["--tta", "--record"],
        ["--overlap", "0.5", "--record"],
        ["--extraction", "all", "--record"],
        ["--json", "/nowhere/figures.json"],
        ["--markdown", "/nowhere/tables.md"],
        ["--pictures", "/dev/null/pictures"],
    ],
)
def test_what_the_command_line_cannot_do_it_says(model: Path, arguments: list[str]) -> None:
    app = Typer()
    app.command()(evaluating.main)
    run = CliRunner().invoke(app, ["--data", str(model.parent), "--model", str(model), *arguments])
    assert run.exit_code == 2
    assert "Error" in run.output


def test_a_perfect_network_scores_one() -> None:
    manifest = load()
    phantom = spine_phantom((3, 130, 140), (2.0, 2.0, 2.0), seed=2)
    case = Case("a", phantom.mask.astype(np.float32) * 85, phantom.mask)  # normalised to thirds by the percentiles

    def predict(patches: np.ndarray) -> np.ndarray:
        centre = np.rint(patches[:, 1] * 3).astype(int)
        return np.eye(manifest.classes, dtype=np.float32)[centre].transpose(0, 3, 1, 2).copy()

    ((score,),) = evaluate(plan([case])[:1], [Candidate(manifest, predict)])
    assert {label.dice for label in score.labels.values()} == {1.0}
    assert set(score.spine.figures().values()) == {1.0}
    assert score.seconds > 0


def test_mirroring_sees_the_channels_in_both_orders() -> None:
    def first(patches: np.ndarray) -> np.ndarray:
        assert patches.flags.c_contiguous
        return patches[:, :1].copy()

    patches = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    both = mirrored(first)(patches)
    assert np.allclose(both[:, 0], (patches[:, 0] + patches[:, 2]) / 2)
    assert np.array_equal(both, mirrored(first)(patches[:, ::-1].copy()))
    assert both.dtype == np.float32


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The committed model, its split naming two phantoms."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (*load().path.parent.glob("*.onnx"), load().path.with_name("manifest.json")):
        shutil.copy(path, folder)
    (folder / "split.json").write_text(json.dumps({"train": ["p9"], "validation": ["p0", "p1"], "seed": 0}))
    for n in range(2):
        phantom = spine_phantom((3, 200, 200), (3.0, 0.9375, 0.9375), n)
        np.savez(tmp_path / f"p{n}.npz", image=phantom.image, mask=phantom.mask)
    return folder


def test_patients_trained_on_are_never_scored_by_the_way(model: Path) -> None:
    manifests, data = [load(model)], model.parent
    cases, scored = choose_cases(data, manifests, "held-back", False)
    assert ([case.patient for case in cases], scored) == (["p0", "p1"], "held back")
    assert choose_cases(data, manifests, "p1", False)[1] == "held back"
    (model / "split.json").write_text(json.dumps({"train": ["p9"], "validation": ["p0"], "seed": 0}))
    assert choose_cases(data, manifests, "all", False)[1] == "not trained on"
    (model / "split.json").write_text(json.dumps({"train": ["q9"], "validation": ["q0"], "seed": 0}))
    assert choose_cases(data, manifests, "all", False)[1] == "not known by name"
    (model / "split.json").write_text(json.dumps({"train": ["p1"], "validation": ["p0"], "seed": 0}))
    with pytest.raises(DatasetError, match=r"1 of 2 patients .*p1"):
        choose_cases(data, manifests, "all", False)
    cases, scored = choose_cases(data, manifests, "all", True)
    assert ([case.patient for case in cases], scored) == (["p0", "p1"], "trained on in part")


def test_a_baseline_trained_on_the_patients_is_refused_too(model: Path, tmp_path: Path) -> None:
    baseline = tmp_path / "baseline"
    shutil.copytree(model, baseline)
    (baseline / "split.json").write_text(json.dumps({"train": ["p0"], "validation": ["p1"], "seed": 0}))
    with pytest.raises(DatasetError, match="p0"):
        choose_cases(model.parent, [load(model), load(baseline)], "held-back", False)


def test_models_that_one_truth_cannot_judge_are_not_compared() -> None:
    manifest = load()
    require_alike([manifest, replace(manifest, labels=manifest.labels[:-1])])
    with pytest.raises(ManifestError, match=r"1 x 1 mm"):
        require_alike([manifest, replace(manifest, spacing_mm=(1.0, 1.0))])
    with pytest.raises(ManifestError, match="same order"):
        require_alike([manifest, replace(manifest, labels=manifest.labels[::-1])])


def test_only_what_serving_does_is_recorded(model: Path) -> None:
    manifest = load(model)
    cases = read_folder(model.parent, len(manifest.labels), ["p0", "p1"])
    usual = Candidate(manifest, lambda patches: patches, extraction="spine" if manifest.finder else "tissue")
    require_recordable(usual, cases, tta=False)
    require_recordable(replace(usual, overlap=manifest.overlap), cases, tta=False)
    with pytest.raises(ValueError, match="not scored: p1"):
        require_recordable(usual, cases[:1], tta=False)
    with pytest.raises(ValueError, match="not held back: p2"):
        require_recordable(usual, [*cases, replace(cases[0], group="p2")], tta=False)
    with pytest.raises(ValueError, match="--tta"):
        require_recordable(usual, cases, tta=True)
    with pytest.raises(ValueError, match="overlap"):
        require_recordable(replace(usual, overlap=0.0), cases, tta=False)
    with pytest.raises(ValueError, match="extraction"):
        require_recordable(replace(usual, extraction="all"), cases, tta=False)


def test_a_card_that_cannot_be_written_is_told_before_the_work(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "evaluate", lambda *_, **__: pytest.fail("the trials ran"))
    (model / "MODEL_CARD.md.jinja").write_text("{% if model %}{{ sensitivity }}{% endif %}")
    app = Typer()
    app.command()(evaluating.main)
    arguments = ["--data", str(model.parent), "--model", str(model), "--record"]
    run = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert run.exit_code == 2
    assert "sensitivity" in run.output


def test_a_network_that_returns_nan_is_told_without_a_traceback(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise NonFiniteOutput("the network returned NaN")

    monkeypatch.setattr(evaluating, "evaluate", broken)
    app = Typer()
    app.command()(evaluating.main)
    run = CliRunner().invoke(app, ["--data", str(model.parent), "--model", str(model)], catch_exceptions=False)
    assert run.exit_code == 1
    assert "returned NaN" in run.output


def test_the_command_line_prints_and_records(model: Path, tmp_path: Path) -> None:
    app = Typer()
    app.command()(evaluating.main)
    files = {name: tmp_path / name for name in ("figures", "tables", "pictures")}
    outputs = [
        "--json",
        str(files["figures"]),
        "--markdown",
        str(files["tables"]),
        "--pictures",
        str(files["pictures"]),
    ]
    arguments = ["--data", str(model.parent), "--model", str(model), "--baseline", str(model), "--patches", "4"]
    (model / "pictures").mkdir()
    (model / "pictures" / "worst.png").write_bytes(b"")
    run = CliRunner().invoke(app, [*arguments, "--record", *outputs], catch_exceptions=False)
    assert run.exit_code == 0
    report = json.loads(files["figures"].read_text())
    assert report == json.loads((model / "figures.json").read_text())
    assert report["patients"] == ["p0", "p1"]
    assert [entry["name"] for entry in report["models"]] == [load().name] * 2
    assert report["models"][0]["figures"]["labels"]["spinal canal"]["dice"]["mean"] > 0.5
    assert run.output == files["tables"].read_text() + "\n"
    assert (files["pictures"] / "worst.png").is_file()
    assert not (model / "pictures" / "worst.png").exists()  # of earlier figures
    assert report["pictures"] == []
    recorded = load(model).validation
    for name, figures in report["models"][0]["figures"]["labels"].items():
        assert recorded["dice"][name] == {key: figures["dice"][key] for key in ("mean", "sd", "worst")}
    assert set(recorded["patients"]) == {"p0", "p1"}
    card = (model / "MODEL_CARD.md").read_text()
    assert all(line in card for line in files["tables"].read_text().splitlines() if line.startswith("|"))
