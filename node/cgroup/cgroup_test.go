package cgroup

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/executor"
)

var limits = executor.Limits{CPUs: 1.5, Memory: 64 << 20, PIDs: 100}

// host is the host's tree and a path in it that no one else uses.
func host(t testing.TB) (*Tree, string) {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes cgroups")
	}
	tree, err := Host()
	require.NoError(t, err)
	parent := fmt.Sprintf("/berth-test-%d", os.Getpid())
	t.Cleanup(func() { require.NoError(t, tree.Remove(context.Background(), parent)) })
	return tree, parent + "/job"
}

// start runs a shell script in a cgroup.
func start(t testing.TB, tree *Tree, path, script string) *exec.Cmd {
	// The shell waits for a line, by when it is in the cgroup.
	cmd := exec.Command("sh", "-c", "read go; "+script)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _, _ = cmd.Process.Wait() })
	for _, dir := range tree.dirs(path) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, cmd.Process.Pid), 0))
	}
	_, err = in.Write([]byte("\n"))
	require.NoError(t, err)
	return cmd
}

func TestCreateLimits(t *testing.T) {
	tree, path := host(t)
	if tree.unified {
		t.Skip("the host has cgroup v2: see TestCreateUnified")
	}
	require.NoError(t, tree.Create(path, limits))
	for file, want := range map[string]string{
		"cpu/cpu.cfs_quota_us":          "150000",
		"memory/memory.limit_in_bytes":  "67108864",
		"pids/pids.max":                 "100",
		"freezer/freezer.state":         "THAWED",
		"cpuset/cpuset.mems":            "0",
		"devices/devices.list":          "a *:* rwm",
		"cpu/cpu.cfs_period_us":         "100000",
		"memory/memory.use_hierarchy":   "1",
		"systemd/cgroup.clone_children": "0",
	} {
		controller, name := filepath.Split(file)
		mount, ok := tree.v1[filepath.Clean(controller)]
		if !ok {
			continue
		}
		b, err := os.ReadFile(filepath.Join(mount, path, name))
		require.NoError(t, err)
		require.Equal(t, want, strings.TrimSpace(string(b)), file)
	}
	// Making it again, after a crash say, is the same.
	require.NoError(t, tree.Create(path, limits))

	names, err := tree.Children(filepath.Dir(path))
	require.NoError(t, err)
	require.Equal(t, []string{"job"}, names)
	require.NoError(t, tree.Remove(t.Context(), path))
	require.Empty(t, tree.dirs(path))
	require.NoError(t, tree.Remove(t.Context(), path))
}

// TestWithhold: what a cgroup is kept from, those below it are, too, whatever
// they are allowed.
func TestWithhold(t *testing.T) {
	tree, path := host(t)
	trees := map[string]*Tree{"v2": {v2: tree.v2, unified: true}}
	if _, ok := tree.v1["devices"]; ok {
		trees["v1"] = tree
	}
	for name, tree := range trees {
		t.Run(name, func(t *testing.T) {
			if name == "v2" && tree.v2 == "" {
				t.Skip("the host has no cgroup2 mount")
			}
			job, inner := path+"-"+name, path+"-"+name+"/privileged"
			require.NoError(t, tree.Create(job, executor.Limits{}))
			require.NoError(t, tree.Withhold(job, nil))
			require.NoError(t, tree.Withhold(job, []specs.LinuxDevice{
				{Type: "c", Major: 1, Minor: 5},   // zero
				{Type: "c", Major: 195, Minor: 0}, // nothing behind it
			}))
			require.NoError(t, tree.Create(inner, executor.Limits{}))
			if !tree.unified {
				for _, rule := range []string{"deny a", "allow c *:* m", "allow c 1:3 rwm", "allow a"} {
					file, value, _ := strings.Cut(rule, " ")
					require.NoError(t, os.WriteFile(filepath.Join(tree.v1["devices"], inner, "devices."+file), []byte(value), 0), "as runtimes do")
				}
			}
			nodes := t.TempDir()
			out := filepath.Join(nodes, "out")
			cmd := start(t, tree, inner, fmt.Sprintf(`exec >%s 2>&1; cd %s
				head -c 1 /dev/zero; head -c 0 /dev/null && echo null
				for n in 0 1; do mknod $n c 195 $n && echo made $n; head -c 0 $n; done`, out, nodes))
			_ = cmd.Wait()
			text, err := os.ReadFile(out)
			require.NoError(t, err)
			require.Regexp(t, `zero.*Operation not permitted`, string(text))
			require.Contains(t, string(text), "null\n")
			require.Regexp(t, `'0'.*Operation not permitted`, string(text))
			require.Regexp(t, `'1'.*No such device or address`, string(text))
			require.Contains(t, string(text), "made 0")
			require.NoError(t, tree.Remove(t.Context(), job))
		})
	}
	require.Error(t, tree.Withhold("/", []specs.LinuxDevice{{Type: "c"}}))
}

func TestLock(t *testing.T) {
	tree, path := host(t)
	unlock, err := tree.Lock(path)
	require.NoError(t, err)
	_, err = tree.Lock(path)
	require.True(t, errdefs.IsAlreadyExists(err), err)
	require.NoError(t, unlock())
	unlock, err = tree.Lock(path)
	require.NoError(t, err)
	require.NoError(t, unlock())
}

func TestCreateRefusesPaths(t *testing.T) {
	tree := &Tree{}
	for _, path := range []string{"", "/", "job", "/berth/../../x", "/berth/", "//berth"} {
		require.Error(t, tree.Create(path, limits), path)
		require.Error(t, tree.Remove(t.Context(), path), path)
	}
}

