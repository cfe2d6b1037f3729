package proxy

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/stretchr/testify/require"
)

// harmless are the fields of HostConfig that concern the container alone.
var harmless = strings.Fields(`
	AutoRemove ConsoleSize DNSOptions GroupAdd ReadonlyRootfs ShmSize Umask Init RestartPolicy
	CPUShares Memory NanoCPUs BlkioWeight CPUPeriod CPUQuota CpusetCpus CpusetMems MemoryReservation MemorySwap
	MemorySwappiness PidsLimit CPUCount CPUPercent IOMaximumIOps IOMaximumBandwidth`)

// TestFields has a field that a new version of the API brings be decided on.
func TestFields(t *testing.T) {
	var text strings.Builder
	for _, file := range []string{"policy.go", "create.go", "gpus.go"} {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		text.Write(b)
	}
	var fields func(reflect.Type) []string
	fields = func(of reflect.Type) (names []string) {
		for i := range of.NumField() {
			if f := of.Field(i); f.Anonymous {
				names = append(names, fields(f.Type)...)
			} else {
				names = append(names, f.Name)
			}
		}
		return names
	}
	for _, name := range fields(reflect.TypeFor[container.HostConfig]()) {
		if strings.Contains(text.String(), "."+name) {
			continue
		}
		require.Contains(t, harmless, name, "HostConfig.%s: what of it?", name)
	}
	// Of these all fields are rebuilt or looked at; a new one is not passed on.
	require.Equal(t, 15, reflect.TypeFor[network.EndpointSettings]().NumField())
	require.Equal(t, 10, reflect.TypeFor[mount.Mount]().NumField())
	require.Equal(t, 5, reflect.TypeFor[mount.BindOptions]().NumField())
	require.Equal(t, 4, reflect.TypeFor[mount.VolumeOptions]().NumField())
	require.Equal(t, 3, reflect.TypeFor[network.IPAM]().NumField())
	require.Equal(t, 4, reflect.TypeFor[network.IPAMConfig]().NumField())
}
