#!/usr/bin/env bash
# Bengali.AI, from the data to a rehearsed submission: what README.md tells, in one go.
#
#     competitions/bengali/run.sh DATA HIDDEN WORK [setting=value ...]
#
# DATA and HIDDEN: bengaliai-cv19's files and a hidden test, or what benchmarks/render_bengali.py made. Settings go to
# every training, after those below, which suit two CPU cores and 6,000 images.
set -euo pipefail
usage="usage: run.sh DATA HIDDEN WORK [setting=value ...]"
data=$(realpath "${1:?$usage}")
hidden=$(realpath "${2:?$usage}")
work=${3:?$usage}
shift 3
settings=(model=tiny_resnet "model.input_size=[48,80]" epochs=12 optim.lr=4e-3 augment=none loss.class_weights=sqrt)
mkdir -p "$work"
cd "$work"

kaggle-kit audit bengali "$data" --out ./audit --map pca
kaggle-kit folds bengali "$data" --out folds.parquet --scheme unseen --n 3 --rare train
kaggle-kit train task=bengali data="$data" folds=folds.parquet out=runs/first "${settings[@]}" "$@"
kaggle-kit train task=bengali data="$data" folds=folds.parquet out=runs/swa "${settings[@]}" average.swa_start=0.7 seed=1 "$@"
kaggle-kit runs ./runs
kaggle-kit blend runs/first runs/swa --out blend.json
kaggle-kit bundle runs/first runs/swa --blend blend.json --out ./bundle
kaggle-kit rehearse submit --task bengali --data "$data" --hidden "$hidden" --bundle ./bundle --work ./rehearsal
