"""dataset-metadata.json and kernel-metadata.json, checked offline by the rules of the `kaggle` package and stricter.

Every problem of a file is a line of its own: the key, what it holds, what was expected, the repair.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaggle_kit.errors import KaggleError
from kaggle_kit.platform import rules
from kaggle_kit.platform.rules import DATASET_METADATA, KERNEL_METADATA, OWNER_PATTERN, SLUG_PATTERN, slug_of


@dataclass(frozen=True, kw_only=True)
class DatasetMetadata:
    """A dataset's metadata, without a problem.

    Attributes:
        ref: owner/slug.
        values: The file's content.
    """

    ref: str
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class KernelMetadata:
    """A kernel's metadata, without a problem.

    Attributes:
        ref: owner/slug.
        code_file: The only file that is pushed, beside the metadata.
        kernel_type: script or notebook.
        machine_shape: The accelerator's id; "" for the CPU.
        datasets: owner/slug, or owner/slug/version.
        competitions: Slugs.
        private: Nobody else sees it.
    """

    ref: str
    code_file: Path
    kernel_type: str
    machine_shape: str
    datasets: tuple[str, ...]
    competitions: tuple[str, ...]
    private: bool


def dataset_problems(folder: Path) -> list[str]:
    """Return every problem of a dataset's metadata, a line each; an empty list when Kaggle would take it."""
    return _problems(folder, DATASET_METADATA, _check_dataset)


def kernel_problems(folder: Path, *, internet: bool = False) -> list[str]:
    """Return every problem of a kernel's metadata, a line each; an empty list when Kaggle would take it.

    Args:
        folder: Holds kernel-metadata.json and the code.
        internet: The kernel may use the internet, so it cannot be a submission.
    """
    return _problems(folder, KERNEL_METADATA, lambda values: _check_kernel(values, folder, internet=internet))


def read_dataset(folder: Path) -> DatasetMetadata:
    """Read a dataset's metadata.

    Raises:
        KaggleError: When it has problems: the first, and how many more.
    """
    _refuse(dataset_problems(folder))
    values = json.loads((folder / DATASET_METADATA).read_text(encoding="utf-8"))
    return DatasetMetadata(ref=values["id"], values=values)


def read_kernel(folder: Path, *, internet: bool = True) -> KernelMetadata:
    """Read a kernel's metadata.

    Args:
        folder: Holds kernel-metadata.json and the code.
        internet: The kernel may use the internet.

    Raises:
        KaggleError: When it has problems: the first, and how many more.
    """
    _refuse(kernel_problems(folder, internet=internet))
    values = json.loads((folder / KERNEL_METADATA).read_text(encoding="utf-8"))
    return KernelMetadata(
        ref=values["id"],
        code_file=folder / values["code_file"],
        kernel_type=values["kernel_type"],
        machine_shape=values.get("machine_shape") or "",
        datasets=tuple(values.get("dataset_sources", ())),
        competitions=tuple(values.get("competition_sources", ())),
        private=_truth(values.get("is_private", True)) is not False,
    )


def _problems(folder: Path, name: str, check: Callable[[Mapping[str, Any]], Iterator[str]]) -> list[str]:
    path = folder / name
    if not path.is_file():
        ways = {
            DATASET_METADATA: "say --id OWNER/SLUG to `kaggle-kit publish`, or copy one of this project's datasets/"
        }
        return [f"{path} is missing; {ways.get(name, 'make the folder by `kaggle-kit kernel new`')}"]
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not JSON
        return [f"{path} is no JSON in UTF-8 ({error}); mend it"]
    if not isinstance(values, dict):
        return [f"{path} holds a {type(values).__name__}, expected an object of keys and values; mend it"]
    return [f"{path}: {problem}" for problem in [*_placeholders(values), *check(values)]]


