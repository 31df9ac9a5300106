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
	echo "Compiling llama-cpp-python (one to two minutes on two cores, once) ..."
	# What llama.cpp's own programs share takes two thirds of the time, and the Python package loads
	# none of it; but its CMakeLists.txt forces the option on. A variable of llama.cpp's project wins.
	without_common=$PWD/.venv-engines/without_common.cmake
	echo 'set(LLAMA_BUILD_COMMON OFF)' >"$without_common"
	# Optimized less, the rest compiles in less than two thirds of the time, too. Past pip's cache:
	# nobody else is to get this build from there.
	options="-DLLAVA_BUILD=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O1"
	CMAKE_ARGS="${CMAKE_ARGS:-$options '-DCMAKE_PROJECT_llama.cpp_INCLUDE=$without_common'}" \
		pip wheel --no-deps --no-cache-dir --no-binary llama-cpp-python \
		--wheel-dir .venv-engines/wheels 'llama-cpp-python[server]>=0.3.16'
fi
echo "Installing it ..."
pip install --upgrade pip # those of older Pythons take twice as long to find what fits together
pip install --find-links .venv-engines/wheels --editable '.[dev,llama-cpp-python]'
.venv-engines/bin/llama-runtime engines
exec .venv-engines/bin/python -m pytest -m "engine and not outside" "$@"
