from __future__ import annotations

from pathlib import Path

import pytest
from pretended_kaggle import READY, PretendedKaggle, patient_clock

from kaggle_kit.errors import KaggleError
from kaggle_kit.platform.client import DatasetState, KernelPhase, KernelState, OwnKernel, Push, Submission
from kaggle_kit.platform.competition_submit import STATE_FILE, Outcome, submit_kernel
from kaggle_kit.platform.dry_run import DryRun
from kaggle_kit.platform.kernels import check_kernel, fetch_output, new_kernel, push_kernel

REF = "me/kaggle-kit-submit"
DATASETS: dict[str, DatasetState | None] = {"me/kaggle-kit-wheelhouse": READY, "me/kaggle-kit-bundle": READY}


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    new_kernel("submit", tmp_path / "kernel", owner="me", competition="digits")
    return tmp_path / "kernel"


def kaggle(**more) -> PretendedKaggle:
    return PretendedKaggle(**({"datasets": dict(DATASETS)} | more))


def submit(kernel: Path, client, **more) -> Outcome:
    given = {"competition": "digits", "say": lambda _: None, "clock": patient_clock()} | more
    return submit_kernel(kernel, client, **given)


def test_the_pushed_version_is_submitted_and_scored(kernel: Path) -> None:
    there = kaggle()
    scored = submit(kernel, there)
    assert (scored.public, scored.private) == (0.91, 0.88)
    assert there.changes == ["push", f"submit {REF} 7 submission.csv"]


def test_called_again_it_submits_nothing_twice(kernel: Path) -> None:
    there = kaggle()
    submit(kernel, there)
    assert submit(kernel, there).public == 0.91
    assert len(there.changes) == 2


def test_killed_while_it_waits_it_goes_on_with_the_pushed_version(kernel: Path) -> None:
    there = kaggle(kernels={})
    there.kernels[REF] = KernelState(phase="running")

    class KilledError(Exception):
        pass

    def say(line: str) -> None:
        if "running" in line:
            raise KilledError

    with pytest.raises(KilledError):
        submit(kernel, there, say=say)
    there.kernels[REF] = KernelState(phase="complete")
    submit(kernel, there)
    assert there.changes == ["push", f"submit {REF} 7 submission.csv"]


@pytest.mark.parametrize("what", ["code", "bundle"])
def test_a_changed_kernel_or_a_new_bundle_is_pushed_anew(kernel: Path, what: str) -> None:
    there = kaggle()
    submit(kernel, there)
    if what == "code":
        (kernel / "submit.py").write_text((kernel / "submit.py").read_text() + "\n# changed\n")
    else:
        there.datasets["me/kaggle-kit-bundle"] = DatasetState(status="ready", version=4, notes={})
    submit(kernel, there)
    assert there.changes.count("push") == 2


@pytest.mark.parametrize("how", ["the note is lost", "another version between"])
def test_a_version_that_kaggle_lists_is_not_submitted_again(kernel: Path, how: str) -> None:
    there = kaggle(kernels={REF: KernelState(phase="complete")})
    submit(kernel, there, version=7)
    if how == "the note is lost":
        (kernel / STATE_FILE).unlink()
    else:
        submit(kernel, there, version=6)
        assert there.changes.pop() == f"submit {REF} 6 submission.csv"
    assert submit(kernel, there, version=7).public == 0.91
    assert there.changes == [f"submit {REF} 7 submission.csv"]


def test_another_kernel_s_submission_is_not_taken_for_this_one_s(kernel: Path) -> None:
    theirs = Submission(number=1, phase="complete", description=f"x (kaggle_kit version 7 of {REF}-2)", public=0.1)
    there = kaggle(listed=[theirs])
    assert submit(kernel, there).public == 0.91


@pytest.mark.parametrize("arrives", [True, False])
def test_without_an_answer_the_list_tells_whether_it_was_submitted(kernel: Path, arrives: bool) -> None:
    there = kaggle(unanswered=True, arrives=arrives)
    if arrives:
        assert submit(kernel, there).public == 0.91
    else:
        with pytest.raises(KaggleError, match=f"{REF} version 7 is not among your submissions to digits; call this"):
            submit(kernel, there)
    there.unanswered, there.arrives = False, True
    assert submit(kernel, there).public == 0.91
    assert there.changes == ["push", f"submit {REF} 7 submission.csv"]


