"""Heads: what a competition asks about an image, or what a network learns beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kaggle_kit.errors import SettingError

HeadKind = Literal["multiclass", "multilabel", "ordinal"]
FROM_LABELS: Literal["from_labels"] = "from_labels"


@dataclass(frozen=True, kw_only=True)
class Head:
    """One thing to predict for an image.

    Attributes:
        name: The head's name: its label column, its ONNX output and its place in the submission.
        classes: How many classes (label files then hold 0 to classes - 1), or their names. Of an auxiliary head also
            `from_labels`: the values its label column has.
        values: What label and submission files write for each class, where that is not its name.
        weight: The head's share in the competition's metric; any scale. Of an auxiliary head: its loss, relative to
            that of all the task's heads together.
        kind: `multiclass`: one class an image. `ordinal`: the same, with classes in order, lowest first. `multilabel`:
            any number of classes an image.
        separator: multilabel: what stands between classes, where files name them in one column.
    """

    name: str
    classes: int | tuple[str, ...] | Literal["from_labels"]
    values: tuple[str | int, ...] | None = None
    weight: float = 1.0
    kind: HeadKind = "multiclass"
    separator: str = " "

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise SettingError(f"`weight` is {self.weight}; it must be above 0")
        if self.classes == FROM_LABELS:
            self._check_unresolved()
            return
        if self.num_classes < 2:
            raise SettingError(f"`classes` gives {self.num_classes} class(es); a head needs at least 2")
        if len(set(self.class_names)) != self.num_classes:
            raise SettingError("`classes` names a class twice; class names must differ")
        if self.values is not None and len(set(map(str, self.values))) != self.num_classes:
            raise SettingError(
                f"`values` holds {len(set(map(str, self.values)))} different values for {self.num_classes} classes"
            )
        self._check_separator()

    def _check_unresolved(self) -> None:
        if self.values is not None:
            raise SettingError("`values` is given, and `classes` come from the labels; leave `values` out")
        if self.kind != "multiclass":
            raise SettingError(f"`classes` of kind {self.kind!r} cannot come from the labels; list their names")

    def _check_separator(self) -> None:
        if self.kind != "multilabel":
            if self.separator != " ":
                raise SettingError(f"`separator` is given, which kind {self.kind!r} does not use; leave it out")
            return
        if not self.separator:
            raise SettingError("`separator` is empty; give what stands between classes, such as ' ' or '|'")
        for value in self.class_values:
            if not value.strip() or value != value.strip() or self.separator in value:
                raise SettingError(
                    f"class {value!r} cannot be told from others in a list of classes with {self.separator!r} between; "
                    "give another `separator`, or `values` without it"
                )

    @property
    def num_classes(self) -> int:
        """The number of classes C.

        Raises:
            SettingError: Before classes that come from the labels were read.
        """
        return self.classes if isinstance(self.classes, int) else len(self._names())

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names, in label order."""
        return tuple(map(str, range(self.classes))) if isinstance(self.classes, int) else self._names()

    @property
    def class_values(self) -> tuple[str, ...]:
        """C strings as label and submission files write them, in label order."""
        return tuple(map(str, self.values)) if self.values is not None else self.class_names

    @property
    def is_resolved(self) -> bool:
        """Whether the classes are known."""
        return self.classes != FROM_LABELS

    def with_classes(self, names: tuple[str, ...]) -> Head:
        """Return this head with its classes named."""
        return dataclasses.replace(self, classes=names)

    def _names(self) -> tuple[str, ...]:
        if not isinstance(self.classes, tuple):
            raise SettingError(
                f"the classes of head {self.name!r} come from the labels, which were not read yet; call "
                "`resolve_classes(task, root)` first, or list them"
            )
        return self.classes


def check_heads(heads: Mapping[str, Head], *, metric: str) -> None:
    """Refuse heads that cannot be asked for together.

    Args:
        heads: {name: head}.
        metric: The task's.

    Raises:
        SettingError: Naming the head.
    """
    if not heads:
        raise SettingError("`heads` is empty; name at least one thing to predict")
    _check_names(heads)
    for key, head in heads.items():
        if not head.is_resolved:
            raise SettingError(
                f"`heads.{key}.classes` is 'from_labels', which only auxiliary heads may be; give the number of "
                "classes, or their names"
            )
        if head.kind == "multilabel" and metric == "quadratic_kappa":
            raise SettingError(
                f"head `{key}` is multilabel, and `metric` quadratic_kappa counts steps between single classes; "
                "give another metric, such as macro_f1"
            )


def check_auxiliary(auxiliary: Mapping[str, Head], heads: Mapping[str, Head]) -> None:
    """Refuse auxiliary heads that cannot be learned beside the heads.

    Raises:
        SettingError: Naming the head.
    """
    _check_names(auxiliary)
    for key, head in auxiliary.items():
        if key in heads:
            raise SettingError(f"`{key}` is a head and an auxiliary head; take it out of one of the two")
        if head.kind == "multilabel":
            raise SettingError(f"`auxiliary.{key}.kind` is 'multilabel'; auxiliary heads are multiclass or ordinal")


def _check_names(heads: Mapping[str, Head]) -> None:
    for key, head in heads.items():
        if key == "image" or not key.strip():
            raise SettingError(f"a head is named {key!r}, which the exported graph needs itself; rename it")
        if head.name != key:
            raise SettingError(f"head `{key}` is named {head.name!r}; leave `name` out of the file")
