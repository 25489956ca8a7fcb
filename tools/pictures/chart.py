"""Draws charts as SVG text: same input, same bytes. Refuses to know what is drawn.

Colours are classes, and the picture brings its own ground, so it can be read on light and on dark
pages alike. Lengths are in pixels of the picture.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

STYLE = """\
.ground{fill:#ffffff;stroke:#d5dae0}
text{fill:#1f2630;font:13px "DejaVu Sans",Verdana,Arial,sans-serif}
.quiet{fill:#5b6675}.small{font-size:12px}.bold{font-weight:bold}.title{font-size:15px}
.end{text-anchor:end}.middle{text-anchor:middle}
.axis{stroke:#8a94a3;fill:none}.grid{stroke:#e4e8ed;fill:none}
.a{stroke:#1560bd;fill:none}.b{stroke:#c2410c;fill:none}.limit{stroke:#b42318;fill:none}
.calm{stroke:#1a7f4b;fill:none}.wide{stroke-width:2.5}.dash{stroke-dasharray:6 4}
.band{fill:#f6ead0}.hold{fill:#f9d9cf}.rest{fill:#d3ecdc}.mark{fill:#dfe3ea}
.dot-a{fill:#1560bd}.dot-b{fill:#c2410c}.dot-off{fill:none;stroke:#5b6675;stroke-width:1.5}
.text-a{fill:#1560bd}.text-b{fill:#c2410c}.text-limit{fill:#b42318}.text-calm{fill:#1a7f4b}
.badge{fill:#1f2630}.badge-text{fill:#ffffff;text-anchor:middle;font-weight:bold;font-size:12px}
@media (prefers-color-scheme:dark){
.ground{fill:#12171e;stroke:#343d49}
text{fill:#e4e9f0}.quiet{fill:#9fabba}
.axis{stroke:#768292}.grid{stroke:#242c36}
.a{stroke:#6cb0ff}.b{stroke:#ff9a62}.limit{stroke:#ff8a80}.calm{stroke:#5fd39a}
.band{fill:#3a3322}.hold{fill:#4d2a22}.rest{fill:#1e3d2d}.mark{fill:#2c3541}
.dot-a{fill:#6cb0ff}.dot-b{fill:#ff9a62}.dot-off{stroke:#9fabba}
.text-a{fill:#6cb0ff}.text-b{fill:#ff9a62}.text-limit{fill:#ff8a80}.text-calm{fill:#5fd39a}
.badge{fill:#e4e9f0}.badge-text{fill:#12171e}
}"""


def figure(value: float) -> str:
    """A coordinate with at most one digit behind the point."""
    return f"{value:.1f}".removesuffix(".0")


@dataclass(slots=True)
class Canvas:
    """One picture; `title` and `about` are for those who cannot see it."""

    width: int
    height: int
    title: str
    about: str
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, look: str = "") -> None:
        """Words whose base line begins at x, y."""
        shown = f' class="{look}"' if look else ""
        self.parts.append(f'<text x="{figure(x)}" y="{figure(y)}"{shown}>{escape(words)}</text>')

    def line(self, points: Iterable[tuple[float, float]], look: str) -> None:
        """A line through all points."""
        joined = " ".join(f"{figure(x)},{figure(y)}" for x, y in points)
        self.parts.append(f'<polyline class="{look}" points="{joined}"/>')

    def box(self, x: float, y: float, width: float, height: float, look: str) -> None:
        """A filled rectangle."""
        self.parts.append(
            f'<rect class="{look}" x="{figure(x)}" y="{figure(y)}"'
            f' width="{figure(width)}" height="{figure(height)}"/>'
        )

    def dot(self, x: float, y: float, look: str, radius: float = 4) -> None:
        """A filled or empty circle."""
        self.parts.append(
            f'<circle class="{look}" cx="{figure(x)}" cy="{figure(y)}" r="{figure(radius)}"/>'
        )

    def badge(self, x: float, y: float, words: str) -> None:
        """A number in a disc, which a line of text elsewhere explains."""
        self.dot(x, y, "badge", 9)
        self.text(x, y + 4.5, words, "badge-text")

    def svg(self) -> str:
        """The picture as a file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}"'
            f' width="{self.width}" height="{self.height}" role="img">\n'
            f"<title>{escape(self.title)}</title>\n<desc>{escape(self.about)}</desc>\n"
            "<!-- Written by `make docs` from the code; `make check` compares. -->\n"
            f"<style>\n{STYLE}\n</style>\n"
            f'<rect class="ground" x="0.5" y="0.5" rx="6" width="{self.width - 1}"'
            f' height="{self.height - 1}"/>\n'
        )
        return head + "\n".join(self.parts) + "\n</svg>\n"


@dataclass(frozen=True, slots=True)
class Axes:
    """A panel: where values stand in the picture."""

    left: float
    right: float
    top: float
    bottom: float
    x_max: float
    y_min: float
    y_max: float

    def x(self, value: float) -> float:
        """Pixels from the left of the picture."""
        return self.left + (self.right - self.left) * value / self.x_max

    def y(self, value: float) -> float:
        """Pixels from the top of the picture."""
        share = (value - self.y_min) / (self.y_max - self.y_min)
        return self.bottom - (self.bottom - self.top) * share

    def draw(
        self,
        canvas: Canvas,
        x_marks: Sequence[tuple[float, str]],
        y_marks: Sequence[tuple[float, str]],
    ) -> None:
        """Grid, axes and their marks."""
        for value, words in y_marks:
            canvas.line(((self.left, self.y(value)), (self.right, self.y(value))), "grid")
            canvas.text(self.left - 8, self.y(value) + 4, words, "quiet small end")
        for value, words in x_marks:
            canvas.line(((self.x(value), self.bottom), (self.x(value), self.bottom + 4)), "axis")
            canvas.text(self.x(value), self.bottom + 18, words, "quiet small middle")
        corner = ((self.left, self.top), (self.left, self.bottom), (self.right, self.bottom))
        canvas.line(corner, "axis")


def steps(values: Sequence[tuple[float, float]], until: float) -> list[tuple[float, float]]:
    """The corners of a line that keeps each value until the next one."""
    corners: list[tuple[float, float]] = []
    for (at, value), end in zip(values, [*(v[0] for v in values[1:]), until], strict=True):
        corners += [(at, value), (end, value)]
    return corners