func TestRemoveKills(t *testing.T) {
	for name, script := range map[string]string{
		"one":         "exec sleep 600",
		"many":        "for i in 1 2 3 4 5 6 7 8 9; do sleep 600 & done; wait",
		"deaf":        "trap '' TERM INT HUP; while :; do sleep 600; done",
		"forking":     "while :; do (sleep 0.01 &) ; sleep 0.005; done",
		"own session": "setsid sleep 600 & wait",
	} {
		t.Run(name, func(t *testing.T) {
			tree, path := host(t)
			require.NoError(t, tree.Create(path, limits))
			require.NoError(t, tree.Create(path+"/container", executor.Limits{}))
			cmd := start(t, tree, path+"/container", script)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			go func() { _ = cmd.Wait() }() // a zombie would be in no one's way
			require.NoError(t, tree.Remove(ctx, path))
			require.Empty(t, tree.dirs(path))
		})
	}
}

func TestRemoveThaws(t *testing.T) {
	tree, path := host(t)
	mount, ok := tree.v1["freezer"]
	if !ok {
		t.Skip("the host has no v1 freezer")
	}
	require.NoError(t, tree.Create(path, limits))
	start(t, tree, path, "exec sleep 600")
	require.NoError(t, os.WriteFile(filepath.Join(mount, path, "freezer.state"), []byte("FROZEN"), 0))
	require.NoError(t, tree.Remove(t.Context(), path))
}

func TestRemoveSaysWhatHolds(t *testing.T) {
	tree, path := host(t)
	require.NoError(t, tree.Create(path, limits))
	start(t, tree, path, "exec sleep 600")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(fmt.Errorf("no time left"))
	require.ErrorContains(t, tree.Remove(ctx, path), "no time left")
	require.NoError(t, tree.Remove(t.Context(), path))
}

func TestReadCountsOOMKills(t *testing.T) {
	tree, path := host(t)
	require.NoError(t, tree.Create(path, executor.Limits{Memory: 16 << 20}))
	inner := path + "/container"
	require.NoError(t, tree.Create(inner, executor.Limits{}))

	cmd := start(t, tree, inner, `exec head -c 64m /dev/zero | tail -c 64m >/dev/null`)
	_ = cmd.Wait()
	u, err := tree.Read(path)
	require.NoError(t, err)
	require.NotZero(t, u.OOMKills)
	require.Greater(t, u.Peak, uint64(8<<20))
	require.LessOrEqual(t, u.Peak, uint64(16<<20))
}

// TestCreateUnified writes to files that stand in for the kernel's.
func TestCreateUnified(t *testing.T) {
	root := t.TempDir()
	job := filepath.Join(root, "ci", "berth", "job")
	require.NoError(t, os.MkdirAll(job, 0o755))
	for _, file := range []string{
		"cgroup.subtree_control", "ci/cgroup.subtree_control", "ci/berth/cgroup.subtree_control",
		"ci/berth/job/memory.swap.max",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(root, file), nil, 0o600))
	}
	require.NoError(t, os.WriteFile(filepath.Join(root, "cgroup.controllers"), []byte("cpuset cpu io memory pids\n"), 0o600))
	tree := &Tree{v2: root, unified: true}
	require.NoError(t, tree.Create("/ci/berth/job", limits))
	for file, want := range map[string]string{
		"cgroup.subtree_control":          "+cpu +memory +pids +io",
		"ci/cgroup.subtree_control":       "+cpu +memory +pids +io",
		"ci/berth/cgroup.subtree_control": "+cpu +memory +pids +io",
		"ci/berth/job/cpu.max":            "150000 100000",
		"ci/berth/job/memory.max":         "67108864",
		"ci/berth/job/memory.swap.max":    "0",
		"ci/berth/job/pids.max":           "100",
	} {
		b, err := os.ReadFile(filepath.Join(root, file))
		require.NoError(t, err)
		require.Equal(t, want, string(b), file)
	}
	require.NoFileExists(t, filepath.Join(job, "cgroup.subtree_control"))
}

func TestReadUnified(t *testing.T) {
	root := t.TempDir()
	for file, text := range map[string]string{
		"memory.current": "4096\n",
		"memory.peak":    "8192\n",
		"memory.events":  "low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 0\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(root, file), []byte(text), 0o600))
	}
	tree := &Tree{v2: filepath.Dir(root), unified: true}
	u, err := tree.Read("/" + filepath.Base(root))
	require.NoError(t, err)
	require.Equal(t, Usage{Memory: 4096, Peak: 8192, OOMKills: 3}, u)
}

// TestRemoveUnified works on the kernel's own cgroup v2, be it without
// controllers.
func TestRemoveUnified(t *testing.T) {
	tree, path := host(t)
	if tree.v2 == "" {
		t.Skip("the host has no cgroup2 mount")
	}
	unified := &Tree{v2: tree.v2, unified: true}
	require.NoError(t, unified.Create(path, executor.Limits{}))
	require.NoError(t, unified.Create(path+"/container", executor.Limits{}))
	cmd := start(t, unified, path+"/container", "sleep 600 & sleep 600 & wait")
	go func() { _ = cmd.Wait() }()
	require.NoError(t, unified.Remove(t.Context(), path))
	require.Empty(t, unified.dirs(path))
}

func TestHostReadsEveryHierarchy(t *testing.T) {
	tree, err := Host()
	require.NoError(t, err)
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	for _, m := range tree.mounts() {
		require.True(t, bytes.Contains(mounts, []byte(" "+m+" cgroup")), m)
	}
}

func BenchmarkCreateRemove(b *testing.B) {
	tree, path := host(b)
	for b.Loop() {
		require.NoError(b, tree.Create(path, limits))
		require.NoError(b, tree.Remove(b.Context(), path))
	}
}
