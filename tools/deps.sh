#!/bin/sh
# Installs what Berth needs from the distribution to build, to test and to run,
# and touches nothing that is already there.
set -eu

packages="ca-certificates curl gcc git git-lfs libseccomp-dev make pkg-config
	busybox-static debootstrap iproute2 iptables nftables tini"

if ! command -v dpkg-query >/dev/null; then
	echo "deps: neither Debian nor Ubuntu; make sure of a docker CLI and of:" $packages >&2
	exit 0
fi

# One line a package: its name, then the virtual packages that it stands for.
installed=$(dpkg-query -W -f '${db:Status-Abbrev} ${Package}, ${Provides}\n' | grep '^ii')
missing=""
for package in $packages; do
	printf '%s\n' "$installed" | grep -Eq " $package([ ,]|\$)" || missing="$missing $package"
done

# The client alone where the distribution has it apart, else all of docker.io.
if ! command -v docker >/dev/null; then
	if apt-cache show docker-cli >/dev/null 2>&1; then
		missing="$missing docker-cli"
	else
		missing="$missing docker.io"
	fi
fi

[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
	echo "deps: missing:$missing" >&2
	echo "deps: run as root: sudo make deps" >&2
	exit 1
fi
echo "deps: installing:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends $missing
