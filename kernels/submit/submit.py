"""Submission kernel: reads the attached bundle and the competition's test images, writes submission.csv.

Attach the wheelhouse, the bundle and the competition; for TensorRT also the output of the engine kernel. No internet,
no edits.
"""

import os
import sys
import time
from pathlib import Path

STARTED = time.monotonic()  # the time limit counts from here
ROOT = Path(os.environ.get("KAGGLE_KIT_ROOT", "/kaggle"))
wheels = [path for kind in ("datasets/*/*", "*") for path in (ROOT / "input").glob(f"{kind}/kaggle_kit-*.whl")]
sys.path.insert(0, str(wheels[0] if wheels else sys.exit("no kaggle_kit-*.whl is attached: add the wheelhouse")))

from kaggle_kit.errors import KitError  # noqa: E402
from kaggle_kit.runtime.bundle import open_bundle  # noqa: E402
from kaggle_kit.runtime.mounts import find_bundle, find_competition, find_engines  # noqa: E402
from kaggle_kit.runtime.supervise import submit  # noqa: E402
from kaggle_kit.runtime.wheels import install_attached  # noqa: E402

print("kaggle_kit from", wheels[0], flush=True)
engines = None
try:
    bundle = find_bundle()
    data = find_competition(open_bundle(bundle).task.submission.file)
    install_attached(["onnxruntime"])
except KitError as error:
    sys.exit(str(error))
try:
    engines = find_engines()
    install_attached(["tensorrt_libs"] if engines else [])
except KitError as error:  # a submission does without them
    print(f"WARNING engines may be passed over: {error}", flush=True)
sys.exit(submit(bundle, data, ROOT / "working" / "submission.csv", engines=engines, started=STARTED))
