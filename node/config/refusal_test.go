package config

import (
	"errors"
	"strings"
	"testing"
)

func TestRefusals(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		// want holds the problems, in order, each as ":LINE: KEY: the beginning".
		want []string
	}{
		{"not TOML", "root = \n", []string{`:1: root: expected value`}},
		{"key twice", "root = \"/a\"\nroot = \"/b\"", []string{`:2: root: Key 'root' has already been defined`}},

		{"unknown key", "[runtime]\nmanged = true", []string{`:2: runtime.manged: unknown key; did you mean "managed"?`}},
		{"unknown table", "[profiles.x]", []string{`: profiles: unknown key; did you mean "profile"?`}},
		{"unknown key far from all", "[network]\nzzzzzz = 1", []string{`:2: network.zzzzzz: unknown key; known are instance, mtu, pool, subnet, uplinks`}},
		{"key of another case", "Root = \"/x\"", []string{`:1: Root: unknown key; did you mean "root"?`}},
		{"unknown key in a profile", "[profile.a]\nimages = \"x\"", []string{`:2: profile.a.images: unknown key; did you mean "image"?`}},
		{"unknown key in egress", "[profile.a.egress]\nalow = []", []string{`:2: profile.a.egress.alow: unknown key; did you mean "allow"?`}},

		{"number for string", "root = 1", []string{`:1: root: expected a string, got 1`}},
		{"string for bool", "[runtime]\nmanaged = \"yes\"", []string{`:2: runtime.managed: expected true or false, got "yes"`}},
		{"string for int", "[network]\npool = \"4\"", []string{`:2: network.pool: expected a whole number, got "4"`}},
		{"float for int", "[profile.a]\npids = 1.5", []string{`:2: profile.a.pids: expected a whole number, got 1.5`}},
		{"string for float", "[profile.a]\ncpus = \"2\"", []string{`:2: profile.a.cpus: expected a number, got "2"`}},
		{"string for list", "[profile.a]\ndns = \"192.0.2.1\"", []string{`:2: profile.a.dns: expected a list of strings, such as ["a", "b"], got "192.0.2.1"`}},
		{"number in list", "[profile.a]\ndns = [\"192.0.2.1\", 4]", []string{`:2: profile.a.dns: expected a list of strings, such as ["a", "b"], got ["192.0.2.1",4]`}},
		{"value for table", "runtime = true", []string{`:1: runtime: expected a table, got true`}},
		{"value for profile", "[profile]\na = 1", []string{`:2: profile.a: expected a table, got 1`}},
		{"number in table of strings", "[profile.a.environment]\nA = 1", []string{`:2: profile.a.environment.A: expected a string, got 1`}},
		{"sysctl without quotes", "[profile.a.sysctls]\nnet.core.somaxconn = \"1\"", []string{`: profile.a.sysctls.net: expected a string, got a table: a name with dots in it has to be in quotes`}},
		{"duration without unit", "[profile.a]\nwait = 30", []string{`:2: profile.a.wait: expected a duration with a unit, got 30; did you mean "30s"?`}},
		{"not a duration", "[profile.a]\nwait = \"soon\"", []string{`:2: profile.a.wait: duration "soon": expected a number with a unit, such as 30s, 5m or 1h`}},
		{"negative duration", "[profile.a]\nwait_for_services = \"-1s\"", []string{`:2: profile.a.wait_for_services: duration "-1s": expected`}},
		{"not a size", "[profile.a]\nmemory = \"lots\"", []string{`:2: profile.a.memory: size "lots": expected a number with an optional unit, such as 512m or 4GiB`}},
		{"negative size", "[profile.a]\nshm_size = -1", []string{`:2: profile.a.shm_size: size "-1": expected`}},

		{"relative root", "root = \"berth\"", []string{`:1: root: expected an absolute path without . and .., got "berth"`}},
		{"root is /", "root = \"/\"", []string{`:1: root: expected a directory below /, got "/"`}},
		{"unclean state", "state = \"/run/../x\"", []string{`:1: state: expected an absolute path without`}},
		{"state is root", "root = \"/srv\"\nstate = \"/srv\"", []string{`:2: state: expected another directory than root`}},
		{"state too long", "state = \"/run/" + strings.Repeat("x", 90) + "\"\nsocket = \"/run/s\"", []string{`:1: state: expected a shorter path`}},
		{"socket too long", "socket = \"/run/" + strings.Repeat("x", 110) + "\"", []string{`:1: socket: expected a path of 101 bytes at most`}},
		{"group", "group = \"a b\"", []string{`:1: group: expected the name of a group, got "a b"`}},
		{"log level", "log_level = \"warn\"", []string{`:1: log_level: expected one of the known values, got "warn"; known are debug, error, info, trace, warning`}},
		{"log level typo", "log_level = \"ifno\"", []string{`:1: log_level: expected one of the known values, got "ifno"; did you mean "info"?`}},

		{"address of a managed runtime", "[runtime]\naddress = \"/run/c.sock\"", []string{`:2: runtime.address: expected managed = false beside it`}},
		{"relative address", "[runtime]\nmanaged = false\naddress = \"c.sock\"", []string{`:3: runtime.address: expected an absolute path`}},
		{"relative path", "[runtime]\npath = \"bin\"", []string{`:2: runtime.path: expected an absolute path`}},
		{"namespace", "[runtime]\nnamespace = \"a/b\"", []string{`:2: runtime.namespace: expected a name of letters, digits and single _.-, got "a/b"`}},
		{"snapshotter", "[runtime]\nsnapshotter = \"\"", []string{`:2: runtime.snapshotter: expected a name`}},

		{"not a prefix", "[network]\nsubnet = \"10.0.0.0\"", []string{`:2: network.subnet: expected an IPv4 prefix, such as "10.201.0.0/16", got "10.0.0.0"`}},
		{"subnet too small", "[network]\nsubnet = \"10.0.0.0/24\"", []string{`:2: network.subnet: expected an IPv4 prefix of /12 to /23, got 10.0.0.0/24`}},
		{"subnet IPv6", "[network]\nsubnet = \"2001:db8::/16\"", []string{`:2: network.subnet: expected an IPv4 prefix of /12 to /23`}},
		{"host bits", "[network]\nsubnet = \"10.201.0.1/16\"", []string{`:2: network.subnet: expected 10.201.0.0/16, got 10.201.0.1/16: bits of hosts are set`}},
		{"uplinks too small", "[network]\nuplinks = \"100.64.0.0/25\"", []string{`:2: network.uplinks: expected /24 or larger`}},
		{"overlap", "[network]\nuplinks = \"10.0.0.0/8\"", []string{`:2: network.uplinks: expected addresses outside of subnet 10.201.0.0/16, got 10.0.0.0/8`}},
		{"pool larger than subnet", "[network]\nsubnet = \"10.0.0.0/23\"\npool = 2", []string{`:3: network.pool: expected 0 to 1, the networks that subnet 10.0.0.0/23 holds, got 2`}},
		{"negative pool", "[network]\npool = -1", []string{`:2: network.pool: expected 0 to 255`}},
		{"mtu", "[network]\nmtu = 100", []string{`:2: network.mtu: expected 576 to 65535`}},
		{"instance", "[network]\ninstance = \"node1\"", []string{`:2: network.instance: expected one to four of a-z and 0-9, got "node1"`}},
		{"hosts_dir", "[registries]\nhosts_dir = \"certs.d\"", []string{`:2: registries.hosts_dir: expected an absolute path`}},
		{"docker_config", "[registries]\ndocker_config = \"~/.docker/config.json\"", []string{`:2: registries.docker_config: expected an absolute path`}},
		{"cgroup", "[limits]\ncgroup = \"/\"", []string{`:2: limits.cgroup: expected a directory below /`}},

		{"name of a profile", "[profile.GPU]", []string{`:1: profile.GPU: expected a name of a-z, 0-9, - and _, got "GPU"`}},
		{"many problems", "root = \"x\"\n[profile.a]\nwiat = \"1h\"\nconcurrent = -1\n[profile.b]\nmemory = true",
			[]string{`:1: root: `, `:3: profile.a.wiat: unknown key; did you mean "wait"?`, `:4: profile.a.concurrent: expected 0, for no limit, or more, got -1`, `:6: profile.b.memory: size "true"`}},
	} {
		t.Run(tc.name, func(t *testing.T) { refuses(t, tc.text, tc.want) })
	}
}

