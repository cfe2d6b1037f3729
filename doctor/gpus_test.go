package doctor

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/config"
)

// plant makes files below a directory.
func plant(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

const module, card = "sys/module/nvidia/version", "sys/bus/pci/devices/0000:07:00.0/"

func TestLookForNVIDIA(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes device nodes")
	}
	none := t.TempDir()
	plant(t, none, map[string]string{
		"sys/bus/pci/devices/0000:00:01.0/vendor": "0x8086\n", "sys/bus/pci/devices/0000:00:01.0/class": "0x030000\n",
		// The sound of a card is none.
		"sys/bus/pci/devices/0000:07:00.1/vendor": "0x10de\n", "sys/bus/pci/devices/0000:07:00.1/class": "0x040300\n",
	})
	if n := lookForNVIDIA(none, none); n.Cards != 0 || len(checkNVIDIA(n)) != 0 {
		t.Errorf("%+v", n)
	}

	bare := t.TempDir()
	plant(t, bare, map[string]string{card + "vendor": "0x10de\n", card + "class": "0x030200\n"})
	c := checkNVIDIA(lookForNVIDIA(bare, bare))
	wants(t, find(t, c, "NVIDIA driver"), Warn, "1 GPUs, but no driver")
	if err := os.Symlink("../../../drivers/nouveau", filepath.Join(bare, card, "driver")); err != nil {
		t.Fatal(err)
	}
	wants(t, find(t, checkNVIDIA(lookForNVIDIA(bare, bare)), "NVIDIA driver"), Warn, "nouveau has them")

	plant(t, bare, map[string]string{module: "550.54.15\n"})
	c = checkNVIDIA(lookForNVIDIA(bare, bare))
	wants(t, find(t, c, "NVIDIA driver"), Warn, "libraries are not to be found")
	wants(t, find(t, c, "GPU device nodes"), Warn, "dev/nvidia-uvm")

	plant(t, bare, map[string]string{"usr/lib/x86_64-linux-gnu/libnvidia-ml.so.560.35.03": ""})
	wants(t, find(t, checkNVIDIA(lookForNVIDIA(bare, bare)), "NVIDIA driver"), Warn, "module is version 550.54.15, the libraries are 560.35.03")

	// What is left of an older driver is in nobody's way.
	plant(t, bare, map[string]string{"usr/lib64/libnvidia-ml.so.550.54.15": "", "dev/other": ""})
	for minor, name := range []string{"nvidiactl", "nvidia-uvm"} {
		if err := unix.Mknod(filepath.Join(bare, "dev", name), unix.S_IFCHR|0o600, int(unix.Mkdev(195, uint32(minor)))); err != nil {
			t.Fatal(err)
		}
	}
	c = checkNVIDIA(lookForNVIDIA(bare, bare))
	wants(t, find(t, c, "NVIDIA driver"), OK, "version 550.54.15")
	if len(c) != 1 {
		t.Errorf("%+v", c)
	}
}

