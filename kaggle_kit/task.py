"""What a competition asks: heads, metric, files, submission form and limits, read from one YAML file."""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from kaggle_kit.errors import SettingError, did_you_mean, some_of
from kaggle_kit.heads import Head as Head
from kaggle_kit.heads import check_auxiliary, check_heads
from kaggle_kit.settings import build, plain

Fit = Literal["none", "stretch", "letterbox", "content"]
Metric = Literal[
    "macro_recall",
    "accuracy",
    "macro_f1",
    "weighted_f1",
    "micro_f1",
    "quadratic_kappa",
    "log_loss",
    "roc_auc",
    "average_precision",
]


def check_below(name: str, value: str) -> None:
    """Refuse what is no path below the data folder: an address, another drive, a way out.

    Raises:
        SettingError: Naming the setting.
    """
    remote = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", value)
    odd = "\\" in value or any(ord(letter) < 32 for letter in value)
    if remote or odd or value.startswith(("/", "~")) or ".." in Path(value).parts:
        raise SettingError(f"`{name}` is {value!r}; give a path below the data folder, with '/' between its parts")


@dataclass(frozen=True, kw_only=True)
class Images:
    """Where the competition keeps its images.

    Attributes:
        format: `files`: one encoded file an image, in a folder or zip; `wide_parquet`: one row an image, one column
            a pixel ("0", "1", ...); `encoded_parquet`: one row an image, one column with its encoded bytes;
            `array`: one `.npy` or idx file; `packed`: what `kaggle-kit pack` wrote.
        channels: 1 for gray, 3 for RGB.
        train: parquet: glob of the train shards; array: the file; packed: the folder.
        test: The same for the test images.
        height: wide_parquet: pixels.
        width: wide_parquet: pixels.
        folder: files: the folder of the images, relative to the data folder; `images.zip` or `images.zip/train`
            are read without unpacking.
        test_folder: files: the folder of the test images, where that is another.
        class_folders: files: train images lie in folders below `folder`, one a class.
        test_list: The CSV that lists the test images; files need it, an array may do without.
        id: The id column of the shards or of the test list; encoded_parquet: `image.path` reaches into a struct.
        image: encoded_parquet: the column of encoded bytes, or of structs with a field `bytes`.
        suffix: files: what to add to an id for the file's name, such as ".png"; empty where ids are file names.
    """

    format: Literal["wide_parquet", "encoded_parquet", "files", "array", "packed"]
    channels: Literal[1, 3] = 3
    train: str = ""
    test: str = ""
    height: int = 0
    width: int = 0
    folder: str = ""
    test_folder: str = ""
    class_folders: bool = False
    test_list: str = ""
    id: str = "image_id"
    image: str = "image"
    suffix: str = ""

    def __post_init__(self) -> None:
        needed = {"wide_parquet": ("train", "test", "height", "width"), "files": ("folder", "test_list")}
        for name in needed.get(self.format, ("train", "test")):
            value = getattr(self, name)
            if not value or (isinstance(value, int) and value < 0):
                wrong = "negative" if value else "missing"
                raise SettingError(f"`{name}` is {wrong}; format {self.format!r} needs it")
        for name in ("train", "test", "folder", "test_folder", "test_list"):
            check_below(name, getattr(self, name))

    @property
    def test_files(self) -> list[str]:
        """Globs below the data folder of what makes up the test; a zip stands for the folder inside of it."""
        if self.format != "files":
            return [self.test, *([self.test_list] if self.test_list else [])]
        folder = self.test_folder or self.folder
        inside_zip = re.match(r"(.*?\.zip)(/|$)", folder, re.IGNORECASE)
        return [self.test_list, inside_zip[1] if inside_zip else folder]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The size the CPU stage brings every image to; it travels in the manifest.

    Attributes:
        height: Pixels.
        width: Pixels.
        fit: `none`: images must have this size already; `stretch`: resize both sides; `letterbox`: keep the
            aspect ratio and pad evenly with `fill`; `content`: crop to what stands out from the background (a glyph),
            then letterbox with the background's color.
        fill: Gray value of letterbox padding, 0 to 255.
    """

    height: int
    width: int
    fit: Fit = "none"
    fill: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.height <= 8192 and 0 < self.width <= 8192):
            raise SettingError(f"stored size is {self.height} x {self.width}; each side must be 1 to 8192 pixels")
        if not 0 <= self.fill <= 255:
            raise SettingError(f"`fill` is {self.fill}; it must be 0 to 255")


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """Where the train images' classes are.

    Attributes:
        file: A CSV with one row a train image: an id column and one column a head. Or an idx or `.npy` file of class
            numbers, (N,) or (N, heads), in the order of an array of images. Or empty: the names of class folders.
        id: The CSV's id column.
    """

    file: str = "train.csv"
    id: str = "image_id"

    def __post_init__(self) -> None:
        check_below("file", self.file)

    @property
    def is_csv(self) -> bool:
        """Whether ids are listed, rather than counted or found as files."""
        return bool(self.file) and not re.search(r"(\.npy|-ubyte|\.idx|-ubyte\.gz|\.idx\.gz)$", self.file)


@dataclass(frozen=True, kw_only=True)
class SubmissionForm:
    """How the competition wants its answer.

    Attributes:
        form: `row_per_head`: one row for each head of each image; `row_per_image`: one row an image, one column
            a head; `column_per_class`: one row an image, one column for each class of each head, which holds its
            probability where the metric is of probabilities, else 1 for what is said and 0.
        file: The sample submission, relative to the data folder; its ids and their order are followed.
        id: The id column.
        row_id: row_per_head: how an id is written, from `{image_id}` and `{head}`.
        target: The answer's column: row_per_head, or row_per_image with one head.
    """

    form: Literal["row_per_head", "row_per_image", "column_per_class"]
    file: str = "sample_submission.csv"
    id: str = ""
    row_id: str = "{image_id}_{head}"
    target: str = "target"

    def __post_init__(self) -> None:
        if self.form == "row_per_head":
            try:
                names = [name for _, name, _, _ in string.Formatter().parse(self.row_id) if name is not None]
            except ValueError:
                names = []
            if sorted(names) != ["head", "image_id"]:
                raise SettingError(f"`row_id` is {self.row_id!r}; it must hold {{image_id}} and {{head}} once each")

    @property
    def id_column(self) -> str:
        """The id column's name: `row_id` by default where a row is a head."""
        return self.id or ("row_id" if self.form == "row_per_head" else "image_id")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the submission kernel may use: hours of run time, the accelerator, gigabytes of memory."""

    hours: float = 9.0
    accelerator: str = "NvidiaTeslaT4"
    memory_gb: float = 30.0

    def __post_init__(self) -> None:
        for name in ("hours", "memory_gb"):
            if not getattr(self, name) > 0:
                raise SettingError(f"`{name}` is {getattr(self, name)}; it must be above 0")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A competition: what goes in, what is asked, how it is scored and answered.

    Attributes:
        name: It names folders.
        heads: What is asked.
        auxiliary: What a network learns beside the heads, from further label columns, to know images better. It is
            never predicted, scored or submitted.
        metric: How each head is scored.
        images: Where the images are.
        submission: How the answer is written.
        labels: Where the train images' classes are.
        groups: A label column: images of one value belong together.
        stored: The size of packed images; None: worked out from the data.
        limits: Of the submission kernel.
    """

    name: str
    heads: dict[str, Head]
    metric: Metric
    images: Images
    submission: SubmissionForm
    auxiliary: dict[str, Head] = field(default_factory=dict)
    labels: LabelFile = field(default_factory=LabelFile)
    groups: str | None = None
    stored: Stored | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise SettingError(f"`name` is {self.name!r}; use letters, digits, '.', '_' and '-': it names folders")
        check_heads(self.heads, metric=self.metric)
        check_auxiliary(self.auxiliary, self.heads)
        several = self.submission.form == "row_per_image" and len(self.heads) > 1
        if several and self.submission.target != "target":
            raise SettingError("`submission.target` names one column; with several heads their names are the columns")
        columns = [value for head in self.heads.values() for value in head.class_values]
        if self.submission.form == "column_per_class" and len({*columns, self.submission.id_column}) <= len(columns):
            raise SettingError(
                "`submission.form` is column_per_class, and two heads have classes of one name, or a class is named as "
                f"the id column {self.submission.id_column!r}; give the head(s) other `values`"
            )
        if self.images.format == "wide_parquet":
            wide = (self.images.height, self.images.width)
            if self.stored is not None and self.stored.fit == "none" and self.stored_size != wide:
                raise SettingError(
                    f"`stored` is {self.stored_size} with fit none, but images are {wide}; "
                    "use fit: stretch, letterbox or content"
                )
        self._check_labels()

    @property
    def trained_heads(self) -> dict[str, Head]:
        """The heads, followed by the auxiliary ones: what a network is trained on."""
        return {**self.heads, **self.auxiliary}

    def _check_labels(self) -> None:
        if self.auxiliary and not self.labels.is_csv:
            raise SettingError(
                f"`auxiliary` names label column(s) {some_of(self.auxiliary)}, and `labels.file` is "
                f"{self.labels.file!r}; give labels as CSV, or leave `auxiliary` out"
            )
        if self.multilabel_heads and not self.labels.is_csv:
            raise SettingError(
                f"head `{self.multilabel_heads[0]}` is multilabel, and `labels.file` is {self.labels.file!r}, which "
                "holds one class an image; give labels as CSV"
            )
        if self.labels.file and not self.labels.is_csv and self.images.format != "array":
            raise SettingError(
                f"`labels.file` is {self.labels.file!r}, whose rows have no ids; images of format "
                f"{self.images.format!r} need labels as CSV"
            )
        if not self.labels.file and (not self.images.class_folders or len(self.heads) != 1):
            raise SettingError(
                "`labels.file` is empty: classes are then the names of folders, which needs `images.class_folders: "
                "true` and one head"
            )

    @property
    def stored_size(self) -> tuple[int, int]:
        """The stored (height, width).

        Raises:
            SettingError: Before `stored` was worked out from the data.
        """
        if self.stored is None:
            raise SettingError("`stored` is not known yet; add `stored: {height: ..., width: ..., fit: letterbox}`")
        return self.stored.height, self.stored.width

    @property
    def multilabel_heads(self) -> tuple[str, ...]:
        """The names of the heads that say any number of classes."""
        return tuple(name for name, head in self.heads.items() if head.kind == "multilabel")

    def without_auxiliary(self) -> Task:
        """Return this task with nothing to learn beside its heads: what predicting needs to know."""
        return dataclasses.replace(self, auxiliary={})

    def with_stored(self, stored: Stored) -> Task:
        """Return this task with its stored size set."""
        return dataclasses.replace(self, stored=stored)


