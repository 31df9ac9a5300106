#!/usr/bin/env bash
# Build llama-cpp-python in an environment of its own and run the engine tests, and those lines of the
# fault battery that apply to real engines, on every engine there.
# A native llama-server joins in when it is on PATH or named by LLAMA_RUNTIME_ENGINE_PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ -x .venv-engines/bin/python ] || "$python" -m venv .venv-engines
echo "Installing llama-cpp-python (compiles llama.cpp: about four minutes on two cores, once) ..."
.venv-engines/bin/python -m pip install --quiet --disable-pip-version-check \
	--editable '.[dev,llama-cpp-python]'
.venv-engines/bin/llama-runtime engines
exec .venv-engines/bin/python -m pytest -m "engine and not outside" "$@"
