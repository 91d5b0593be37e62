"""Averages of a training's weights: exponential (EMA), equal (SWA), a greedy soup; and their BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

State = dict[str, torch.Tensor]


class _Average:
    """A running average of a network's parameters and float buffers, by timm's ModelEmaV3.

    Torch's AveragedModel is not used: it averages integer buffers too or none at all, and it walks buffers that are no
    part of the state, whose shapes change with the input size.
    """

    def __init__(self, network: nn.Module) -> None:
        from timm.utils import ModelEmaV3

        self._average = ModelEmaV3(network)
        self._average.requires_grad_(False)
        self.num_updates = 0

    @property
    def module(self) -> nn.Module:
        """The network with the averaged weights, in evaluation mode. `set_input_size` is to be called on it too."""
        module = self._average.module
        assert isinstance(module, nn.Module)
        return module

    def update(self, network: nn.Module) -> None:
        """Take in the weights of a network: of the one this was made from, not of a wrapper around it."""
        self._average.decay = self.decay(self.num_updates)
        self._average.update(network)
        self.num_updates += 1

    def decay(self, num_updates: int) -> float:
        """Return the share of the average that stays when the next weights come in."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates and the average; tensors are those in use, not copies."""
        return {"num_updates": self.num_updates, "weights": dict(self.module.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.num_updates = int(state["num_updates"])
        self.module.load_state_dict(state["weights"])


class Ema(_Average):
    """The exponential moving average of a network's weights.

    BatchNorm statistics are averaged like weights, so the average can be used as it is; counters are copied.

    Source: the decay's warm-up, (1 + t) / (10 + t) after t updates, is that of TensorFlow's
    tf.train.ExponentialMovingAverage; without it, a training of fewer steps than 1 / (1 - decay) would score its
    random start.

    Args:
        network: Where the average starts; it is copied.
        decay: Of each update, once warm: 0 to below 1.
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        super().__init__(network)
        self._decay = decay

    def decay(self, num_updates: int) -> float:
        """Return min(decay, (1 + t) / (10 + t)) for t updates."""
        return min(self._decay, (1 + num_updates) / (10 + num_updates))


class Swa(_Average):
    """The equal average of the weights at the ends of epochs (stochastic weight averaging).

    Source: Izmailov 2018, https://arxiv.org/abs/1803.05407. BatchNorm statistics are averaged too, so it can be used
    as it is, but only `recompute_batch_norm` gives it its own.

    Args:
        network: Gives the shapes; its weights count only when `update` is called.
    """

    def decay(self, num_updates: int) -> float:
        """Return t / (t + 1) for t updates: all weights count the same, and the first replace what was there."""
        return num_updates / (num_updates + 1)


@torch.no_grad()
def recompute_batch_norm(network: nn.Module, batches: Iterable[torch.Tensor], *, device: torch.device) -> bool:
    """Give BatchNorm layers the statistics of one pass over images, for weights that were averaged.

    Each layer gets the mean and the (unbiased) variance over all values that it sees in the pass, the variance between
    the batches included: what one batch of all images would give where the layer's inputs do not depend on the
    batches. Inputs of layers behind another BatchNorm are normalised by their batch, as in training, and dropout and
    drop path are off, as at prediction. Averages over batches are by their sizes, so the last may be shorter.

    Modes, momentum, `num_batches_tracked`, the random state and frozen BatchNorm layers stay as they were. Where
    torch.distributed is initialized, the statistics are over the images of all processes, each of which must call.

    Source: Izmailov 2018. torch.optim.swa_utils.update_bn differs: it averages the batches' variances, which leaves
    out the variance between them, gives a short last batch the weight of a full one, and trains with dropout on.

    Args:
        network: On `device`; called as network(images).
        batches: Of stored images, (B, H, W, channels) uint8, such as those it was trained on. Not read where there is
            no BatchNorm.
        device: Where to compute.

    Returns:
        Whether a pass was made: False without BatchNorm layers.
    """
    norms = _batch_norms(network)
    if not norms:
        return False
    modes = {module: module.training for module in network.modules()}
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    moments = [_Moments(norm) for norm in norms]
    hooks = [norm.register_forward_hook(moment.add) for norm, moment in zip(norms, moments, strict=True)]
    network.eval()
    try:
        for norm in norms:
            norm.train()
            norm.momentum, norm.num_batches_tracked = 1.0, None  # the running statistics are then the last batch's
        for images in _without_single(batches):
            network(images.to(device))
    finally:
        for hook in hooks:
            hook.remove()
        for norm, (momentum, tracked) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
        for module, mode in modes.items():
            module.training = mode
    for moment in _over_processes(moments):
        moment.write()
    return True


class Choice(NamedTuple):
    """Which candidates were chosen together.

    Attributes:
        members: Which of the candidates, in the order they came in.
        score: Of the members together.
        scores: What each candidate scored when it was tried, with those that were in by then.
    """

    members: tuple[int, ...]
    score: float
    scores: tuple[float, ...]


def choose_greedily(
    num_candidates: int, *, score: Callable[[tuple[int, ...]], float], better: Callable[[float, float], bool]
) -> Choice:
    """Choose those candidates that make what was chosen before them no worse.

    The first is in. Each further one is tried: if all together score at least as well with it, it stays in.

    Source: Wortsman 2022, https://arxiv.org/abs/2203.05482, algorithm 1.

    Args:
        num_candidates: How many there are, best first; at least 1.
        score: Scores a set of them; called once a candidate, with those that are in and the one that is tried.
        better: Whether the first score is better than the second.
    """
    members: tuple[int, ...] = (0,)
    scores = [score(members)]
    best = scores[0]
    for index in range(1, num_candidates):
        found = score((*members, index))
        scores.append(found)
        if better(found, best) or found == best:
            members, best = (*members, index), found
    return Choice(members=members, score=best, scores=tuple(scores))


class Soup(NamedTuple):
    """What a greedy soup is.

    Attributes:
        state: The averaged weights.
        members: Which of the candidates are in it, in the order they came in.
        score: Of `state`.
    """

    state: State
    members: list[int]
    score: float


def greedy_soup(
    candidates: Sequence[State | Path], *, score: Callable[[State], float], better: Callable[[float, float], bool]
) -> Soup:
    """Average the weights of those candidates that make the average no worse: see `choose_greedily`.

    Source: Wortsman 2022, https://arxiv.org/abs/2203.05482, algorithm 1. Its networks have no BatchNorm; here the
    statistics are averaged like weights. Who wants them recomputed does so in `score` (the network that `score` loads
    the state into) and once more for the state that comes back. Integer buffers are the first candidate's.

    Args:
        candidates: State dicts of one network, or safetensors files of them, best first; each file is read once.
        score: Scores a state; called once a candidate.
        better: Whether the first score is better than the second.

    Returns:
        The soup; with one member its state equals that candidate bit for bit.
    """
    assert candidates
    first = _read_state(candidates[0])
    sums: dict[tuple[int, ...], State] = {(0,): _added({}, first)}

    def mean_of(members: tuple[int, ...]) -> State:
        if members not in sums:
            before = sums[members[:-1]]  # all but the one that is tried were scored the last time, or before it
            sums.clear()
            sums[members[:-1]], sums[members] = before, _added(before, _read_state(candidates[members[-1]]))
        return _divided(sums[members], len(members), first)

    chosen = choose_greedily(len(candidates), score=lambda members: score(mean_of(members)), better=better)
    return Soup(state=mean_of(chosen.members), members=list(chosen.members), score=chosen.score)


def mean_state(states: Sequence[State | Path]) -> State:
    """Return the mean of state dicts of one network, or of safetensors files of them; integers are the first one's."""
    first = _read_state(states[0])
    total = _added({}, first)
    for state in states[1:]:
        total = _added(total, _read_state(state))
    return _divided(total, len(states), first)


def _added(total: State, state: State) -> State:
    """Return the sums of float tensors in full precision: those of `state` alone where there is no total yet."""
    floats = {name: tensor.float() for name, tensor in state.items() if tensor.is_floating_point()}
    assert not total or total.keys() == floats.keys(), "candidates are of different networks"
    return {name: total[name] + tensor for name, tensor in floats.items()} if total else floats


def _divided(total: State, num: int, first: State) -> State:
    if num == 1:
        return first
    return {name: (total[name] / num).to(old.dtype) if name in total else old for name, old in first.items()}


class _Moments:
    """Count, mean and sum of squared deviations of what a BatchNorm layer saw, by Chan's formula (1979)."""

    def __init__(self, norm: _BatchNorm) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        self.norm = norm
        self.before = (norm.running_mean.clone(), norm.running_var.clone())
        norm.running_mean.zero_()  # a value that is not finite would survive any momentum
        norm.running_var.fill_(1)
        # Apple's GPUs have no float64.
        dtype = torch.float32 if norm.running_mean.device.type == "mps" else torch.float64
        self.count = 0
        self.mean = torch.zeros_like(norm.running_mean, dtype=dtype)
        self.squares = torch.zeros_like(self.mean)

    def add(self, _module: nn.Module, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        """Take in a batch, whose mean and variance the layer has just left in its running statistics."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None
        count = inputs[0].numel() // inputs[0].shape[1]  # (B, C, ...): values of each channel
        difference = mean.to(self.mean.dtype) - self.mean
        total = self.count + count
        self.mean += difference * (count / total)
        self.squares += variance.to(self.mean.dtype) * (count - 1) + difference**2 * (self.count * count / total)
        self.count = total

    def write(self) -> None:
        """Set the layer's running statistics; a layer that saw nothing keeps those it had."""
        assert self.norm.running_mean is not None and self.norm.running_var is not None
        mean, variance = (self.mean, self.squares / (self.count - 1)) if self.count else self.before
        self.norm.running_mean.copy_(mean)
        self.norm.running_var.copy_(variance)


def _over_processes(moments: list[_Moments]) -> list[_Moments]:
    """Join the moments of all processes: first their means, then the squared deviations from the common mean."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return moments
    sizes = [len(moment.mean) for moment in moments]
    counts = torch.cat([torch.full_like(moment.mean, moment.count) for moment in moments])
    means = torch.cat([moment.mean for moment in moments])
    sums = torch.stack([counts, counts * means])
    distributed.all_reduce(sums)
    common = sums[1] / sums[0].clamp(min=1)
    squares = torch.cat([moment.squares for moment in moments]) + counts * (means - common) ** 2
    distributed.all_reduce(squares)
    parts = zip(moments, *(torch.split(all_, sizes) for all_ in (sums[0], common, squares)), strict=True)
    for moment, count, mean, square in parts:
        moment.count, moment.mean, moment.squares = int(count[0]), mean, square
    return moments


def _batch_norms(network: nn.Module) -> list[_BatchNorm]:
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    assert not any(isinstance(norm, nn.SyncBatchNorm) for norm in norms), "its batches are of all processes"
    return [norm for norm in norms if norm.running_mean is not None]


def _without_single(batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Join batches of a single image to their neighbours: BatchNorm refuses a single value a channel."""
    held: torch.Tensor | None = None
    for images in batches:
        if held is None:
            held = images
        elif min(len(held), len(images)) > 1:
            yield held
            held = images
        else:
            held = torch.cat([held, images])
            if len(held) >= 4:
                half = len(held) // 2
                yield held[:half]
                held = held[half:]
    assert held is not None, "no images to take statistics of"
    yield held


def _read_state(candidate: State | Path) -> State:
    if not isinstance(candidate, Path):
        return candidate
    from safetensors.torch import load_file

    state: State = load_file(candidate)
    return state
