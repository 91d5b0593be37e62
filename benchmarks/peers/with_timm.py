"""timm: its dataset, loader with prefetcher, Mixup, optimizer factory and schedule, in a plain loop."""

from __future__ import annotations

from typing import Any

import torch
from measured import (
    CLIP_NORM,
    SMOOTHING,
    Plan,
    accuracy_of,
    begin,
    device,
    in_format,
    make_adamw,
    make_backbone,
    one_cycle,
)
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

# train.py's defaults: lr = 0.1 x batch / 256 for SGD with Nesterov's momentum, smoothing 0.1, no clipping. Its warm-up
# of 5 epochs is for 300; of few epochs one is warm-up.
OWN_LR, OWN_DECAY, OWN_SMOOTHING, OWN_WARMUP_LR = 0.1, 2e-5, 0.1, 1e-5


def main() -> None:
    """Train, and report."""
    plan, meter = begin()
    network = make_backbone(plan).to(device())
    meter.start()
    loader = make_loader(plan)
    if plan.recipe == "own":
        train_own(plan, network, loader)
    else:
        train_equal(plan, network, loader)
    if not plan.score:
        accuracy_of(plan, network, part="valid")
    call_s = meter.elapsed()
    meter.report(accuracy_of(plan, network) if plan.score else None, call_s=call_s)


def make_loader(plan: Plan) -> Any:
    """Return timm's loader of the train images: normalised on the device by its prefetcher."""
    dataset = create_dataset(
        "", root=f"{plan.folder}/train", is_training=True, input_img_mode="L" if plan.is_gray else "RGB"
    )
    dataset.reader.samples = plan.files("train")
    return create_loader(
        dataset,
        input_size=(plan.channels, plan.size, plan.size),
        batch_size=plan.batch,
        is_training=True,
        no_aug=not plan.is_augmented,
        mean=plan.mean,
        std=plan.std,
        interpolation="bilinear",
        num_workers=plan.workers,
        persistent_workers=plan.workers > 0,
        device=device(),
        pin_memory=torch.cuda.is_available(),
        **augmentation(plan),
    )


def augmentation(plan: Plan) -> dict[str, Any]:
    """Return timm's settings: its defaults where the recipe is its own, else about kaggle_kit's strength."""
    if plan.recipe == "own":
        return {}
    if plan.is_gray:
        return {"scale": (0.7, 1.0), "ratio": (0.85, 1.18), "hflip": 0.0, "color_jitter": 0.0, "re_prob": 0.25}
    return {"scale": (0.6, 1.0), "ratio": (0.8, 1.25), "hflip": 0.5, "color_jitter": 0.2}


def train_equal(plan: Plan, network: nn.Module, loader: Any) -> None:
    """Train by the equal recipe."""
    optimizer = make_adamw(plan, network)
    schedule = one_cycle(plan, optimizer)
    mixing = plan.augment == "mixup"
    mixup = Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, label_smoothing=SMOOTHING, num_classes=plan.classes)
    loss_of = SoftTargetCrossEntropy() if mixing else LabelSmoothingCrossEntropy(SMOOTHING)
    network.train()
    for _ in range(plan.epochs):
        for batch, labels in loader:
            images, target = mixup(batch, labels) if mixing else (batch, labels)
            loss = loss_of(network(in_format(plan, images)), target)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def train_own(plan: Plan, network: nn.Module, loader: Any) -> None:
    """Train by the defaults of timm's train.py."""
    lr = plan.lr if plan.lr is not None else OWN_LR * plan.batch / 256
    optimizer = create_optimizer_v2(network, opt="sgd", lr=lr, weight_decay=OWN_DECAY, momentum=0.9)
    per_epoch = plan.images // plan.batch
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=plan.epochs * per_epoch,
        warmup_t=per_epoch,
        warmup_lr_init=OWN_WARMUP_LR,
        t_in_epochs=False,
    )
    loss_of = LabelSmoothingCrossEntropy(OWN_SMOOTHING)
    network.train()
    step = 0
    for _ in range(plan.epochs):
        for images, labels in loader:
            loss = loss_of(network(in_format(plan, images)), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            schedule.step_update(step)


if __name__ == "__main__":
    main()
