"""Draws docs/images: a picture of each view of the page, in a real browser. Run scripts/screenshots."""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from browser import LONG, SHORT, browsing, save_shallow, serving

DESKTOP = {"width": 1120, "height": 860}
PHONE = {"width": 390, "height": 844}
FREQUENT = 16  # colours of a picture that are kept exactly
# name: address, step that is shown, and what is unusual about the window
VIEWS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "page": (f"model=sudoku-6x6&puzzle={LONG}", 12, {}),
    "page-dark": (f"model=sudoku-6x6&puzzle={LONG}", 25, {"color_scheme": "dark"}),
    "page-compare": (f"model=sudoku-6x6&rival=shallow&puzzle={SHORT}", 3, {}),
    "page-starts": (f"model=sudoku-6x6&starts=16&puzzle={LONG}", 1, {"color_scheme": "dark"}),
    "page-rolling-sum": ("model=rolling-sum", 6, {"color_scheme": "dark"}),
    "page-maze": ("model=maze", 3, {}),
    "page-phone": (f"model=sudoku-6x6&puzzle={LONG}", 7, {"viewport": PHONE, "device_scale_factor": 2}),
}


def main(folder: Path, *more_models: str) -> None:
    """Write the pictures; views of models that are not served are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        shallow = save_shallow(Path(temporary) / "shallow")
        served = ["sudoku-6x6", f"shallow={shallow}", "sorting", "rolling-sum", *more_models]
        with serving(*served) as address, browsing() as browser:
            save_gif(browser, f"{address}/#model=sudoku-6x6&puzzle={LONG}", folder / "thinking.gif")
            for name, (query, step, options) in VIEWS.items():
                model = query.removeprefix("model=").split("&")[0]
                if model in [word.split("=")[0] for word in served]:
                    draw(browser, f"{address}/#{query}", step, options, folder / f"{name}.png")


def save_gif(browser: Any, address: str, file: Path) -> None:
    """The GIF that the page itself makes of a run."""
    context = browser.new_context(viewport=DESKTOP, reduced_motion="reduce", color_scheme="dark")
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    page.click("#think")
    page.wait_for_selector(".side[data-state=solved]", timeout=120_000)
    with page.expect_download() as download:
        page.click("#gif")
    download.value.save_as(file)
    context.close()
    print(file, file.stat().st_size)


def draw(browser: Any, address: str, step: int, options: dict[str, Any], file: Path) -> None:
    """Open the page, let it think to the end, go back to a step, and take a picture."""
    context = browser.new_context(**{"viewport": DESKTOP, "reduced_motion": "reduce"} | options)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    page.select_option("#speed", "30")
    page.click("#think")
    page.wait_for_selector("body[data-thinking=false]", timeout=120_000)
    page.focus("#timeline")
    page.keyboard.press("Home")
    for _ in range(step):
        page.keyboard.press("ArrowRight")
    page.wait_for_timeout(800)
    page.locator("#timeline").blur()
    page.mouse.move(0, 0)
    page.screenshot(path=file, full_page=True)
    context.close()
    with Image.open(file) as picture:
        shrink(picture.convert("RGB")).save(file, optimize=True)
    print(file, file.stat().st_size)


def shrink(picture: Image.Image) -> Image.Image:
    """The picture in 256 colours: the most frequent as they are, others dithered, so that washes have no rings."""
    frequent = [colour for _, colour in sorted(picture.getcolors(1 << 24), reverse=True)[:FREQUENT]]
    others = picture.quantize(256 - FREQUENT, Image.Quantize.MAXCOVERAGE, kmeans=2).getpalette()
    palette = Image.new("P", (1, 1))
    palette.putpalette([*np.ravel(frequent).tolist(), *others[: 3 * (256 - FREQUENT)]])
    small = np.array(picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))
    pixels = np.array(picture)
    for index, colour in enumerate(frequent):
        small[(pixels == colour).all(axis=2)] = index  # Pillow is content with one that is close
    exact = Image.fromarray(small)
    exact.putpalette(palette.getpalette())
    return exact


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
