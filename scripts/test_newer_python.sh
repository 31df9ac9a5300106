#!/usr/bin/env bash
# Run the fast tests on the newest Python that is not the one in .venv. Without one: say so, succeed.
set -euo pipefail
cd "$(dirname "$0")/.."
current=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo none)

candidates() {
	for version in 3.14 3.13 3.12; do
		command -v "python$version" || true
		ls -d "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python 2>/dev/null || true
	done
}

for python in $(candidates); do
	# A version manager's shim may exist and yet not run.
	version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
	[ "$version" = "$current" ] && continue
	echo "Running the fast tests on Python $version"
	"$python" -m venv .venv-newer
	.venv-newer/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[unit]'
	fast="not (engine or process or slow)"
	.venv-newer/bin/python -m pytest -q -n auto -m "$fast and not alone" tests/unit tests/contract
	exec .venv-newer/bin/python -m pytest -q -m "$fast and alone" tests/unit
done
echo "No other Python (3.12 to 3.14) is installed here: the fast tests ran on $current only"