func TestCheckGPUs(t *testing.T) {
	on, off := true, false
	at := time.Date(2026, 8, 1, 10, 30, 0, 0, time.UTC)
	shelved := func(index int, cause string) api.GPU {
		return api.GPU{
			UUID: fmt.Sprintf("GPU-%d", index), GPU: fmt.Sprintf("GPU-%d", index), Index: index, Model: "NVIDIA A100", State: api.GPUQuarantined,
			Quarantine: &api.GPUQuarantine{Cause: cause, Reason: "reason of " + cause, Since: at}, Persistence: &on,
		}
	}
	c := checkGPUs(&api.GPUList{Driver: "550.54.15", CUDA: "12.4", Faults: []string{"GPU 7 does not answer"}, GPUs: []api.GPU{
		{UUID: "GPU-0", GPU: "GPU-0", Model: "NVIDIA A100", State: api.GPULeased, Persistence: &off},
		{UUID: "GPU-1", GPU: "GPU-1", Index: 1, Model: "NVIDIA A100", State: api.GPUUnusable, Reason: "MIG is on, and it has no instances"},
		shelved(2, api.QuarantineLeftover), shelved(3, api.QuarantineLost), shelved(4, api.QuarantineMemory),
		shelved(5, api.QuarantineXID), shelved(6, api.QuarantineOperator),
		{UUID: "MIG-a", GPU: "GPU-8", Index: 8, State: api.GPUFree, Persistence: &off},
		{UUID: "MIG-b", GPU: "GPU-8", Index: 8, State: api.GPUFree, Persistence: &off},
		{UUID: "GPU-9", GPU: "GPU-9", State: api.GPUGone},
	}})
	for name, detail := range map[string]string{
		"GPU 1":            "NVIDIA A100 (GPU-1) is not to be had: MIG is on, and it has no instances",
		"GPU 2":            "NVIDIA A100 (GPU-2) is in quarantine since 2026-08-01 10:30: reason of leftover",
		"GPU 3":            "reason of lost",
		"GPU 4":            "reason of memory",
		"GPU 5":            "reason of xid",
		"GPU 6":            "reason of operator",
		"GPU":              "(GPU-9) is gone",
		"persistence mode": "off for 2 GPUs",
		gpuName:            "GPU 7 does not answer",
	} {
		wants(t, find(t, c, name), Warn, detail)
	}
	wants(t, c[len(c)-1], OK, "3 of 10 are in order; driver 550.54.15, CUDA 12.4")
	remedies := map[string]bool{}
	for n := 2; n <= 6; n++ {
		remedies[find(t, c, fmt.Sprintf("GPU %d", n)).Remedy] = true
	}
	if len(remedies) != 5 {
		t.Errorf("each cause has its own way out: %v", remedies)
	}
	if Failed(c) {
		t.Error("jobs without GPUs run all the same")
	}
}

// TestGPUs asks berthd, or berth-gpu where there is no berthd.
func TestGPUs(t *testing.T) {
	l, socket := listen(t)
	s := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(api.GPUList{Reason: "NVML says ERROR_UNKNOWN", GPUs: []api.GPU{{UUID: "GPU-0", State: api.GPUFree}}})
	})}
	t.Cleanup(func() { _ = s.Close() })
	go func() { _ = s.Serve(l) }()
	n := &node{Options: Options{Socket: socket, Timeout: 10 * time.Second}, config: config.Default(), berthd: &api.Version{}}
	wants(t, find(t, n.gpus(t.Context()), gpuName), Warn, "no job can have any: NVML says ERROR_UNKNOWN")

	n.berthd = nil
	program := filepath.Join(t.TempDir(), "berth-gpu")
	n.config.GPU.Program = program
	if _, err := n.askBerthGPU(t.Context()); err == nil {
		t.Error("there is none")
	}
	answer := func(script string) {
		t.Helper()
		if err := os.WriteFile(program, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	answer(`read -r line
case $line in *GPU.Inventory*) echo '{"id":0,"error":null,"result":{"stock":{"driver":"550.54.15","cuda":"12.4","devices":[
{"uuid":"GPU-0","gpu":"GPU-0","model":"NVIDIA A100","index":3,"unusable":"its device node is missing","persistence":false}]}}}';; esac
cat`)
	list, err := n.askBerthGPU(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wants(t, find(t, checkGPUs(list), "GPU 3"), Warn, "its device node is missing")
	wants(t, find(t, checkGPUs(list), "persistence mode"), Warn, "1 GPUs")
	answer(`read -r line; echo '{"id":0,"error":null,"result":{"error":"the NVIDIA driver was upgraded"}}'; cat`)
	if list, err = n.askBerthGPU(t.Context()); err != nil || list.Reason != "the NVIDIA driver was upgraded" {
		t.Errorf("%+v, %v", list, err)
	}
	answer(`exit 1`)
	if _, err := n.askBerthGPU(t.Context()); err == nil {
		t.Error("it ended")
	}
	answer(`exec sleep 600`)
	n.Timeout = 50 * time.Millisecond
	if _, err := n.askBerthGPU(t.Context()); err == nil {
		t.Error("it hangs")
	}
}
