"""`pennode segment`: a folder in, objects and pictures out, by the real model."""

from __future__ import annotations

import shutil

import pytest
import typer
from pydicom import dcmread
from typer.testing import CliRunner

from node.errors import ConfigurationError, NotFound, OutOfDisk
from workers import whole
from workers.cli import segment
from workers.enhanced import write_enhanced
from workers.readback import read_segmentation
from workers.segment import find_series, recipes_of, series_below
from workers.series import write_phantom, write_series
from workers.volume import read_series
from workers.whole import write_whole


def run(*arguments):
    app = typer.Typer()
    app.command()(segment)
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def folder(tmp_path):
    """A phantom deep in a folder, a text and a DICOMDIR."""
    write_phantom(tmp_path / "in" / "deep" / "er", (3, 256, 256), seed=4)
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    (tmp_path / "in" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    return tmp_path / "in"


def test_a_folder_becomes_segmentations_and_pictures(folder, tmp_path):
    done = run(folder, "--out", tmp_path / "out", "--picture")
    assert done.exit_code == 0, done.output
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert [n.split(".", 1)[1] for n in names] == ["png", "seg.dcm"]
    assert names[1].startswith("3_")
    ((_, files),) = series_below(folder).items()
    mask, segments = read_segmentation((tmp_path / "out" / names[1]).read_bytes(), read_series(files))
    assert mask.any()
    assert {s.label for s in segments} == {"Vertebra", "Spinal canal", "Intervertebral disc"}
    assert "vertebra" in done.stdout
    assert " ml" in done.stdout
    assert done.stderr.count("[selection] are not applied here: every MR series found is segmented") == 1
    assert "ignored notes.txt: is not a DICOM file" in done.stderr
    assert "ignored DICOMDIR: a DICOM directory" in done.stderr
    assert "PHANTOM" not in done.output
    first = (tmp_path / "out" / names[1]).read_bytes()
    shutil.copy(tmp_path / "out" / names[1], folder / "earlier.dcm")
    again = run(folder, "--out", tmp_path / "out")
    assert again.exit_code == 0
    assert "ignored earlier.dcm: Segmentation Storage, not an MR image" in again.stderr
    assert (tmp_path / "out" / names[1]).read_bytes() == first


def test_a_refused_series_does_not_stop_the_others_and_is_told(folder, tmp_path, small):
    (folder / "bad").mkdir()
    shutil.copy(write_series(tmp_path / "bad", small.lopsided(), small.SPACING, seed=9)[0], folder / "bad" / "one.dcm")
    done = run(folder, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert [p.suffix for p in (tmp_path / "out").iterdir()] == [".dcm"]
    (line,) = [line for line in done.stderr.splitlines() if "refused" in line]
    assert "fewer than 2 slices and is no volume; send the whole series" in line


def test_series_are_told_apart_and_counted(tmp_path, small):
    write_series(tmp_path / "a", small.lopsided(), small.SPACING, seed=1)
    write_series(tmp_path / "a", small.lopsided((7, 30, 24)), small.SPACING, seed=2)
    write_enhanced(tmp_path / "e.dcm", small.lopsided(), small.SPACING)
    found = find_series(tmp_path, pytest.fail)
    assert sorted(len(f.paths) for f in found) in ([1, 7], [1, 6, 7])
    assert len({f.name for f in found}) == len(found)
    assert all(f.name.startswith("3_") for f in found)
    assert all(dcmread(f.paths[0]).SeriesInstanceUID == f.series_uid for f in found)


@pytest.mark.parametrize(("content", "what"), [(None, "no folder"), ("text", "no DICOM file")])
def test_nothing_to_do_is_an_error(content, what, tmp_path):
    folder = tmp_path / "in"
    if content:
        folder.mkdir()
        (folder / "a.txt").write_text(content)
    with pytest.raises(NotFound, match=what):
        find_series(folder, lambda _: None)
    done = run(folder, "--out", tmp_path / "out")
    assert isinstance(done.exception, NotFound)
    assert not (tmp_path / "out").exists()


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot write"):
        write_whole(tmp_path / "file" / "a.dcm", b"data")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole.os, "fsync", full)
    with pytest.raises(OutOfDisk, match=r"no space left to write a\.dcm"):
        write_whole(tmp_path / "out" / "a.dcm", b"data")
    assert list((tmp_path / "out").iterdir()) == []


def test_forms_are_named_and_each_is_a_file(folder, tmp_path):
    done = run(folder, "--out", tmp_path / "out", "--forms", "labelmap,SEG", "--picture")
    assert done.exit_code == 0, done.output
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert [name.split(".", 1)[1] for name in names] == ["labelmap.dcm", "png", "seg.dcm"]
    assert all(name in done.stdout for name in names)


@pytest.mark.parametrize(
    ("forms", "expected"),
    [("SEG,PDF", "no form of results"), ("", "no form"), ("SEG,SEG", "twice"), ("SEG+rle", "one bit per pixel")],
)
def test_a_form_that_cannot_be_made_is_told_before_anything_is_done(forms, expected, folder, tmp_path):
    done = run(folder, "--out", tmp_path / "out", "--forms", forms)
    assert isinstance(done.exception, ConfigurationError)
    assert expected in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_report_is_of_the_segmentation_beside_it():
    assert [recipe.key for recipe in recipes_of("SR, seg")] == ["SR:SEG", "SEG"]
    assert [recipe.key for recipe in recipes_of("SR,SC")] == ["SR", "SC"]
