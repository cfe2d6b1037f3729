#!/bin/sh
# Refuses what must not get into bin/berth, not even through another package:
# it starts a dozen times a job, and each of these costs it milliseconds.
set -eu

deps=$("${GO:-go}" list -deps ./cmd/berth)
heavy=$(printf '%s\n' "$deps" | grep -E '^(github\.com/moby/(buildkit|moby)|k8s\.io|github\.com/NVIDIA|gitlab\.com/berth-ci/berth/(node|buildkit|gpu)$)' || true)
[ -z "$heavy" ] || {
	echo "cmd/berth must not import:" >&2
	printf '\t%s\n' $heavy >&2
	exit 1
}

# berthd is static, and a driver that crashes is not to take it along.
nvidia=$("${GO:-go}" list -deps ./cmd/berthd | grep '^github\.com/NVIDIA' || true)
[ -z "$nvidia" ] || {
	echo "cmd/berthd must not import, berth-gpu does:" >&2
	printf '\t%s\n' $nvidia >&2
	exit 1
}
