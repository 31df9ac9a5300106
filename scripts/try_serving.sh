#!/usr/bin/env bash
# What a newcomer does first: `make serve`, one question, Ctrl-C. To be run before the development
# tools are installed, which bring packages along that the runtime must not need.
set -euo pipefail
cd "$(dirname "$0")/.."
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
said=$(mktemp)
set -m # a shell without job control would have its children ignore Ctrl-C
make serve PORT="$port" 2>"$said" &
serving=$!
trap 'rm -f "$said"; kill -INT -- "-$serving" 2>/dev/null || true' EXIT

# Five minutes: the packages and the model come over the network.
for _ in $(seq 600); do
	if curl --silent --fail "http://127.0.0.1:$port/health" >/dev/null; then break; fi
	kill -0 "$serving" 2>/dev/null || { cat "$said"; echo "make serve ended before it served."; exit 1; }
	sleep 0.5
done
curl --silent --show-error --fail-with-body "http://127.0.0.1:$port/v1/chat/completions" \
	--header 'Content-Type: application/json' \
	--data '{"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8}' |
	grep '"content"' || { cat "$said"; echo "make serve gave no answer."; exit 1; }
kill -INT -- "-$serving"
wait "$serving" || true
grep 'Ended\.' "$said" || { cat "$said"; echo "make serve did not say that it ended."; exit 1; }
