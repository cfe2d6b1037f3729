//go:build cgo

package nvmltest

import (
	"fmt"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
)

// Library is NVML for a machine of A100s: eight are a DGX.
type Library struct {
	*server.Server

	mu sync.Mutex
	// faults are what a function returns in place of an answer.
	faults map[string]nvml.Return
	// count is of calls; the one that is faultAt returns faultRet.
	count, faultAt int
	faultRet       nvml.Return
	calls          map[string]bool
	state          map[string]State
	events         []nvml.EventData
	all            map[string]nvml.Device // by UUID, instances too
	// lacking are functions that the library does not have.
	lacking map[string]bool
	samples map[nvml.GpmSample]string // of GPM that are not freed, and of what
}

// State is what a device tells of itself.
type State struct {
	Used        uint64
	Utilisation uint32
	Energy      uint64
	Processes   []uint32
	// Busy is what GPM tells of an instance, on GPUs that have it.
	Busy         *float64
	Uncorrected  uint64
	RemapPending bool
	RemapFailed  bool
	Throttle     uint64
}

// UUID of a GPU, and of an instance of it.
func UUID(g int) string { return fmt.Sprintf("GPU-00000000-0000-0000-0000-%012d", g) }

// InstanceUUID is an instance's, counted from 0.
func InstanceUUID(g, i int) string { return fmt.Sprintf("MIG-00000000-0000-0000-%04d-%012d", g, i) }

// New makes a library. mig says which GPUs are cut into how many instances
// of 1g.5gb.
func New(n int, mig map[int]int) *Library {
	s, err := server.New(
		server.WithGPUs(gpus.Multiple(n, gpus.A100_SXM4_40GB)...),
		server.WithDriverVersion(Version),
		server.WithNVMLVersion("12."+Version),
		server.WithCUDADriverVersion(12040),
	)
	if err != nil {
		panic(err) // the options are constants
	}
	l := &Library{
		Server: s, faults: map[string]nvml.Return{},
		calls: map[string]bool{}, state: map[string]State{}, all: map[string]nvml.Device{}, lacking: map[string]bool{}, samples: map[nvml.GpmSample]string{},
	}
	for g, device := range s.Devices {
		l.whole(g, device.(*server.Device), mig[g])
	}
	l.library()
	return l
}

// Fault has a function fail from now on; SUCCESS has it work again.
func (l *Library) Fault(function string, ret nvml.Return) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults[function] = ret
}

// FaultAt has the n-th call from now on fail, counted from 1, and no other.
func (l *Library) FaultAt(n int, ret nvml.Return) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count, l.faultAt, l.faultRet = 0, n, ret
}

// Count is how many calls there were since FaultAt.
func (l *Library) Count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count
}

// Lack takes a function from the library, as if the driver were older.
func (l *Library) Lack(symbol string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lacking[symbol] = true
}

// Samples of GPM that nobody has freed.
func (l *Library) Samples() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.samples)
}

// Calls lists the functions that were called.
func (l *Library) Calls() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for name := range l.calls {
		names = append(names, name)
	}
	return names
}

// Set changes what a device tells.
func (l *Library) Set(uuid string, s State) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state[uuid] = s
}

// XID has a GPU report a fault, of an instance of it if that is not negative.
func (l *Library) XID(g int, xid uint64, instance int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := nvml.EventData{Device: l.Devices[g], EventType: nvml.EventTypeXidCriticalError, EventData: xid, GpuInstanceId: 1<<32 - 1, ComputeInstanceId: 1<<32 - 1}
	if instance >= 0 {
		e.GpuInstanceId, e.ComputeInstanceId = uint32(instance+1), 0
	}
	l.events = append(l.events, e)
}

// Remove takes a GPU out, as a hot removal does.
func (l *Library) Remove(g int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.all, l.Devices[g].(*server.Device).UUID)
	l.Devices = append(l.Devices[:g:g], l.Devices[g+1:]...)
}

// enter notes a call and gives the fault that was ordered for it.
func (l *Library) enter(function string) nvml.Return {
	l.mu.Lock()
	l.calls[function] = true
	defer l.mu.Unlock()
	if l.count++; l.count == l.faultAt {
		return l.faultRet
	}
	return l.faults[function]
}

func (l *Library) of(uuid string) State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state[uuid]
}

func one[T any](l *Library, name string, f func() (T, nvml.Return)) func() (T, nvml.Return) {
	return func() (T, nvml.Return) {
		if ret := l.enter(name); ret != nvml.SUCCESS {
			var none T
			return none, ret
		}
		return f()
	}
}

func value[T any](v T) func() (T, nvml.Return) {
	return func() (T, nvml.Return) { return v, nvml.SUCCESS }
}

func (l *Library) library() {
	l.LookupSymbolFunc = func(symbol string) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.lacking[symbol] {
			return fmt.Errorf("undefined symbol: %s", symbol)
		}
		return nil
	}
	l.gpm()
	l.InitFunc = func() nvml.Return { return l.enter("Init") }
	l.SystemGetDriverVersionFunc = one(l, "SystemGetDriverVersion", value(l.DriverVersion))
	l.SystemGetCudaDriverVersionFunc = one(l, "SystemGetCudaDriverVersion", value(l.CudaDriverVersion))
	l.DeviceGetCountFunc = one(l, "DeviceGetCount", func() (int, nvml.Return) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.Devices), nvml.SUCCESS
	})
	l.DeviceGetHandleByIndexFunc = func(index int) (nvml.Device, nvml.Return) {
		if ret := l.enter("DeviceGetHandleByIndex"); ret != nvml.SUCCESS {
			return nil, ret
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if index >= len(l.Devices) {
			return nil, nvml.ERROR_INVALID_ARGUMENT
		}
		return l.Devices[index], nvml.SUCCESS
	}
	l.DeviceGetHandleByUUIDFunc = func(uuid string) (nvml.Device, nvml.Return) {
		if ret := l.enter("DeviceGetHandleByUUID"); ret != nvml.SUCCESS {
			return nil, ret
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if h, ok := l.all[uuid]; ok {
			return h, nvml.SUCCESS
		}
		return nil, nvml.ERROR_NOT_FOUND
	}
	l.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) {
		if ret := l.enter("EventSetCreate"); ret != nvml.SUCCESS {
			return nil, ret
		}
		return &mock.EventSet{WaitFunc: l.wait}, nvml.SUCCESS
	}
}

// wait gives the next event, or times out a hundred times as fast as NVML.
func (l *Library) wait(timeout uint32) (nvml.EventData, nvml.Return) {
	if ret := l.enter("EventSetWait"); ret != nvml.SUCCESS {
		return nvml.EventData{}, ret
	}
	for end := time.Now().Add(time.Duration(timeout) * time.Millisecond / 100); ; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		if len(l.events) > 0 {
			e := l.events[0]
			l.events = l.events[1:]
			l.mu.Unlock()
			return e, nvml.SUCCESS
		}
		l.mu.Unlock()
		if time.Now().After(end) {
			return nvml.EventData{}, nvml.ERROR_TIMEOUT
		}
	}
}
