"""Training kernel: trains what the attached overrides.txt says and leaves the run in /kaggle/working/run; no edits.

Attach the competition; the dataset with kaggle_kit's wheel; one with the wheels of hydra-core and
antlr4-python3-runtime; and one with overrides.txt (settings as for `kaggle-kit train`, one a line), folds.parquet and,
where you have them, task.yaml and packed images in packed/. Attach what `kaggle-kit weights` packed where pretrained
weights are asked for, and this kernel's own output (kernel_sources) to go on where the time limit ended it.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(os.environ.get("KAGGLE_KIT_ROOT", "/kaggle"))
HOURS = 8.5  # Kaggle ends sessions after 9 or 12 hours


def attached(pattern: str) -> list[Path]:
    """Return the attached files that match, in today's mount layout or the older flat one."""
    return [path for depth in ("*", "*/*", "*/*/*") for path in (ROOT / "input").glob(f"{depth}/{pattern}")]


wheels = attached("kaggle_kit-*.whl") or sys.exit("no kaggle_kit-*.whl is attached: add the dataset that holds it")
settings = attached("overrides.txt") or sys.exit("no overrides.txt is attached: add the dataset that holds it")
sys.path.insert(0, str(wheels[0]))
if importlib.util.find_spec("hydra") is None:  # Kaggle's image has none
    needed = [path for name in ("hydra_core", "antlr4_python3_runtime") for path in attached(f"{name}-*.whl")[:1]]
    len(needed) == 2 or sys.exit("the wheels of hydra-core and antlr4-python3-runtime are not attached: add them")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", *needed], check=True)

import torch  # noqa: E402

from kaggle_kit.runtime.mounts import find_competition  # noqa: E402
from kaggle_kit.task import read_task  # noqa: E402

print("kaggle_kit from", wheels[0], flush=True)
folder, run = settings[0].parent, ROOT / "working" / "run"
for earlier in attached("run/.kaggle-kit-run")[:1]:
    shutil.copytree(earlier.parent, run, copy_function=shutil.copyfile, dirs_exist_ok=True)
    print("going on with", earlier.parent, flush=True)
lines = [line.strip() for line in settings[0].read_text(encoding="utf-8").splitlines()]
given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
task = folder / "task.yaml" if (folder / "task.yaml").exists() else given["task"]
packed = folder / "packed" if (folder / "packed").exists() else Path(tempfile.gettempdir()) / "packed"  # no output
found: dict[str, object] = {
    "task": task,
    "data": find_competition(read_task(task).submission.file),
    "folds": folder / "folds.parquet",
}
found |= {"out": run, "packed": packed, "max_hours": HOURS}
for index in [path for path in attached("index.json") if any(path.parent.glob("*.safetensors"))][:1]:
    found["model.weights"] = index.parent
overrides = [f"{key}={value}" for key, value in {**found, **given, "task": task}.items()]
gpus = torch.cuda.device_count()
launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}", "-m"] if gpus > 1 else []
environment = {**os.environ, "PYTHONPATH": str(wheels[0])}
sys.exit(subprocess.call([sys.executable, "-m", *launcher, "kaggle_kit", "train", *overrides], env=environment))
