"""The model card: `python -m trt.card --model MODEL` writes MODEL_CARD.md of a model from the files beside it.

Words come from the template of this package, `card.md.jinja`, or from `MODEL_CARD.md.jinja` in the model's folder,
which can extend it and say in its blocks what only the model's makers know. Every figure comes from manifest.json,
split.json, figures.json (`trt.evaluate --record`) and, where they are there, ablation.json (`trt.ablation`),
pareto.json (`trt.pareto --record`), precisions.json (`trt.precisions --record`) and training.json, an object of names
and values that is shown as a table. A figure that the template asks for and no file has is an error, never a gap. Of
the pictures, those that figures.json names are shown.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError, select_autoescape

from trt.dataset import DatasetError, read_split
from trt.manifest import DEFAULT_MODEL, Manifest, ManifestError, load
from trt.markdown import join, table
from trt.metrics import spread
from trt.report import FIGURES_FILE, Report, sections, title
from trt.trials import FROM_TRUTH, Rendering

TEMPLATES = ("MODEL_CARD.md.jinja", "card.md.jinja")
PARETO_FILE = "pareto.json"
PRECISIONS_FILE = "precisions.json"
PICTURES = {
    "good": "The best of the series as acquired, by mean Dice.",
    "typical": "The median one.",
    "worst": "The worst one.",
    "simulated-found": "A simulated lesion that was found.",
    "simulated-missed": "The largest simulated lesion that was missed.",
}


class CardError(ValueError):
    """A card that cannot be written; the message names the file and what is missing in it."""


def write_card(manifest: Manifest) -> Path:
    """Write MODEL_CARD.md into the model's folder and return its path; raises what `render` raises."""
    path = manifest.path.with_name("MODEL_CARD.md")
    path.write_text(render(manifest), encoding="utf-8")
    return path


def render(manifest: Manifest) -> str:
    """The card of a model. Raises `CardError` for files that are missing, broken or of another model's weights."""
    path = manifest.path.with_name(FIGURES_FILE)
    figures = _read(path)
    if figures is None:
        return render_with(manifest, None)
    try:
        if figures["models"][0]["sha256"] != manifest.digest:
            raise CardError(f"{path}: figures of other weights; run trt.evaluate --record again")
        return render_with(manifest, figures)
    except (KeyError, IndexError, TypeError) as error:
        raise CardError(f"{path}: not as trt.evaluate writes it now ({error!r}); run it with --record again") from error


