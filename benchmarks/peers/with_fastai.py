"""fastai: a DataBlock, its augmentation of whole batches, and Learner.fit_one_cycle."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from measured import CLIP_NORM, SMOOTHING, WEIGHT_DECAY, Plan, accuracy_of, begin, make_backbone

warnings.simplefilter("ignore")  # torch.jit.script is deprecated, says torch of fastai's warp

import fastai.callback.schedule  # noqa: E402, F401  (adds fit_one_cycle to Learner)
from fastai.callback.channelslast import ChannelsLast  # noqa: E402
from fastai.callback.mixup import MixUp  # noqa: E402
from fastai.callback.training import GradientClip  # noqa: E402
from fastai.data.block import CategoryBlock, DataBlock  # noqa: E402
from fastai.data.transforms import IndexSplitter  # noqa: E402
from fastai.learner import Learner  # noqa: E402
from fastai.losses import CrossEntropyLossFlat  # noqa: E402
from fastai.optimizer import OptimWrapper  # noqa: E402
from fastai.vision.augment import RandomErasing, Resize, ResizeMethod, aug_transforms  # noqa: E402
from fastai.vision.core import PILImage, PILImageBW  # noqa: E402
from fastai.vision.data import ImageBlock, Normalize  # noqa: E402


def main() -> None:
    """Train, and report."""
    plan, meter = begin()
    network = make_backbone(plan)
    meter.start()
    learner = make_learner(plan, network)
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(plan.epochs, lr_max=plan.lr if plan.recipe == "own" else plan.highest_lr)
    call_s = meter.elapsed()
    meter.report(accuracy_of(plan, learner.model) if plan.score else None, call_s=call_s)


def make_learner(plan: Plan, network: torch.nn.Module) -> Learner:
    """Return a Learner: fastai's own optimizer, decay and loss where the recipe is its own, else the equal one."""
    if plan.recipe == "own":
        return Learner(make_data(plan), network, loss_func=CrossEntropyLossFlat())
    callbacks: list[Any] = [GradientClip(CLIP_NORM)]
    if plan.tuned:
        callbacks.append(ChannelsLast())
    if plan.augment == "mixup":
        callbacks.append(MixUp(0.2))
    adamw = functools.partial(OptimWrapper, opt=torch.optim.AdamW, fused=True if plan.tuned else None)
    loss_of = CrossEntropyLossFlat(label_smoothing=SMOOTHING)
    return Learner(make_data(plan), network, loss_func=loss_of, opt_func=adamw, wd=WEIGHT_DECAY, cbs=callbacks)


def make_data(plan: Plan) -> Any:
    """Return fastai's loaders: the train images, and the few to validate."""
    train, valid = plan.files("train"), plan.files("valid")
    labels = dict(train + valid)
    block = DataBlock(
        blocks=(ImageBlock(PILImageBW if plan.is_gray else PILImage), CategoryBlock(vocab=list(range(plan.classes)))),
        get_items=lambda _source: list(labels),
        get_y=lambda path: labels[path],
        splitter=IndexSplitter(list(range(len(train), len(labels)))),
        item_tfms=Resize(plan.size, method=ResizeMethod.Squish),
        batch_tfms=[*augmentation(plan), Normalize.from_stats(plan.mean, plan.std, cuda=torch.cuda.is_available())],
    )
    return block.dataloaders(plan.folder, bs=plan.batch, num_workers=plan.workers)


def augmentation(plan: Plan) -> list[Any]:
    """Return fastai's usual augmentation; letters are not flipped, and erased in part."""
    if not plan.is_augmented:
        return []
    if plan.is_gray and plan.recipe == "equal":
        return [*aug_transforms(do_flip=False, max_zoom=1.15, max_lighting=0.0, p_lighting=0.0), RandomErasing(p=0.25)]
    return list(aug_transforms())


if __name__ == "__main__":
    main()
