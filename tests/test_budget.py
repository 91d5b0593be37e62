"""How much of a bundle runs for an image, and what is chosen in the time there is: a clock that only tests move."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from staged import Clock, Session, images, make_bundle, make_ladder

from kaggle_kit.runtime.budget import Budget
from kaggle_kit.runtime.levels import Costs, Level, home_costs, make_levels


def files(levels: tuple[Level, ...]) -> list[tuple[str, ...]]:
    return [level.files for level in levels]


def test_runs_are_left_out_first_then_views_then_networks() -> None:
    bundle = make_bundle(tta=True)
    levels = make_levels(bundle, bundle.blend, fused=False)
    assert files(levels) == [
        ("a0_plain",),
        ("a0_plain", "a1_plain"),
        ("a0", "a1"),
        ("a0", "a1", "b0"),
        ("a0", "a1", "b0", "c0"),
    ]
    assert [level.cut for level in levels] == [True, True, False, False, False]
    assert [level.num_runs for level in levels] == [1, 1, 1, 2, 3]


def test_without_views_one_network_of_the_first_run_is_the_least() -> None:
    bundle = make_bundle(fused=True)
    levels = make_levels(bundle, bundle.blend, fused=True)
    assert files(levels) == [("a0",), ("a0", "a1"), ("a0", "a1", "b0"), ("fused",)]
    assert [level.fused for level in levels] == [False, False, False, True]
    only = make_levels(bundle, bundle.blend.first(1), fused=False)
    assert files(only) == [("a0",), ("a0", "a1")]


def test_costs_are_those_of_home_in_proportion_until_they_are_measured() -> None:
    bundle = make_bundle(tta=True)
    levels, costs = make_levels(bundle, bundle.blend, fused=False), Costs(home_costs(bundle))
    assert costs.of(levels[-1]) == pytest.approx(0.04 + 0.04 + 0.01 + 0.02)
    assert costs.of(levels[0]) == pytest.approx(0.01), "an image without its three other views"
    costs.add("b0", 10, 1.0)  # ten times as slow as at home
    assert costs.of(levels[-1]) == pytest.approx(1.1)
    assert not costs.is_measured(levels[-1])
    for file in ("a0", "a1", "c0"):
        costs.add(file, 10, 1.0)
    assert costs.is_measured(levels[-1])
    assert costs.of(levels[-1]) == pytest.approx(0.4)
    for _ in range(30):
        costs.add("b0", 10, 2.0)
    assert costs.of(levels[-1]) == pytest.approx(0.5, abs=1e-3), "what was measured long ago is forgotten"


def test_costs_that_home_did_not_measure_are_taken_for_equal() -> None:
    bundle = make_bundle(seconds=0.0)
    costs = Costs(home_costs(bundle))
    costs.add("a0", 1, 0.5)
    assert costs.of(make_levels(bundle, bundle.blend, fused=False)[-1]) == pytest.approx(2.0)


class TestLadder:
    def test_runs_are_mixed_and_images_keep_their_places(self) -> None:
        clock = Clock()
        sessions = {name: Session(clock, 0.1) for name in ("a0", "a1", "b0", "c0")}
        ladder, levels, _, _ = make_ladder(make_bundle(), sessions, clock)
        probs, reached = ladder.run(images(20), levels[-1])
        assert reached == levels[-1]
        assert np.allclose(probs["category"][:, 0], np.arange(20) / 255)
        assert sessions["c0"].batches == [8, 8, 4]

    def test_no_further_run_is_begun_when_time_is_over(self) -> None:
        clock = Clock()
        sessions = {name: Session(clock, 1.0) for name in ("a0", "a1", "b0", "c0")}
        ladder, levels, _, _ = make_ladder(make_bundle(), sessions, clock)
        _, reached = ladder.run(images(2), levels[-1], stop_at=clock.now + 5)
        assert reached == levels[-2]
        assert not sessions["c0"].batches
        _, reached = ladder.run(images(2), levels[-1], stop_at=clock.now - 5)
        assert (reached.files, reached.num_runs, reached.cut) == (("a0",), 1, True), "one network speaks in any case"
        _, reached = ladder.run(images(2), levels[-1], stop_at=clock.now + 3)
        assert reached == levels[1]

    def test_images_at_once_are_halved_where_memory_runs_out(self) -> None:
        clock = Clock()
        sessions = {"a0": Session(clock, 0.1, most=3), "a1": Session(clock, 0.1), "b0": Session(clock, 0.1)}
        ladder, levels, _, said = make_ladder(make_bundle(), sessions, clock)
        probs, _ = ladder.run(images(8), levels[-2])
        assert np.allclose(probs["category"][:, 0], np.arange(8) / 255)
        assert sessions["a0"].batches == [2, 2, 2, 2]
        assert ladder.piece == 2
        assert said[0].startswith("WARNING memory ran out (Failed to allocate")

    def test_one_image_that_does_not_fit_and_other_errors_are_raised(self) -> None:
        clock = Clock()
        ladder, levels, _, _ = make_ladder(make_bundle(), {"a0": Session(clock, 0.1, most=0)}, clock)
        with pytest.raises(RuntimeError, match="Failed to allocate"):
            ladder.run(images(4), levels[0])

    def test_what_sets_a_graph_up_is_not_counted(self) -> None:
        clock = Clock()
        session = Session(clock, 9.0)
        ladder, levels, costs, _ = make_ladder(make_bundle(), {"a0": session}, clock)
        ladder.run(images(8), levels[0])
        session.seconds = 1.0
        ladder.run(images(8), levels[0])
        assert costs.of(levels[0]) == pytest.approx(1.0)

    def test_on_a_gpu_every_batch_has_one_size(self) -> None:
        clock = Clock()
        session = Session(clock, 0.1, provider="CUDAExecutionProvider")
        ladder, levels, _, _ = make_ladder(make_bundle(), {"a0": session}, clock)
        probs, _ = ladder.run(images(11), levels[0])
        assert session.batches == [8, 8]
        assert np.allclose(probs["category"][:, 0], np.arange(11) / 255)

    def test_no_images_are_no_trouble(self) -> None:
        clock = Clock()
        ladder, levels, _, _ = make_ladder(make_bundle(), {"a0": Session(clock, 0.1)}, clock)
        assert ladder.run(images(0), levels[0])[0]["category"].shape == (0, 5)


def simulate(
    total: int, limit_s: float, *, speed: Callable[[float], float] = lambda _now: 1.0, home: float = 0.01
) -> tuple[float, list[int], Clock]:
    """Run images in batches of 8 until all are finished or time is over: seconds used, runs of each image."""
    clock = Clock()
    bundle = make_bundle(seconds=home)
    take = {"a0": 0.01, "a1": 0.01, "b0": 0.01, "c0": 0.02}
    sessions = {name: Session(clock, seconds) for name, seconds in take.items()}
    ladder, levels, costs, _ = make_ladder(bundle, sessions, clock)
    started = clock.now
    budget = Budget(levels, costs, end=started + limit_s, clock=clock)
    spoke: list[int] = []
    while len(spoke) < total and budget.left_s > 0:
        for name, session in sessions.items():
            session.seconds = take[name] * speed(clock.now - started)
        number = min(8, total - len(spoke))
        level, stop_at = budget.choose(total - len(spoke), batch=number)
        _, reached = ladder.run(images(number), level, stop_at=stop_at)
        spoke += [reached.num_runs if not reached.cut else 0] * number
    return clock.now - started, spoke, clock


class TestBudget:
    def test_all_runs_speak_where_there_is_time(self) -> None:
        used, spoke, _ = simulate(2000, limit_s=130.0)
        assert set(spoke) == {3}
        assert used == pytest.approx(2000 * 0.05)

    @pytest.mark.parametrize("home", [0.0, 0.001, 0.01, 1.0])
    def test_a_limit_for_half_of_the_runs_is_used_and_kept_whatever_home_took(self, home: float) -> None:
        used, spoke, _ = simulate(2000, limit_s=50.0, home=home)
        assert len(spoke) == 2000
        assert 45 <= used <= 50 + 0.4
        assert min(spoke) >= 1

    def test_every_image_gets_something_where_even_the_first_run_does_not_fit(self) -> None:
        used, spoke, _ = simulate(2000, limit_s=30.0)
        assert len(spoke) == 2000
        assert spoke.count(0) > 0
        assert 27 <= used <= 30.2

    def test_a_machine_that_becomes_slow_costs_runs_and_not_images(self) -> None:
        used, spoke, _ = simulate(2000, limit_s=110.0, speed=lambda now: 2.0 if now > 40 else 1.0)
        assert len(spoke) == 2000
        assert set(spoke[:700]) == {3}
        assert min(spoke) in (1, 2)
        assert 99 <= used <= 110.4

    def test_time_that_is_left_over_goes_to_the_last_images(self) -> None:
        _, spoke, _ = simulate(2000, limit_s=50.0)
        assert sorted(spoke[30:]) == spoke[30:]

    @pytest.mark.parametrize("total", [1, 8, 9])
    def test_few_images_have_all_the_time_there_is(self, total: int) -> None:
        _, spoke, _ = simulate(total, limit_s=10.0, speed=lambda _now: 10.0)
        assert set(spoke) == {3}

    def test_too_little_time_for_anything_ends_at_once(self) -> None:
        used, spoke, _ = simulate(2000, limit_s=5.0)
        assert used <= 5.4
        assert len(spoke) < 2000

    def test_several_devices_share_the_images_and_reading_may_be_slower_than_they_are(self) -> None:
        bundle, clock = make_bundle(), Clock()
        levels, costs = make_levels(bundle, bundle.blend, fused=False), Costs(home_costs(bundle))
        for file in ("a0", "a1", "b0", "c0"):
            costs.add(file, 1, 0.01)
        budget = Budget(levels, costs, end=clock.now + 30, clock=clock)
        assert budget.choose(1000)[0] == levels[1]
        assert budget.choose(1000, num_workers=2)[0] == levels[-1]
        assert budget.choose(1000, num_workers=2, overhead_s=0.02)[0] == levels[2]
        assert budget.choose(1000, num_workers=2, read_s=0.04)[0] == levels[0], "nothing fits then"
        assert budget.choose(256, batch=256, num_workers=2)[0] == levels[-1]
        clock.now += 22
        assert budget.choose(256, batch=256, num_workers=2)[0] == levels[2], "the last batch runs on one device"
