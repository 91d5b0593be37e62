"""The errors a user can mend; everything else is a bug of ours.

    KitError
      SettingError       a task file or a configuration: unknown key, wrong type, value out of range
      DataError          competition files: missing shard, column, id or label
        ImageError       one image that cannot be decoded
      PredictionError    probabilities that cannot be used as such
      CheckpointError    weights or their description do not fit
      ExportError        a model that cannot be exported
        RefusedError     an export that gives other results than it may: a check that failed
      BundleError        a bundle that is incomplete, changed or of another format
      SubmissionError    a submission that the competition would refuse
      RehearsalError     a kernel that cannot be rehearsed
      KaggleError        what Kaggle refuses, or would refuse: metadata, credentials, limits, a failed kernel
      Interrupted        a training that Ctrl-C ended, and that goes on when it is called again

Every message says what, where, the value found, what was expected, and the repair. The command line prints it in
one line and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KitError(ValueError):
    """Anything the user can mend."""


class SettingError(KitError):
    """A task file or configuration holds an unknown key, a wrong type or a value out of range."""


class DataError(KitError):
    """The competition's files miss or contradict something."""


class ImageError(DataError):
    """One image cannot be decoded."""


class PredictionError(KitError):
    """Probabilities are not what they are taken for."""


class CheckpointError(KitError):
    """A checkpoint is incomplete or belongs to something else."""


class ExportError(KitError):
    """A model cannot be exported."""


class RefusedError(ExportError):
    """An export gives other results than it may."""


class BundleError(KitError):
    """A bundle is incomplete, changed, or of an unknown format."""


class SubmissionError(KitError):
    """A submission that the competition would refuse."""


class RehearsalError(KitError):
    """A kernel cannot be rehearsed."""


class KaggleError(KitError):
    """Kaggle refuses something, or would: metadata, files, credentials, limits, or a kernel that failed there."""


class Interrupted(KitError):  # noqa: N818  as KeyboardInterrupt: no fault
    """A training was ended by Ctrl-C or SIGTERM; the same call goes on with it."""


def brief(error: Exception, limit: int = 200) -> str:
    """Return what another library's error says, in one line of at most `limit` characters; its type if it is mute."""
    return (" ".join(str(error).split()) or type(error).__name__)[:limit]


def some_of(names: Iterable[object], limit: int = 3) -> str:
    """Return the first `limit` names quoted, and how many more there are: `'a', 'b' and 4 more`."""
    shown = [repr(str(name)) for name in names]
    rest = len(shown) - limit
    return ", ".join(shown[:limit]) + (f" and {rest:,} more" if rest > 0 else "")


def did_you_mean(name: str, known: Iterable[str], *, listed: bool = True) -> str:
    """Return `; did you mean 'x'?` for the known name closest to `name`, or where `listed` the known names."""
    options = [str(option) for option in known]
    close = difflib.get_close_matches(name, options, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(options)}" if options and listed else ""
