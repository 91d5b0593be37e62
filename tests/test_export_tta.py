from __future__ import annotations

import numpy as np
import pytest
import torch
import ttach
from conftest import wide_task
from torch import nn

from kaggle_kit.errors import SettingError
from kaggle_kit.export.tta import Scale, Shift, check_tta, make_views
from kaggle_kit.train.config import ModelConfig
from kaggle_kit.train.model import build_network


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 20, 30)).astype(np.float32))


def test_the_first_view_is_the_image_itself_and_views_add_up(pixels: torch.Tensor) -> None:
    views = make_views(["hflip", "vflip", "scale=0.9,1.1", "shift=4"])
    assert len(views) == 1 + 1 + 1 + 2 + 4
    assert views[0](pixels) is pixels
    assert make_views([])[0](pixels) is pixels and len(make_views([])) == 1
    assert [tuple(view(pixels).shape[2:]) for view in views[3:5]] == [(18, 27), (22, 33)]


@pytest.mark.parametrize("spec", ["hflip", "vflip"])
def test_flipping_twice_is_the_identity_and_a_symmetric_image_stays(spec: str, pixels: torch.Tensor) -> None:
    _, flip = make_views([spec])
    assert not torch.equal(flip(pixels), pixels)
    assert torch.equal(flip(flip(pixels)), pixels)
    symmetric = pixels + flip(pixels)
    assert torch.equal(flip(symmetric), symmetric)


def test_shifts_go_to_all_four_sides_and_repeat_the_border(pixels: torch.Tensor) -> None:
    _, left, right, up, down = make_views(["shift=4"])
    assert torch.equal(left(pixels)[..., :-4], pixels[..., 4:])
    assert torch.equal(right(pixels)[..., 4:], pixels[..., :-4])
    assert torch.equal(up(pixels)[:, :, :-4], pixels[:, :, 4:])
    assert torch.equal(down(pixels)[:, :, 4:], pixels[:, :, :-4])
    assert torch.equal(right(pixels)[..., :4], pixels[..., :1].expand(-1, -1, -1, 4))


@pytest.mark.parametrize("step", [(0, 5), (0, -5), (3, 0), (-3, 0), (2, -7)])
def test_the_opposite_shift_undoes_a_shift_away_from_the_border(step: tuple[int, int], pixels: torch.Tensor) -> None:
    shift = Shift([step])
    assert shift.params == [(0, 0), step]
    back = shift.apply_deaug_mask(shift.apply_aug_image(pixels, shift=step), shift=step)
    inside = (..., slice(7, -7), slice(7, -7))
    assert torch.equal(back[inside], pixels[inside])


@pytest.mark.parametrize("factor", [0.5, 0.75, 0.9, 1.1, 1.5, 2.0])
def test_scaling_gives_what_ttach_gives(factor: float, pixels: torch.Tensor) -> None:
    theirs = ttach.Scale([factor], interpolation="bilinear", align_corners=False)
    expected = theirs.apply_aug_image(pixels, scale=factor)
    found = Scale([factor]).apply_aug_image(pixels, scale=factor)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("specs", "transform"),
    [
        (["hflip"], ttach.HorizontalFlip()),
        (["vflip"], ttach.VerticalFlip()),
        (["scale=0.9,1.1"], ttach.Scale([0.9, 1.1], interpolation="bilinear", align_corners=False)),
        (["shift=2"], Shift([(0, -2), (0, 2), (-2, 0), (2, 0)])),
    ],
)
def test_views_average_to_what_ttach_averages_to(
    specs: list[str], transform: ttach.base.BaseTransform, pixels: torch.Tensor
) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), nn.Softmax(dim=1)
    model = nn.Sequential(*layers).eval()
    views = make_views(specs)
    with torch.inference_mode():
        expected = ttach.ClassificationTTAWrapper(model, ttach.Compose([transform]))(pixels)
        found = sum(model(view(pixels)) for view in views) / len(views)
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(found, model(pixels), atol=1e-6)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["hflp"], r"`tta` holds 'hflp', which is no change of an image; did you mean 'hflip'\? \(there are 'hflip', "),
        (["rotate=9"], r"'rotate=9', .*; known: hflip, vflip, scale, shift \(there are .* 'scale=0.9,1.1', 'shift=4'"),
        ([""], "holds '', which is no change of an image"),
        (["hflip=1"], "holds 'hflip=1', but a flip takes no value; write 'hflip'"),
        (["scale"], "holds 'scale'; expected factors other than 1 from 0.5 to 2, such as 'scale=0.9,1.1'"),
        (["scale=0.4"], "holds 'scale=0.4'; expected factors other than 1 from 0.5 to 2"),
        (["scale=0.9,nan"], "expected factors other than 1"),
        (["scale=1"], "expected factors other than 1"),
        (["scale=0.9,"], "expected factors other than 1"),
        (["shift=0"], "holds 'shift=0'; expected whole pixels from 1 to 64, such as 'shift=4'"),
        (["shift=65"], "expected whole pixels from 1 to 64"),
        (["shift=2.5"], "expected whole pixels"),
        (["shift=four"], "expected whole pixels"),
        (["hflip", "vflip", "hflip"], "holds 'hflip', a change that is there already; leave one out"),
        (["scale=0.9", "scale=1.1,0.90"], "holds 'scale=1.1,0.90', a change that is there already"),
    ],
)
def test_changes_that_do_not_exist_are_refused(specs: list[str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        check_tta(specs)
    with pytest.raises(SettingError, match=message):
        make_views(specs)


def test_a_network_refuses_views_it_cannot_follow() -> None:
    fixed = build_network(wide_task(), ModelConfig(name="test_vit", input_size=(32, 48)))
    check_tta(["hflip", "shift=31"], fixed)
    with pytest.raises(SettingError, match=r"'scale=0.9', but 'test_vit' takes images of one size alone, \[32, 48\]"):
        check_tta(["scale=0.9"], fixed)
    with pytest.raises(SettingError, match=r"'shift=32', which moves images of \[32, 48\] out of sight"):
        check_tta(["shift=32"], fixed)
