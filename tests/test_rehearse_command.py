from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Toy
from small_kernels import START, write_kernel

from kaggle_kit.errors import RehearsalError, SettingError
from kaggle_kit.rehearse_command import add_rehearse_parsers
from kaggle_kit.task import task_to_plain

Run = Callable[..., tuple[dict[str, object], int]]


@pytest.fixture
def run(wide: Toy, tmp_path: Path) -> Run:
    """Run the command on the toy, given its kernel's code and further options."""
    task = tmp_path / "task.yaml"
    task.write_text(yaml.safe_dump(json.loads(json.dumps(task_to_plain(wide.task)))))
    parser = argparse.ArgumentParser()

    def add(name: str, command: object, _purpose: str, example: str) -> argparse.ArgumentParser:
        assert (name, "kaggle-kit rehearse submit" in example) == ("rehearse", True)
        parser.set_defaults(run=command)
        return parser

    add_rehearse_parsers(add)

    def call(code: str, *options: str) -> tuple[dict[str, object], int]:
        kernel = write_kernel(tmp_path / "kernel", START + code)
        work = ["--work", str(tmp_path / "work")]
        parsed = parser.parse_args([str(kernel), "--task", str(task), "--data", str(wide.data), *work, *options])
        return parsed.run(parsed)

    return call


def test_it_says_what_kaggle_would_answer_and_what_was_measured(
    run: Run, wide: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    result, code = run("print('hello'); write(answers)", "--hidden", str(wide.hidden))
    said = capsys.readouterr().out
    assert (code, result["answer"]) == (0, "Complete")
    for part in ("visible test:\n    hello", "visible run: Complete, ", "hidden run: Complete, ", " GB of disk"):
        assert part in said
    assert "unknown, here and there; the kernel wrote no report" in said
    assert said.rstrip().endswith("Kaggle would answer: Complete")
    assert "hidden test" in said and "train images" not in said
    assert json.loads(json.dumps(result, default=str))["runs"][1]["kind"] == "hidden"


def test_a_failure_names_the_run_the_reason_and_the_log(
    run: Run, wide: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    result, code = run("write(rows)\nassert not rerun, 'not in the rerun'", "--hidden", str(wide.hidden))
    last = capsys.readouterr().out.splitlines()[-2:]
    assert (code, result["answer"], len(result["runs"])) == (1, "Notebook Threw Exception", 2)
    assert last[0].endswith("Notebook Threw Exception: in the hidden run: AssertionError: not in the rerun")
    assert last[1].endswith("work/hidden/kernel.log")


def test_a_hidden_test_is_made_once_beside_the_work_folder(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for said in ("takes about 0.00 GB", "is there already"):
        result, code = run("write(answers)", "--hidden-images", "60", "--seed", "1", "--only", "hidden")
        text = capsys.readouterr().out
        assert said in text and "its score says nothing of the real one" in text
        assert (code, len(result["runs"])) == (0, 1)
    assert (tmp_path / "work-hidden" / "solution.csv").is_file()


def test_hard_cases_end_in_a_table_and_in_the_exit_code(
    run: Run, wide: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "assert len(rows) > 1\nwrite(rows)"
    cases = ["--inject", "one-row", "empty-test", "new-size"]
    result, code = run(code, "--hidden", str(wide.hidden), "--only", "hidden", *cases)
    said = capsys.readouterr().out
    assert (code, result["answer"]) == (1, "Complete")
    table = said[said.index("hard case  ") :].splitlines()
    assert table[0].split("  ")[0] == "hard case" and "answers that changed" in table[0]
    assert table[1].split()[:5] == ["one-row", "Complete", "0", "of", "2"]
    assert table[2].startswith("empty-test  Notebook Threw Exception") and "kernel.log" in table[2]
    assert table[3].split()[1:4] == ["(does", "not", "apply)"]
    assert said.rstrip().endswith("but 1 hard case(s) would have cost a submission: empty-test")
    assert [one["answer"] for one in result["cases"]] == ["Complete", "Notebook Threw Exception", None]


def test_the_visible_test_alone_needs_no_hidden_one(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("visible", "interactive"):
        result, code = run("write(rows)", "--only", kind)
        assert (code, result["projected"], result["score"]) == (0, [], None)
    assert "projected" not in capsys.readouterr().out


def test_slips_are_told_before_anything_is_made(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RehearsalError, match="there is no hard case 'one-raw'"):
        run("pass", "--hidden-images", "5", "--inject", "one-raw")
    with pytest.raises(SettingError, match="--costs are of a bundle's runs; give --bundle too"):
        run("pass", "--hidden-images", "5", "--costs", "costs.json")
    with pytest.raises(SettingError, match="no image profile|is no profile|no such|there is no"):
        run("pass", "--only", "visible", "--packages-from", "python9.9")
    assert not (tmp_path / "work-hidden").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hidden-images", "0"], "'0' is no count"),
        (["--seed", "-1"], "'-1' is no seed"),
        (["--time-limit", "2"], "'2' is no time; write it like 90s, 30m or 2h"),
        (["--time-limit", "infh"], "'infh' is no time"),
        (["--memory", "nan"], "'nan' is no size"),
        (["--disk", "x"], "'x' is no size"),
        (["--hidden", "a", "--hidden-images", "3"], "not allowed with argument"),
    ],
)
def test_values_that_make_no_sense_are_refused(
    run: Run, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        run("pass", *options)
    assert message in capsys.readouterr().err
