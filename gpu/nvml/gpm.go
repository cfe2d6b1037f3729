//go:build cgo

package nvml

import (
	"math"
	"regexp"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// gpmPause is the least time between two samples that tell something.
const gpmPause = 100 * time.Millisecond

// sample is what GPM, NVIDIA's performance monitor, said of an instance last.
type sample struct {
	of      nvml.GpmSample
	at      time.Time
	percent *int // since the one before
}

// part is the profile of an instance that has a GPU instance not to itself.
var part = regexp.MustCompile(` MIG [1-7]c\.`)

// instanceUtilisation tells how busy a MIG instance was since it was asked
// last; nothing at first. GPUs have that by GPM alone, from H100 on.
func (d *Driver) instanceUtilisation(uuid string, m, whole nvml.Device, unread *[]string) *int {
	for _, symbol := range []string{"nvmlGpmQueryDeviceSupport", "nvmlGpmSampleAlloc", "nvmlGpmMigSampleGet", "nvmlGpmMetricsGet", "nvmlGpmSampleFree"} {
		if !d.has(symbol) {
			return nil
		}
	}
	if support, ret := whole.GpmQueryDeviceSupport(); !told(ret, "support of GPM", unread) || support.IsSupportedDevice == 0 {
		return nil
	}
	if name, ret := m.GetName(); ret != nvml.SUCCESS || part.MatchString(name) {
		return nil
	}
	instance, ret := m.GetGpuInstanceId()
	if !told(ret, "GPU instance", unread) {
		return nil
	}
	d.sampling.Lock()
	defer d.sampling.Unlock()
	last := d.samples[uuid]
	if last != nil && time.Since(last.at) < gpmPause {
		return last.percent
	}
	of, ret := d.lib.GpmSampleAlloc()
	if !told(ret, "sample of GPM", unread) {
		return nil
	}
	now := &sample{of: of, at: time.Now()}
	if ret := whole.GpmMigSampleGet(instance, of); !told(ret, "sample of GPM", unread) {
		_ = of.Free()
		return nil
	}
	d.samples[uuid] = now
	if last == nil {
		return nil
	}
	defer func() { _ = last.of.Free() }()
	get := nvml.GpmMetricsGetType{NumMetrics: 1, Sample1: last.of, Sample2: of}
	get.Metrics[0].MetricId = uint32(nvml.GPM_METRIC_GRAPHICS_UTIL)
	ret = d.lib.GpmMetricsGet(&get)
	if ret == nvml.SUCCESS {
		ret = nvml.Return(get.Metrics[0].NvmlReturn)
	}
	if value := get.Metrics[0].Value; told(ret, "utilisation", unread) && !math.IsNaN(value) {
		percent := int(math.Round(min(max(value, 0), 100)))
		now.percent = &percent
	}
	return now.percent
}