func TestProfileRefusals(t *testing.T) {
	for _, tc := range []struct{ line, want string }{
		{`image = "Debian:13"`, `image: expected an image, such as golang:1.26 or registry.example.com/group/app@sha256:…, got "Debian:13": `},
		{"image = \"debian:13\"\nallowed_images = [\"golang:*\"]", `image: expected an image that the profile itself allows: image "debian:13" is not allowed`},
		{`helper_image = ""`, `helper_image: expected an image`},
		{`helper_image = "helper:{tag}"`, `helper_image: expected no placeholders but {arch} and {version}, got "helper:{tag}"`},
		{`allowed_images = []`, `allowed_images: expected at least one pattern`},
		{`allowed_images = ["**", "[a"]`, `allowed_images[1]: expected a pattern, such as registry.example.com/** or {golang,node}:*, got "[a"`},
		{`allowed_services = [""]`, `allowed_services[0]: expected a pattern`},
		{`privileged_images = ["{a"]`, `privileged_images[0]: expected a pattern`},
		{`privileged_services = ["[]a"]`, `privileged_services[0]: expected a pattern`},
		{`pull_policy = []`, `pull_policy: expected at least one of always, if-not-present, never`},
		{`pull_policy = ["allways"]`, `pull_policy[0]: expected one of the known values, got "allways"; did you mean "always"?`},
		{`allowed_pull_policies = ["always", "sometimes"]`, `allowed_pull_policies[1]: expected one of the known values, got "sometimes"`},
		{"allowed_pull_policies = [\"never\"]", `pull_policy[0]: expected one of allowed_pull_policies (never), got "always"`},
		{`credential_helpers = ["../sh"]`, `credential_helpers[0]: expected the end of the name of a docker-credential-… program`},
		{`concurrent = -1`, `concurrent: expected 0`},
		{`pids = -1`, `pids: expected 0`},
		{`cpus = -1.0`, `cpus: expected a number of cpus from 0.01, or 0 for no limit, got -1`},
		{`cpus = nan`, `cpus: expected a number of cpus`},
		{`cpus_max = inf`, `cpus_max: expected a number of cpus`},
		{"cpus = 4\ncpus_max = 2", `cpus_max: expected cpus (4) or more, got 2`},
		{`memory = "1m"`, `memory: expected 6MiB or more, without which no container starts, got 1MiB`},
		{"memory = \"2g\"\nmemory_max = \"1g\"", `memory_max: expected memory (2GiB) or more, got 1GiB`},
		{`shm_size_max = "32m"`, `shm_size_max: expected shm_size (64MiB) or more, got 32MiB`},
		{`cap_add = ["NET_ADMN"]`, `cap_add[0]: expected a capability, such as NET_ADMIN or CAP_SYS_PTRACE, or ALL, got "NET_ADMN"; did you mean "NET_ADMIN"?`},
		{`cap_drop = [""]`, `cap_drop[0]: expected a capability`},
		{`devices = ["/etc/passwd"]`, `devices[0]: expected /dev/HOST[:/dev/CONTAINER[:rwm]], got "/etc/passwd"`},
		{`devices = ["/dev/../etc/passwd"]`, `devices[0]: expected /dev/HOST`},
		{`devices = ["/dev/a:rw"]`, `devices[0]: expected /dev/HOST`},
		{`devices = ["/dev/a:/dev/b:x"]`, `devices[0]: expected /dev/HOST`},
		{`devices = ["/dev/a:/dev/b:r:w"]`, `devices[0]: expected /dev/HOST`},
		{`ulimits = { files = "1" }`, `ulimits.files: expected a limit and a value, such as nofile = "1024:4096", got "files = \"1\"": invalid ulimit type: files`},
		{`ulimits = { nofile = "10:5" }`, `ulimits.nofile: expected a limit and a value`},
		{`ulimits = { nofile = "many" }`, `ulimits.nofile: expected a limit and a value`},
		{`sysctls = { "kernel.hostname" = "x" }`, `sysctls."kernel.hostname": expected net.*, kernel.shm*, kernel.msg*, kernel.sem or fs.mqueue.*, which a container has of its own, got "kernel.hostname"`},
		{`sysctls = { "vm.swappiness" = "1" }`, `sysctls."vm.swappiness": expected net.*`},
		{`sysctls = { "net.a/../../kernel/core_pattern" = "1" }`, `sysctls."net.a/../../kernel/core_pattern": expected net.*`},
		{`sysctls = { "net.core.somaxconn" = "" }`, `sysctls."net.core.somaxconn": expected a value of one line`},
		{`tmpfs = { "tmp" = "" }`, `tmpfs.tmp: expected an absolute path`},
		{`tmpfs = { "/tmp" = "rw,bind" }`, `tmpfs."/tmp": expected options, such as rw,noexec,size=64m, got "rw,bind": "bind" is not an option of tmpfs`},
		{`tmpfs = { "/tmp" = "size=big" }`, `tmpfs."/tmp": expected options`},
		{`extra_hosts = ["mirror"]`, `extra_hosts[0]: expected NAME:ADDRESS, such as mirror.example.com:192.0.2.7, got "mirror"`},
		{`extra_hosts = ["a b:192.0.2.7"]`, `extra_hosts[0]: expected NAME:ADDRESS`},
		{`dns = ["ns.example.com"]`, `dns[0]: expected an address, such as 192.0.2.53, got "ns.example.com"`},
		{`dns_search = ["-x"]`, `dns_search[0]: expected a domain`},
		{`mounts = ["/srv"]`, `mounts[0]: expected /host/path:/container/path[:ro|rw], got "/srv"`},
		{`mounts = ["srv:/srv"]`, `mounts[0]: expected /host/path`},
		{`mounts = ["/srv:/"]`, `mounts[0]: expected /host/path`},
		{`mounts = ["/srv:/srv:rx"]`, `mounts[0]: expected /host/path`},
		{`user = "a:b:c"`, `user: expected a user, such as 1000, 1000:1000 or name:group, got "a:b:c"`},
		{`environment = { "A B" = "x" }`, `environment."A B": expected a name of letters, digits and _, got "A B"`},
		{`environment = { A = "x\u0000" }`, `environment.A: expected a value without NUL bytes`},
		{`egress = { node = ["5000"] }`, `egress.node[0]: expected a port, such as tcp/443 or udp/6000-6010, got "5000"`},
		{`egress = { node = ["tcp/0"] }`, `egress.node[0]: expected a port`},
		{`egress = { node = ["tcp/9-8"] }`, `egress.node[0]: expected a port`},
		{`egress = { allow = ["example.com"] }`, `egress.allow[0]: expected an IPv4 address or prefix and perhaps a port, such as 10.0.0.0/8 or 192.0.2.7 tcp/443, got "example.com"`},
		{`egress = { deny = ["2001:db8::/32"] }`, `egress.deny[0]: expected an IPv4 address`},
		{`egress = { deny = ["10.0.0.0/8 icmp/1"] }`, `egress.deny[0]: expected an IPv4 address`},
		{`egress = { default = "drop" }`, `egress.default: expected one of the known values, got "drop"; known are allow, deny`},
	} {
		t.Run(tc.line, func(t *testing.T) {
			refuses(t, "[profile.a]\n"+tc.line, []string{": profile.a." + tc.want})
		})
	}
}

// refuses checks that a text has exactly these problems. The part of the
// line's number may be left out.
func refuses(t *testing.T, text string, want []string) {
	t.Helper()
	c, err := Parse("f", []byte(text))
	if err == nil {
		t.Fatalf("accepted: %+v", c)
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("not joined: %v", err)
	}
	got := joined.Unwrap()
	if len(got) != len(want) {
		t.Fatalf("%d problems, want %d:\n%v", len(got), len(want), err)
	}
	for i, err := range got {
		var problem *Error
		if !errors.As(err, &problem) {
			t.Fatalf("%T: %v", err, err)
		}
		text := strings.TrimPrefix(err.Error(), "f")
		if strings.HasPrefix(want[i], ": ") {
			text = ": " + problem.Key + ": " + problem.Problem
		} else if problem.Line == 0 {
			t.Errorf("no line: %v", err)
		}
		if !strings.HasPrefix(text, want[i]) {
			t.Errorf("got  %s\nwant %s", text, want[i])
		}
	}
}
