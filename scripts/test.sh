#!/usr/bin/env bash
# Lint and test the project in .venv, set up if need be. Arguments go to pytest: bash scripts/test.sh -k bridge
# What takes long is left out, unless asked for: bash scripts/test.sh -m slow (or gpu, or cluster)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh requirements.txt tests/requirements.txt
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports
.venv/bin/mypy
# Two processes, a file of tests at a time; each test computes in one thread.
.venv/bin/python -m pytest -n 2 --dist loadfile -m "not slow" "$@"
