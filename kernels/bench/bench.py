"""Bench kernel: measures the attached bundle on this accelerator, into costs.json, bench.json and bench.txt.

Attach the wheelhouse, the bundle and the competition; for TensorRT also the output of the engine kernel. No internet,
no edits. `kaggle-kit blend --costs` plans with costs.json at home.
"""

import json
import os
import sys
from pathlib import Path

ROOT = Path(os.environ.get("KAGGLE_KIT_ROOT", "/kaggle"))
IMAGES = 4096  # at most; enough for a T4 to be busy for seconds
wheels = [path for kind in ("datasets/*/*", "*") for path in (ROOT / "input").glob(f"{kind}/kaggle_kit-*.whl")]
sys.path.insert(0, str(wheels[0] if wheels else sys.exit("no kaggle_kit-*.whl is attached: add the wheelhouse")))

from kaggle_kit.errors import KitError  # noqa: E402
from kaggle_kit.runtime.bench import bench_bundle, format_bench, save_costs  # noqa: E402
from kaggle_kit.runtime.bundle import open_bundle  # noqa: E402
from kaggle_kit.runtime.mounts import find_bundle, find_competition, find_engines  # noqa: E402
from kaggle_kit.runtime.wheels import install_attached  # noqa: E402
from kaggle_kit.settings import plain  # noqa: E402

lines: list[str] = []


def say(line: str) -> None:
    """Print a line, and keep it for bench.txt."""
    print(line, flush=True)
    lines.append(line)


say(f"kaggle_kit from {wheels[0]}")
try:
    bundle, engines = find_bundle(), find_engines()
    data = find_competition(open_bundle(bundle).task.submission.file)
    install_attached(["onnxruntime", *["tensorrt_libs"] * bool(engines)], say=say)
    bench = bench_bundle(bundle, data, engines=engines, num_images=IMAGES, say=say)
except KitError as error:
    sys.exit(f"nothing was measured: {error}")
for line in format_bench(bench):
    say(line)
save_costs(bench, ROOT / "working" / "costs.json")
(ROOT / "working" / "bench.json").write_text(json.dumps(plain(bench), indent=1), encoding="utf-8")
(ROOT / "working" / "bench.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
