"""Engine kernel: builds the attached bundle's TensorRT engines on the GPU it finds, into /kaggle/working/engines.

Attach the wheelhouse, made with --tensorrt, and the bundle; no internet, no edits. Attach its output (kernel_sources)
to the submit kernel, on the same GPU.
"""

import os
import sys
from pathlib import Path

ROOT = Path(os.environ.get("KAGGLE_KIT_ROOT", "/kaggle"))
wheels = [path for kind in ("datasets/*/*", "*") for path in (ROOT / "input").glob(f"{kind}/kaggle_kit-*.whl")]
sys.path.insert(0, str(wheels[0] if wheels else sys.exit("no kaggle_kit-*.whl is attached: add the wheelhouse")))

from kaggle_kit.errors import KitError  # noqa: E402
from kaggle_kit.runtime.engines import query_gpus  # noqa: E402
from kaggle_kit.runtime.mounts import find_bundle  # noqa: E402
from kaggle_kit.runtime.progress import print_line  # noqa: E402
from kaggle_kit.runtime.tensorrt import build_engines  # noqa: E402
from kaggle_kit.runtime.wheels import install_attached  # noqa: E402

print("kaggle_kit from", wheels[0], flush=True)
try:
    print("found", query_gpus().strip(), flush=True)  # before gigabytes are installed for nothing
    install_attached(["onnxruntime", "tensorrt_libs"])
    build_engines(find_bundle(), ROOT / "working" / "engines", say=print_line)
except KitError as error:
    sys.exit(f"no engines were built: {error}")
