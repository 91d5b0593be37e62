"""No loader at all: the same network, loss, clipping and optimizer, fed with one batch that lies in memory."""

from __future__ import annotations

import torch
from measured import CLIP_NORM, SMOOTHING, begin, device, make_adamw, one_cycle
from torch import nn
from with_kit import make_config, make_task

from kaggle_kit.train.model import build_network


def main() -> None:
    """Train, and report."""
    plan, meter = begin()
    network = build_network(make_task(plan), make_config(plan).model)
    network.to(device(), memory_format=torch.channels_last)
    images = torch.randint(256, (plan.batch, plan.size, plan.size, plan.channels), dtype=torch.uint8, device=device())
    labels = torch.randint(plan.classes, (plan.batch,), device=device())
    optimizer = make_adamw(plan, network)
    schedule = one_cycle(plan, optimizer)
    network.train()
    meter.start()
    for _ in range(plan.steps):
        loss = nn.functional.cross_entropy(network(images)["label"], labels, label_smoothing=SMOOTHING)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    meter.report()


if __name__ == "__main__":
    main()
