"""Lightning: its Trainer over torchvision's dataset and transforms."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning
import torch
from measured import (
    CLIP_NORM,
    SMOOTHING,
    Plan,
    accuracy_of,
    begin,
    in_format,
    make_adamw,
    make_backbone,
    one_cycle,
)
from torch import nn
from torch.utils.data import DataLoader, default_collate
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

warnings.simplefilter("ignore")  # advice on workers and logging
logging.getLogger("lightning").setLevel(logging.ERROR)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Classifier(lightning.LightningModule):
    """The backbone with the equal recipe."""

    def __init__(self, plan: Plan, network: nn.Module) -> None:
        super().__init__()
        self._plan = plan
        self.network = network
        self._loss_of = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)

    def training_step(self, batch: Any, _place: int) -> torch.Tensor:
        """Return the loss."""
        images, target = batch
        loss: torch.Tensor = self._loss_of(self.network(in_format(self._plan, images)), target)
        return loss

    def validation_step(self, batch: Any, _place: int) -> None:
        """Log the loss."""
        images, target = batch
        self.log("valid_loss", self._loss_of(self.network(in_format(self._plan, images)), target))

    def configure_optimizers(self) -> Any:
        """Return AdamW and its cycle."""
        optimizer = make_adamw(self._plan, self.network)
        schedule = {"scheduler": one_cycle(self._plan, optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def main() -> None:
    """Train, and report."""
    plan, meter = begin()
    module = Classifier(plan, make_backbone(plan))
    meter.start()
    trainer = lightning.Trainer(
        max_epochs=plan.epochs,
        devices=1,
        precision="32-true",
        gradient_clip_val=CLIP_NORM,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, make_loader(plan, part="train"), make_loader(plan, part="valid"))
    call_s = meter.elapsed()
    meter.report(accuracy_of(plan, module.network) if plan.score else None, call_s=call_s)


def make_loader(plan: Plan, *, part: str) -> DataLoader[Any]:
    """Return a loader of torchvision's dataset."""
    train = part == "train"
    steps = [
        *(augmentation(plan) if train else [v2.Resize((plan.size, plan.size))]),
        v2.ToDtype(torch.float32, scale=True),
    ]
    erasing = [v2.RandomErasing(p=0.25)] if train and plan.is_augmented and plan.is_gray else []
    transform = v2.Compose([v2.PILToTensor(), *steps, v2.Normalize(plan.mean, plan.std), *erasing])
    dataset = ImageFolder(f"{plan.folder}/{part}", transform, loader=load_gray if plan.is_gray else default_loader)
    dataset.samples = dataset.imgs = plan.files(part)
    mixes = train and plan.augment == "mixup"
    return DataLoader(
        dataset,
        batch_size=plan.batch,
        shuffle=train,
        drop_last=train,
        num_workers=plan.workers if train else 0,
        persistent_workers=train and plan.workers > 0,
        collate_fn=Mixing(plan.classes) if mixes else None,
        pin_memory=torch.cuda.is_available(),
    )


def augmentation(plan: Plan) -> list[Any]:
    """Return torchvision's transforms: resizing, or about kaggle_kit's strength."""
    size = (plan.size, plan.size)
    if not plan.is_augmented:
        return [v2.Resize(size)]
    if plan.is_gray:
        return [v2.Resize(size), v2.RandomAffine(10, translate=(0.06, 0.06), scale=(0.85, 1.15), shear=8)]
    crop = v2.RandomResizedCrop(size, scale=(0.6, 1.0), ratio=(0.8, 1.25))
    return [crop, v2.RandomHorizontalFlip(), v2.ColorJitter(brightness=0.2, contrast=0.2)]


class Mixing:
    """torchvision's MixUp or CutMix of a batch, in turn at random."""

    def __init__(self, classes: int) -> None:
        self._mix = v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=classes), v2.CutMix(num_classes=classes)])

    def __call__(self, samples: list[Any]) -> Any:
        """Return mixed images and targets."""
        return self._mix(*default_collate(samples))


def load_gray(path: str) -> Any:
    """Return a gray Pillow image."""
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("L")


if __name__ == "__main__":
    main()
