"""Training kernel: trains what the attached overrides.txt says and leaves the run in /kaggle/working/run; no edits.

Attach the competition; the wheelhouse; and a dataset with overrides.txt (settings as for `kaggle-kit train`, one a
line), folds.parquet and, where you have them, task.yaml and packed images in packed/. Attach what `kaggle-kit weights`
packed where pretrained weights are asked for, and this kernel's own output (kernel_sources) to go on where the time
limit ended it.
"""

import os
import sys
from pathlib import Path

ROOT = Path(os.environ.get("KAGGLE_KIT_ROOT", "/kaggle"))
HOURS = 8.5  # Kaggle ends sessions after 9 or 12 hours
wheels = [path for kind in ("datasets/*/*", "*") for path in (ROOT / "input").glob(f"{kind}/kaggle_kit-*.whl")]
sys.path.insert(0, str(wheels[0] if wheels else sys.exit("no kaggle_kit-*.whl is attached: add the wheelhouse")))

from kaggle_kit.errors import KitError  # noqa: E402
from kaggle_kit.platform.training import train_attached  # noqa: E402
from kaggle_kit.runtime.wheels import install_attached  # noqa: E402

print("kaggle_kit from", wheels[0], flush=True)
try:
    install_attached(["hydra"])
    sys.exit(train_attached(ROOT / "working", wheel=wheels[0], max_hours=HOURS))
except KitError as error:
    sys.exit(f"nothing was trained: {error}")
