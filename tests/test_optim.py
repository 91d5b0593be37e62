from __future__ import annotations

import dataclasses
import io
import itertools
import math

import pytest
import timm
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

from kaggle_kit.errors import SettingError
from kaggle_kit.train.config import AverageConfig, OptimConfig, ScheduleConfig, TrainConfig
from kaggle_kit.train.optim import Schedule, first_swa_epoch, make_optimizer, make_schedule, set_rate

ALL = ("one-cycle", "cosine", "flat-cosine", "plateau")


class Tiny(nn.Module):
    """A backbone with a head, as the network is built."""

    def __init__(self, name: str = "test_resnet", **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = timm.create_model(name, num_classes=0, **options)
        self.heads = nn.ModuleList([nn.Linear(self.backbone.num_features, 3)])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.heads[0](self.backbone(images))


def take_step(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    network(images).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def names_of(network: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {names[id(parameter)] for parameter in parameters}


def scale_of(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    groups = optimizer.param_groups
    return {name: group["lr_scale"] for group in groups for name in names_of(network, group["params"])}


def schedule_of(
    name: str = "one-cycle", *, steps: int = 10, epochs: int = 4, optim: OptimConfig | None = None, **settings: object
) -> Schedule:
    average = AverageConfig(**{key: settings.pop(key) for key in ("swa_start", "swa_lr_share") if key in settings})
    config = TrainConfig(
        optim=optim or OptimConfig(lr=0.01),
        schedule=ScheduleConfig(name=name, **settings),
        average=average,
        epochs=epochs,
    )
    return make_schedule(config, steps_per_epoch=steps, epochs=epochs)


def torch_rates(make: object, num_steps: int, lr: float = 0.01) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, rates = make(optimizer), []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
def test_every_parameter_is_in_one_group_and_norms_and_biases_do_not_decay(name: str, layer_decay: float) -> None:
    network = Tiny(name)
    optimizer = make_optimizer(network, OptimConfig(weight_decay=0.1, layer_decay=layer_decay))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(parameters) == len(set(parameters)) == len(list(network.parameters()))
    excluded = {f"backbone.{name}" for name in getattr(network.backbone, "no_weight_decay", set)()}
    for group in optimizer.param_groups:
        for parameter_name in names_of(network, group["params"]):
            parameter = network.get_parameter(parameter_name)
            decays = parameter.ndim > 1 and not parameter_name.endswith("bias") and parameter_name not in excluded
            assert group["weight_decay"] == (0.1 if decays else 0)


def test_without_layer_decay_there_is_one_pair_of_groups_at_full_rate() -> None:
    groups = make_optimizer(Tiny(), OptimConfig(lr=0.01)).param_groups
    assert [(group["lr_scale"], group["lr"]) for group in groups] == [(1, 0.01), (1, 0.01)]


def test_layers_rates_fall_from_the_heads_down() -> None:
    network = Tiny("test_vit")
    optimizer = make_optimizer(network, OptimConfig(lr=0.01, layer_decay=0.5))
    scale = scale_of(network, optimizer)
    blocks = [scale[f"backbone.blocks.{block}.mlp.fc1.weight"] for block in range(6)]
    assert scale["heads.0.weight"] == scale["heads.0.bias"] == 1
    assert blocks == [0.5**power for power in (6, 5, 4, 3, 2, 1)]
    assert scale["backbone.norm.weight"] == 0.5 and scale["backbone.patch_embed.proj.weight"] == 0.5**7
    assert all(group["lr"] == 0.01 * group["lr_scale"] for group in optimizer.param_groups)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_layer_decay_orders_the_layers_of_convolutional_backbones(name: str) -> None:
    network = Tiny(name)
    scale = scale_of(network, make_optimizer(network, OptimConfig(layer_decay=0.5)))
    inside = [value for name, value in scale.items() if name.startswith("backbone.")]
    first = next(name for name, _ in network.named_parameters())
    assert scale[first] == min(inside) < max(inside) == 0.5
    assert {value for name, value in scale.items() if name.startswith("heads.")} == {1}


@pytest.mark.parametrize("optimizer_name", ["adamw", "sgd", "lamb", "lion", "adan", "lookahead_radam"])
def test_frozen_parameters_are_in_but_untouched_until_they_are_unfrozen(optimizer_name: str) -> None:
    network = Tiny()
    frozen = network.backbone.conv1[0].weight
    frozen.requires_grad_(False)
    optimizer = make_optimizer(network, OptimConfig(name=optimizer_name, weight_decay=0.5, lr=0.01))
    assert not frozen.requires_grad and "backbone.conv1.0.weight" in scale_of(network, optimizer)
    before = {name: tensor.clone() for name, tensor in network.named_parameters()}
    for seed in range(3):
        take_step(network, optimizer, seed)
    changed = {name for name, tensor in network.named_parameters() if not torch.equal(tensor, before[name])}
    assert changed == before.keys() - {"backbone.conv1.0.weight"}
    frozen.requires_grad_(True)
    take_step(network, optimizer, 3)
    assert not torch.equal(frozen, before["backbone.conv1.0.weight"])


@pytest.mark.parametrize("optimizer_name", ["adamw", "sgd", "lookahead_radam"])
def test_an_optimizer_read_back_goes_on_bit_for_bit(optimizer_name: str) -> None:
    config = OptimConfig(name=optimizer_name, layer_decay=0.7)
    network = Tiny()
    optimizer = make_optimizer(network, config)
    for seed in range(8):
        take_step(network, optimizer, seed)
    buffer = io.BytesIO()
    torch.save([network.state_dict(), optimizer.state_dict()], buffer)
    buffer.seek(0)
    weights, state = torch.load(buffer, weights_only=True)
    other = Tiny()
    other.load_state_dict(weights)
    resumed = make_optimizer(other, config)
    resumed.load_state_dict(state)
    assert [group["lr_scale"] for group in resumed.param_groups] == [g["lr_scale"] for g in optimizer.param_groups]
    for seed in range(8, 12):
        take_step(network, optimizer, seed)
        take_step(other, resumed, seed)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adamww", r"'adamww', which timm does not know; did you mean 'adamw'"),
        ("lookahead_nothing", "'lookahead_nothing', which timm does not know"),
        ("adahessian", "needs second derivatives"),
        ("fusedadam", "timm cannot make the optimizer 'fusedadam'.*choose another `optim.name`"),
    ],
)
def test_an_optimizer_that_cannot_be_had_is_refused(name: str, expected: str) -> None:
    with pytest.raises(SettingError, match=expected):
        make_optimizer(Tiny(), OptimConfig(name=name))


@pytest.mark.parametrize("warmup", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("num_steps", [21, 40, 333])
def test_one_cycle_equals_torchs(num_steps: int, warmup: float) -> None:
    found = schedule_of(steps=num_steps, epochs=1, warmup=warmup).rates()
    expected = torch_rates(
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer, 0.01, num_steps + 1, pct_start=warmup, cycle_momentum=False, div_factor=25, final_div_factor=1e4
        ),
        num_steps,
    )
    assert found == pytest.approx(expected, abs=1e-9, rel=1e-9)


def test_cosine_without_warm_up_equals_torchs() -> None:
    found = schedule_of("cosine", steps=50, epochs=3, warmup=0).rates()
    expected = torch_rates(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=150), 150)
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("warmup", [1, 5, 20])
def test_cosine_with_warm_up_equals_torchs_in_sequence(warmup: int) -> None:
    found = schedule_of("cosine", steps=100, epochs=1, warmup=warmup / 100).rates()
    up = torch_rates(
        lambda optimizer: lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup), warmup
    )
    down = torch_rates(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=100 - warmup), 100 - warmup)
    assert found == pytest.approx(up + down, abs=1e-9)


