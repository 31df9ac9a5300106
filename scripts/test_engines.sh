#!/usr/bin/env bash
# Build llama-cpp-python in an environment of its own and run the engine tests, and those lines of the
# fault battery that apply to real engines, on every engine there.
# A native llama-server joins in when it is on PATH or named by LLAMA_RUNTIME_ENGINE_PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ -x .venv-engines/bin/python ] || "$python" -m venv .venv-engines
pip() { .venv-engines/bin/python -m pip "$1" --quiet --disable-pip-version-check "${@:2}"; }
if ! compgen -G '.venv-engines/wheels/llama_cpp_python-*.whl' >/dev/null; then
	echo "Compiling llama-cpp-python (two to four minutes on two cores, once) ..."
	# Optimized less, it compiles in less than two thirds of the time. Past pip's cache: nobody else is
	# to get this build from there.
	CMAKE_ARGS="${CMAKE_ARGS:--DLLAVA_BUILD=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O1}" \
		pip wheel --no-deps --no-cache-dir --no-binary llama-cpp-python \
		--wheel-dir .venv-engines/wheels 'llama-cpp-python[server]>=0.3.16'
fi
echo "Installing it ..."
pip install --find-links .venv-engines/wheels --editable '.[dev,llama-cpp-python]'
.venv-engines/bin/llama-runtime engines
exec .venv-engines/bin/python -m pytest -m "engine and not outside" "$@"
