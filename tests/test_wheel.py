from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kaggle_kit.platform.wheel import build_wheel, find_kernel, kernels_folder

SUBMIT = kernels_folder() / "submit"


def test_the_wheel_holds_the_package_and_is_the_same_every_time(tmp_path: Path) -> None:
    first = build_wheel(tmp_path / "a")
    assert first.read_bytes() == build_wheel(tmp_path / "b").read_bytes()
    assert first.stat().st_size < 1_000_000
    assert first.name.endswith("-py3-none-any.whl") and "+" not in first.name
    names = zipfile.ZipFile(first).namelist()
    for name in ("cli.py", "tasks/bengali.yaml", "conf/config.yaml", "kernels/submit/submit.py", "py.typed"):
        assert f"kaggle_kit/{name}" in names
    assert not [name for name in names if "__pycache__" in name]


def test_the_package_imports_from_the_wheel_s_path(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(wheel)!r}); import kaggle_kit; from kaggle_kit.task import read_task; "
        "print(kaggle_kit.__file__, read_task('bengali').name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == f"{wheel}/kaggle_kit/__init__.py bengaliai-cv19"


def test_templates_go_by_name_and_paths_by_path(tmp_path: Path) -> None:
    assert find_kernel(Path("submit")) == SUBMIT
    assert find_kernel(tmp_path) == tmp_path
    assert find_kernel(tmp_path / "submit") == tmp_path / "submit"


def test_the_kernel_template_is_short_and_its_metadata_is_kaggle_s() -> None:
    assert len((SUBMIT / "submit.py").read_text().splitlines()) <= 45
    metadata = json.loads((SUBMIT / "kernel-metadata.json").read_text())
    owner, slug = metadata["id"].split("/")
    assert metadata["title"].lower().replace(" ", "-") == slug
    assert metadata["enable_internet"] is False and metadata["is_private"] is True
    assert f"{owner}/{slug}" not in metadata["dataset_sources"]


@pytest.mark.parametrize("name", sorted(path.name for path in (Path(__file__).parents[1] / "datasets").iterdir()))
def test_dataset_metadata_keeps_kaggle_s_rules(name: str) -> None:
    path = Path(__file__).parents[1] / "datasets" / name / "dataset-metadata.json"
    metadata = json.loads(path.read_text())
    assert 6 <= len(metadata["title"]) <= 50 and 20 <= len(metadata["subtitle"]) <= 80
    assert metadata["id"] == f"OWNER/{name}"
    assert [list(entry) for entry in metadata["licenses"]] == [["name"]]