def test_killed_while_it_submits_it_looks_before_it_submits_again(kernel: Path) -> None:
    class Killed(Exception):  # noqa: N818
        pass

    class Dying(PretendedKaggle):
        def submit(self, competition: str, **more) -> int:
            super().submit(competition, **more)
            raise Killed

    there = Dying(datasets=dict(DATASETS))
    with pytest.raises(Killed):
        submit(kernel, there)
    assert submit(kernel, there).number == 99
    assert there.changes == ["push", f"submit {REF} 7 submission.csv"]


@pytest.mark.parametrize("phase", ["error", "cancelled"])
def test_a_kernel_that_fails_is_not_submitted_and_then_pushed_anew(kernel: Path, phase: KernelPhase) -> None:
    there = kaggle(kernels={REF: KernelState(phase=phase, message="boom")})
    outcome = submit(kernel, there)
    assert outcome.failure.startswith(f"{REF} version 7 ended as '{phase}' (boom); nothing was submitted; read it by")
    assert there.changes == ["push"]
    there.kernels[REF] = KernelState(phase="complete")
    there.pushed = Push(version=8)
    assert submit(kernel, there).failure == ""
    assert there.changes == ["push", "push", f"submit {REF} 8 submission.csv"]


@pytest.mark.parametrize(
    ("scored", "says"),
    [
        (Submission(number=9, phase="complete", error="Notebook Threw Exception"), "'Notebook Threw Exception'"),
        (Submission(number=9, phase="error", error="Notebook Timeout"), "'Notebook Timeout'"),
        (Submission(number=9, phase="error"), "'nothing more'"),
    ],
)
def test_an_error_without_a_score_is_a_failure_though_kaggle_calls_it_complete(
    kernel: Path, scored: Submission, says: str
) -> None:
    there = kaggle(scored=scored)
    assert f"failed: Kaggle says {says}; `kaggle-kit rehearse` it" in submit(kernel, there).failure
    assert says in submit(kernel, there).failure and len(there.changes) == 2


def test_a_score_with_a_remark_is_a_score(kernel: Path) -> None:
    there = kaggle(scored=Submission(number=9, phase="complete", error="late", public=0.5))
    assert submit(kernel, there) == Outcome(version=7, number=9, public=0.5)


@pytest.mark.parametrize(
    ("refuses", "repair"),
    [
        ("you must accept this competition's rules", "accept the rules at https://www.kaggle.com/competitions/digits/"),
        ("Your team has used its daily submission limit", "call this again tomorrow"),
        ("something else", "something else"),
    ],
)
def test_a_refused_submission_may_be_tried_again(kernel: Path, refuses: str, repair: str) -> None:
    there = kaggle(refuses=refuses)
    with pytest.raises(KaggleError, match=repair):
        submit(kernel, there)
    there.refuses = ""
    submit(kernel, there)
    assert there.changes == ["push", f"submit {REF} 7 submission.csv"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"left": 0}, r"no submission to digits is left today \(5 made\); nothing was pushed"),
        ({"left": 0, "today": 0}, "join it and accept its rules at https://www.kaggle.com/competitions/digits/rules"),
        ({"datasets": {"me/kaggle-kit-wheelhouse": READY}}, "attaches me/kaggle-kit-bundle, and you have no such"),
        (
            {"datasets": DATASETS | {"me/kaggle-kit-bundle": DatasetState(status="running", notes={})}},
            r"me/kaggle-kit-bundle, which is not ready \(running\): it would silently get the version before",
        ),
        ({"datasets": DATASETS | {REF: READY}}, f"the slug of {REF} is taken: you have a dataset of that name"),
        (
            {
                "own": [
                    OwnKernel(ref="me/a", gpu=True),
                    OwnKernel(ref="me/b", gpu=True),
                    OwnKernel(ref="me/c", gpu=False),
                ],
                "kernels": {f"me/{name}": KernelState(phase="running") for name in "abc"},
            },
            r"2 GPU sessions run already \(me/a, me/b\), and Kaggle allows 2",
        ),
    ],
)
def test_what_would_fail_is_said_before_anything_is_pushed(kernel: Path, change: dict, message: str) -> None:
    there = kaggle(**change)
    with pytest.raises(KaggleError, match=message):
        submit(kernel, there)
    assert there.changes == []


