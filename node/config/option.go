package config

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/pkg/cap"
	"github.com/docker/go-units"
)

// The tests of this file know the syntax of what docker calls options of a
// container.

var (
	hostPattern   = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?$`)
	devicePattern = regexp.MustCompile(`^[rwm]{1,3}$`)
	sysctlName    = regexp.MustCompile(`^[a-z0-9_]+(\.[A-Za-z0-9_/-]+)+$`)
	tmpfsFlags    = []string{"ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "dirsync", "atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime"}
	tmpfsValue    = map[string]*regexp.Regexp{
		"size":      regexp.MustCompile(`^[0-9]+[kmgKMG%]?$`),
		"nr_blocks": regexp.MustCompile(`^[0-9]+[kmgKMG]?$`),
		"nr_inodes": regexp.MustCompile(`^[0-9]+[kmgKMG]?$`),
		"mode":      regexp.MustCompile(`^[0-7]{3,4}$`),
		"uid":       regexp.MustCompile(`^[0-9]+$`),
		"gid":       regexp.MustCompile(`^[0-9]+$`),
	}
)

func capability(name string) error {
	upper := strings.ToUpper(name)
	if upper == "ALL" || slices.Contains(cap.Known(), "CAP_"+strings.TrimPrefix(upper, "CAP_")) {
		return nil
	}
	var known []string
	for _, c := range cap.Known() {
		known = append(known, strings.TrimPrefix(c, "CAP_"))
	}
	hint := suggest(strings.TrimPrefix(upper, "CAP_"), slices.Values(known))
	return fmt.Errorf("%w%s", expect("a capability, such as NET_ADMIN or CAP_SYS_PTRACE, or ALL", name), hint)
}

func device(s string) error {
	parts := strings.Split(s, ":")
	ok := len(parts) <= 3
	for i, part := range parts {
		if i == 2 {
			ok = ok && devicePattern.MatchString(part)
		} else {
			ok = ok && strings.HasPrefix(part, "/dev/") && absolute(part) == nil
		}
	}
	if !ok {
		return expect("/dev/HOST[:/dev/CONTAINER[:rwm]]", s)
	}
	return nil
}

func mount(s string) error {
	parts := strings.Split(s, ":")
	ok := len(parts) == 2 || len(parts) == 3 && (parts[2] == "ro" || parts[2] == "rw")
	if !ok || absolute(parts[0]) != nil || directory(parts[1]) != nil {
		return expect("/host/path:/container/path[:ro|rw]", s)
	}
	return nil
}

func ulimit(name, value string) error {
	if _, err := units.ParseUlimit(name + "=" + value); err != nil {
		return fmt.Errorf(`%w: %w`, expect(`a limit and a value, such as nofile = "1024:4096"`, name+" = "+strconv.Quote(value)), err)
	}
	return nil
}

// sysctl accepts what belongs to a namespace of the container. All others
// would change the node.
func sysctl(name, value string) error {
	slashes := strings.ReplaceAll(name, "/", ".")
	own := slashes == "kernel.sem"
	for _, prefix := range []string{"net.", "kernel.shm", "kernel.msg", "fs.mqueue."} {
		own = own || strings.HasPrefix(slashes, prefix)
	}
	if !own || !sysctlName.MatchString(name) {
		return expect("net.*, kernel.shm*, kernel.msg*, kernel.sem or fs.mqueue.*, which a container has of its own", name)
	}
	if value == "" || strings.ContainsAny(value, "\n\x00") {
		return expect("a value of one line", value)
	}
	return nil
}

func tmpfs(target, options string) error {
	if err := directory(target); err != nil {
		return err
	}
	if options == "" {
		return nil
	}
	for option := range strings.SplitSeq(options, ",") {
		key, value, valued := strings.Cut(option, "=")
		if valued && tmpfsValue[key] != nil && tmpfsValue[key].MatchString(value) || !valued && slices.Contains(tmpfsFlags, key) {
			continue
		}
		return fmt.Errorf("%w: %q is not an option of tmpfs", expect("options, such as rw,noexec,size=64m", options), option)
	}
	return nil
}

func extraHost(s string) error {
	name, addr, _ := strings.Cut(s, ":")
	if _, err := netip.ParseAddr(strings.Trim(addr, "[]")); err != nil || !hostPattern.MatchString(name) {
		return expect("NAME:ADDRESS, such as mirror.example.com:192.0.2.7", s)
	}
	return nil
}

func address(s string) error {
	if _, err := netip.ParseAddr(s); err != nil {
		return expect("an address, such as 192.0.2.53", s)
	}
	return nil
}

func domain(s string) error {
	if !hostPattern.MatchString(s) {
		return expect("a domain, such as example.com", s)
	}
	return nil
}

func variable(name, value string) error {
	if !variablePattern.MatchString(name) {
		return expect("a name of letters, digits and _", name)
	}
	if strings.Contains(value, "\x00") {
		return expect("a value without NUL bytes", value)
	}
	return nil
}

// port and destination keep in step with node/network.
func port(s string) error {
	proto, span, _ := strings.Cut(s, "/")
	first, last, ranged := strings.Cut(span, "-")
	if !ranged {
		last = first
	}
	low, err1 := strconv.ParseUint(first, 10, 16)
	high, err2 := strconv.ParseUint(last, 10, 16)
	if proto != "tcp" && proto != "udp" || err1 != nil || err2 != nil || low == 0 || low > high {
		return expect("a port, such as tcp/443 or udp/6000-6010", s)
	}
	return nil
}

func destination(s string) error {
	fields := strings.Fields(s)
	if len(fields) == 0 || len(fields) > 2 || !ipv4(fields[0]) || len(fields) == 2 && port(fields[1]) != nil {
		return expect("an IPv4 address or prefix and perhaps a port, such as 10.0.0.0/8 or 192.0.2.7 tcp/443", s)
	}
	return nil
}

func ipv4(s string) bool {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Is4()
	}
	p, err := netip.ParsePrefix(s)
	return err == nil && p.Addr().Is4()
}
