"""Submission kernel: reads the attached bundle and the competition's test images, writes submission.csv.

Attach the datasets with kaggle_kit's wheel, with onnxruntime's wheels and with the bundle; no internet, no edits.
"""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

STARTED = time.monotonic()  # the time limit counts from here
ROOT = Path(os.environ.get("KAGGLE_KIT_ROOT", "/kaggle"))


def attached(pattern: str) -> list[Path]:
    """Return the attached files that match, in today's mount layout or the older flat one."""
    return [path for depth in ("*", "*/*", "*/*/*") for path in (ROOT / "input").glob(f"{depth}/{pattern}")]


wheels = attached("kaggle_kit-*.whl") or sys.exit("no kaggle_kit-*.whl is attached: add the dataset that holds it")
sys.path.insert(0, str(wheels[0]))
install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]

from kaggle_kit.errors import KitError  # noqa: E402
from kaggle_kit.runtime.bundle import open_bundle  # noqa: E402
from kaggle_kit.runtime.mounts import find_bundle, find_competition, find_engines  # noqa: E402
from kaggle_kit.runtime.supervise import submit  # noqa: E402

print("kaggle_kit from", wheels[0], flush=True)
if importlib.util.find_spec("onnxruntime") is None:  # Kaggle's image has none
    name = f"onnxruntime*-cp{sys.version_info.major}{sys.version_info.minor}-*.whl"
    needed = attached(name)[:1] or sys.exit(f"no {name} is attached: add the dataset that holds it")
    subprocess.run([*install, *needed], check=True)
engines = None
try:
    engines = find_engines()
except KitError as error:  # a submission does without them
    print(f"WARNING engines are passed over: {error}", flush=True)
for wheel in attached("tensorrt_cu12_libs-10.*.whl")[:1] if engines else ():
    print(wheel, "pip ends with", subprocess.run([*install, wheel], check=False).returncode, sep=": ", flush=True)

data = find_competition(open_bundle(bundle := find_bundle()).task.submission.file)
sys.exit(submit(bundle, data, ROOT / "working" / "submission.csv", engines=engines, started=STARTED))
