//go:build cgo

package nvml

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// TestRealGPU asks the driver of this machine, if it has one. It changes
// nothing.
func TestRealGPU(t *testing.T) {
	d, err := Open(Options{Root: "/", Hook: "/usr/local/libexec/berth/berth-gpu"})
	if errdefs.IsNotFound(err) {
		t.Skip("this machine has no GPU: ", err)
	}
	require.NoError(t, err)
	begin := time.Now()
	i, err := d.Inventory(t.Context())
	require.NoError(t, err)
	t.Logf("driver %s, CUDA %s: %s; read in %v", i.Driver, i.CUDA, i.Summary(), time.Since(begin))
	require.NotEmpty(t, i.Devices)
	var uuids []string
	for _, device := range i.Devices {
		t.Logf("%s: PCI %s, NUMA node %d, cpus %s, not told: %v", device.UUID, device.PCI, device.NUMA, device.CPUs, device.Unread)
		require.Regexp(t, "^(GPU|MIG)-", device.UUID)
		require.NotEmpty(t, device.PCI)
		if device.Unusable == "" {
			require.NotZero(t, device.Memory)
			require.NotEmpty(t, device.Edits.DeviceNodes)
			uuids = append(uuids, device.UUID)
		}
	}
	begin = time.Now()
	readings, err := d.Read(t.Context(), uuids)
	require.NoError(t, err)
	t.Logf("state read in %v", time.Since(begin))
	for uuid, r := range readings {
		require.Empty(t, r.Lost, uuid)
		require.Empty(t, r.Unread, uuid)
		t.Logf("%s: %+v", uuid, r)
	}
	_, err = d.Events(t.Context())
	if !errdefs.IsNotImplemented(err) {
		require.NoError(t, err)
	}
}
