"""Engine kernel: builds the attached bundle's TensorRT engines on the GPU it finds, into /kaggle/working/engines.

Attach the datasets with kaggle_kit's wheel, with onnxruntime-gpu's wheels, with TensorRT's (tensorrt_cu12_libs, 10.x)
and with the bundle; no internet, no edits. Attach its output (kernel_sources) to the submit kernel, on the same GPU.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(os.environ.get("KAGGLE_KIT_ROOT", "/kaggle"))
PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"
NEEDED = {"onnxruntime": f"onnxruntime_gpu-*-{PYTHON}-*", "tensorrt_libs": "tensorrt_cu12_libs-10.*"}


def attached(pattern: str) -> list[Path]:
    """Return the attached files that match, in today's mount layout or the older flat one."""
    return [path for depth in ("*", "*/*", "*/*/*") for path in (ROOT / "input").glob(f"{depth}/{pattern}")]


wheels = attached("kaggle_kit-*.whl") or sys.exit("no kaggle_kit-*.whl is attached: add the dataset that holds it")
sys.path.insert(0, str(wheels[0]))

from kaggle_kit.errors import KitError  # noqa: E402
from kaggle_kit.runtime.engines import query_gpus  # noqa: E402
from kaggle_kit.runtime.mounts import find_bundle  # noqa: E402
from kaggle_kit.runtime.tensorrt import build_engines  # noqa: E402

print("kaggle_kit from", wheels[0], flush=True)
try:
    print("found", query_gpus().strip(), flush=True)  # before gigabytes are installed for nothing
    for module, name in NEEDED.items():
        if importlib.util.find_spec(module) is None:  # Kaggle's image has neither
            needed = attached(f"{name}.whl") or sys.exit(f"no {name}.whl is attached: add the dataset that holds it")
            install = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", str(needed[0])]
            subprocess.run(install, check=True)
    build_engines(find_bundle(), ROOT / "working" / "engines", say=lambda line: print(line, flush=True))
except KitError as error:
    sys.exit(f"no engines were built: {error}")
