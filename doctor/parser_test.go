package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/node/runtime/programs"
)

func TestKernelParsers(t *testing.T) {
	for release, status := range map[string]Status{
		"6.18.44-fc-v669": OK, "5.10.0-28-amd64": OK, "5.9.16": Fail, "4.18.0-553.el8.x86_64": Fail, "10.1": OK, "custom": Warn,
	} {
		wants(t, checkRelease(release), status, release)
	}
	wants(t, checkSeccomp("kill_process kill_thread trap errno trace log allow\n", nil), OK, "available")
	wants(t, checkSeccomp("allow\n", nil), Fail, "knows only allow")
	wants(t, checkSeccomp("", fs.ErrNotExist), Fail, "can not filter")
	wants(t, checkSeccomp("", errors.New("denied")), Warn, "denied")
}

func TestCgroupParser(t *testing.T) {
	for _, tc := range []struct {
		unified, hybrid bool
		controllers     string
		status          Status
		detail          string
	}{
		{true, false, "cpuset cpu io memory hugetlb pids", OK, "version 2 with cpuset, cpu"},
		{true, false, "cpu memory pids", Warn, "version 2 lacks io, cpuset"},
		{true, false, "cpu io cpuset pids", Fail, "version 2 lacks memory"},
		{true, false, "", Fail, "none at /sys/fs/cgroup"},
		{false, true, "cpu cpuacct memory pids devices freezer", Warn, "version 1 and 2 side by side"},
		{false, false, "cpu cpuacct memory pids devices freezer", Warn, "version 1: jobs run"},
		{false, true, "cpu pids devices freezer", Fail, "version 1 lacks memory"},
	} {
		wants(t, checkCgroups(tc.unified, tc.hybrid, strings.Fields(tc.controllers)), tc.status, tc.detail)
	}
}

func TestClockParser(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	wants(t, checkClock(now, now.Add(-time.Hour), true), OK, "synchronised")
	wants(t, checkClock(now, now, false), Warn, "nothing keeps it right")
	wants(t, checkClock(now, now.Add(24*time.Hour), true), Fail, "files were changed at 2026-11-23T00:00:00Z already")
	wants(t, checkClock(time.Unix(0, 0).UTC(), time.Time{}, true), Fail, "1970-01-01")
}

func TestProgramsParser(t *testing.T) {
	paths := map[string]string{programs.Containerd: "/c", programs.Shim: "/s", programs.Runc: "/r"}
	v := func(n string, seccomp bool) programs.Version { return programs.Version{Number: n, Seccomp: seccomp} }
	for _, tc := range []struct {
		containerd, shim, runc programs.Version
		want                   [2]Status
		detail                 string
	}{
		{v("2.4.2", false), v("2.4.2", false), v("1.5.2", true), [2]Status{OK, OK}, "version 1.5.2 with seccomp"},
		{v("1.7.24", false), v("1.7.24", false), v("1.5.2", true), [2]Status{Fail, OK}, "/c is version 1.7.24"},
		{v("2.4.2", false), v("2.3.6", false), v("1.5.2", true), [2]Status{Warn, OK}, "/s 2.3.6"},
		{v("2.4.2", false), v("2.4.2", false), v("1.1.5+ds1", true), [2]Status{OK, Fail}, "/r is version 1.1.5+ds1"},
		{v("2.4.2", false), v("2.4.2", false), v("1.5.2", false), [2]Status{OK, Fail}, "can not filter system calls"},
	} {
		checks := checkPrograms(paths, map[string]programs.Version{programs.Containerd: tc.containerd, programs.Shim: tc.shim, programs.Runc: tc.runc})
		if len(checks) != 2 || checks[0].Status != tc.want[0] || checks[1].Status != tc.want[1] || !strings.Contains(checks[0].Detail+checks[1].Detail, tc.detail) {
			t.Errorf("got %+v, want %v %q", checks, tc.want, tc.detail)
		}
	}
}

func TestStorageParsers(t *testing.T) {
	for number, status := range map[int64]Status{
		unix.EXT4_SUPER_MAGIC: OK, unix.XFS_SUPER_MAGIC: OK, unix.BTRFS_SUPER_MAGIC: OK, unix.TMPFS_MAGIC: Warn,
		unix.NFS_SUPER_MAGIC: Fail, unix.OVERLAYFS_SUPER_MAGIC: Fail, 0x2fc12fc1: Warn, // zfs
	} {
		wants(t, checkType("/x", number), status, "")
	}
	dir := t.TempDir()
	wants(t, checkSpace("disk", dir, 1, 1), OK, " free in "+dir)
	wants(t, checkSpace("disk", dir, 1<<62, 1), Warn, " free in "+dir)
	wants(t, checkSpace("disk", dir, 1<<62, 1<<62), Fail, " free in "+dir)
	wants(t, checkSpace("disk", "/nonexistent", 1, 1), Fail, "no such file")
	if got := existing(filepath.Join(dir, "a/b/c")); got != dir {
		t.Errorf("existing is %s", got)
	}
}

func TestForwardParser(t *testing.T) {
	const (
		accept = "-P INPUT ACCEPT\n-P FORWARD ACCEPT\n-P OUTPUT ACCEPT\n"
		drop   = "-P INPUT ACCEPT\n-P FORWARD DROP\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n"
		pass   = "-A DOCKER-USER -i bu0-+ -j ACCEPT\n"
		other  = "-A DOCKER-USER -i bu1-+ -j ACCEPT\n"
	)
	running := new(api.Version)
	for _, tc := range []struct {
		rules  string
		berthd *api.Version
		status Status
	}{
		{accept, nil, OK}, {accept, running, OK}, {drop, nil, OK}, {drop, running, Fail}, {drop + pass, running, OK}, {drop + other, running, Fail},
	} {
		n := &node{config: config.Default(), berthd: tc.berthd}
		wants(t, n.checkForward(tc.rules), tc.status, "forwarding is")
	}
}

