#!/usr/bin/env bash
# Test with the oldest versions that the requirement files allow, in an environment of their own (6 GB) that is made in
# the folder DIR; PYTHON names an interpreter of the oldest Python. More arguments go to pytest.
#   PYTHON=python3.10 bash scripts/test_oldest.sh DIR tests/test_bridge.py tests/test_end_to_end.py
set -euo pipefail
dir=$(realpath -m "${1:?name a folder for the environment}")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -x "$dir/bin/uv" ] || { "${PYTHON:-python3.10}" -m venv "$dir" && "$dir/bin/python" -m pip install --quiet uv; }
"$dir/bin/uv" pip install --quiet --python "$dir/bin/python" --resolution lowest-direct \
  -r requirements.txt -r scripts/requirements-arrays.txt -r scripts/requirements-hub.txt \
  -r scripts/requirements-scoring.txt 'pytest>=8.0' 'pytest-xdist>=3.5' 'scikit-image>=0.24'
"$dir/bin/python" -m pytest -n 0 -m "not slow" "$@"
