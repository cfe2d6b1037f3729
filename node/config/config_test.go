package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"gitlab.com/berth-ci/berth/executor"
)

var equal = cmp.Options{
	cmpopts.EquateEmpty(),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func TestEmptyFileIsDefault(t *testing.T) {
	c, err := Parse("berthd.toml", nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), c, equal); diff != "" {
		t.Errorf("(-default +empty file)\n%s", diff)
	}
	if c.Socket != "/run/berth/berthd.sock" || !strings.HasSuffix(c.Runtime.Path, "/libexec/berth") {
		t.Errorf("socket %q, path %q", c.Socket, c.Runtime.Path)
	}
}

const example = "../berthd.toml.example"

// commented is a key with its default, or the example's own tables.
var commented = regexp.MustCompile(`(?m)^#([a-z_]+ = .*)$`)

func TestExampleIsDefault(t *testing.T) {
	text, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"as it is":    text,
		"uncommented": commented.ReplaceAll(text, []byte("$1")),
	} {
		c, err := Parse(example, text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(Default(), c, equal); diff != "" {
			t.Errorf("%s (-default +example)\n%s", name, diff)
		}
	}
}

// TestExampleHasEveryKey finds each key of the structs in its table of the
// example, below at least one line that explains.
func TestExampleHasEveryKey(t *testing.T) {
	text, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	table := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			table = strings.Trim(line, "[]") + "."
		} else if m := commented.FindStringSubmatch(line); m != nil {
			key, _, _ := strings.Cut(m[1], " ")
			documented[table+key] = true
		}
	}
	var walk func(prefix string, of reflect.Type)
	walk = func(prefix string, of reflect.Type) {
		for i := range of.NumField() {
			field := of.Field(i)
			key := prefix + field.Tag.Get("toml")
			switch {
			case field.Type == reflect.TypeFor[map[string]executor.Profile]():
				walk(key+".default.", reflect.TypeFor[executor.Profile]())
			case field.Type.Kind() == reflect.Struct && field.Type != reflect.TypeFor[netip.Prefix]():
				walk(key+".", field.Type)
			case !documented[key]:
				t.Errorf("%s has no line #%s = … in %s", key, field.Tag.Get("toml"), example)
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
}

func TestParse(t *testing.T) {
	c, err := Parse("berthd.toml", []byte(`
state = "/run/other"
[runtime]
managed = false
[network]
subnet = "10.9.0.0/20"
uplinks = "100.65.0.0/24"
[profile.small]
image = "debian:13"
concurrent = 2
cpus = 2
memory = "512m"
memory_max = 1073741824
wait = "90s"
devices = ["/dev/kvm", "/dev/sdx:/dev/disk:r"]
mounts = ["/srv/data:/data:ro"]
extra_hosts = ["mirror.example.com:192.0.2.7", "six:[2001:db8::1]"]
ulimits = { nofile = "1024:4096" }
sysctls = { "net.core.somaxconn" = "1024" }
tmpfs = { "/tmp" = "rw,noexec,size=1g", "/scratch" = "" }
cap_add = ["net_admin", "CAP_SYS_PTRACE"]
environment = { HTTP_PROXY = "http://192.0.2.1:3128" }
[profile.small.egress]
node = ["tcp/5000", "udp/6000-6010"]
allow = ["192.0.2.7 tcp/443"]
deny = ["10.0.0.0/8"]
[profile."gpu_a100"]
`))
	if err != nil {
		t.Fatal(err)
	}
	if c.Socket != "/run/other/berthd.sock" || c.Runtime.Address != HostContainerd {
		t.Errorf("socket %q, address %q", c.Socket, c.Runtime.Address)
	}
	if diff := cmp.Diff(executor.DefaultProfile(), c.Profiles["gpu_a100"]); diff != "" {
		t.Errorf("an empty profile is not the default\n%s", diff)
	}
	small := c.Profiles["small"]
	if small.Memory != 512<<20 || small.MemoryMax != 1<<30 || small.Wait != executor.Duration(90*time.Second) || small.CPUs != 2 {
		t.Errorf("quantities: %+v", small)
	}
	if small.Egress.Default != "allow" || len(small.AllowedImages) != 1 || small.PIDs != 8192 {
		t.Errorf("defaults that the profile does not state are lost: %+v", small)
	}
	if _, ok := c.Profiles["default"]; ok {
		t.Error("a default profile beside the given ones")
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "berthd.toml")
	if _, err := Load(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(path, []byte("root = 1\n\nstate = 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Load(path)
	want := path + ":1: root: expected a string, got 1\n" + path + ":3: state: expected a string, got 2"
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}
