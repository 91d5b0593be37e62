from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import Toy

from kaggle_kit.audit_command import add_audit_parsers
from kaggle_kit.task import task_to_plain


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()

    def add(name: str, run: object, purpose: str, example: str) -> argparse.ArgumentParser:
        one = subparsers.add_parser(name, description=purpose, epilog=example)
        one.set_defaults(run=run)
        return one

    add_audit_parsers(add)
    return parser.parse_args(arguments)


def test_the_command_prints_what_to_do_first_and_where_the_report_is(
    files: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    report = SimpleNamespace(write_report=lambda audit, path: written.append(path))
    monkeypatch.setitem(sys.modules, "kaggle_kit.audit.report", report)
    task = tmp_path / "toy.yaml"
    task.write_text(yaml.safe_dump(task_to_plain(files.task)))
    out = tmp_path / "audit"
    options = parse(["audit", str(task), str(files.data), "--out", str(out), "--map", "pca", "--fast"])
    result, code = options.run(options)
    shown = capsys.readouterr().out
    assert code == 0
    assert written == [out / "report.html"]
    assert "24 images, 20 of train, 4 of test" in shown
    assert "1 cannot be read" in shown
    assert "1. 1 image cannot be read ('3.jpg')" in shown
    assert f"kaggle-kit review {out}" in shown
    assert f"{out / 'report.html'}: the report" in shown
    assert result["findings"]["broken"] == 1
    assert result["report"] == out / "report.html"


def test_the_whole_audit_s_options_are_parsed() -> None:
    options = parse(["audit", "ships", "data", "--out", "o", "--oof", "a", "b", "--folds", "f.parquet", "--seed", "3"])
    assert (options.oof, options.folds, options.seed) == ([Path("a"), Path("b")], Path("f.parquet"), 3)
    assert (options.map, options.fast, options.edits) == ("auto", False, None)
