"""A submission whatever happens: processes that are really killed, and go on."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import Toy

from kaggle_kit.cli import main
from kaggle_kit.errors import BundleError, DataError, KitError
from kaggle_kit.runs import Run
from kaggle_kit.runtime import submitting, supervise
from kaggle_kit.runtime.mounts import RERUN_VARIABLE, RUN_TYPE_VARIABLE, TIME_LIMIT_VARIABLE
from kaggle_kit.runtime.predictor import Predictor
from kaggle_kit.runtime.report import read_report
from kaggle_kit.runtime.results import DONE, Batch
from kaggle_kit.runtime.submitting import finish_submission, parts_folder, predict_submission
from kaggle_kit.runtime.supervise import submit
from kaggle_kit.sources import open_source
from kaggle_kit.submission import expected_rows, read_submission, validate_submission

CHILD = supervise._CHILD
SMALL = "from kaggle_kit.runtime import predictor; predictor.BATCH = 2; "
DYING = """
import os
from kaggle_kit.runtime.results import Results
put = Results.put
def dying(results, batch, probs):
    put(results, batch, probs)
    if {when}:
        {how}
Results.put = dying
"""
KILL, CRASH, HANG = "os.kill(os.getpid(), 9)", "os._exit(1)", "import time; time.sleep(60)"


def quiet(_line: str) -> None:
    pass


def child_that(monkeypatch: pytest.MonkeyPatch, *, when: str = "False", how: str = KILL) -> None:
    """Make the process that predicts do this at the end of a batch, in batches of two images."""
    trouble = f"exec({DYING.format(when=when, how=how)!r}); "
    imports, rest = CHILD.split("; from ", 1)
    monkeypatch.setattr(supervise, "_CHILD", f"{imports}; {SMALL}{trouble}from {rest}")


@pytest.fixture
def place(trained: tuple[Toy, list[Run]], bundle_folder: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Bundle, data and submission; the data may be broken."""
    return bundle_folder, shutil.copytree(trained[0].hidden, tmp_path / "input"), tmp_path / "out" / "submission.csv"


