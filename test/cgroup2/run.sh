#!/bin/sh
# Boots a virtual machine with cgroup v2 and runs this directory's tests, and
# those of node/cgroup and test/gpu, in it. TESTS names fewer of these, RUN is a
# pattern as for go test -run. The machine sees this host's file system and can
# write to none of it.
#
# KERNEL is a directory with boot/vmlinuz-* and lib/modules; by default the
# host's kernel is used. On a host without one, a package of the distribution's
# does: apt-get download linux-image-VERSION, dpkg -x FILE $KERNEL, and
# busybox depmod -b $KERNEL VERSION.
set -eu

here=$(dirname "$(readlink -f "$0")")
cd "$here/../.."
skip() { echo "test-cgroup2: skipped: $1"; exit 0; }
command -v qemu-system-x86_64 >/dev/null || skip "no qemu-system-x86_64: install qemu-system-x86"
kernel=$(find "${KERNEL:-}/boot/" -name 'vmlinuz-*' 2>/dev/null | sort -V | tail -n 1)
modules=${KERNEL:-}/lib/modules/${kernel##*/vmlinuz-}
[ -n "$kernel" ] && [ -f "$modules/modules.dep" ] || skip "no kernel with modules in ${KERNEL:-/}: set KERNEL"

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM
export BERTH_RUNTIME="${BERTH_RUNTIME:-$PWD/bin/runtime}"
export CGO_ENABLED=0 # as in releases
go=${GO:-go}
$go build -trimpath -o "$dir/" ./cmd/berth ./cmd/berthd ./test/cmd/runner
$go test -c -trimpath -o "$dir/" ./node/cgroup ./test/cgroup2
# GPUs that are not there, whose device nodes are.
export CGO_ENABLED=1 CGO_CFLAGS="-O2 -g -Wno-deprecated-declarations"
$go build -trimpath -o "$dir/" ./cmd/berth-gpu ./test/cmd/gpudriver
$go test -c -trimpath -o "$dir/" ./test/gpu

# What the machine needs until it has the host's file system.
mkdir -p "$dir/initramfs/bin"
cp "$(command -v busybox)" "$dir/initramfs/bin/busybox"
cp "$here/init.sh" "$dir/initramfs/init"
: >"$dir/initramfs/modules" # without those that are part of the kernel
for name in virtio_pci 9pnet_virtio 9p overlay; do
	# A module, then those it needs, the first needed last.
	for file in $(sed -n "s,\(.*/$name\.ko[^:]*\):,\1,p" "$modules/modules.dep" | tr ' ' '\n' | tac); do
		module=$dir/initramfs/$(basename "${file%.[xz]*}")
		[ ! -e "$module" ] || continue
		case $file in
		*.zst) zstd -dqf "$modules/$file" -o "$module" ;;
		*.xz) xz -dc "$modules/$file" >"$module" ;;
		*) cp "$modules/$file" "$module" ;;
		esac
		basename "$module" >>"$dir/initramfs/modules"
	done
done
(cd "$dir/initramfs" && find . | busybox cpio -o -H newc 2>/dev/null) >"$dir/initramfs.cpio"

# Without virtualization, everything is emulated, and slow.
accel=tcg
! grep -qwE 'vmx|svm' /proc/cpuinfo || accel=kvm:tcg

# The second serial port takes the exit status.
timeout --foreground "${TIMEOUT:-3600}" qemu-system-x86_64 -machine q35,accel=$accel -cpu max -smp 2 -m 3G \
	-nodefaults -display none -no-reboot -serial stdio -serial "file:$dir/status" \
	-virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
	-kernel "$kernel" -initrd "$dir/initramfs.cpio" \
	-append "console=ttyS0 quiet panic=-1 HERE=$here PROGRAMS=$dir MODULES=$modules BERTH_RUNTIME=$BERTH_RUNTIME RUN=${RUN:-.} TESTS=${TESTS:-cgroup,cgroup2,gpu}" </dev/null
status=$(tr -cd 0-9 <"$dir/status")
exit "${status:-1}"
