#!/bin/busybox sh
# The first program of the machine that run.sh boots: makes the host's file
# system the machine's, with all changes kept in memory, and goes on there.
set -eu
busybox=/bin/busybox

while read -r module; do
	$busybox insmod "/$module"
done </modules
$busybox mkdir /host /memory /machine
$busybox mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=1048576 host /host
$busybox mount -t tmpfs memory /memory
$busybox mkdir /memory/changes /memory/work
$busybox mount -t overlay -o lowerdir=/host,upperdir=/memory/changes,workdir=/memory/work machine /machine
exec $busybox switch_root /machine "$HERE/test.sh"