def refuse_multilabel(task: Task, what: str, repair: str) -> None:
    """Refuse what makes no sense of multi-label heads.

    Args:
        task: The competition.
        what: What was asked for, such as "correcting for class shares".
        repair: What to do instead.

    Raises:
        SettingError: When a head is multi-label.
    """
    if task.multilabel_heads:
        raise SettingError(
            f"{what} is for images of one class, and head {task.multilabel_heads[0]!r} of task {task.name!r} is "
            f"multilabel; {repair}"
        )


def task_from_plain(values: object) -> Task:
    """Make a task from plain values, as `task_to_plain` or a YAML file gives them.

    Raises:
        SettingError: For anything that is not a task; the message names the dotted key.
    """
    if not isinstance(values, Mapping):
        raise SettingError(f"a task is a mapping with name, heads, metric, ...; found {type(values).__name__}")
    for key in ("heads", "auxiliary"):
        heads = values.get(key)
        if isinstance(heads, Mapping):
            named = {str(k): {"name": str(k), **v} if isinstance(v, Mapping) else v for k, v in heads.items()}
            values = {**values, key: named}
    return build(Task, values)


def task_to_plain(task: Task) -> dict[str, Any]:
    """Return JSON-ready values that `task_from_plain` turns back into an equal task."""
    values: dict[str, Any] = plain(task)
    return values


