"""Pictures of a run's report for the docs: python -m simulations.screenshots RUN [FOLDER]

Desktop in light and dark, a phone, and as printed; needs Chromium. docs/images is the folder
unless one is named.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser import Page, browser


def main(run: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile) / "chromium") as chromium:
        page = chromium.open(run / "report.html")
        _keep(page, folder / "report-desktop.png", height=1900)
        page.prefer(scheme="dark")
        _keep(page, folder / "report-dark.png", height=1900)
        page.prefer()
        page.resize(375, 812, phone=True)
        charts = "document.querySelector('.charts').getBoundingClientRect().top + scrollY"
        _keep(page, folder / "report-phone.png", top=int(page.value(charts)) - 60, height=1200)
        page.resize(794)  # A4 at 96 dots an inch
        page.prefer(media="print")
        _keep(page, folder / "report-print.png", height=1900)
        assert not page.complaints, page.complaints


def _keep(page: Page, path: Path, *, top: int = 0, height: int) -> None:
    """One picture of 256 colours: rare ones stay, and text stays sharp."""
    with Image.open(io.BytesIO(page.png(top=top, height=height))) as picture:
        few = picture.convert("RGB").quantize(
            256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        )
        few.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "docs/images"))
