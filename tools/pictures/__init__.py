"""The pictures of the docs, drawn from what the real cores decide; `make docs` writes them.

Refuses to draw what no core said: every step, row and wave is an answer of `choose_rung`, `judge`
or `plan` to the facts that the picture shows.
"""

from pathlib import Path

from tools.pictures.forecast import forecast_picture
from tools.pictures.ladder import ladder_picture
from tools.pictures.rollback import rollback_picture
from tools.pictures.waves import waves_picture


def picture_pages(folder: Path) -> dict[Path, str]:
    """Every picture and its text."""
    return {
        folder / "ladder.svg": ladder_picture(),
        folder / "rollback.svg": rollback_picture(),
        folder / "forecast.svg": forecast_picture(),
        folder / "waves.svg": waves_picture(),
    }