def test_flat_cosine_rises_stays_and_falls() -> None:
    rates = schedule_of("flat-cosine", steps=100, epochs=1, warmup=0.1, flat=0.6).rates()
    assert all(after > before for before, after in itertools.pairwise(rates[:11]))
    assert rates[10:61] == [0.01] * 51
    falling = torch_rates(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=40), 40)
    assert rates[60:] == pytest.approx(falling, abs=1e-9)


def test_flat_cosine_that_is_flat_to_the_end_never_falls() -> None:
    assert schedule_of("flat-cosine", warmup=0, flat=1).rates() == [0.01] * 40


@pytest.mark.parametrize("patience", [0, 1, 2])
def test_plateau_equals_torchs(patience: int) -> None:
    scores = [0.5, 0.6, 0.6, 0.59, 0.7, 0.7, 0.7, 0.7, 0.8, 0.8, 0.1, 0.2, 0.3, 0.4]
    schedule = schedule_of("plateau", epochs=len(scores), warmup=0, plateau_patience=patience, plateau_factor=0.3)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, "max", factor=0.3, patience=patience, threshold=0)
    for epoch, score in enumerate(scores):
        assert schedule.rate(epoch * 10) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        scheduler.step(score)
        schedule.end_epoch(better=score > max(scores[:epoch], default=-1))
    assert schedule.state_dict()["drops"] > 0


