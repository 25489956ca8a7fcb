"""A data directory that the host does not give: one clear error, no traceback."""

from pathlib import Path

import pytest

from controller.__main__ import main


@pytest.mark.parametrize("how", ["cannot be made", "cannot be locked"])
def test_serve_says_in_one_line_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    folder = Path("/proc/lighterman-x") if how == "cannot be made" else tmp_path
    if how == "cannot be locked":
        (tmp_path / "lock").symlink_to("/dev/full")
    assert main(["migrate", "--data-dir", str(folder)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: data directory {folder} cannot be used: ")
    assert "another --data-dir" in said
