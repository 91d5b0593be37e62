"""An audit of made-up files, with findings to decide, for the tests of the review page."""

from __future__ import annotations

from pathlib import Path

from audited import files_task, scene, write_files

from kaggle_kit.audit.examine import Audit, Options, examine
from kaggle_kit.audit.findings import Finding, load_findings, save_findings
from kaggle_kit.audit.folder import FINDINGS

NAMES = [f"train{row}.png" for row in range(12)]


def reviewed_audit(folder: Path) -> Audit:
    """Audit 12 train images, of which 10 and 11 equal 0 and 1, and one in the test that equals 2; 3 to 6 look wrong."""
    pictures = [scene(row) for row in range(10)]
    train = dict(zip(NAMES, [*pictures, pictures[0], pictures[1]], strict=True))
    write_files(folder / "data", dict(train), {"test0.png": pictures[2], "test1.png": scene(77)})
    task = files_task(heads={"kind": {"classes": ["cat", "<b>dog</b>"], "values": [0, 1]}})
    audit = examine(task, folder / "data", folder / "audit", Options(map_method="pca"))
    issues = [
        Finding(
            kind="label_issue",
            id=NAMES[row],
            split="train",
            head="kind",
            label=str(row % 2),
            suggested=str(1 - row % 2),
            score=1 - row / 20,
            detail="<script>window.broken = 1</script> 90% sure",
        )
        for row in (3, 4, 5, 6)
    ]
    path = folder / "audit" / FINDINGS
    save_findings([*load_findings(path), *issues], path)
    return audit
