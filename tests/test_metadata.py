from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kaggle_kit.errors import KaggleError
from kaggle_kit.platform.metadata import dataset_problems, kernel_problems, read_dataset, read_kernel
from kaggle_kit.platform.rules import slug_of
from kaggle_kit.platform.wheel import PACKAGE, kernels_folder

DATASET = {"title": "My bundle", "id": "anna/my-bundle", "licenses": [{"name": "MIT"}]}
KERNEL = {
    "id": "anna/my-kernel",
    "title": "My kernel",
    "code_file": "main.py",
    "language": "python",
    "kernel_type": "script",
    "is_private": True,
    "enable_internet": False,
    "machine_shape": "NvidiaTeslaT4",
    "dataset_sources": ["anna/my-bundle", "ben/his-data/3"],
    "competition_sources": ["digits-cv"],
    "kernel_sources": ["ben/his-kernel"],
    "model_sources": ["google/vit/pyTorch/base/2"],
}
GONE = object()
# what changes, what is said (None: nothing), whether the kaggle package refuses it too
DATASETS: list[tuple[dict[str, Any], str | None, bool]] = [
    ({}, None, False),
    ({"subtitle": "Twenty characters and more"}, None, False),
    ({"subtitle": ""}, None, False),
    ({"description": "Long.", "keywords": ["image"]}, None, False),
    ({"isPrivate": True, "expectedUpdateFrequency": "never"}, None, False),
    ({"title": "Short"}, "`title` has 5 characters", True),
    ({"title": "x" * 51}, "`title` has 51 characters .* expected 6 to 50", True),
    ({"title": GONE}, "`title` is None, expected text", True),
    ({"title": "INSERT_TITLE_HERE"}, "still holds the placeholder INSERT_TITLE_HERE", True),
    ({"subtitle": "Too short"}, "`subtitle` has 9 characters", True),
    ({"subtitle": "x" * 81}, "`subtitle` has 81 characters", True),
    ({"licenses": []}, "`licenses` is a list of 0 entries", True),
    ({"licenses": GONE}, "`licenses` is a list of no entries", True),
    ({"licenses": [{"name": "MIT"}, {"name": "other"}]}, "list of 2 entries, expected exactly one", True),
    ({"licenses": [{"title": "MIT"}]}, "expected an object with a name", True),
    ({"id": "anna/slug"}, "`id` has a slug of 4 characters, expected 6 to 50", True),
    ({"id": f"anna/{'x' * 51}"}, "slug of 51 characters", True),
    ({"id": GONE}, "`id` is None, expected owner/slug", True),
    ({"id": "my-bundle"}, "expected owner/slug; write your Kaggle name", True),
    ({"id": "anna/INSERT_SLUG_HERE"}, "placeholder INSERT_SLUG_HERE", True),
    ({"resources": [{"path": "absent.csv"}]}, "`resources` would describe files", True),
    ({"id": "OWNER/my-bundle"}, "placeholder OWNER", False),
    ({"id": "anna/My_Bundle"}, "write 'my-bundle'", False),
    ({"id": "anna bell/my-bundle"}, "is no Kaggle name", False),
    ({"licences": [{"name": "MIT"}]}, "`licences` is no key that Kaggle reads; did you mean `licenses`", False),
    ({"keywords": "image"}, "`keywords` is 'image', expected a list", True),
    ({"description": 3}, "`description` is 3, expected text", True),
]
KERNELS: list[tuple[dict[str, Any], str | None, bool]] = [
    ({}, None, False),
    ({"machine_shape": GONE}, None, False),
    ({"is_private": "true", "enable_internet": "false"}, None, False),
    ({"docker_image_pinning_type": "original"}, None, False),
    ({"title": "abc", "id": "anna/abcde"}, "`title` has 3 characters", True),
    ({"id": "anna/abc", "title": "a b-c"}, "slug of 3 characters, expected 5 or more", True),
    ({"id": "anna/my-kernel/3"}, "expected owner/slug", True),
    ({"id": GONE}, "`id` is None, expected owner/slug", True),
    ({"code_file": "absent.py"}, "names 'absent.py', and there is no such file", True),
    ({"code_file": GONE}, "`code_file` is None", True),
    ({"language": "julia"}, "`language` is 'julia', expected one of python, r, rmarkdown", True),
    ({"kernel_type": "library"}, "`kernel_type` is 'library'", True),
    ({"kernel_type": "notebook", "code_file": "broken.ipynb"}, "is no notebook in JSON", True),
    ({"kernel_type": "notebook", "code_file": "empty.ipynb"}, "holds no list of cells", False),
    ({"kernel_type": "notebook", "code_file": "main.ipynb"}, None, False),
    ({"code_file": "main.ipynb"}, "`kernel_type` 'script'; a notebook is an .ipynb file", False),
    ({"kernel_type": "notebook"}, "a notebook is an .ipynb file", True),
    ({"dataset_sources": ["my-bundle"]}, "`dataset_sources` holds 'my-bundle', expected owner/slug", True),
    ({"dataset_sources": ["a/b/3/4"]}, "`dataset_sources` holds 'a/b/3/4'", True),
    ({"dataset_sources": ["anna/"]}, "`dataset_sources` holds 'anna/'", True),
    ({"kernel_sources": ["his-kernel"]}, "`kernel_sources` holds", True),
    ({"kernel_sources": ["ben/abc"]}, "`kernel_sources` holds 'ben/abc'", True),
    ({"model_sources": ["google/vit/pyTorch/base"]}, "expected owner/model/framework/variation/version", True),
    ({"model_sources": ["google/vit/pyTorch/base/x"]}, "`model_sources` holds", True),
    ({"model_sources": ["google//pyTorch/base/2"]}, "`model_sources` holds", True),
    ({"docker_image_pinning_type": "newest"}, "expected one of original, latest", True),
    ({"enable_internet": "maybe"}, "`enable_internet` is 'maybe', expected true or false", True),
    ({"enable_internet": GONE}, "`enable_internet` is missing, and Kaggle takes that for true", False),
    ({"enable_internet": True}, "`enable_internet` is true; a submission runs without", False),
    ({"enable_gpu": True}, 'deprecated for `machine_shape`; write "machine_shape": "NvidiaTeslaT4"', False),
    ({"enable_tpu": False}, "`enable_tpu` is deprecated for `machine_shape`; leave it out", False),
    ({"machine_shape": "NvidiaTeslaP100"}, "which Kaggle retired; write NvidiaTeslaT4", False),
    ({"title": "Another kernel"}, "gives the slug 'another-kernel', and `id` ends in 'my-kernel'", False),
    ({"title": "My kernel ß"}, "letters whose slug only Kaggle knows", False),
    ({"id": "OWNER/my-kernel"}, "`id` still holds the placeholder OWNER", False),
    ({"competition_sources": ["COMPETITION"]}, "`competition_sources` still holds the placeholder COMPETITION", False),
    ({"competition_sources": "digits-cv"}, "`competition_sources` is 'digits-cv', expected a list", True),
    ({"dataset_source": ["anna/my-bundle"]}, "did you mean `dataset_sources`", False),
    ({"dataset_sources": ["anna/my-kernel"]}, "slugs must differ: rename the kernel", False),
    ({"dataset_sources": ["anna/my-bundle"] * 2}, "names the same source twice", False),
]


