"""A Chromium that looks at OHIF, and what is on its screen."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.peers import program
from tests.viewers.npm import PLAYWRIGHT, unpacked

SIZE = (1200, 760)  # of the window, pixels


@dataclass(frozen=True, eq=False)
class Screen:
    """A picture of the window, (rows, columns, RGB) uint8, and where a viewport and places in the patient are on it.

    `box` is left, top, right, bottom of the viewport; `points` (n, 2) are x, y, pixel (0, 0) from 0 to 1.
    """

    pixels: NDArray[np.uint8]
    box: tuple[float, float, float, float]
    points: NDArray[np.float64]


@dataclass(frozen=True)
class Browser:
    """A running browser with one page. All wait until what they ask for has happened, a minute at most."""

    process: subprocess.Popen[str]
    log: Path

    def open(self, url: str) -> None:
        """Open a page, and wait for its first image."""
        self._ask("open", url=url, width=SIZE[0], height=SIZE[1])

    def choose_segmentation(self, description: str) -> None:
        """Open the segmentation of that series description, as a person does."""
        self._ask("choose", description=description, segmentation=True)

    def choose_images(self, description: str, series_uid: str) -> None:
        """Open the series of images of that description."""
        self._ask("choose", description=description, segmentation=False, series=series_uid)

    def show(self, sop_uid: str) -> None:
        """Go to an image of the series that is open."""
        self._ask("show", sop=sop_uid)

    def look(self, picture: Path, points: Sequence[Sequence[float]]) -> Screen:
        """Return the images on the screen once they stand still, and where `points` (x, y, z mm in LPS) are on it.

        What OHIF writes and draws over the images is hidden for that moment. The picture is kept.
        """
        given = [[float(v) for v in point] for point in points]
        told = self._ask("look", path=str(picture), points=given, bare=True)
        pixels = np.asarray(Image.open(picture).convert("RGB"))
        return Screen(pixels, tuple(told["box"]), np.array(told["points"], float).reshape(-1, 2))

    def photograph(self, picture: Path) -> None:
        """Write a picture of the whole window, as a person sees it."""
        self._ask("look", path=str(picture), points=[], bare=False)

    def press(self, button: str) -> None:
        """Press the button of that name."""
        self._ask("press", button=button)

    def unfold(self) -> None:
        """Open the panel at the right, which lists segments."""
        self._ask("unfold")

    def text(self) -> str:
        """Return all words on the page."""
        return str(self._ask("text"))

    def complaints(self) -> list[str]:
        """Return what the page wrote to its console as errors."""
        return [str(line) for line in self._ask("complaints")]

    def _ask(self, name: str, **given: object) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"name": name} | given) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the browser ended: {self.log.read_text(errors='replace')[-2000:]}")
        answer = json.loads(line)
        if "error" in answer:
            complaints = [] if name == "complaints" else self.complaints()
            raise RuntimeError(f"{name} {given}: {answer['error']}; the page complained: {complaints[:5]}")
        return answer["result"]


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """Run Chromium for the length of the block; its log is below `folder`."""
    node, chromium, playwright = program("node", "nodejs"), program("chromium", "chromium"), unpacked(PLAYWRIGHT)
    log, driver = folder / "browser.log", Path(__file__).with_name("drive.cjs")
    with log.open("w") as errors:
        process = subprocess.Popen(
            [node, str(driver), str(playwright), chromium],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        try:
            yield Browser(process, log)
        finally:
            process.stdin.close()  # type: ignore[union-attr]  # a pipe, see above
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()  # type: ignore[union-attr]