def read_task(name_or_path: str | Path) -> Task:
    """Read a task from a YAML file, or by the name of a preset.

    Args:
        name_or_path: `bengali`, `ships`, `digits`, or the path of a `task.yaml`.

    Raises:
        SettingError: When there is no such file or preset, or it is not a valid task.
    """
    text, where = _task_text(name_or_path)
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise SettingError(f"{where} is not valid YAML near line {line}; check its indentation and colons") from None
    try:
        return task_from_plain(values)
    except SettingError as error:
        raise SettingError(f"{where}: {error}") from None


def preset_names() -> list[str]:
    """Return the names that `read_task` knows without a file."""
    folder = resources.files("kaggle_kit.tasks")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def _task_text(name_or_path: str | Path) -> tuple[str, str]:
    path = Path(name_or_path)
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except UnicodeDecodeError:
            raise SettingError(f"{path} is not UTF-8 text; expected a task in YAML") from None
    presets = preset_names()
    if str(name_or_path) in presets:
        text = (resources.files("kaggle_kit.tasks") / f"{name_or_path}.yaml").read_text(encoding="utf-8")
        return text, f"preset {name_or_path!r}"
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise SettingError(f"there is no task file {str(path)!r}; give its path, or a preset: {some_of(presets, 9)}")
    raise SettingError(f"{str(name_or_path)!r} is no task preset{did_you_mean(str(name_or_path), presets)}")