def _refuse(problems: list[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise KaggleError(f"{problems[0]}{more}")


def _placeholders(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        words = {part for text in texts if isinstance(text, str) for part in text.split("/")}
        for word in sorted(words & set(rules.PLACEHOLDERS)):
            yield f"`{key}` still holds the placeholder {word}; write your own in its place"


def _check_dataset(values: Mapping[str, Any]) -> Iterator[str]:
    yield from _unknown(values, rules.DATASET_KEYS, rules.DATASET_SETTINGS)
    yield from _check_ref(values.get("id"), "id", "dataset", rules.DATASET_SLUG_LENGTH)
    yield from _check_length(values.get("title"), "title", rules.DATASET_TITLE_LENGTH)
    if values.get("subtitle"):
        yield from _check_length(values["subtitle"], "subtitle", rules.SUBTITLE_LENGTH)
    licences = values.get("licenses")
    if not isinstance(licences, list) or len(licences) != 1:
        number = len(licences) if isinstance(licences, list) else "no"
        yield f'`licenses` is a list of {number} entries, expected exactly one; write [{{"name": "MIT"}}] or another'
    elif not isinstance(licences[0], dict) or not isinstance(licences[0].get("name"), str) or not licences[0]["name"]:
        yield f'`licenses` holds {licences[0]!r}, expected an object with a name; write [{{"name": "MIT"}}] or another'
    for key in ("keywords", "resources"):
        if not isinstance(values.get(key, []), list):
            yield f"`{key}` is {values[key]!r}, expected a list; put it in brackets, or leave it out"
    if not isinstance(values.get("description", ""), str):
        yield f"`description` is {values['description']!r}, expected text; put it in quotes"
    if values.get("resources"):
        yield "`resources` would describe files one by one, which this kit does not check; leave it out"


def _check_kernel(values: Mapping[str, Any], folder: Path, *, internet: bool) -> Iterator[str]:
    yield from _unknown(values, rules.KERNEL_KEYS)
    yield from _check_ref(values.get("id"), "id", "kernel", (rules.KERNEL_SLUG_MIN_LENGTH, None))
    yield from _check_title(values)
    yield from _check_code_file(values, folder)
    for key, known in (("language", rules.LANGUAGES), ("kernel_type", rules.KERNEL_TYPES)):
        if values.get(key) not in known:
            yield f"`{key}` is {values.get(key)!r}, expected one of {', '.join(known)}; write one of these"
    yield from _check_switches(values, internet=internet)
    yield from _check_machine(values)
    yield from _check_sources(values)
    pinning = values.get("docker_image_pinning_type")
    if pinning is not None and pinning not in rules.PINNING_TYPES:
        yield (
            f"`docker_image_pinning_type` is {pinning!r}, expected one of {', '.join(rules.PINNING_TYPES)}; write one "
            "of these, or leave it out"
        )


def _unknown(values: Mapping[str, Any], known: Iterable[str], passed_over: Iterable[str] = ()) -> Iterator[str]:
    """Name keys that look like mistyped ones; Kaggle passes over any key that it does not know."""
    known = list(known)
    for key in values:
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
        if key not in known and key not in set(passed_over) and close:
            yield f"`{key}` is no key that Kaggle reads; did you mean `{close[0]}`?"


def _check_ref(ref: object, key: str, what: str, lengths: tuple[int, int | None]) -> Iterator[str]:
    """Check an owner/slug of our own."""
    if not isinstance(ref, str) or ref.count("/") != 1:
        yield f"`{key}` is {ref!r}, expected owner/slug; write your Kaggle name, a slash and the {what}'s slug"
        return
    owner, slug = ref.split("/")
    least, most = lengths
    if not OWNER_PATTERN.fullmatch(owner):
        yield f"`{key}` is {ref!r}, and {owner!r} is no Kaggle name; write the one of your profile's address"
    if not SLUG_PATTERN.fullmatch(slug):
        repair = slug_of(slug) or f"my-{what}"
        yield f"`{key}` is {ref!r}, expected a slug of a-z, 0-9 and single hyphens; write {repair!r}"
    if len(slug) < least or (most is not None and len(slug) > most):
        yield f"`{key}` has a slug of {len(slug)} characters, expected {_span(lengths)}; choose another"


def _check_length(text: object, key: str, lengths: tuple[int, int]) -> Iterator[str]:
    if not isinstance(text, str):
        yield f"`{key}` is {text!r}, expected text of {_span(lengths)} characters; write it"
    elif not lengths[0] <= len(text) <= lengths[1]:
        yield f"`{key}` has {len(text)} characters ({text!r}), expected {_span(lengths)}; change it"


def _span(lengths: tuple[int, int | None]) -> str:
    return f"{lengths[0]} or more" if lengths[1] is None else f"{lengths[0]} to {lengths[1]}"


def _check_title(values: Mapping[str, Any]) -> Iterator[str]:
    title = values.get("title")
    if not isinstance(title, str):
        yield f"`title` is {title!r}, expected text whose slug is the id's; write it"
        return
    least = rules.KERNEL_TITLE_MIN_LENGTH
    if len(title) < least:
        yield f"`title` has {len(title)} characters ({title!r}), expected {least} or more; change it"
    if not rules.has_known_slug(title):
        yield f"`title` is {title!r}, with letters whose slug only Kaggle knows; write it in A to Z"
    ref = values.get("id")
    slug = ref.split("/")[-1] if isinstance(ref, str) else None
    if slug is not None and slug_of(title) != slug:
        yield (
            f"`title` {title!r} gives the slug {slug_of(title)!r}, and `id` ends in {slug!r}: that is another kernel; "
            f"write a title such as {slug.replace('-', ' ')!r}"
        )


def _check_code_file(values: Mapping[str, Any], folder: Path) -> Iterator[str]:
    name = values.get("code_file")
    if not isinstance(name, str) or not name:
        yield f"`code_file` is {name!r}, expected a file's name; write the one of the code beside this file"
        return
    path = folder / name
    if not path.is_file():
        yield f"`code_file` names {name!r}, and there is no such file in {folder}; write the code's name"
        return
    if not path.resolve().is_relative_to(folder.resolve()):
        yield f"`code_file` names {name!r}, which lies outside of {folder}; move it in"
    notebook = values.get("kernel_type") == "notebook"
    if (path.suffix == ".ipynb") != notebook and values.get("language") == "python":
        kind = values.get("kernel_type")
        yield f"`code_file` is {name!r} and `kernel_type` {kind!r}; a notebook is an .ipynb file, a script a .py file"
    elif notebook:
        yield from _check_notebook(path)


def _check_notebook(path: Path) -> Iterator[str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        yield f"`code_file` {path.name!r} is no notebook in JSON ({error}); save it again"
        return
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) and "cell_type" in cell for cell in cells):
        yield f"`code_file` {path.name!r} holds no list of cells; save it as a notebook of format 4"


def _check_switches(values: Mapping[str, Any], *, internet: bool) -> Iterator[str]:
    for key in rules.KERNEL_SWITCHES:
        if key in values and _truth(values[key]) is None:
            yield f"`{key}` is {values[key]!r}, expected true or false; write one of these"
    if "enable_internet" not in values:
        yield "`enable_internet` is missing, and Kaggle takes that for true; write false"
    elif _truth(values["enable_internet"]) and not internet:
        yield "`enable_internet` is true; a submission runs without: write false, or allow it with --internet"


def _truth(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else None


def _check_machine(values: Mapping[str, Any]) -> Iterator[str]:
    for key in ("enable_gpu", "enable_tpu"):
        if key in values:
            repair = f'write "machine_shape": "{rules.DEFAULT_GPU}"' if _truth(values[key]) else "leave it out"
            yield f"`{key}` is deprecated for `machine_shape`; {repair}"
    shape = values.get("machine_shape")
    if shape is not None and not isinstance(shape, str):
        yield f'`machine_shape` is {shape!r}, expected text; write "{rules.DEFAULT_GPU}", or leave it out for the CPU'
    elif shape and shape.lower() in rules.RETIRED_SHAPES:
        yield f"`machine_shape` is {shape!r}, which Kaggle retired; {rules.RETIRED_SHAPES[shape.lower()]}"


def _check_sources(values: Mapping[str, Any]) -> Iterator[str]:
    checks: dict[str, tuple[str, Callable[[str], bool]]] = {
        "dataset_sources": ("owner/slug", _is_source),
        "kernel_sources": ("owner/slug", lambda text: _is_source(text, rules.KERNEL_SLUG_MIN_LENGTH)),
        "competition_sources": ("a competition's slug", lambda text: SLUG_PATTERN.fullmatch(text) is not None),
        "model_sources": ("owner/model/framework/variation/version", _is_model),
    }
    for key, (form, fits) in checks.items():
        sources = values.get(key, [])
        if not isinstance(sources, list):
            yield f"`{key}` is {sources!r}, expected a list; put it in brackets"
            continue
        for source in sources:
            placeholder = isinstance(source, str) and set(source.split("/")) & set(rules.PLACEHOLDERS)
            if not placeholder and (not isinstance(source, str) or not fits(source)):
                yield f"`{key}` holds {source!r}, expected {form}; write it so"
        if len({str(source) for source in sources}) < len(sources):
            yield f"`{key}` names the same source twice; leave one out"
    datasets = values.get("dataset_sources", [])
    if values.get("id") and isinstance(datasets, list) and values["id"] in datasets:
        yield f"`id` {values['id']!r} is also a dataset's in `dataset_sources`; slugs must differ: rename the kernel"


def _is_source(text: str, least: int = 1) -> bool:
    parts = text.split("/")
    return (
        len(parts) in (2, 3)
        and OWNER_PATTERN.fullmatch(parts[0]) is not None
        and SLUG_PATTERN.fullmatch(parts[1]) is not None
        and len(parts[1]) >= least
        and (len(parts) == 2 or parts[2].isdigit())
    )


def _is_model(text: str) -> bool:
    parts = text.split("/")
    return len(parts) == 5 and all(parts) and parts[4].isdigit()