def render_with(manifest: Manifest, figures: Report | None) -> str:
    """The card with `figures` in place of those of the file, or without any; raises what `render` raises."""
    folder = manifest.path.parent
    ablation, training = _read(folder / "ablation.json"), _read(folder / "training.json")
    pareto, precisions = _read(folder / PARETO_FILE), _read(folder / PRECISIONS_FILE)
    if pareto is not None and pareto.get("sha256") != manifest.digest:
        raise CardError(f"{folder / PARETO_FILE}: figures of other weights; run trt.pareto --record again")
    eight_bits = manifest.quantised.digest if manifest.quantised else None
    if precisions and (precisions.get("sha256"), precisions.get("int8_sha256")) != (manifest.digest, eight_bits):
        raise CardError(f"{folder / PRECISIONS_FILE}: figures of other weights; run trt.precisions --record again")
    try:
        split = read_split(folder / "split.json")
        environment = Environment(
            loader=FileSystemLoader([folder, Path(__file__).parent]),
            autoescape=select_autoescape(("html",)),  # Markdown is text
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        return environment.select_template(TEMPLATES).render(
            manifest=manifest,
            split=split,
            size_mb=manifest.path.stat().st_size / 1e6,
            title=title(figures) if figures else None,
            sections=sections(figures) if figures else {},
            model=figures["models"][0] if figures else None,
            ablation=ablation_table(ablation) if ablation else None,
            pareto=pareto_table(pareto) if pareto else None,
            precisions=precision_table(precisions) if precisions else None,
            training=_facts(training) if training else None,
            pictures={
                name: words
                for name, words in PICTURES.items()
                if figures and name in figures.get("pictures", ()) and (folder / "pictures" / f"{name}.png").is_file()
            },
        )
    except (TemplateError, DatasetError) as error:
        raise CardError(f"{folder}: {error}") from error


def write_figures(manifest: Manifest, name: str, figures: dict[str, Any]) -> None:
    """Write figures into the file `name` beside the model, and its card anew. Raises `CardError` for the card alone."""
    manifest.path.with_name(name).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    try:
        write_card(manifest)
    except CardError as error:
        raise CardError(f"the figures are written, the card is not: {error}") from error


def ablation_table(ablation: dict[str, Any]) -> str:
    """What `trt.ablation` wrote: Dice in %, over the seeds of each row mean ± sd where there are several."""
    rows = ablation["rows"]
    names = list(dict.fromkeys(name for row in rows for figures in row["seeds"].values() for name in figures))
    lines = []
    for row in rows:
        seeds = row["seeds"].values()
        cells = [_seeds([figures[name] for figures in seeds if name in figures]) for name in names]
        cost = f"{row['patch_ms']:.1f}" if "patch_ms" in row else "-"  # not measured by earlier versions
        lines.append([row["row"], *cells, cost])
    most = max((len(row["seeds"]) for row in rows), default=0)
    over = f"mean ± sd over up to {most} seeds" if most > 1 else "one seed, no spread,"
    words = (
        f"Dice in %, {over} of {ablation['steps']} steps each, a short training of networks of their own, not of the "
        "weights above: rows may be compared with one another and with no other table. Whole slices; the patients held "
        "back, looked at for every row. The tumours are **simulated**; they and the T1-like series are rendered from "
        "the true masks, so that true borders become edges of the image: figures on both flatter. A patch's "
        "milliseconds are those of one CPU core in torch, to be compared with one another."
    )
    return join(words, table(["", *names, "ms a patch"], lines))


def pareto_table(pareto: dict[str, Any]) -> str:
    """What `trt.pareto` wrote: a row for each choice of where the model runs and in which patches, means over series.

    `saved_s` is what the row saves beside the same patches run everywhere.
    """
    names = list(pareto["rows"][0]["dice"])
    head = ["runs on", "patches", "precision", "overlap", "patches run", "megapixels", "CPU s", "saved"]
    head += [*names, "mean", "kept"]
    lines = []
    everywhere = {_patches(row): row["cpu_s"] for row in pareto["rows"] if row["extraction"] == "all"}
    for row in pareto["rows"]:
        saved = everywhere[_patches(row)] - row["cpu_s"]
        run = [row["extraction"], "fitted" if row["fitted"] else "own", row["precision"]]
        cost = [
            f"{row['overlap']:g}",
            f"{row['patches']:.0f}",
            f"{row['pixels'] / 1e6:.2f}",
            f"{row['cpu_s']:.2f}",
            f"{saved:.2f}",
        ]
        shares = [*(row["dice"][name] for name in names), row["mean"]]
        lines.append([*run, *cost, *(f"{100 * share:.2f}" for share in shares), f"{100 * row['kept']:.3f}"])
    words = (
        f"Means over {pareto['series']} series as acquired, of patients held back. The model runs on everything, on "
        "all but air, or where its finder sees the spine; in patches of its own size, or fitted to what is to run (on "
        "everything: whole slices). Saved are CPU seconds beside the same patches run everywhere, the search included; "
        "kept is the share of the marked spine that the worst series keeps within what runs. All in % but seconds."
    )
    return join(words, table(head, lines, left=3))


def precision_table(precisions: dict[str, Any]) -> str:
    """What `trt.precisions` wrote: a row for each precision, Dice in %, beside float32 on the same trials."""
    rows = precisions["rows"]
    names, renderings, tumours = (list(rows[0][field]) for field in ("dice", "renderings", "tumours"))
    head = ["precision", "CPU s", *names, "mean", "lost", "most lost"]
    head += [_bold(group) for group in renderings] + [f"tumour, {_bold(group)}" for group in tumours]
    if tumours:
        head.append("false lesions, real series")
    head += ["as f32", "marked as f32", "least"]
    lines = []
    for row in rows:
        shares = [*(row["dice"][name] for name in names), row["mean"], row["lost"], row["worst_lost"]]
        shares += [row["renderings"][group] for group in renderings]
        cells = [row["precision"], f"{row['cpu_s']:.2f}", *map(_share, shares)]
        for group in tumours:
            found = row["tumours"][group]
            cells.append(f"{_share(found['dice'])} ({found['found']} of {found['lesions']} found)")
        if tumours:
            cells.append(f"{row['false_per_real_series']:.2f}")
        cells += [_share(row[field]) for field in ("alike", "marked_alike", "least_marked_alike")]
        lines.append(cells)
    count, threads = len(precisions["patients"]), precisions["threads"]
    words = (
        f"In %, by the road that serves, on {count} patients held back; CPU seconds a series as acquired, of {threads} "
        f"thread{'s' if threads > 1 else ''}. Dice of labels, their mean, what it lacks to f32's (less than 0: what it "
        "has more) and what the series lacks that loses most, of series as acquired; then the mean of all anatomy in "
        "series calculated from them. As f32: voxels of series as acquired that are labelled as in f32; of those that "
        "either marks; and the latter in the series of all renderings where it is least. The finder of int8 runs in "
        f"f32. {FROM_TRUTH if renderings else ''}"
    )
    return join(words.rstrip(), table(head, lines))


def _bold(group: str) -> str:
    return group.replace(Rendering.SIMULATED, f"**{Rendering.SIMULATED}**")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}".replace("-0.00", "0.00")


def _patches(row: dict[str, Any]) -> tuple[bool, float, str]:
    return row["fitted"], row["overlap"], row["precision"]


def _seeds(values: list[float]) -> str:
    over = spread(values)
    if not over.count:
        return "-"
    return f"{100 * over.mean:.1f}" + ("" if math.isnan(over.sd) else f" ± {100 * over.sd:.1f}")


def _facts(training: dict[str, Any]) -> str:
    return table(["", ""], [[name, str(value)] for name, value in training.items()], left=2)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CardError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(fields, dict):
        raise CardError(f"{path}: must be a JSON object")
    return fields


def main(model: Annotated[str, typer.Option(help="Name or folder of the model.")] = DEFAULT_MODEL) -> None:
    """Write MODEL_CARD.md of a model from the files beside it."""
    try:
        path = write_card(load(model))
    except (ManifestError, CardError) as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"wrote {path}")


if __name__ == "__main__":
    typer.run(main)
