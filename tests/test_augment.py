from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from kaggle_kit.errors import SettingError
from kaggle_kit.pixels import Image
from kaggle_kit.task import Stored
from kaggle_kit.train.augment import Augment, preset_recipe, read_augment
from kaggle_kit.train.config import AUGMENT_PRESETS, TrainConfig
from kaggle_kit.train.warps import (
    GRAY_WEIGHTS,
    NO_FOLD,
    Mesh,
    Recipe,
    border_colors,
    change_colors,
    erase_boxes,
    make_meshes,
    thicken_strokes,
    warp_images,
)

HEIGHT, WIDTH = 24, 32
STORED = Stored(height=HEIGHT, width=WIDTH)
OWN = """
- Affine: {rotate: [-20, 20], p: 0.8}
- HorizontalFlip
- OneOf:
    p: 0.5
    transforms:
      - GaussianBlur
      - CoarseDropout: {num_holes_range: [1, 2]}
"""


def make_images(channels: int, count: int = 6, *, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Image:
    noise = np.random.default_rng(0).integers(0, 256, (count, *size, channels), dtype=np.uint8)
    return np.stack([cv2.GaussianBlur(image, (5, 5), 0).reshape(image.shape) for image in noise])


def warped(images: Image, recipe: Recipe, seed: int = 0) -> Image:
    return warp_images(images, recipe, make_meshes(images.shape[1:3]), np.random.default_rng(seed))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("preset", [*AUGMENT_PRESETS, OWN])
def test_the_same_seed_gives_the_same_images_in_any_process(preset: str, channels: int) -> None:
    images = make_images(channels)
    augment = Augment(preset, stored=STORED, channels=channels)
    before = images.copy()
    first, again, other = augment(images, seed=1), augment(images, seed=1), augment(images, seed=2)
    copied = pickle.loads(pickle.dumps(augment))(images, seed=1)  # noqa: S301  (as a spawned worker gets it)
    assert first.shape == images.shape and first.dtype == np.uint8
    assert (first == again).all() and (first == copied).all() and (images == before).all()
    assert (first != other).any() == (first != images).any() == (preset != "none")


def test_images_of_a_batch_are_changed_differently() -> None:
    same = np.repeat(make_images(1, 1), 8, axis=0)
    for preset in ("letters", "strong", OWN):
        changed = Augment(preset, stored=STORED, channels=1)(same, seed=0)
        assert len(np.unique(changed.reshape(8, -1), axis=0)) > 4


def test_an_empty_batch_stays_empty() -> None:
    assert Augment("letters", stored=STORED, channels=1)(make_images(1)[:0], seed=0).shape == (0, HEIGHT, WIDTH, 1)


def test_auto_and_strong_follow_the_channels() -> None:
    assert preset_recipe("auto", channels=1) == preset_recipe("letters", channels=1)
    assert preset_recipe("auto", channels=3) == preset_recipe("photos", channels=3)
    gray, color = preset_recipe("strong", channels=1), preset_recipe("strong", channels=3)
    assert gray is not None and not gray.flip and gray.outside == "paper"
    assert color is not None and color.flip and color.outside == "mirror"


@pytest.mark.parametrize(("weak", "channels"), [("letters", 1), ("photos", 3)])
def test_strong_is_at_least_as_strong_in_everything(weak: str, channels: int) -> None:
    less, more = preset_recipe(weak, channels=channels), preset_recipe("strong", channels=channels)
    for name, value in vars(less).items():
        if isinstance(value, float | int):
            assert getattr(more, name) >= value, name
    assert less is not None and more is not None
    assert more.zoom[0] <= less.zoom[0] and more.zoom[1] >= less.zoom[1]


def test_a_recipe_of_nothing_changes_nothing() -> None:
    images = make_images(3)
    rng = np.random.default_rng(0)
    out = warped(images, Recipe())
    for change in (thicken_strokes, change_colors, erase_boxes):
        change(out, Recipe(), rng)
    assert (out == images).all()


@pytest.mark.parametrize("cells", [1, 3, 7])
def test_moving_the_points_linearly_moves_every_pixel_linearly(cells: int) -> None:
    mesh = Mesh((21, 40), cells=cells)
    (x, y), (column, row) = mesh.points, np.meshgrid(np.arange(40) - 19.5, np.arange(21) - 10.0)
    found = mesh.maps(np.stack([3 + 0.9 * x - 0.2 * y + 0.01 * x * y, 0.3 * x + 1.1 * y]).astype(np.float32))
    assert np.allclose(found[0], 3 + 0.9 * column - 0.2 * row + 0.01 * column * row, atol=1e-4)
    assert np.allclose(found[1], 0.3 * column + 1.1 * row, atol=1e-4)


@pytest.mark.parametrize("cells", [3, 7])
def test_points_that_move_as_far_as_allowed_fold_nothing(cells: int) -> None:
    mesh = Mesh((64, 64), cells=cells)
    rng = np.random.default_rng(0)
    for _ in range(50):
        # The worst there is: each point at one of its limits.
        moves = rng.choice([-NO_FOLD, NO_FOLD], mesh.points.shape) * mesh.spacing[:, None, None]
        x, y = mesh.maps((mesh.points + moves).astype(np.float32))
        dx, dy = np.gradient(x), np.gradient(y)
        assert (dx[1] * dy[0] - dx[0] * dy[1] > 0).all()


def test_half_of_the_images_are_mirrored_and_none_without_flip() -> None:
    images = make_images(3, 64)
    out = warped(images, Recipe(flip=True))
    mirrored = (out == images[:, :, ::-1]).all(axis=(1, 2, 3))
    kept = (out == images).all(axis=(1, 2, 3))
    assert (mirrored ^ kept).all() and 16 < mirrored.sum() < 48


def test_a_zoom_equals_opencv_around_the_middle() -> None:
    image = make_images(1, 1, size=(40, 60))
    found = warped(image, Recipe(zoom=(2.0, 2.0)))[0, ..., 0]
    matrix = np.array([[2, 0, -29.5], [0, 2, -19.5]])
    expected = cv2.warpAffine(image[0], matrix, (60, 40), flags=cv2.INTER_LINEAR)
    assert np.abs(found.astype(int) - expected).max() <= 3  # OpenCV's fixed-point weights


def test_mirroring_goes_before_turning_so_both_directions_turn() -> None:
    recipe = Recipe(rotate=30, flip=True)
    down = np.zeros((200, 33, 33, 1), np.uint8)
    down[:, 16:, 16] = 255
    out = warped(down, recipe)
    sides = out[:, 28, :16, 0].any(axis=1)
    assert 0.3 < sides.mean() < 0.7


@pytest.mark.parametrize("paper", [0, 90, 255])
def test_what_lies_beyond_a_letter_is_its_own_paper(paper: int) -> None:
    images = np.full((16, 48, 64, 1), paper, np.uint8)
    images[:, 14:34, 20:44] = 255 - paper
    images[:, 20:24, 0:10] = 255 - paper  # a stroke that touches the border
    recipe = preset_recipe("letters", channels=1)
    assert recipe is not None and border_colors(images).tolist() == [[paper]] * 16
    out = warped(images, recipe)
    assert (out[:, [0, 0, -1, -1], [0, -1, 0, -1]] == paper).all()
    # Strokes keep about their area, so nothing was smeared: zoom is at most 1.15, further stretch 1.15.
    share = (np.abs(out.astype(int) - paper) > 64).mean() / (images != paper).mean()
    assert 0.7 < share < 1.4


def test_photos_are_continued_by_their_mirror_image() -> None:
    images = np.full((8, 32, 32, 3), 200, np.uint8)
    recipe = preset_recipe("photos", channels=3)
    assert recipe is not None and (warped(images, recipe) == 200).all()


def test_colors_change_as_a_slow_reference_says() -> None:
    images = make_images(3, 2)
    recipe = Recipe(brightness=0.2, contrast=0.3, saturation=0.4)
    draws = np.random.default_rng(5).uniform(-1, 1, (3, 2))
    out = images.copy()
    change_colors(out, recipe, np.random.default_rng(5))
    for row in range(2):
        brightness, contrast, saturation = draws[:, row] * [0.2 * 255, 0.3, 0.4] + [0, 1, 1]
        pixels = images[row].astype(float)
        gray = (pixels @ GRAY_WEIGHTS)[..., None]
        expected = contrast * (gray + saturation * (pixels - gray) - gray.mean()) + gray.mean() + brightness
        assert np.abs(out[row] - np.clip(expected, 0, 255)).max() <= 1
    flat = np.full((2, 4, 4, 1), 128, np.uint8)
    change_colors(flat, Recipe(contrast=0.5, saturation=0.5), np.random.default_rng(0))
    assert (flat == 128).all()


def test_erasing_puts_noise_over_one_box_of_the_asked_area() -> None:
    images = np.zeros((200, 40, 60, 3), np.uint8)
    erase_boxes(images, Recipe(erase=0.5, erase_area=(0.1, 0.2)), np.random.default_rng(0))
    touched = images.any(axis=3)
    assert 70 < touched.any(axis=(1, 2)).sum() < 130
    for mask in touched[touched.any(axis=(1, 2))]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert 0.085 < area / mask.size < 0.215 and mask.sum() > 0.98 * area


def test_strokes_get_thicker_or_thinner_by_half_and_never_vanish() -> None:
    images = np.full((40, 48, 48, 1), 255, np.uint8)
    images[:, 10:40, 20] = 0
    recipe = Recipe(thickness=1.0)
    thicken_strokes(images, recipe, np.random.default_rng(0))
    assert {tuple(image[20, 18:23, 0]) for image in images} == {(255, 255, 128, 255, 255), (255, 128, 0, 128, 255)}
    small = images[:, :20]
    before = small.copy()
    thicken_strokes(small, recipe, np.random.default_rng(0))
    assert (small == before).all()


def test_own_transforms_draw_independently_of_each_other() -> None:
    # Of generators with the same seed both flips would come together, or none, in every batch's first image.
    augment = Augment("- HorizontalFlip\n- VerticalFlip\n", stored=STORED, channels=1)
    image = make_images(1, 1)
    seen = {augment(image, seed=seed).tobytes() for seed in range(40)}
    assert len(seen) == 4


def test_an_own_list_may_change_the_size_in_between() -> None:
    text = f"- RandomCrop: {{height: 10, width: 10, p: 1}}\n- Resize: {{height: {HEIGHT}, width: {WIDTH}}}\n"
    with pytest.raises(SettingError, match=r"item 1 \(RandomCrop\) makes images 10 x 10 x 1"):  # Resize's p is 1
        Augment(text.replace("Resize: {", "Resize: {p: 0.5, "), stored=STORED, channels=1)
    assert Augment(text, stored=STORED, channels=1)(make_images(1), seed=0).shape == (6, HEIGHT, WIDTH, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- Afine\n", r"item 1 \(Afine\) is no transform of albumentations 2.*did you mean 'Affine'"),
        ("- HorizontalFlip\n- os.system\n", r"item 2 \(os.system\) is no transform"),
        ("- __class__\n", "is no transform"),
        ("- BasicTransform\n", "is no transform"),
        (
            "- CoarseDropout: {max_holes: 3}\n",
            r"\(CoarseDropout\) has no argument `max_holes`; accepted: num_holes_range",
        ),
        ("- HorizontalFlip: {always_apply: true}\n", "has no argument `always_apply`; accepted: p"),
        ("- Affine: {rotate: a}\n", r"item 1 \(Affine\): `rotate`: .*found 'a'"),
        ("- Affine: {p: 2}\n", "`p`: Input should be less than or equal to 1, found 2"),
        ("- RandomResizedCrop\n", "`size`: Field required"),
        ("- Affine: {translate_percent: 0.1, translate_px: 3}\n", "but both were provided"),
        ("- Normalize\n", "gives no uint8 image; the network normalises itself"),
        ("- ToTensorV2\n", "gives no uint8 image"),
        ("- Compose: {transforms: [HorizontalFlip]}\n", "is not needed"),
        ("- Lambda\n", "takes Python functions"),
        ("- CenterCrop3D: {size: [3, 3, 3]}\n", "is for volumes"),
        ("- MaskDropout\n", "needs mask beside the image; only images are given"),
        ("- Mosaic\n", "needs mosaic_metadata beside the image"),
        ("- BBoxSafeRandomCrop\n", "fails on a 24 x 32 x 1 uint8 image: 'bboxes'"),
        (
            "- RandomCrop: {height: 10, width: 10, p: 0.001}\n",
            "makes images 10 x 10 x 1 .*expected 24 x 32 x 1 .*Resize",
        ),
        ("- Transpose\n", "makes images 32 x 24 x 1"),
        ("- HueSaturationValue\n", "not applicable to grayscale"),
        ("- RandomFog\n", "fails on a 24 x 32 x 1 uint8 image: This transformation expects 3-channel"),
        ("- OneOf\n", "needs `transforms`"),
        ("- OneOf: {transforms: [Foo]}\n", r"item 1 \(OneOf\), item 1 \(Foo\) is no transform"),
        ("- OneOf: {transforms: [HorizontalFlip], p: a}\n", "`p` is 'a'; expected 0 to 1"),
        ("- OneOf: {transforms: [{HorizontalFlip: {p: 0}}]}\n", "all of its transforms have p: 0"),
        ("- SomeOf: {transforms: [HorizontalFlip], n: 0}\n", "`n` is 0; expected a whole number from 1"),
        ("- SomeOf: {transforms: [HorizontalFlip], replace: 1}\n", "`replace` is 1; expected true or false"),
        ("- SomeOf: {transforms: [HorizontalFlip], n: 3}\n", "greater than number of transforms"),
        ("- {Affine: {}, HorizontalFlip: {}}\n", "item 1 is .*expected a transform's name"),
        ("- HorizontalFlip: [1]\n", "item 1 is .*expected a transform's name"),
        ("- 3\n", "item 1 is '3'"),
        ("rotate: 3\n", "holds a dict; expected a list"),
        ("[]\n", "holds an empty list"),
        ("- Affine: {rotate: [1, 2\n", "not valid YAML near line"),
    ],
)
def test_own_lists_that_cannot_be_used_are_refused(text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        Augment(text, stored=STORED, channels=1)
    assert str(caught.value).startswith("`augment`") and "\n" not in str(caught.value)


def test_a_change_of_size_that_the_trial_did_not_meet_is_found_when_it_comes() -> None:
    augment = Augment("- HorizontalFlip: {p: 1}\n", stored=STORED, channels=1)
    assert augment._own is not None
    augment._own._compose.transforms = [lambda image: {"image": image[1:]}]
    with pytest.raises(SettingError, match="gave an image of 23 x 32 x 1 uint8; expected 24 x 32 x 1 uint8, as stored"):
        augment(make_images(1), seed=0)


@pytest.mark.parametrize("preset", AUGMENT_PRESETS)
def test_presets_are_read_as_they_are(preset: str) -> None:
    assert read_augment(preset) == preset


@pytest.mark.parametrize("content", [OWN, "[HorizontalFlip]", "- HorizontalFlip"])
def test_a_file_is_read_as_text_that_a_configuration_takes(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.YAML"
    path.write_text(content)
    text = read_augment(str(path))
    assert read_augment(text) == text and TrainConfig(augment=text).augment == text
    assert Augment(text, stored=STORED, channels=3)(make_images(3), seed=0).shape == (6, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.yaml", None, r"cannot read '.*absent.yaml' \(No such file"),
        ("bytes.yml", b"\xff\xfe\x00", "is not UTF-8 text"),
        ("mapping.yaml", b"a: 3\n", "mapping.yaml' holds a dict; expected a list"),
        ("empty.yaml", b"", "empty.yaml' holds nothing"),
        ("broken.yaml", b"- [\n", "is not valid YAML near line"),
    ],
)
def test_files_that_hold_no_list_are_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingError, match=message):
        read_augment(str(tmp_path / name))


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(SettingError, match=r"`augment` is 'letter'; expected one of auto, .*did you mean 'letters'"):
        read_augment("letter")
