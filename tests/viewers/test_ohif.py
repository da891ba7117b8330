"""OHIF, unmodified from npm, shows our results where they belong: asserted by the pixels on its screen.

Orthanc is the PACS, Debian's Chromium the radiologist's browser, `deploy/ohif/app-config.js` the configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from node.forms import Form
from tests import peers
from tests.viewers.browser import Browser, browsing
from tests.viewers.npm import OHIF, unpacked
from tests.viewers.pixels import Shown, assert_is_slice, assert_overlaid, corners, project
from tests.viewers.serving import create_app, serving
from tests.viewers.studies import SEGMENTED, UNREFERENCED, Study, demo_study, made_study, names, palette

pytestmark = [pytest.mark.viewers, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "deploy" / "ohif" / "app-config.js"
PICTURE = ROOT / "out" / "ohif.png"  # for the README: see below
FORMS = [Form.SEG]
NEOPLASM = 4


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
    return demo_study(pacs, tmp_path_factory.mktemp("demo"), FORMS)


@pytest.fixture(scope="module")
def made(pacs: peers.Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return made_study(pacs, tmp_path_factory.mktemp("made"), FORMS)


def open_study(browser: Browser, address: str) -> None:
    """Open a study, and confirm what OHIF says of itself: it lies over the images."""
    browser.open(address)
    assert "for investigational use only" in browser.text()
    browser.press("Confirm and hide")


def look(browser: Browser, study: Study, frame: int, folder: Path) -> Shown:
    """Go to a frame of the series, and return what the screen shows of it."""
    browser.show(study.sop(frame))
    screen = browser.look(folder / f"{frame + 1}.png", corners(study.volume, frame))
    return project(screen, study.mask[frame], palette())


def assert_all_overlaid(browser: Browser, study: Study, frames: Sequence[int], folder: Path) -> None:
    for frame in frames:
        shown = look(browser, study, frame, folder)
        assert_is_slice(shown, study.volume, frame)
        for value, name in names().items():
            assert_overlaid(shown, value, f"slice {frame + 1}: {name}")


def test_the_demo_series_is_overlaid_where_its_segmentation_says(
    browser: Browser, viewer: str, demo: Study, tmp_path: Path
) -> None:
    open_study(browser, f"{viewer}/segmentation?StudyInstanceUIDs={demo.uid}")
    browser.choose_segmentation(SEGMENTED)
    found = {value: demo.frames_of(value) for value in names() if demo.frames_of(value)}
    rarest = min(found.values(), key=len)
    middle = len(demo.mask) // 2
    assert_all_overlaid(browser, demo, [rarest[0], middle, rarest[-1]], tmp_path)
    assert all(names()[value] in browser.text() for value in found)


def test_a_lesion_begins_and_ends_on_its_slices(browser: Browser, viewer: str, made: Study, tmp_path: Path) -> None:
    open_study(browser, f"{viewer}/segmentation?StudyInstanceUIDs={made.uid}")
    browser.choose_segmentation(SEGMENTED)
    lesion = made.frames_of(NEOPLASM)
    assert len(lesion) == 6
    first, last = lesion[0], lesion[-1]
    assert_all_overlaid(browser, made, [first - 1, first, first + 2, last, last + 1], tmp_path)


def test_frames_that_do_not_say_what_they_derive_from_make_this_test_fail(
    browser: Browser, viewer: str, made: Study, tmp_path: Path
) -> None:
    open_study(browser, f"{viewer}/segmentation?StudyInstanceUIDs={made.uid}")
    browser.choose_segmentation(UNREFERENCED)
    lesion = made.frames_of(NEOPLASM)
    wrong = []
    for frame in (lesion[0], lesion[2], lesion[-1]):
        shown = look(browser, made, frame, tmp_path)
        assert_is_slice(shown, made.volume, frame)
        assert (shown.colours[shown.labels >= 0] > 0).any(), "no overlay at all would be another failure"
        try:
            assert_overlaid(shown, NEOPLASM, "Neoplasm")
        except AssertionError as error:
            wrong.append(str(error))
    assert len(wrong) == 3
