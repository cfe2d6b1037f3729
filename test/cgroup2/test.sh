#!/bin/sh
# Makes a machine of what init.sh found, runs the tests and halts.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/run/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# An overlay's changes cannot be kept on another overlay.
mount -t tmpfs tmpfs /run
mkdir "$TMPDIR"
# The kernel asks for modules by itself. That of kmod does not read what
# busybox's depmod writes.
mkdir -p /lib/modules
[ -e "/lib/modules/$(uname -r)" ] || ln -s "$MODULES" /lib/modules/
command -v modprobe >/dev/null && [ -e "$MODULES/modules.dep.bin" ] || ln -sf "$(command -v busybox)" /sbin/modprobe
ip link set lo up

run() {
	echo "== $1"
	"$PROGRAMS/$1" -test.v -test.run "${RUN:-.}" -test.timeout=50m || status=1
}
status=0
for test in $(echo "$TESTS" | tr , ' '); do
	run "$test.test"
done
echo $status >/dev/ttyS1
busybox poweroff -f
