"""What may make an exported member answer otherwise than its run did, and what that may cost."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kaggle_kit.errors import SettingError
from kaggle_kit.export.gate import LIMITS, Kind, Limits
from kaggle_kit.export.tta import check_tta
from kaggle_kit.runtime.bundle import Precision


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How members are exported; by default they answer as their runs do.

    Attributes:
        tta: Changes of the image that probabilities are averaged over, beside the image itself: `hflip`, `vflip`,
            `scale=0.9,1.1`, `shift=4`.
        derive_from: An auxiliary head that the heads' probabilities are summed from, in runs that were trained with it.
        precision: What members compute in.
        max_changed: Share of the decisions that a lower precision may change; None: as `LIMITS` says. What a run
            stored may differ by it too, where that is more than is usual.
        max_drop: By how much the metric may be worse, at the worse end of its interval; None: as `LIMITS` says, and
            against what a run stored never less than that.
    """

    tta: tuple[str, ...] = ()
    derive_from: str = ""
    precision: Precision = "fp32"
    max_changed: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        check_tta(self.tta)
        for name in ("max_changed", "max_drop"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise SettingError(f"`{name}` is {value}; expected 0 to 1")

    def limits(self, kind: Kind) -> Limits:
        """Return what a change may cost, as asked for or as is usual."""
        usual = LIMITS[kind]
        changed = usual.changed_share if self.max_changed is None or kind == "views" else self.max_changed
        drop = usual.drop if self.max_drop is None else self.max_drop
        if kind == "stored":  # on few images a near tie costs much; who asks for less means a lower precision
            changed, drop = max(changed, usual.changed_share), max(drop, usual.drop)
        return replace(usual, changed_share=changed, drop=drop)

    def against_stored(self, *, otherwise: bool) -> Limits:
        """Return what all this together may cost against the runs' stored predictions.

        Args:
            otherwise: Whether members are meant to answer otherwise than their runs did: averaged over views, derived
                from another head, or by temperatures.
        """
        parts = [self.limits("views" if otherwise else "stored")]
        if self.precision != "fp32":
            parts.append(self.limits(self.precision))
        return Limits(
            changed_share=min(1.0, sum(part.changed_share for part in parts)),
            drop=sum(part.drop for part in parts),
            only_losses=parts[0].only_losses,
        )
