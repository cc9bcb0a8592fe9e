#!/usr/bin/env bash
# The whole path on a handful of real photographs: set up, prepare data, train, restore, score.
#   bash scripts/demo.sh [--corrupt NAME]      (default: sr4x-pool)
# Everything that is there already is reused; delete data/demo and results/demo-* to start anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
corrupt=sr4x-pool
if [ $# -eq 2 ] && [ "$1" = --corrupt ]; then
  corrupt=$2
elif [ $# -gt 0 ]; then
  echo "usage: bash scripts/demo.sh [--corrupt NAME]" >&2
  exit 2
fi
# A degradation in a file of one's own, path/to/file.py:ClassName, gives the run its class's name.
name=demo-${corrupt##*:}
nfe=1
extra=()
[ "$corrupt" != decolor ] || extra=(--add-x1-noise --cond-x1)

bash scripts/setup.sh requirements.txt scripts/requirements-demo.txt
python=.venv/bin/python

echo "== photographs"
"$python" scripts/demo_photos.py data/demo
echo "== train"
"$python" train.py --config configs/demo.yaml --name "$name" --corrupt "$corrupt" ${extra[@]+"${extra[@]}"}
echo "== restore photographs that training never saw"
"$python" sample.py --ckpt "$name" --nfe "$nfe" --corrupt "$corrupt"
echo "== score"
"$python" compute_metrices.py --ckpt "$name" --sample-dir "samples_nfe$nfe" --corrupt "$corrupt"
echo "Validation pictures from training: results/$name/validation/"
echo "The report: file://$PWD/results/$name/samples_nfe$nfe/report.html"
