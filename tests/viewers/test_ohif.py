"""OHIF, unmodified from npm, shows our results where they belong: asserted by the pixels on its screen.

Orthanc is the PACS, Debian's Chromium the radiologist's browser, `deploy/ohif/app-config.js` the configuration.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from node.forms import Form
from tests import peers
from tests.viewers.browser import Browser, browsing
from tests.viewers.npm import OHIF, unpacked
from tests.viewers.pixels import (
    Shown,
    assert_coloured,
    assert_is_slice,
    assert_outlined,
    assert_overlaid,
    corners,
    project,
)
from tests.viewers.serving import create_app, serving
from tests.viewers.studies import (
    ALONE,
    FIRST,
    LAST,
    NEOPLASM,
    SPOILT,
    Study,
    demo_study,
    made_study,
    names,
    palette,
)

pytestmark = [pytest.mark.viewers, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "deploy" / "ohif" / "app-config.js"
PICTURE = ROOT / "out" / "ohif.png"  # for the README: see below


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[peers.Orthanc]:
    with peers.orthanc(tmp_path_factory.mktemp("orthanc"), dicomweb={}) as running:
        yield running


@pytest.fixture(scope="module")
def viewer(pacs: peers.Orthanc) -> Iterator[str]:
    with serving(create_app(unpacked(OHIF) / "dist", CONFIGURATION, pacs.url)) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def demo(pacs: peers.Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return demo_study(pacs, tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def made(pacs: peers.Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return made_study(pacs, tmp_path_factory.mktemp("made"), [Form.SEG, Form.SC])


def look(browser: Browser, study: Study, frame: int, sop_uid: str, folder: Path) -> Shown:
    """Go to an image, and return what the screen shows of that frame of the series."""
    browser.show(sop_uid)
    screen = browser.look(folder / f"{frame + 1}.png", corners(study.volume, frame))
    shown = project(screen, study.mask[frame], palette())
    assert_is_slice(shown, study.volume, frame)
    return shown


def confirm(browser: Browser) -> None:
    """Confirm what OHIF says of itself, which lies over the images."""
    assert "for investigational use only" in browser.text()
    browser.press("Confirm and hide")


def measured(study: Study) -> list[int]:
    """The frames to look at: the lesion's first and last with the ones beside them, and one in between."""
    lesion = study.frames_of(NEOPLASM)
    assert lesion, "the study has no lesion"
    around = {lesion[0] - 1, lesion[0], lesion[len(lesion) // 2], lesion[-1], lesion[-1] + 1}
    return sorted(frame for frame in around if 0 <= frame < len(study.mask))


def assert_all_overlaid(shown: Shown, where: str) -> None:
    for value, name in names().items():
        assert_overlaid(shown, value, f"{where}: {name}")
        if (shown.labels == value).any():
            assert_coloured(shown, value, palette()[value], f"{where}: {name}")


def test_segmentation_of_the_demo_lies_where_it_says(
    browser: Browser, viewer: str, demo: Study, tmp_path: Path
) -> None:
    browser.open(f"{viewer}/viewer?StudyInstanceUIDs={demo.uid}")
    browser.choose_segmentation(demo.description(Form.SEG))
    browser.unfold()
    browser.show(demo.sop(len(demo.mask) // 2))
    browser.photograph(tmp_path / "whole.png")
    write_for_readme(tmp_path / "whole.png")
    confirm(browser)
    for frame in measured(demo):
        shown = look(browser, demo, frame, demo.sop(frame), tmp_path)
        assert_all_overlaid(shown, f"slice {frame + 1}")
    assert all(name in browser.text() for value, name in names().items() if demo.frames_of(value))


def test_segmentation_of_a_lesion_begins_and_ends_on_its_slices(
    browser: Browser, viewer: str, made: Study, tmp_path: Path
) -> None:
    assert len(made.frames_of(NEOPLASM)) == LAST - FIRST + 1
    browser.open(f"{viewer}/viewer?StudyInstanceUIDs={made.uid}")
    browser.choose_segmentation(made.description(Form.SEG))
    confirm(browser)
    for frame in measured(made):
        shown = look(browser, made, frame, made.sop(frame), tmp_path)
        assert_all_overlaid(shown, f"slice {frame + 1}")


def misplaced(browser: Browser, viewer: str, made: Study, description: str, folder: Path) -> dict[int, str]:
    """Open a segmentation of the lesion alone; return what is wrong with it on the series' first frame and its own."""
    browser.open(f"{viewer}/viewer?StudyInstanceUIDs={made.uid}")
    browser.choose_segmentation(description)
    confirm(browser)
    lesion, wrong = made.frames_of(NEOPLASM), {}
    for frame in (0, lesion[0], lesion[-1]):
        shown = look(browser, made, frame, made.sop(frame), folder)
        try:
            assert_overlaid(shown, NEOPLASM, "Neoplasm")
        except AssertionError as error:
            wrong[frame] = str(error)
    return wrong


def test_frames_that_do_not_say_what_they_derive_from_are_found_out(
    browser: Browser, viewer: str, made: Study, tmp_path: Path
) -> None:
    """OHIF takes them for those of the first images, without a word: what these tests must never let pass."""
    assert misplaced(browser, viewer, made, ALONE, tmp_path) == {}
    wrong = misplaced(browser, viewer, made, SPOILT, tmp_path)
    lesion = made.frames_of(NEOPLASM)
    assert list(wrong) == [0, lesion[0], lesion[-1]]
    assert "pixels where it is not" in wrong[0]
    assert "covers 0.0% of where it is" in wrong[lesion[0]]


@pytest.mark.parametrize("name", ["demo", "made"])
def test_contours_in_the_pictures_lie_where_the_segmentation_does(
    browser: Browser, viewer: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    study: Study = request.getfixturevalue(name)
    pictures = study.results[Form.SC]
    assert len(pictures) == len(study.mask)
    browser.open(f"{viewer}/viewer?StudyInstanceUIDs={study.uid}")
    browser.choose_images(study.description(Form.SC), pictures[0].SeriesInstanceUID)
    confirm(browser)
    for frame in measured(study):
        shown = look(browser, study, frame, pictures[frame].SOPInstanceUID, tmp_path)
        for value, words in names().items():
            assert_outlined(shown, value, f"slice {frame + 1}: {words}")


def write_for_readme(whole: Path) -> None:
    """Keep a picture of the window, in 256 colours, where the README's can be taken from."""
    PICTURE.parent.mkdir(exist_ok=True)
    Image.open(whole).convert("RGB").quantize(256, kmeans=2, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
