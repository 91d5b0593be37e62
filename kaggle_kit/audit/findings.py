"""What an audit found, one row an image and finding: made by the checks, read by the report and the review page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from kaggle_kit.errors import DataError
from kaggle_kit.files import replacing

Kind = Literal[
    "broken",
    "missing_image",
    "missing_label",
    "exact_duplicate",
    "near_duplicate",
    "gray",
    "mode",
    "size",
    "empty",
    "dark",
    "bright",
    "blurred",
    "rare_class",
    "drift",
    "label_issue",
    "top_loss",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
Split = Literal["train", "test"]
FORMAT = b"1"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing about one image.

    Attributes:
        kind: What was found.
        id: The image's id; for `rare_class`, the class's name.
        split: Where the image is.
        group: Equal for images that belong together, such as duplicates; -1 where none do.
        head: The head it is about; empty for all or none.
        label: The class that the files give, as they write it.
        suggested: The class that is thought right, as files write it; empty where nothing is suggested.
        score: How sure or how severe, higher is worse; comparable within a kind only. Below 0: a trait of the image's
            class, not a defect.
        detail: One line for people.
    """

    kind: Kind
    id: str
    split: Split
    group: int = -1
    head: str = ""
    label: str = ""
    suggested: str = ""
    score: float = 0.0
    detail: str = ""


def save_findings(findings: Iterable[Finding], path: Path) -> None:
    """Write findings as parquet, atomically, in their order."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = list(findings)
    types = {"group": pa.int64(), "score": pa.float64()}
    schema = pa.schema(
        [(field.name, types.get(field.name, pa.string())) for field in fields(Finding)],
        metadata={"kaggle_kit_findings": FORMAT},
    )
    columns = {name: [getattr(row, name) for row in rows] for name in schema.names}
    with replacing(path) as temporary:
        parquet.write_table(pa.table(columns, schema=schema), temporary)


def load_findings(path: Path) -> list[Finding]:
    """Read what `save_findings` wrote.

    Raises:
        DataError: When the file is missing, no findings, or of another format.
    """
    import pyarrow as pa
    from pyarrow import parquet

    if not path.is_file():
        raise DataError(f"{path} is missing; make it with `kaggle-kit audit TASK DATA --out {path.parent}`")
    try:
        table = parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read ({str(error).splitlines()[0]}); audit again") from None
    if (table.schema.metadata or {}).get(b"kaggle_kit_findings") != FORMAT:
        raise DataError(f"{path} holds no findings of this version of the kit; audit again")
    return [Finding(**row) for row in table.to_pylist()]