def write_folder(folder: Path, name: str, values: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "main.py").write_text("print(1)\n")
    (folder / "main.ipynb").write_text('{"cells": [], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}')
    (folder / "broken.ipynb").write_text("print(1)\n")
    (folder / "empty.ipynb").write_text("{}")
    left = {key: value for key, value in values.items() if value is not GONE}
    (folder / name).write_text(json.dumps(left), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("change", "said", "_theirs"), DATASETS)
def test_a_dataset_s_metadata_is_judged(
    tmp_path: Path, change: dict[str, Any], said: str | None, _theirs: bool
) -> None:
    folder = write_folder(tmp_path, "dataset-metadata.json", DATASET | change)
    if said is None:
        assert dataset_problems(folder) == []
        assert read_dataset(folder).ref == "anna/my-bundle"
    else:
        with pytest.raises(KaggleError, match=said):
            read_dataset(folder)


@pytest.mark.parametrize(("change", "said", "_theirs"), KERNELS)
def test_a_kernel_s_metadata_is_judged(tmp_path: Path, change: dict[str, Any], said: str | None, _theirs: bool) -> None:
    folder = write_folder(tmp_path, "kernel-metadata.json", KERNEL | change)
    if said is None:
        kernel = read_kernel(folder, internet=False)
        assert (kernel.ref, kernel.private) == ("anna/my-kernel", True)
    else:
        with pytest.raises(KaggleError, match=said):
            read_kernel(folder, internet=False)


