from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import distributed, multiprocessing, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from kaggle_kit.train.averaging import Ema, Swa, greedy_soup, recompute_batch_norm

CPU = torch.device("cpu")
State = dict[str, torch.Tensor]


def make_network(seed: int = 0, name: str = "test_resnet", **options: object) -> nn.Module:
    import timm  # here, so that processes that import this module start without it

    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=3, **options)


def jolt(network: nn.Module, seed: int) -> None:
    """Change parameters and BatchNorm buffers, as a training step does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
            else:
                tensor.add_(1)


def floats(network: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in network.state_dict().items() if tensor.is_floating_point()}


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def reread(state: object) -> dict[str, object]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def images_of(num: int, seed: int = 0) -> torch.Tensor:
    """Return images whose brightness drifts, so that batches differ in their means."""
    images = torch.randn(num, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return images + torch.linspace(-3, 3, num).view(-1, 1, 1, 1)


def test_ema_equals_a_slow_reference_and_copies_counters() -> None:
    network = make_network()
    ema, slow = Ema(network, decay=0.6), floats(network)
    for step in range(12):
        jolt(network, step)
        ema.update(network)
        decay = min(0.6, (1 + step) / (10 + step))
        slow = {name: decay * slow[name] + (1 - decay) * tensor for name, tensor in floats(network).items()}
    for name, tensor in ema.module.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, slow[name], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(tensor, network.state_dict()[name])


def test_ema_of_a_short_training_has_left_its_start() -> None:
    network = make_network()
    start, ema = floats(network), Ema(network, decay=0.9999)
    for step in range(10):
        jolt(network, step)
        ema.update(network)
    name = "fc.weight"
    end, found = network.state_dict()[name], ema.module.state_dict()[name]
    assert (found - end).abs().mean() < 0.35 * (end - start[name]).abs().mean()


def test_swa_is_the_mean_of_what_came_in_as_torchs_is() -> None:
    network = make_network()
    swa, reference, seen = Swa(network), AveragedModel(network), []
    for step in range(7):
        jolt(network, step)
        swa.update(network)
        reference.update_parameters(network)
        seen.append(floats(network))
    for name, tensor in swa.module.named_parameters():
        torch.testing.assert_close(tensor, torch.stack([one[name] for one in seen]).mean(dim=0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(tensor, reference.module.get_parameter(name).detach(), rtol=1e-5, atol=1e-6)


def test_the_first_weights_in_swa_are_taken_bit_for_bit() -> None:
    network = make_network()
    swa = Swa(network)
    jolt(network, 0)
    swa.update(network)
    assert equal(swa.module, network)


@pytest.mark.parametrize("make", [lambda network: Ema(network, decay=0.9), Swa])
def test_an_average_read_back_goes_on_bit_for_bit(make: Callable[[nn.Module], Ema | Swa]) -> None:
    network = make_network()
    average = make(network)
    for step in range(5):
        jolt(network, step)
        average.update(network)
    resumed = make(make_network(seed=1))
    resumed.load_state_dict(reread(average.state_dict()))
    assert equal(resumed.module, average.module) and resumed.num_updates == 5
    for step in range(5, 9):
        jolt(network, step)
        average.update(network)
        resumed.update(network)
    assert equal(resumed.module, average.module)


@pytest.mark.parametrize("make", [lambda network: Ema(network, decay=0.9), Swa])
def test_an_average_leaves_the_network_alone_and_predicts(make: Callable[[nn.Module], Ema | Swa]) -> None:
    network = make_network()
    before = copy.deepcopy(network)
    average = make(network)
    average.update(network)
    assert equal(network, before) and network.training and not average.module.training
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert average.module(images_of(2)).shape == (2, 3)


def first_norm(network: nn.Module) -> nn.BatchNorm2d:
    return next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))


def statistics(network: nn.Module) -> list[torch.Tensor]:
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    return [tensor.clone() for norm in norms for tensor in (norm.running_mean, norm.running_var)]


@pytest.mark.parametrize("batch_size", [2, 7, 16, 50, 16 * 3 + 1])
def test_the_first_batch_norm_has_the_statistics_of_all_images_at_once(batch_size: int) -> None:
    network, images = make_network(), images_of(50)
    with torch.no_grad():
        values = network.conv1[0](images).double()  # what the first BatchNorm of this stem sees
    assert recompute_batch_norm(network, images.split(batch_size), device=CPU)
    norm = first_norm(network)
    torch.testing.assert_close(norm.running_mean, values.mean(dim=(0, 2, 3)).float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, values.var(dim=(0, 2, 3)).float(), rtol=1e-5, atol=1e-6)


def test_torchs_update_bn_leaves_out_the_variance_between_batches() -> None:
    network, images = make_network(), images_of(50)
    other = copy.deepcopy(network)
    update_bn(images.split(16), other)
    recompute_batch_norm(network, images.split(16), device=CPU)
    ratio = first_norm(other).running_var / first_norm(network).running_var
    assert (ratio < 1).all() and ratio.median() < 0.6


def test_every_batch_norm_has_the_statistics_of_what_it_saw() -> None:
    network, images = make_network(), images_of(37)
    seen: dict[nn.Module, list[torch.Tensor]] = {}
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda norm, inputs: seen.setdefault(norm, []).append(inputs[0].double()))
    recompute_batch_norm(network, images.split(8), device=CPU)
    assert len(seen) > 5
    for norm, parts in seen.items():
        values = torch.cat(parts)
        torch.testing.assert_close(norm.running_mean, values.mean(dim=(0, 2, 3)).float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var, values.var(dim=(0, 2, 3)).float(), rtol=1e-5, atol=1e-6)


def test_one_batch_gives_what_a_full_pass_in_training_leaves() -> None:
    network, images = make_network(), images_of(20)
    reference = copy.deepcopy(network)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    reference.train()(images)
    recompute_batch_norm(network, [images], device=CPU)
    for found, expected in zip(statistics(network), statistics(reference), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [[16, 16, 1], [1, 16, 16], [1] * 9, [1, 1], [2, 1, 1, 30]])
def test_single_images_are_joined_to_their_neighbours(sizes: list[int]) -> None:
    # At 32 pixels a stride of 32 leaves one value a channel and image, which BatchNorm refuses by itself.
    network = nn.Sequential(nn.Conv2d(3, 4, 32), nn.BatchNorm2d(4), nn.Flatten())
    images = images_of(sum(sizes))
    recompute_batch_norm(network, images.split(sizes), device=CPU)
    values = network[0](images).detach()
    torch.testing.assert_close(network[1].running_mean, values.mean(dim=(0, 2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network[1].running_var, values.var(dim=(0, 2, 3)), rtol=1e-5, atol=1e-5)


def test_a_recomputation_changes_nothing_but_statistics() -> None:
    network = make_network(drop_rate=0.5)
    norm = first_norm(network)
    norm.eval()
    norm.momentum = 0.3
    jolt(network, 0)
    before, modes = copy.deepcopy(network), [module.training for module in network.modules()]
    random_state = torch.get_rng_state()
    recompute_batch_norm(network, images_of(20).split(8), device=CPU)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in network.modules()] == modes and norm.momentum == 0.3
    changed = {
        name
        for (name, new), old in zip(network.state_dict().items(), before.state_dict().values(), strict=True)
        if not torch.equal(new, old)
    }
    assert changed and all(name.endswith(("running_mean", "running_var")) for name in changed)
    recompute_batch_norm(before, images_of(20).split(8), device=CPU)
    assert equal(network, before)


def test_statistics_that_were_no_numbers_are_replaced() -> None:
    network = make_network()
    first_norm(network).running_var.fill_(float("nan"))
    recompute_batch_norm(network, [images_of(8)], device=CPU)
    assert all(tensor.isfinite().all() for tensor in statistics(network))


def test_without_batch_norm_no_batch_is_read() -> None:
    network = make_network(name="test_vit")
    batches = iter([images_of(2)])
    assert not recompute_batch_norm(network, batches, device=CPU)
    assert len(list(batches)) == 1


def test_frozen_and_unused_batch_norm_layers_keep_their_statistics() -> None:
    from timm.layers import FrozenBatchNormAct2d

    torch.manual_seed(0)
    frozen, unused = FrozenBatchNormAct2d(4), nn.BatchNorm2d(4)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), frozen, nn.BatchNorm2d(4))
    network[0].unused = unused
    unused.running_mean.fill_(5)
    before = frozen.running_mean.clone()
    assert recompute_batch_norm(network, [images_of(8)], device=CPU)
    assert torch.equal(frozen.running_mean, before) and (unused.running_mean == 5).all()
    assert not (network[2].running_mean == 0).any()


def make_plain_network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)]
    return nn.Sequential(*layers)


def _recompute_in_process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    network = make_plain_network()
    parts = images_of(30)[:19].split(8) if rank == 0 else images_of(30)[19:].split(8)
    recompute_batch_norm(network, parts, device=CPU)
    torch.save(statistics(network), folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_get_the_statistics_of_all_their_images(tmp_path: Path) -> None:
    multiprocessing.spawn(_recompute_in_process, args=(tmp_path,), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    network = make_plain_network()
    images = images_of(30)
    recompute_batch_norm(network, [*images[:19].split(8), *images[19:].split(8)], device=CPU)
    for one, expected in zip(found[0], statistics(network), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-6)


def states_of(*values: float) -> list[State]:
    return [{"weight": torch.full((2,), value), "seen": torch.tensor(int(value))} for value in values]


def near(target: float) -> Callable[[State], float]:
    return lambda state: -abs(float(state["weight"][0]) - target)


def is_higher(one: float, other: float) -> bool:
    return one > other


def test_a_soup_takes_who_makes_it_no_worse() -> None:
    states = states_of(2.0, 9.0, 6.0, 5.0)
    soup = greedy_soup(states, score=near(4.0), better=is_higher)
    # 2 alone: -2; with 9: 5.5, -1.5; with 6 too: 5.67 is worse; with 5: 5.33 is better
    assert soup.members == [0, 1, 3] and soup.score == pytest.approx(-(16 / 3 - 4))
    torch.testing.assert_close(soup.state["weight"], torch.full((2,), 16 / 3))
    assert soup.state["seen"] == 2 and soup.state["seen"].dtype == torch.int64


def test_a_soup_of_losses_takes_the_lower() -> None:
    soup = greedy_soup(states_of(3.0, 1.0, 30.0), score=lambda state: -near(2.0)(state), better=lambda a, b: a < b)
    assert soup.members == [0, 1] and soup.score == 0


def test_a_tie_joins_and_no_number_does_not() -> None:
    assert greedy_soup(states_of(1.0, 2.0), score=lambda state: 0.5, better=is_higher).members == [0, 1]
    scores = iter([0.5, float("nan"), 0.6])
    assert greedy_soup(states_of(1.0, 2.0, 3.0), score=lambda state: next(scores), better=is_higher).members == [0, 2]


def test_a_soup_of_one_is_that_candidate_bit_for_bit_and_candidates_stay_as_they_are() -> None:
    states = [dict(make_network(seed).state_dict()) for seed in range(3)]
    copies = copy.deepcopy(states)
    scores = iter([0.9, 0.1, 0.2])
    soup = greedy_soup(states, score=lambda state: next(scores), better=is_higher)
    assert soup.members == [0]
    assert all(torch.equal(soup.state[name], tensor) for name, tensor in copies[0].items())
    assert all(torch.equal(a[name], b[name]) for a, b in zip(states, copies, strict=True) for name in a)


def test_a_soup_of_half_precision_is_averaged_in_full() -> None:
    states = [{"weight": torch.tensor([value], dtype=torch.float16)} for value in (64000.0, 32000.0)]
    soup = greedy_soup(states, score=lambda state: 0.0, better=is_higher)
    assert soup.state["weight"].dtype == torch.float16
    assert soup.state["weight"].item() == 48000  # their sum is beyond float16


def test_a_soup_of_files_equals_that_of_states(tmp_path: Path) -> None:
    states = [dict(make_network(seed).state_dict()) for seed in range(3)]
    paths = [tmp_path / f"{index}.safetensors" for index in range(3)]
    for path, state in zip(paths, states, strict=True):
        save_file(state, path)
    soups = [greedy_soup(one, score=lambda state: 0.0, better=is_higher) for one in (states, paths)]
    assert soups[0].members == soups[1].members == [0, 1, 2]
    assert all(torch.equal(soups[0].state[name], tensor) for name, tensor in soups[1].state.items())
