"""What a person decided about images: `edits.jsonl`, one JSON object a line, appended and never rewritten.

    {"key": ..., "at": ..., "by": "ann", "action": "relabel", "id": "Train_1", "head": "root", "value": "17"}
    {"key": ..., "at": ..., "by": "ann", "action": "drop", "id": "Train_2", "why": "equals Train_1"}
    {"key": ..., "at": ..., "by": "ann", "action": "keep", "id": "Train_3", "why": "right as it is"}
    {"key": ..., "at": ..., "by": "ann", "action": "undo", "of": KEY}

A later line wins over an earlier one about the same image and head, and of `drop` and `keep` about the same image.
The data's own files stay as they are: labels are read, and then edited.
"""

from __future__ import annotations

from kaggle_kit.edits.applying import apply_edits, describe_edits, read_edited_labels
from kaggle_kit.edits.edit import (
    Action,
    Edit,
    Effective,
    Subject,
    edits_in_force,
    edits_key,
    edits_that_hold,
    effective,
    is_about,
    make_edit,
    parse_edit,
)
from kaggle_kit.edits.following import FollowedFile
from kaggle_kit.edits.log import append_edit, append_edits, edits_from_text, read_edits, write_edits
from kaggle_kit.edits.merging import Contradiction, merge_edits

__all__ = [
    "Action",
    "Contradiction",
    "Edit",
    "Effective",
    "FollowedFile",
    "Subject",
    "append_edit",
    "append_edits",
    "apply_edits",
    "describe_edits",
    "edits_from_text",
    "edits_in_force",
    "edits_key",
    "edits_that_hold",
    "effective",
    "is_about",
    "make_edit",
    "merge_edits",
    "parse_edit",
    "read_edited_labels",
    "read_edits",
    "write_edits",
]
