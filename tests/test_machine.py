from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHOW = """
import os, sys
from kaggle_kit import cli, commands
commands.demo = lambda _: ({"spins": os.environ.get("GOMP_SPINCOUNT"), "torch": "torch" in sys.modules}, 0)
cli.main(["demo", "--json"])
"""


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, '"1000"'), ({"GOMP_SPINCOUNT": "7"}, '"7"'), ({"OMP_WAIT_POLICY": "ACTIVE"}, "null")],
)
def test_idle_threads_sleep_in_every_command_unless_the_user_says_otherwise(given: dict[str, str], spins: str) -> None:
    unset = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", SHOW]
    shown = subprocess.run(command, env={**unset, **given}, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == f'{{"spins": {spins}, "torch": false}}'  # it is read once, when torch is imported
