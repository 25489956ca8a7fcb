"""Pages of words drawn by Pillow, with the box of every word as Pillow itself measures it.

The same seed gives the same pages with one version of Pillow, which brings its font along.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 320
SEED = 4
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Paper and ink of a page: plain, weak and inverted print.
INKS = ((255, 20), (235, 60), (210, 110), (40, 220), (180, 110))


@dataclass(frozen=True, slots=True)
class Pages:
    """Pictures [n,3,320,320] 0-255; boxes [K,4] in pixels, those of the first page first."""

    pictures: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    counts: NDArray[np.int64]


def draw_pages(count: int, seed: int = SEED) -> Pages:
    """So many pages, each of some words in lines that do not touch."""
    random = np.random.default_rng(seed)
    drawn = [_page(random) for _ in range(count)]
    return Pages(
        np.stack([picture for picture, _ in drawn]),
        np.array([box for _, boxes in drawn for box in boxes], np.float32),
        np.array([len(boxes) for _, boxes in drawn]),
    )


def _page(random: np.random.Generator) -> tuple[NDArray[np.uint8], list[tuple[float, ...]]]:
    paper, ink = INKS[int(random.integers(len(INKS)))]
    page = Image.new("L", (SIDE, SIDE), paper)
    draw = ImageDraw.Draw(page)
    boxes: list[tuple[float, ...]] = []
    top = int(random.integers(8, 24))
    while True:
        size = int(random.integers(16, 32))
        font = ImageFont.load_default(size)
        left, highest = int(random.integers(6, 40)), float(top)
        while True:
            word = "".join(random.choice(list(LETTERS), int(random.integers(3, 11))))
            box = draw.textbbox((left, top), word, font=font)
            if box[2] > SIDE - 6 or box[3] > SIDE - 6:
                break
            draw.text((left, top), word, font=font, fill=ink)
            boxes.append(box)
            highest = max(highest, box[3])
            # Closer words would be one text to a detector of lines, and to most readers.
            left = int(box[2]) + 2 * size
        if highest == top:
            break
        top = int(highest) + int(random.integers(10, 26))
    if random.random() < 0.3:
        page = page.filter(ImageFilter.GaussianBlur(float(random.uniform(0.5, 1.2))))
    noise = random.normal(0, random.choice([0, 4, 10]), (SIDE, SIDE))
    grey = np.clip(np.asarray(page, np.float64) + noise, 0, 255).astype(np.uint8)
    return np.repeat(grey[None], 3, axis=0), boxes
