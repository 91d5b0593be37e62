#!/usr/bin/env bash
# Ships, from the data to a rehearsed submission: what README.md tells, in one go.
#
#     competitions/ships/run.sh WORK [setting=value ...]
#
# Makes the sample `ships` in WORK. Settings go to every training, after those below, which suit two CPU cores.
set -euo pipefail
work=${1:?usage: run.sh WORK [setting=value ...]}
shift
settings=(model=tiny_resnet "model.input_size=[80,112]" epochs=20 optim.lr=4e-3 loader.batch_size=32 augment=letters)
mkdir -p "$work"
cd "$work"

kaggle-kit sample ships ./ships
kaggle-kit audit ships ./ships/data --out ./audit
kaggle-kit folds ships ./ships/data --out folds.parquet --scheme stratified --n 3 --audit ./audit
kaggle-kit train task=ships data=./ships/data folds=folds.parquet out=runs/first "${settings[@]}" "$@"
kaggle-kit audit ships ./ships/data --out ./audit --folds folds.parquet --oof runs/first
kaggle-kit train task=ships data=./ships/data folds=folds.parquet out=runs/swa "${settings[@]}" average.swa_start=0.7 seed=1 "$@"
kaggle-kit blend runs/first runs/swa --out blend.json
kaggle-kit bundle runs/first runs/swa --blend blend.json --out ./bundle
kaggle-kit rehearse submit --task ships --data ./ships/data --hidden ./ships/hidden --bundle ./bundle --work ./rehearsal
