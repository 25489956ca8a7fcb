"""A selector that picks nobody: the error says which term, what there is, what was meant."""

import pytest

from controller.domain.selection import EVERYTHING, Subject
from controller.domain.selector import parse_selector
from controller.services.selections import nobody_matches

FLEET = [Subject(f"pi-{n}", "raspberry-pi-5", "aarch64", {"site": "berlin"}) for n in range(3)] + [
    Subject("n100-1", "intel-n100", "x86_64", {"site": "bremen", "line": "a"})
]


@pytest.mark.parametrize(
    ("selector", "lines"),
    [
        (
            "site=berlin,profile=raspberry-pi-4",
            (
                "site=berlin has 3 devices: raspberry-pi-5 (3)",
                "did you mean profile=raspberry-pi-5 ?",
            ),
        ),
        (
            "site=berlni",
            ("4 devices: raspberry-pi-5 (3), intel-n100 (1)", "did you mean site=berlin ?"),
        ),
        (
            "sit=berlin",
            (
                "4 devices: raspberry-pi-5 (3), intel-n100 (1)",
                "no device has the label sit",
                "did you mean site ?",
            ),
        ),
        ("device=pi-9", ("4 devices: raspberry-pi-5 (3), intel-n100 (1)", "did you mean device=")),
        (
            "site=tokyo",
            (
                "4 devices: raspberry-pi-5 (3), intel-n100 (1)",
                "known for site: berlin, bremen",
            ),
        ),
        (
            "site=berlin,line=a",  # each holds somewhere, both nowhere
            (
                "4 devices: raspberry-pi-5 (3), intel-n100 (1)",
                "site=berlin has 3 devices, line=a leaves none of them",
            ),
        ),
        ("!site", ("4 devices: raspberry-pi-5 (3), intel-n100 (1)", "every device has site: ")),
    ],
)
def test_the_error_says_what_was_meant(selector: str, lines: tuple[str, ...]) -> None:
    error = nobody_matches(parse_selector(selector), FLEET, selector)
    assert error.message == f"no device matches  {selector}"
    assert len(error.lines) == len(lines), error.lines
    for said, wanted in zip(error.lines, lines, strict=True):
        assert said.startswith(wanted), error.lines


def test_without_devices_the_way_to_one_is_named() -> None:
    assert "token create" in nobody_matches(EVERYTHING, [], "all").text()
