"""Takes the pictures of a report that the documents show, with the Chromium of the system.

    python docs/screenshots.py --report runs/demo/report.html --out docs/images

A part that the report does not have makes no picture; nothing else is written. Exit code 2 and one line where a value cannot be used.
"""

import io
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import PIL.Image
import tyro

from vlm_jax import errors


@dataclass(frozen=True)
class Shot:
    """One picture: the whole page, or the first element that matches."""

    selector: str = "body"
    width: int = 1200
    """Of the window."""
    height: int = 900
    """The picture ends here where the element is longer."""
    scheme: Literal["light", "dark"] = "light"


SHOTS = {
    "report": Shot(height=720),
    "report_figures": Shot(".figures:has(.double)", height=760),
    "report_confusion": Shot(".evaluation .confusion", height=660),
    "report_examples": Shot("#examples", height=760),
    "report_time": Shot("#time"),
    "report_phone": Shot(width=412, height=860),
    "report_dark": Shot("#training", scheme="dark", height=620),
}
"""By the name of the PNG file."""


@dataclass(frozen=True)
class Arguments:
    """Takes the pictures of a report that the documents show."""

    report: Path
    """HTML file."""
    out: Path
    """New or old folder for the PNG files."""


def main() -> int:
    try:
        return _run(tyro.cli(Arguments, description=__doc__))
    except errors.InputError as error:
        print(f"screenshots: {error}", file=sys.stderr)
        return errors.BAD_INPUT


def _run(arguments: Arguments) -> int:
    from playwright import sync_api

    if not arguments.report.is_file():
        raise errors.InputError(
            f"report {arguments.report}: no such file; train a run or evaluate a checkpoint, which write it"
        )
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise errors.InputError("screenshots need a browser: install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for path in shoot(browser, arguments.report, arguments.out):
            print(f"{path}  {path.stat().st_size / 1000:.0f} kB")
        browser.close()
    return errors.DONE


def shoot(browser: Any, report: Path, out: Path) -> list[Path]:
    """Writes one picture for each of `SHOTS` that the report has; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for name, shot in SHOTS.items():
        page = browser.new_page(
            viewport={"width": shot.width, "height": shot.height}, color_scheme=shot.scheme, device_scale_factor=1.25
        )
        page.goto(report.absolute().as_uri())
        found = page.locator(shot.selector)
        if found.count():
            box = found.first.bounding_box() or {"y": 0, "height": shot.height}
            clip = {"x": 0, "y": box["y"], "width": shot.width, "height": min(box["height"] + 16, shot.height)}
            picture = PIL.Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip))).convert("RGB")
            made.append(out / f"{name}.png")
            picture.save(made[-1], "PNG", optimize=True)
        page.close()
    return made


if __name__ == "__main__":
    sys.exit(main())