def test_a_third_session_that_kaggle_refuses_in_words_alone_is_an_error(kernel: Path) -> None:
    there = kaggle(pushed=Push(version=None, error="Maximum batch GPU session count of 2 reached."))
    with pytest.raises(KaggleError, match="was not started: Kaggle says 'Maximum batch GPU session count"):
        push_kernel(kernel, there, say=lambda _: None)


def test_sources_that_kaggle_leaves_out_are_an_error(kernel: Path) -> None:
    there = kaggle(pushed=Push(version=8, left_out=("dataset me/kaggle-kit-bundle",)))
    with pytest.raises(KaggleError, match="pushed as version 8, but without dataset me/kaggle-kit-bundle"):
        push_kernel(kernel, there, say=lambda _: None)


def test_a_competition_whose_rules_are_not_accepted_is_left_out_of_a_push(kernel: Path) -> None:
    there = kaggle(pushed=Push(version=8, left_out=("competition digits",)))
    with pytest.raises(KaggleError, match="accept the rules at https://www.kaggle.com/competitions/digits/rules and"):
        submit(kernel, there)
    assert there.changes == ["push"]


@pytest.mark.parametrize(
    ("owner", "competition", "flag"),
    [("OWNER", "digits", "--owner"), ("YOU", "digits", "--owner"), ("me", "COMPETITION", "--competition")],
)
def test_names_that_were_not_filled_in_are_refused_by_their_option(
    tmp_path: Path, owner: str, competition: str, flag: str
) -> None:
    with pytest.raises(KaggleError, match=f"{flag}.* a placeholder; give "):
        new_kernel("submit", tmp_path / "new", owner=owner, competition=competition)
    assert not (tmp_path / "new").exists()


def test_a_competition_that_the_kernel_does_not_attach_is_refused(kernel: Path) -> None:
    with pytest.raises(KaggleError, match="does not attach the competition 'ships' .*; add it to .*: digits"):
        submit(kernel, kaggle(), competition="ships")


def test_a_dry_run_notes_nothing_and_ends_at_once(kernel: Path) -> None:
    said: list[str] = []
    client = DryRun(said.append, owner="me", datasets={REF: None})
    submit(kernel, client, say=said.append, dry_run=True)
    assert any(line.startswith("would call push_kernel") for line in said)
    assert any(line.startswith("would call submit('digits'") and "version N" in line for line in said)
    assert not (kernel / STATE_FILE).exists()


@pytest.mark.parametrize("template", ["submit", "train", "bench", "build_engine"])
@pytest.mark.parametrize("notebook", [False, True])
def test_every_template_becomes_a_kernel_without_a_problem(tmp_path: Path, template: str, notebook: bool) -> None:
    made = new_kernel(template, tmp_path / "k", owner="me", competition="digits", notebook=notebook)
    assert check_kernel(tmp_path / "k", internet=template == "train") == []
    assert made.kernel_type == ("notebook" if notebook else "script")
    assert made.code_file.suffix == (".ipynb" if notebook else ".py")


def test_a_kernel_with_several_faults_names_them_all(kernel: Path) -> None:
    path = kernel / "kernel-metadata.json"
    text = path.read_text().replace('"enable_internet": false', '"enable_internet": true')
    path.write_text(text.replace('"title": "kaggle-kit submit"', '"title": "another title"'))
    (kernel / "submit.py").write_text("import helper\ndef broken(:\n")
    problems = "\n".join(check_kernel(kernel))
    assert "enable_internet" in problems and "title" in problems and "line 2" in problems


def test_a_key_in_the_code_is_never_pushed(kernel: Path) -> None:
    (kernel / "submit.py").write_text('TOKEN = "hf_' + "a" * 34 + '"\n')
    there = kaggle()
    with pytest.raises(KaggleError, match=r"is not pushed: .*submit.py"):
        push_kernel(kernel, there, say=lambda _: None)
    assert there.changes == []


def test_output_that_would_leave_its_folder_is_refused(tmp_path: Path) -> None:
    there = kaggle(kernels={REF: KernelState(phase="complete")})
    assert fetch_output(REF, there, tmp_path / "out") == [tmp_path / "out" / "costs.json"]
    there.download_output = lambda ref, folder: [tmp_path / "elsewhere"]  # type: ignore[method-assign]
    with pytest.raises(KaggleError, match="elsewhere lies outside of"):
        fetch_output(REF, there, tmp_path / "out")