def test_plateau_waits_for_the_warm_up_to_end() -> None:
    schedule = schedule_of("plateau", epochs=10, warmup=0.25, plateau_patience=0)
    for _ in range(3):
        schedule.end_epoch(better=False)
    assert schedule.rate(30) == 0.01 and schedule.rates(25) == schedule_of("plateau", epochs=10, warmup=0.25).rates(25)
    schedule.end_epoch(better=False)
    assert schedule.rate(40) == pytest.approx(0.003)


def test_plateau_read_back_goes_on() -> None:
    schedule = schedule_of("plateau", epochs=10, warmup=0, plateau_patience=1)
    for better in (True, False, False, False):
        schedule.end_epoch(better=better)
    resumed = schedule_of("plateau", epochs=10, warmup=0, plateau_patience=1)
    resumed.load_state_dict(schedule.state_dict())
    for one in (schedule, resumed):
        one.end_epoch(better=False)
    assert schedule.rates() == resumed.rates() and schedule.rate(50) == pytest.approx(0.01 * 0.3**2)


@pytest.mark.parametrize("name", ["one-cycle", "cosine", "flat-cosine"])
def test_scores_change_no_other_schedule(name: str) -> None:
    schedule = schedule_of(name, plateau_patience=0)
    before = schedule.rates()
    for _ in range(3):
        schedule.end_epoch(better=False)
    assert schedule.rates() == before


