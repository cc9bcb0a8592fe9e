#!/usr/bin/env bash
# Make .venv and install what the named requirement files ask for; what is installed already is reused.
#   bash scripts/setup.sh [FILE ...]      (default: requirements.txt)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -gt 0 ] || set -- requirements.txt

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
  echo "setup.sh: error: needs Python 3.10 or newer, found $("$python" --version 2>&1); name another with PYTHON=…" >&2
  exit 2
fi

# A copy of each file that was installed stays in .venv: same content, nothing to do.
missing=()
for file in "$@"; do
  cmp -s "$file" ".venv/installed/$file" || missing+=(-r "$file")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "setup: .venv holds what $* ask for, reused"
  exit 0
fi
# An interrupted start leaves a .venv without pip.
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
echo "setup: installing ${missing[*]} into .venv (the first time takes minutes and 6 GB)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check "${missing[@]}"
for file in "$@"; do
  mkdir -p ".venv/installed/$(dirname "$file")"
  cp "$file" ".venv/installed/$file"
done
