//go:build cgo

package nvmltest

import (
	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
)

// gpmDevice gives a GPU what H100s have and A100s have not: a monitor of its
// instances, for those whose State tells how busy they are.
func (l *Library) gpmDevice(g int, d *server.Device) {
	d.GpmQueryDeviceSupportFunc = func() (nvml.GpmSupport, nvml.Return) {
		if ret := l.enter("GpmQueryDeviceSupport"); ret != nvml.SUCCESS {
			return nvml.GpmSupport{}, ret
		}
		for i := range 7 {
			if l.of(InstanceUUID(g, i)).Busy != nil {
				return nvml.GpmSupport{IsSupportedDevice: 1}, nvml.SUCCESS
			}
		}
		return nvml.GpmSupport{}, nvml.SUCCESS
	}
	d.GpmMigSampleGetFunc = func(instance int, s nvml.GpmSample) nvml.Return {
		if ret := l.enter("GpmMigSampleGet"); ret != nvml.SUCCESS {
			return ret
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.samples[s] = InstanceUUID(g, instance-1)
		return nvml.SUCCESS
	}
}

func (l *Library) gpm() {
	l.GpmSampleAllocFunc = func() (nvml.GpmSample, nvml.Return) {
		if ret := l.enter("GpmSampleAlloc"); ret != nvml.SUCCESS {
			return nil, ret
		}
		s := &mock.GpmSample{}
		s.FreeFunc = func() nvml.Return {
			l.mu.Lock()
			defer l.mu.Unlock()
			delete(l.samples, s)
			return nvml.SUCCESS
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.samples[s] = ""
		return s, nvml.SUCCESS
	}
	l.GpmMetricsGetFunc = func(m *nvml.GpmMetricsGetType) nvml.Return {
		if ret := l.enter("GpmMetricsGet"); ret != nvml.SUCCESS {
			return ret
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		uuid := l.samples[m.Sample1]
		if uuid == "" || l.samples[m.Sample2] != uuid || m.NumMetrics != 1 || m.Metrics[0].MetricId != uint32(nvml.GPM_METRIC_GRAPHICS_UTIL) {
			return nvml.ERROR_INVALID_ARGUMENT
		}
		if busy := l.state[uuid].Busy; busy != nil {
			m.Metrics[0].Value = *busy
		} else {
			m.Metrics[0].NvmlReturn = uint32(nvml.ERROR_NOT_SUPPORTED)
		}
		return nvml.SUCCESS
	}
}