def test_a_process_that_is_killed_at_every_batch_gives_the_same_submission(
    place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, data, out = place
    child_that(monkeypatch)
    assert submit(bundle, data, out, say=quiet) == 0
    expected = out.read_bytes()
    child_that(monkeypatch, when="True")
    said: list[str] = []
    assert submit(bundle, data, out, say=said.append) == 0
    assert out.read_bytes() == expected
    assert [line.split(";")[1] for line in said] == [f" it goes on from {n} finished batches" for n in (1, 2, 3, 4, 5)]
    assert not parts_folder(out).exists()


def test_a_process_that_dies_without_progress_is_started_three_times(
    place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, data, out = place
    monkeypatch.setattr(supervise, "_CHILD", "import os; os._exit(7)")
    monkeypatch.setattr(supervise, "PAUSE_S", 0.0)
    said: list[str] = []
    assert submit(bundle, data, out, say=said.append) == 7
    assert len(said) == 2
    assert not out.exists()
    monkeypatch.setenv(RERUN_VARIABLE, "1")
    assert submit(bundle, data, out, say=said.append) == 0
    assert said[-1].endswith("18 rows, all of class priors")


def test_the_last_attempt_is_on_the_cpu_and_later_ones_without_engines(
    place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(supervise, "_run_child", lambda options, **_limits: asked.append(options) or -11)
    monkeypatch.setattr(supervise, "PAUSE_S", 0.0)
    assert submit(*place, engines=Path("engines"), say=quiet) == -11
    assert [(told["engines"], told["device"]) for told in asked] == [("engines", "auto"), (None, "auto"), (None, "cpu")]


def test_what_can_be_mended_ends_at_once_but_leaves_a_submission_in_the_rerun(
    place: tuple[Path, Path, Path], trained: tuple[Toy, list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, data, out = place
    for shard in data.glob("test_*.parquet"):
        shard.write_bytes(shard.read_bytes()[:-100])
    assert submit(bundle, data, out, say=quiet) == 2
    assert not out.exists()
    monkeypatch.setenv(RERUN_VARIABLE, "1")
    said: list[str] = []
    assert submit(bundle, data, out, say=said.append) == 0
    validate_submission(trained[0].task, out, rows=expected_rows(trained[0].task, data))
    assert said[0] == "WARNING prediction cannot go on; writing what there is"


def test_a_process_that_hangs_is_stopped_and_what_it_finished_counts(
    place: tuple[Path, Path, Path], trained: tuple[Toy, list[Run]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, data, out = place
    child_that(monkeypatch)
    assert submit(bundle, data, out, say=quiet) == 0
    expected = read_submission(trained[0].task, out)[1]
    child_that(monkeypatch, when="len(results.batches) == 3", how="import signal; os.kill(os.getpid(), signal.SIGSTOP)")
    said: list[str] = []
    started = time.monotonic()
    assert submit(bundle, data, out, time_limit_s=20.0, say=said.append) == 0
    assert time.monotonic() - started < 20.0
    assert said[0] == "WARNING prediction was stopped at the limit; writing what there is"
    assert "3 of 9 images have the class priors" in said[1]
    decided = read_submission(trained[0].task, out)[1]
    assert (decided["root"][:6] == expected["root"][:6]).all()


def test_images_that_the_test_files_lack_get_the_priors_in_the_rerun_alone(
    place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, data, out = place
    (data / "test_1.parquet").unlink()
    with pytest.raises(DataError, match="names 4 of 9 images"):
        predict_submission(bundle, data, out, say=quiet)
    monkeypatch.setenv(RERUN_VARIABLE, "1")
    said: list[str] = []
    predicted = predict_submission(bundle, data, out, say=said.append)
    assert set(predicted.broken) == {f"Test_{number}" for number in (5, 6, 7, 8)}
    assert "WARNING the test files lack 4 of 9 images: 'Test_5', 'Test_6', 'Test_7' and 1 more" in said
    assert len(read_submission(Predictor(bundle, say=quiet).bundle.task, out)[0]) == 9


def test_a_shard_that_is_damaged_inside_costs_its_own_images_in_the_rerun(
    place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, data, out = place
    shard = data / "test_0.parquet"
    raw = bytearray(shard.read_bytes())
    raw[2000:2400] = bytes(400)
    shard.write_bytes(bytes(raw))
    with pytest.raises(KitError, match="test_0.parquet"):
        predict_submission(bundle, data, out, say=quiet)
    monkeypatch.setenv(RERUN_VARIABLE, "1")
    predicted = predict_submission(bundle, data, out, say=quiet)
    assert set(predicted.broken) == {f"Test_{number}" for number in range(5)}


class TestLimits:
    def test_priors_are_there_before_anything_runs_and_stay_where_all_else_fails(
        self, place: tuple[Path, Path, Path], trained: tuple[Toy, list[Run]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle, data, out = place

        def fail(*_arguments: object, **_options: object) -> None:
            validate_submission(trained[0].task, out, rows=expected_rows(trained[0].task, data))
            raise BundleError("no session")

        monkeypatch.setattr(submitting, "Predictor", fail)
        with pytest.raises(BundleError, match="no session"):
            predict_submission(bundle, data, out, time_limit_s=60.0, say=quiet)
        assert len(out.read_text().splitlines()) == 1 + 18

    def test_at_home_an_earlier_submission_stays_until_the_new_one_is_whole(
        self, place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle, data, out = place
        out.parent.mkdir()
        out.write_text("earlier")
        monkeypatch.setattr(Predictor, "predict", lambda *_a, **_o: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict_submission(bundle, data, out, say=quiet)
        assert out.read_text() == "earlier"

    def test_in_a_kernel_the_task_s_own_limit_counts_less_a_margin(
        self, place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle, data, out = place
        monkeypatch.setenv(RUN_TYPE_VARIABLE, "Batch")
        predict_submission(bundle, data, out, say=quiet)
        hours = Predictor(bundle, say=quiet).bundle.task.limits.hours
        report = json.loads(out.with_suffix(".report.json").read_text())
        assert report["time_limit_s"] == pytest.approx(3600 * hours * 0.95)

    def test_time_that_is_short_leaves_runs_out_and_says_what_that_costs(
        self, place: tuple[Path, Path, Path], trained: tuple[Toy, list[Run]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle, data, out = place
        monkeypatch.setattr("kaggle_kit.runtime.predictor.BATCH", 1)
        real = submitting.Predictor

        class Slow(real):  # type: ignore[misc,valid-type]
            def predict(self, source, *, end, **options):
                from kaggle_kit.runtime.backends import OnnxSession

                run = OnnxSession.run

                def slow(session: OnnxSession, images: np.ndarray) -> dict[str, np.ndarray]:
                    time.sleep(0.1 * len(images))
                    return run(session, images)

                monkeypatch.setattr(OnnxSession, "run", slow)
                return super().predict(source, end=time.monotonic() + 2.2, **options)

        monkeypatch.setattr(submitting, "Predictor", Slow)
        said: list[str] = []
        predicted = predict_submission(bundle, data, out, time_limit_s=60.0, say=said.append)
        assert predicted.num_runs is not None
        assert set(predicted.num_runs.tolist()) <= {0, 1, 2}
        assert predicted.num_cut > 0 or set(predicted.num_runs.tolist()) != {2}
        assert any(line.startswith("WARNING time was short") for line in said)
        report = json.loads(out.with_suffix(".report.json").read_text())
        assert sum(report["images_by_runs"].values()) == 9
        validate_submission(trained[0].task, out, rows=expected_rows(trained[0].task, data))


def test_results_that_cannot_be_kept_are_held_in_memory(
    place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, data, out = place
    out.parent.mkdir()
    parts_folder(out).write_text("a file where the folder goes")
    said: list[str] = []
    predict_submission(bundle, data, out, say=said.append)
    assert any("nothing is kept should this process be killed" in line for line in said)
    assert len(out.read_text().splitlines()) == 1 + 18


def test_a_folder_that_cannot_be_written_is_refused_before_any_time_is_spent(
    place: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, data, _ = place
    (tmp_path / "file").write_text("")
    assert main(["predict", str(bundle), str(data), "--out", str(tmp_path / "file" / "s.csv")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_left_of_another_test_is_not_mixed_in(place: tuple[Path, Path, Path], tmp_path: Path) -> None:
    bundle, data, out = place
    predictor = Predictor(bundle, say=quiet)
    parts_folder(out).mkdir(parents=True)
    with predictor.make_results(np.array(["Other_1"]), folder=parts_folder(out)):
        pass
    finish_submission(bundle, data, out, why="a test", say=quiet)
    assert read_report(out)["images_of_priors"] == 9
    assert len(out.read_text().splitlines()) == 1 + 18


def test_the_report_tells_what_ran(place: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    bundle, data, out = place
    assert main(["predict", str(bundle), str(data), "--out", str(out), "--time-limit", "10m", "--batch", "4"]) == 0
    assert "a submission of class priors is there" in capsys.readouterr().out
    report = json.loads(out.with_suffix(".report.json").read_text())
    assert report["images"] == report["computed"] == 9
    assert report["batch"] == 4
    assert report["providers"] == ["CPUExecutionProvider"]
    assert set(report["seconds"]) == {"open", "write priors", "load and check", "predict", "write"}
    assert report["images_by_runs"] == {"2": 9}
    assert not (parts_folder(out) / DONE).exists()


def test_a_bundle_is_measured_and_its_costs_are_what_blend_reads(
    place: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kaggle_kit.blending.costs import read_costs

    bundle, data, _ = place
    costs = tmp_path / "costs.json"
    command = ["bench", str(bundle), str(data), "--costs", str(costs), "--images", "8", "--batches", "1", "4", "--json"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "of the bare sessions'" in told
    names = list(Predictor(bundle, say=quiet).blend.runs)
    found = read_costs(costs, names)
    assert all(seconds > 0 for seconds in found.seconds.values())
    result = json.loads(told.splitlines()[-1])
    assert {speed["batch"] for speed in result["speeds"]} == {1, 4}


def test_a_submission_that_is_whole_stays_whatever_becomes_of_the_process_afterwards(
    place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, data, out = place
    child_that(monkeypatch)
    assert submit(bundle, data, out, say=quiet) == 0
    expected = out.read_bytes()
    imports, rest = CHILD.split("; from ", 1)
    late = "from kaggle_kit.runtime.results import Results; import os; Results.remove = lambda _results: os.abort()"
    monkeypatch.setattr(supervise, "_CHILD", f"{imports}; {SMALL}{late}; from {rest}")
    said: list[str] = []
    assert submit(bundle, data, out, say=said.append) == 0
    assert out.read_bytes() == expected
    assert not said


def test_a_report_that_cannot_be_written_costs_nothing(
    place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(submitting, "write_report", full)
    bundle, data, out = place
    said: list[str] = []
    predict_submission(bundle, data, out, say=said.append)
    assert "WARNING there is no report: No space left on device" in said
    assert len(out.read_text().splitlines()) == 1 + 18


@pytest.mark.parametrize("limit_s", [60.0, 6840.0, 30780.0])
def test_a_process_is_killed_only_after_it_should_have_ended_and_time_is_left_to_write(limit_s: float) -> None:
    told, killed = limit_s * supervise.TOLD_SHARE, limit_s * supervise.KILLED_SHARE
    reserved = submitting._reserve_s(told, write_s=1.0)
    assert told - reserved + reserved / 4 < told < killed - 1
    assert limit_s - killed >= 1.5
    assert told - reserved >= 0.86 * limit_s


def test_a_shard_without_its_end_costs_its_own_images_in_the_rerun(
    place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, data, out = place
    shard = data / "test_0.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match="test_0.parquet is not a whole parquet file"):
        predict_submission(bundle, data, out, say=quiet)
    monkeypatch.setenv(RERUN_VARIABLE, "1")
    said: list[str] = []
    predicted = predict_submission(bundle, data, out, say=said.append)
    assert set(predicted.broken) == {f"Test_{number}" for number in range(5)}
    assert any("going on with 1 shard(s) that can be read" in line for line in said)
    assert not any("time was short" in line for line in said)


def test_what_a_limit_cut_short_is_computed_again_where_there_is_none(
    place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, data, out = place
    monkeypatch.setattr("kaggle_kit.runtime.predictor.BATCH", 2)
    predictor = Predictor(bundle, say=quiet)
    expected = predict_submission(bundle, data, out, say=quiet).predictions
    source = open_source(predictor.bundle.task, "test", data)
    key = submitting.results_key(predictor.bundle, source, num_runs=None, fused=None, device="auto")
    with predictor.make_results(source.ids, folder=parts_folder(out), key=key) as results:
        results.put(Batch(rows=range(2), num_runs=1), predictor.answers.priors(2))
        results.put(Batch(rows=range(2, 4), num_runs=2, cut=True), predictor.answers.priors(2))
    found = predict_submission(bundle, data, out, say=quiet)
    assert all((found.predictions.probs[head] == values).all() for head, values in expected.probs.items())


def test_what_the_process_started_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "pid"
    child = (
        "import subprocess, time; p = subprocess.Popen(['sleep', '60']); "
        f"open({str(told)!r}, 'w').write(str(p.pid)); time.sleep(60)"
    )
    monkeypatch.setattr(supervise, "_CHILD", child)
    assert supervise._run_child({"out": "s.csv"}, kill_at=time.monotonic() + 1.5, stall_s=60.0) == -9
    state = Path(f"/proc/{told.read_text()}/stat")
    until = time.monotonic() + 10  # where cores are busy, a killed process lives on until it is next scheduled
    while (alive := _is_alive(state)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive


def _is_alive(state: Path) -> bool:
    try:
        return state.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_process_that_hangs_is_started_again_long_before_the_limit(
    place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, data, out = place
    monkeypatch.setattr(supervise, "LEAST_STALL_S", 15.0)
    monkeypatch.setattr(supervise, "STALL_SHARE", 0.0)
    stopped = "import signal; os.kill(os.getpid(), signal.SIGSTOP)"
    child_that(monkeypatch, when="batch.rows.start == 4", how=stopped)
    said: list[str] = []
    assert submit(bundle, data, out, time_limit_s=300.0, say=said.append) == 0
    assert said == ["WARNING prediction died (signal 9); it goes on from 3 finished batches"]
    assert read_report(out)["images_by_runs"] == {"2": 9}


def test_a_sample_submission_that_nobody_understands_is_the_submission_in_the_rerun(
    place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, data, out = place
    sample = data / "sample_submission.csv"
    sample.write_text(sample.read_text() + "hello,0\n")
    assert submit(bundle, data, out, say=quiet) == 2
    monkeypatch.setenv(RERUN_VARIABLE, "1")
    said: list[str] = []
    assert submit(bundle, data, out, say=said.append) == 0
    assert out.read_bytes() == sample.read_bytes()
    assert said[-1].startswith("WARNING row id 'hello' does not read as")


def test_at_home_a_submission_that_is_there_is_not_replaced_by_priors(place: tuple[Path, Path, Path]) -> None:
    bundle, data, out = place
    predict_submission(bundle, data, out, say=quiet)
    good = out.read_bytes()
    with pytest.raises(BundleError, match="no CUDA provider"):
        predict_submission(bundle, data, out, device="cuda", time_limit_s=60.0, say=quiet)
    assert out.read_bytes() == good


def test_a_limit_that_was_missed_is_said(place: tuple[Path, Path, Path]) -> None:
    said: list[str] = []
    predict_submission(*place, time_limit_s=0.01, say=said.append)
    assert said[-1].startswith("WARNING the limit of 0 s was missed by")


def test_a_rehearsal_s_limit_is_the_kernel_s(place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_TYPE_VARIABLE, "Batch")
    monkeypatch.setenv(TIME_LIMIT_VARIABLE, "100")
    predict_submission(*place, say=quiet)
    assert read_report(place[2])["time_limit_s"] == pytest.approx(95.0)


def test_a_disk_that_is_full_at_the_end_names_the_file_and_keeps_what_is_finished(
    place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    bundle, data, out = place
    monkeypatch.setattr(Predictor, "write", full)
    with pytest.raises(KitError, match=r"submission.csv cannot be written: No space left on device; make room there"):
        predict_submission(bundle, data, out, say=quiet)
    monkeypatch.undo()
    said: list[str] = []
    predict_submission(bundle, data, out, say=said.append)
    assert "going on: 9 images are finished already" in said


def test_what_an_earlier_process_finished_outlives_a_disk_that_is_full(
    place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, data, out = place
    predictor = Predictor(bundle, say=quiet)
    source = open_source(predictor.bundle.task, "test", data)
    key = submitting.results_key(predictor.bundle, source, num_runs=None, fused=None, device="auto")
    with predictor.make_results(source.ids, folder=parts_folder(out), key=key) as results:
        results.put(Batch(rows=range(9), num_runs=2), predictor.answers.priors(9))

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kaggle_kit.runtime.results._reserve", full)
    predict_submission(bundle, data, out, say=quiet)
    assert (parts_folder(out) / DONE).read_bytes().count(b"\n") == 1


def test_an_error_of_ours_is_told_and_tried_again_though_a_thread_of_the_process_hangs(
    place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, data, out = place
    hangs = "__import__('threading').Thread(target=__import__('time').sleep, args=(600,)).start() or 1 / 0"
    child_that(monkeypatch, when=hangs, how="pass")
    started = time.monotonic()
    assert submit(bundle, data, out, time_limit_s=3600.0, say=quiet) == 0
    assert time.monotonic() - started < 300