@pytest.mark.parametrize("warmup", [0.0, 1e-6, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("name", ALL)
def test_short_trainings_have_rates_above_0_and_at_most_the_highest(name: str, num_steps: int, warmup: float) -> None:
    rates = schedule_of(name, steps=num_steps, epochs=1, warmup=warmup).rates()
    assert all(0 < rate <= 0.01 for rate in rates)
    assert max(rates) > 0.001


@pytest.mark.parametrize("name", ALL)
def test_no_warm_up_starts_at_the_highest_rate(name: str) -> None:
    assert schedule_of(name, warmup=0).rate(0) == 0.01


@pytest.mark.parametrize("name", ["cosine", "flat-cosine", "plateau"])
def test_a_warm_up_of_one_step_is_one_lower_rate(name: str) -> None:
    assert schedule_of(name, steps=10, epochs=1, warmup=0.1).rates(2) == pytest.approx([0.005, 0.01])


def test_one_cycle_warms_up_for_one_step_where_torch_divides_by_zero() -> None:
    assert schedule_of(steps=9, epochs=1, warmup=0.1).rate(0) == 0.01  # 0.1 * (9 + 1) - 1 == 0
    assert schedule_of(steps=9, epochs=1, warmup=0.2).rates(2) == pytest.approx([0.0004, 0.01])


@pytest.mark.parametrize("name", ALL)
def test_frozen_epochs_have_a_cycle_of_their_own(name: str) -> None:
    optim = OptimConfig(lr=0.01, freeze_epochs=2, frozen_lr=0.05)
    rates = schedule_of(name, steps=20, epochs=5, optim=optim).rates()
    frozen = schedule_of(name, steps=20, epochs=2, optim=OptimConfig(lr=0.05)).rates()
    rest = schedule_of(name, steps=20, epochs=3).rates()
    assert rates == frozen + rest


def test_frozen_epochs_take_the_rate_of_the_others_where_they_have_none() -> None:
    assert max(schedule_of(steps=50, epochs=4, optim=OptimConfig(lr=0.01, freeze_epochs=1)).rates(50)) > 0.0099


def test_plateau_forgets_the_frozen_epochs() -> None:
    optim = OptimConfig(lr=0.01, freeze_epochs=3)
    schedule = schedule_of("plateau", epochs=8, optim=optim, warmup=0, plateau_patience=0)
    schedule.end_epoch(better=False)
    assert schedule.rate(15) == pytest.approx(0.003)
    for _ in range(2):
        schedule.end_epoch(better=False)
    assert schedule.rate(30) == 0.01


@pytest.mark.parametrize("name", ALL)
def test_swa_leaves_the_schedule_and_goes_by_cosine_to_its_constant_rate(name: str) -> None:
    found = schedule_of(name, steps=20, epochs=10, swa_start=0.7, swa_lr_share=0.4).rates()
    plain = schedule_of(name, steps=20, epochs=10).rates()
    assert found[:140] == plain[:140]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=plain[140])
    scheduler = SWALR(optimizer, swa_lr=0.004, anneal_epochs=20)
    for step in range(140, 200):
        assert found[step] == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        scheduler.step()
    assert found[160:] == [0.004] * 40


def test_swas_rate_does_not_move_with_the_plateau() -> None:
    schedule = schedule_of("plateau", epochs=10, warmup=0, plateau_patience=0, swa_start=0.5)
    for _ in range(6):
        schedule.end_epoch(better=False)
    rates = schedule.rates()
    schedule.end_epoch(better=False)
    assert schedule.rates() == rates and rates[60:] == [0.003] * 40


@pytest.mark.parametrize(
    ("start", "epochs", "freeze", "expected"),
    [
        (1.0, 10, 0, None),
        (0.75, 10, 0, 8),
        (0.7, 10, 0, 7),
        (0.0, 10, 0, 0),
        (0.99, 10, 0, 9),
        (0.1, 10, 4, 4),
        (0.5, 1, 0, 0),
    ],
)
def test_swa_averages_the_epochs_after_its_start(start: float, epochs: int, freeze: int, expected: int | None) -> None:
    optim = OptimConfig(freeze_epochs=freeze)
    config = TrainConfig(average=AverageConfig(swa_start=start), optim=optim, epochs=epochs)
    assert first_swa_epoch(config, epochs=epochs) == expected


def test_apply_honours_the_groups_scales() -> None:
    network = Tiny()
    optimizer = make_optimizer(network, OptimConfig(lr=0.01, layer_decay=0.5))
    schedule = schedule_of()
    schedule.apply(optimizer, 7)
    assert all(group["lr"] == schedule.rate(7) * group["lr_scale"] for group in optimizer.param_groups)
    set_rate(optimizer, 2.0)
    assert {group["lr"] for group in optimizer.param_groups} == {2 * g["lr_scale"] for g in optimizer.param_groups}


@pytest.mark.parametrize("name", ALL)
def test_a_rate_is_a_function_of_the_step(name: str) -> None:
    schedule = schedule_of(name, swa_start=0.7)
    forward = [schedule.rate(step) for step in range(schedule.num_steps)]
    assert (
        [schedule.rate(step) for step in reversed(range(schedule.num_steps))] == forward[::-1] == schedule.rates()[::-1]
    )
    assert all(math.isfinite(rate) for rate in forward)


@pytest.mark.parametrize(
    "change",
    [{"name": "cosine"}, {"name": "flat-cosine"}, {"name": "plateau"}, {"warmup": 0.4}],
)
def test_every_setting_of_the_schedule_changes_the_rates(change: dict[str, object]) -> None:
    config = TrainConfig()
    other = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, **change))
    rates = [make_schedule(one, steps_per_epoch=5, epochs=20).rates() for one in (config, other)]
    assert rates[0] != rates[1]
