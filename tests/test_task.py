from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kaggle_kit.errors import SettingError
from kaggle_kit.task import preset_names, read_task, task_from_plain, task_to_plain


@pytest.mark.parametrize("name", preset_names())
def test_presets_round_trip(name: str) -> None:
    task = read_task(name)
    assert task_from_plain(task_to_plain(task)) == task


def test_ships_maps_class_names_to_file_values() -> None:
    head = read_task("ships").heads["category"]
    assert head.class_names == ("Cargo", "Military", "Carrier", "Cruise", "Tankers")
    assert head.class_values == ("1", "2", "3", "4", "5")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["metrik"], "x", r"task.yaml: `metrik` is not a setting; did you mean 'metric'\?"),
        (["metric"], "macro_recal", r"`metric` is 'macro_recal' .* did you mean 'macro_recall'\?"),
        (["heads", "root", "clases"], 3, r"`heads\.root\.clases` is not a setting; did you mean 'classes'\?"),
        (["heads", "root", "classes"], 1, r"`heads\.root`: `classes` gives 1 class\(es\); a head needs at least 2"),
        (["heads", "root", "weight"], 0, r"`weight` is 0.0; it must be above 0"),
        (["images", "train"], "../x", r"`images`: `train` is '../x'; give a path below the data folder"),
        (["images", "train"], "s3://x/y", r"give a path below the data folder"),
        (["images", "height"], "137", r"`images\.height` is '137' \(str\); expected int"),
        (["stored"], {"height": 10, "width": 10}, r"use fit: stretch, letterbox or content"),
        (["submission", "row_id"], "{image}_{head}", r"it must hold \{image_id\} and \{head\}"),
        (["submission", "row_id"], "{image_id}_{head", r"it must hold \{image_id\} and \{head\}"),
        (["submission", "row_id"], "{image_id}_{head}_{head}", r"it must hold \{image_id\} and \{head\}"),
        (["images", "height"], -5, r"`height` is negative"),
        (["name"], "../../x", r"`name` is '../../x'; use letters, digits"),
        (["heads"], {"image": {"classes": 3}}, "a head is named 'image', which the exported graph needs itself"),
        (["limits"], {"hours": -1}, r"`hours` is -1.0; it must be above 0"),
        (["heads"], {}, r"`heads` is empty"),
    ],
)
def test_read_task_names_what_is_wrong(tmp_path: Path, path: list[str], value: object, message: str) -> None:
    values = task_to_plain(read_task("digits"))
    values["heads"] = {"root": {"classes": 3}}
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file = tmp_path / "task.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(SettingError, match=message):
        read_task(file)


@pytest.mark.parametrize(
    ("name", "message"),
    [("bengall", r"did you mean 'bengali'\?"), ("nowhere/task.yaml", "there is no task file 'nowhere/task.yaml'")],
)
def test_read_task_refuses_unknown_names(name: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        read_task(name)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"a: [", "not valid YAML near line"), (b"- 1", "a task is a mapping"), (b"\xff\xfe\x00", "is not UTF-8 text")],
)
def test_read_task_refuses_what_is_no_task(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "task.yaml").write_bytes(data)
    with pytest.raises(SettingError, match=message):
        read_task(tmp_path / "task.yaml")