def test_all_problems_are_listed_at_once_each_in_a_line_that_names_the_file(tmp_path: Path) -> None:
    change = {
        "title": "abc",
        "language": "julia",
        "enable_internet": GONE,
        "dataset_sources": ["x"],
        "enable_gpu": True,
    }
    problems = kernel_problems(write_folder(tmp_path, "kernel-metadata.json", KERNEL | change))
    assert len(problems) == 6  # the title is too short, and has another slug
    for problem in problems:
        assert problem.startswith(f"{tmp_path / 'kernel-metadata.json'}: `") and "\n" not in problem
    with pytest.raises(KaggleError, match=r"\(and 5 more\)"):
        read_kernel(tmp_path)


def test_internet_may_be_allowed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "kernel-metadata.json", KERNEL | {"enable_internet": True})
    assert len(kernel_problems(folder)) == 1
    assert kernel_problems(folder, internet=True) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "is missing"), ("{", "is no JSON in UTF-8"), (b"\xff\xfe", "is no JSON in UTF-8"), ("[]", "holds a list")],
)
def test_a_file_that_is_no_metadata_is_named(tmp_path: Path, content: str | bytes | None, said: str) -> None:
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "dataset-metadata.json").write_bytes(data)
        (tmp_path / "kernel-metadata.json").write_bytes(data)
    for (problem,) in (dataset_problems(tmp_path), kernel_problems(tmp_path)):
        assert said in problem


def test_the_project_s_own_metadata_lacks_nothing_but_names() -> None:
    kernels = [path.parent for path in kernels_folder().glob("*/kernel-metadata.json")]
    datasets = [path.parent for path in (PACKAGE.parent / "datasets").glob("*/dataset-metadata.json")]
    assert len(kernels) >= 3 and len(datasets) >= 2
    problems = [problem for folder in kernels for problem in kernel_problems(folder)]
    problems += [problem for folder in datasets for problem in dataset_problems(folder)]
    assert [problem for problem in problems if "placeholder" not in problem] == []
    assert len(problems) >= len(kernels) + len(datasets)


class Reached(Exception):  # noqa: N818  it is no fault
    """The kaggle package found nothing to refuse, and would have called Kaggle."""


@pytest.fixture
def their_refusal(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., str | None]:
    """Ask the kaggle package itself, without a network: its refusal, or None."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(home / "kaggle"))
    monkeypatch.delenv("KAGGLE_API_TOKEN", raising=False)
    extended = pytest.importorskip("kaggle.api.kaggle_api_extended", reason="the kaggle package is not installed")

    def reached(*_arguments: object, **_named: object) -> None:
        raise Reached

    kernels = SimpleNamespace(kernels_api_client=SimpleNamespace(save_kernel=reached))

    def absent(*_arguments: object) -> None:
        raise extended.HTTPError

    api = extended.KaggleApi()
    api.config_values = {"username": "anna"}
    monkeypatch.setattr(api, "build_kaggle_client", lambda: nullcontext(SimpleNamespace(kernels=kernels)))
    monkeypatch.setattr(api, "dataset_status", absent)
    monkeypatch.setattr(api, "upload_files", reached)

    def ask(folder: Path, *, kernel: bool) -> str | None:
        try:
            (api.kernels_push if kernel else api.dataset_create_new)(str(folder))
        except Reached:
            return None
        except (ValueError, IndexError, TypeError) as error:
            return repr(error)
        raise AssertionError("neither refused nor called")

    return ask


@pytest.mark.parametrize(
    ("kernel", "change", "said", "theirs"),
    [(False, *row) for row in DATASETS] + [(True, *row) for row in KERNELS],
)
def test_what_the_kaggle_package_refuses_is_refused_here(
    tmp_path: Path,
    their_refusal: Callable[..., str | None],
    kernel: bool,
    change: dict[str, Any],
    said: str | None,
    theirs: bool,
) -> None:
    name, values = ("kernel-metadata.json", KERNEL) if kernel else ("dataset-metadata.json", DATASET)
    folder = write_folder(tmp_path / "folder", name, values | change)
    refusal = their_refusal(folder, kernel=kernel)
    assert (refusal is not None) == theirs, refusal
    assert not theirs or (kernel_problems if kernel else dataset_problems)(folder)
    assert theirs or said is not None or not (kernel_problems if kernel else dataset_problems)(folder)


@pytest.mark.parametrize(
    "title", ["kaggle-kit submit", "Bengali: 1,000 graphemes!", "don't stop", "Été à Paris", "a__b", "v1.2", "A&amp;B"]
)
def test_slugs_are_those_of_the_kaggle_package(title: str) -> None:
    slugify = pytest.importorskip("slugify", reason="the kaggle package is not installed").slugify
    assert slug_of(title) == slugify(title)