func TestChainsParser(t *testing.T) {
	chain := func(family, table, name, hook, policy string) string {
		return fmt.Sprintf(`{"chain": {"family": %q, "table": %q, "name": %q, "handle": 1, "type": "filter", "hook": %q, "prio": 0, "policy": %q}}`, family, table, name, hook, policy)
	}
	list := func(chains ...string) []byte {
		return []byte(`{"nftables": [{"metainfo": {"version": "1.0.6"}}, ` + strings.Join(chains, ",") + `]}`)
	}
	wants(t, checkChains(list(chain("ip", "filter", "FORWARD", "forward", "drop"), chain("inet", "a", "in", "input", "drop"), chain("inet", "berth_0", "forward", "forward", "accept"))), OK, "no table")
	wants(t, checkChains(list(chain("inet", "guard", "fwd", "forward", "drop"))), Warn, "inet guard fwd")
	wants(t, checkChains([]byte("garbage")), Warn, "can not be read")
}

func TestLeftoversParser(t *testing.T) {
	const sockets = "Num RefCount Protocol Flags Type St Inode Path\n0000: 00000002 00000000 00010000 0001 01 123 @berth-network-b\n"
	links := []string{"lo", "eth0", "bridge0", "bond0", "bub-1", "bjb-1", "beb-1-0"}
	wants(t, checkLeftovers(links, sockets, "0")[0], OK, "no network devices")
	checks := checkLeftovers(append(links, "bu0-1", "bj0-1", "be0-1-2", "bux-3"), sockets, "0")
	if len(checks) != 2 {
		t.Fatalf("%+v", checks)
	}
	wants(t, checks[0], Warn, `3 network devices of instance "0"`)
	wants(t, checks[1], Warn, `1 network devices of instance "x"`)
	if !strings.HasPrefix(checks[0].Remedy, "Start berthd,") || !strings.Contains(checks[1].Remedy, `network.instance = "x"`) {
		t.Errorf("remedies %q and %q", checks[0].Remedy, checks[1].Remedy)
	}
}

func TestResolvConfParser(t *testing.T) {
	got := parseResolvConf("# comment\nsearch example.com\nnameserver 192.0.2.53\n nameserver 2001:db8::53 # two\noptions edns0\nnameserver\n")
	if !slices.Equal(got, []string{"192.0.2.53", "2001:db8::53"}) {
		t.Errorf("got %q", got)
	}
}

func TestSubnetsInUse(t *testing.T) {
	c := config.Default()
	n := &node{config: c}
	wants(t, n.subnets(), OK, "are free")
	c.Network.Uplinks = netip.MustParsePrefix("127.0.0.0/8")
	wants(t, n.subnets(), Fail, "network.uplinks (127.0.0.0/8) overlaps 127.0.0.0/8 of lo")
}

func TestRunnersParser(t *testing.T) {
	berth := filepath.Join(t.TempDir(), "berth")
	if err := os.WriteFile(berth, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	profiles := config.Default().Profiles
	good := strings.ReplaceAll(`
concurrent = 4
[[runners]]
  name = "docker"
  executor = "docker"
[[runners]]
  name = "one"
  executor = "custom"
  [runners.custom]
    config_exec = "BERTH"
    config_args = ["config"]
    prepare_exec = "BERTH"
    prepare_args = ["prepare"]
    run_exec = "BERTH"
    run_args = ["run"]
    cleanup_exec = "BERTH"
    cleanup_args = ["cleanup"]
    graceful_kill_timeout = 30
    force_kill_timeout = 10
`, "BERTH", berth)
	for _, tc := range []struct {
		name, from, to string
		status         Status
		detail         string
	}{
		{"good", "", "", OK, `runner "one" uses profile "default"`},
		{"not TOML", "[[runners]]", "[[runners", Fail, "/c.toml: toml: "},
		{"no berth", berth, "/usr/bin/other", Warn, "no runner of /c.toml uses berth"},
		{"not custom", `"custom"`, `"shell"`, Warn, "no runner of /c.toml uses berth"},
		{"call missing", `cleanup_exec = "` + berth + `"`, "", Fail, `cleanup_exec is ""`},
		{"wrong call", `["run"]`, `["cleanup"]`, Fail, `run_exec is "` + berth + `" with arguments ["cleanup"]`},
		{"no such program", `run_exec = "` + berth, `run_exec = "/nonexistent/berth`, Fail, "run_exec /nonexistent/berth is no program"},
		{"no such profile", `["prepare"]`, `["prepare", "--profile", "small"]`, Fail, `berthd has no profile "small"`},
		{"nor this one", `["prepare"]`, `["prepare", "--profile=large"]`, Fail, `berthd has no profile "large"`},
		{"no timeouts", "graceful_kill_timeout = 30", "", Warn, "ten minutes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			text := good
			if tc.from != "" {
				text = strings.ReplaceAll(good, tc.from, tc.to)
			}
			checks := checkRunners("/c.toml", text, profiles)
			if len(checks) != 1 {
				t.Fatalf("%+v", checks)
			}
			wants(t, checks[0], tc.status, tc.detail)
		})
	}
	t.Run("example", func(t *testing.T) {
		text, err := os.ReadFile("../config.toml.example")
		if err != nil {
			t.Fatal(err)
		}
		wants(t, checkRunners("/c.toml", strings.ReplaceAll(string(text), "/usr/local/bin/berth", berth), profiles)[0], OK, `runner "berth" uses profile "default"`)
	})
}
