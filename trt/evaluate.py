"""Judge models on patients held back from training: `python -m trt.evaluate --data DIR`; one command, one table.

Runs the ONNX file by way of `trt.engine` and `trt.patches`, the road that serves, on the trials of `trt.trials`:
series as acquired, inverted, T1-like, and, for a model that marks tumours, with simulated lesions and without.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from trt.candidates import Candidate, mirrored, open_candidate
from trt.card import PICTURES, render_with, write_card
from trt.dataset import Case, DatasetError, read_folder, read_split
from trt.engine import EngineError, Precision
from trt.extraction import Extraction
from trt.lesions import Weighting
from trt.manifest import DEFAULT_MODEL, MAX_OVERLAP, Manifest, ManifestError, load
from trt.metrics import FOUND_IOU, MIN_VOLUME
from trt.pictures import draw_pictures
from trt.report import FIGURES_FILE, SCORED, Report, markdown
from trt.scores import SIZES, Score, knows_tumours, measure, row, summary
from trt.trials import Plan, Rendering, plan


def evaluate(plans: Sequence[Plan], candidates: Sequence[Candidate], *, patches: int = 64) -> list[list[Score]]:
    """Scores of every candidate, one after the other, on the trials of `plans`; a terminal is shown the progress.

    `patches` are drawn of each series and foreground; see `trt.scores.measure`.
    """
    scores: list[list[Score]] = [[] for _ in candidates]
    console = Console(stderr=True)
    for planned in track(plans, "trials", console=console, disable=not console.is_terminal):
        trial = planned.build()
        for some, candidate in zip(scores, candidates, strict=True):
            found, seconds = candidate.segment(trial)
            labels, patch = candidate.manifest.labels, candidates[0].manifest.patch
            some.append(measure(trial, found, labels, patch=patch, patches=patches, seconds=seconds))
    return scores


def choose_cases(
    data: Path, manifests: Sequence[Manifest], patients: str, training_too: bool
) -> tuple[tuple[Case, ...], str]:
    """The cases to score, and what they are to the models, a key of `SCORED`.

    `patients` is "held-back", "all", or names between commas. Where a model's split has none of the names, nothing is
    claimed: its patients may be the same under other names. Raises `DatasetError` where a patient is one that any of
    the models was trained on, unless `training_too`, `ManifestError` for models that cannot stand beside one another,
    and what `read_folder` and `read_split` raise.
    """
    require_alike(manifests)
    splits = [read_split(manifest.path.with_name("split.json")) for manifest in manifests]
    wanted = {"all": None, "held-back": splits[0].validation}.get(patients, tuple(patients.split(",")))
    names = max(([label.name for label in manifest.labels] for manifest in manifests), key=len)
    cases = read_folder(data, len(names), wanted, names=names, pixels=manifests[0].spacing_mm)
    found = {case.patient for case in cases}
    known = sorted(found & {name for split in splits for name in split.train})
    if known and not training_too:
        raise DatasetError(
            f"{len(known)} of {len(found)} patients are ones a model was trained on ({', '.join(known)}): their "
            "figures flatter; choose others with --patients, or give --training-too, and the title will say so"
        )
    if known:
        return cases, "trained on in part"
    if any(found.isdisjoint((*split.train, *split.validation)) for split in splits):
        return cases, "not known by name"
    return cases, "held back" if found <= set(splits[0].validation) else "not trained on"


def require_alike(manifests: Sequence[Manifest]) -> None:
    """Refuse, by `ManifestError`, models that cannot be judged by one truth: other pixels, or labels in another order.

    One model may lack labels at the end of another's.
    """
    first = manifests[0]
    for other in manifests[1:]:
        if other.spacing_mm != first.spacing_mm:
            ours, theirs = (" x ".join(f"{step:g}" for step in m.spacing_mm) for m in (first, other))
            raise ManifestError(f"{other.name} works on pixels of {theirs} mm, {first.name} on {ours}: not comparable")
    longest = max(([label.name for label in manifest.labels] for manifest in manifests), key=len)
    for manifest in manifests:
        names = [label.name for label in manifest.labels]
        if names != longest[: len(names)]:
            raise ManifestError(
                f"{manifest.name} marks {', '.join(names)}, another model {', '.join(longest)}: not comparable; labels "
                "must be the same in the same order, of which only the last may be missing"
            )


def require_recordable(candidate: Candidate, cases: Sequence[Case], *, tta: bool) -> None:
    """Refuse, by `ValueError`, figures that the model's card is not to show.

    They are to be of all patients held back and of no others, run as serving runs the model where it is told nothing
    else.
    """
    manifest = candidate.manifest
    held_back = set(read_split(manifest.path.with_name("split.json")).validation)
    found = {case.patient for case in cases}
    if found != held_back:
        lacking, more = ", ".join(sorted(held_back - found)), ", ".join(sorted(found - held_back))
        raise ValueError(
            "only figures on all patients held back, and on no others, are recorded"
            + (f"; not scored: {lacking}" if lacking else "")
            + (f"; not held back: {more}" if more else "")
        )
    extraction = "spine" if manifest.finder else "tissue"
    if tta:
        raise ValueError("figures with --tta are not recorded: serving does not run the model twice")
    if candidate.overlap not in (None, manifest.overlap):
        raise ValueError(f"only figures at the model's own overlap are recorded, {manifest.overlap:g}")
    if candidate.extraction != extraction:
        raise ValueError(f"only figures of extraction {extraction} are recorded, which serving uses for this model")


def main(
    data: Annotated[Path, typer.Option(help="Folder of the series and their masks.")],
    model: Annotated[str, typer.Option(help="Name or folder of the model.")] = DEFAULT_MODEL,
    baseline: Annotated[
        list[Path] | None, typer.Option(help="Folder of a further model for the same trials; may be repeated.")
    ] = None,
    backend: Annotated[str, typer.Option(help="Engine to run it on.")] = "openvino",
    precision: Annotated[Precision, typer.Option(help="What it calculates in.")] = "f32",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores if not given.")] = None,
    overlap: Annotated[
        float | None, typer.Option(min=0, max=MAX_OVERLAP, help="Share of a patch; the model's default if not given.")
    ] = None,
    extraction: Annotated[Extraction, typer.Option(help="Where it runs; spine is tissue without a finder.")] = "spine",
    tta: Annotated[bool, typer.Option("--tta", help="Average with the mirror image across the patient.")] = False,
    patients: Annotated[str, typer.Option(help="held-back, all, or names between commas.")] = "held-back",
    training_too: Annotated[bool, typer.Option("--training-too", help="Patients trained on, too.")] = False,
    simulated: Annotated[int, typer.Option(min=0, help="Series with lesions, and as many without, per patient.")] = 4,
    t2: Annotated[bool, typer.Option("--t2", help="Simulated lesions in T2 weighting as well.")] = False,
    patches: Annotated[int, typer.Option(min=2, help="Class-balanced patches of each series.")] = 64,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the figures as JSON.")] = None,
    as_markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the tables as Markdown.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for example pictures.")] = None,
    record: Annotated[
        bool, typer.Option(help=f"Write {FIGURES_FILE}, the manifest's validation and MODEL_CARD.md of the model.")
    ] = False,
) -> None:
    """The figures of a model, and of others beside it, on the patients of its split that were held back."""
    if record and training_too:
        raise typer.BadParameter("figures on patients trained on are not recorded: leave out --training-too")
    _require_places((as_json, as_markdown), pictures)
    began = time.perf_counter()
    with ExitStack() as stack:
        try:
            manifests = [load(model), *(load(folder) for folder in baseline or ())]
            cases, scored = choose_cases(data, manifests, patients, training_too)
            options: dict[str, Any] = {"precision": precision, "threads": threads}
            opened = [
                open_candidate(stack, manifest, backend, overlap=overlap, extraction=extraction, **options)
                for manifest in manifests
            ]
            candidates = [replace(one, predict=mirrored(one.predict)) if tta else one for one, _ in opened]
            runs = [f"{run['backend']} {run['precision']}" for run in (engine.describe() for _, engine in opened)]
            weightings = (Weighting.T1_GADOLINIUM, *([Weighting.T2] if t2 else []))
            looking = any(knows_tumours(manifest.labels) for manifest in manifests)
            plans = plan(cases, simulated if looking else 0, weightings)
            report: dict[str, Any] = {
                "notice": "For research, not for diagnosis.",
                "scored": scored,
                "patients": sorted({case.patient for case in cases}),
                "trials": {"series": len(plans), "simulated_per_patient": 2 * simulated * looking, "patches": patches},
                "rules": {"found_iou": FOUND_IOU, "min_volume_mm3": MIN_VOLUME, "sizes_mm": SIZES, "tta": tta},
                "models": [_entry(candidate, (), run) for candidate, run in zip(candidates, runs, strict=True)],
                "pictures": [],
            }
            if record:
                require_recordable(candidates[0], cases, tta=tta)
                render_with(manifests[0], report)  # a card that cannot be written is to be known before the work
        except (EngineError, ValueError) as error:
            raise typer.BadParameter(str(error)) from error
        try:
            scores = evaluate(plans, candidates, patches=patches)
        except (EngineError, ValueError) as error:
            raise _failed("the trials did not come to their end", error) from error
        report |= {
            "models": [_entry(*each) for each in zip(candidates, scores, runs, strict=True)],
            "seconds": round(time.perf_counter() - began, 1),
        }
        text = markdown(report)
        typer.echo(text)  # before anything is written: what was measured is not to be lost
        try:
            if pictures is not None:
                drawn = draw_pictures(
                    pictures, plans, scores[0], manifests[0].labels, lambda trial: candidates[0].segment(trial)[0]
                )
                if pictures.resolve() == _pictures_of(manifests[0]):
                    report["pictures"] = [path.stem for path in drawn]
            for path, content in ((as_json, _as_json(report)), (as_markdown, text)):
                if path is not None:
                    path.write_text(content, encoding="utf-8")
            if record:
                _record(manifests[0], report)
        except (OSError, EngineError, ValueError) as error:
            raise _failed("the figures stand above, but not all of the files could be written", error) from error


def _require_places(files: Sequence[Path | None], pictures: Path | None) -> None:
    """Refuse files that could not be written once all is measured; the folder for pictures is made."""
    for path in files:
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise typer.BadParameter(f"{path}: is a folder, or lies in none; make the folder, and name a file in it")
    if pictures is not None:
        try:
            pictures.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise typer.BadParameter(f"{pictures}: no folder for pictures: {error}") from error


def _failed(what: str, error: Exception) -> typer.Exit:
    typer.echo(f"Error: {what}: {error}", err=True)
    return typer.Exit(1)


def _pictures_of(manifest: Manifest) -> Path:
    return manifest.path.with_name("pictures").resolve()


def _as_json(fields: Any) -> str:
    return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"


def _entry(candidate: Candidate, scores: Sequence[Score], engine: str) -> dict[str, Any]:
    manifest = candidate.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "sha256": manifest.digest,
        "labels": [label.name for label in manifest.labels],
        "overlap": manifest.overlap if candidate.overlap is None else candidate.overlap,
        "extraction": candidate.extraction,
        "engine": engine,
        "figures": summary(scores, manifest.labels),
        "series": [row(score) for score in scores],
    }


def validation(report: Report) -> dict[str, Any]:
    """What the manifest keeps of a report: 3-D Dice of its first model on real series."""
    model = report["models"][0]
    real = [entry for entry in model["series"] if entry["group"] == Rendering.ACQUIRED]
    figures = model["figures"]["labels"] | {"mean": {"dice": model["figures"]["mean_dice"]}}
    return {
        "measure": f"3-D Dice per series as acquired, over patients {SCORED[report['scored']]}",
        "patients": {e["name"]: {name: label["dice"] for name, label in e["labels"].items()} for e in real},
        "dice": {name: {key: each["dice"][key] for key in ("mean", "sd", "worst")} for name, each in figures.items()},
        "overlap": model["overlap"],
        "engine": model["engine"],
    }


def _record(manifest: Manifest, report: Report) -> None:
    """Write figures, validation and card; pictures that belong to earlier figures are taken away."""
    folder = manifest.path.parent
    (folder / FIGURES_FILE).write_text(_as_json(report), encoding="utf-8")
    path = folder / "manifest.json"
    fields = json.loads(path.read_text(encoding="utf-8")) | {"validation": validation(report)}
    path.write_text(_as_json(fields), encoding="utf-8")
    for name in PICTURES.keys() - set(report["pictures"]):
        (_pictures_of(manifest) / f"{name}.png").unlink(missing_ok=True)
    write_card(load(folder))


if __name__ == "__main__":
    typer.run(main)
