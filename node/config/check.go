package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/containerd/containerd/v2/pkg/identifiers"
)

// maxSocket is how long the path of a unix socket can be. containerd listens
// on one more, with ".ttrpc" at its end.
const maxSocket = 107 - len(".ttrpc")

var (
	logLevels       = []string{"error", "warning", "info", "debug", "trace"}
	namePattern     = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)
	instancePattern = regexp.MustCompile(`^[a-z0-9]{1,4}$`)
	groupPattern    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)
)

func (d *document) checkConfig(c *Config) {
	d.check("root", c.Root, directory)
	d.check("state", c.State, directory)
	if c.Root == c.State {
		d.refuse("state", "expected another directory than root, got %q for both: state is lost when the host boots, root is kept", c.State)
	}
	d.check("socket", c.Socket, socket)
	if c.Group != "" {
		d.check("group", c.Group, matches(groupPattern, "the name of a group"))
	}
	d.check("log_level", c.LogLevel, oneOf(logLevels...))
	d.checkRuntime(c)
	d.checkNetwork(c.Network)
	d.checkDocker(c)
	d.check("registries.hosts_dir", c.Registries.HostsDir, absolute)
	d.check("registries.docker_config", c.Registries.DockerConfig, absolute)
	d.check("limits.cgroup", c.Limits.Cgroup, directory)
	d.checkCache(c.Cache)
	if c.GPU.Program != "" {
		d.check("gpu.program", c.GPU.Program, absolute)
	}
	d.check("gpu.driver_root", c.GPU.DriverRoot, absolute)
	for name, p := range c.Profiles {
		key := join("profile", name)
		d.checkProfile(key, name, p)
		if !namePattern.MatchString(name) {
			d.refuse(key, "expected a name of a-z, 0-9, - and _, got %q", name)
		}
	}
}

func (d *document) checkCache(c Cache) {
	if c.Rollback < 0 {
		d.refuse("cache.rollback", "expected 0 or more generations to keep before the newest, got %d", c.Rollback)
	}
	for name, share := range c.Shares {
		if share < 1 {
			d.refuse(join("cache.shares", name), "expected 1 or more, the share of a project that is not named, got %d", share)
		}
	}
}

func (d *document) checkRuntime(c *Config) {
	r := c.Runtime
	d.check("runtime.path", r.Path, absolute)
	d.check("runtime.namespace", r.Namespace, identifier)
	d.check("runtime.snapshotter", r.Snapshotter, identifier)
	switch own := filepath.Join(c.State, "containerd", "containerd.sock"); {
	case !r.Managed:
		d.check("runtime.address", r.Address, socket)
	case r.Address != "":
		d.refuse("runtime.address", "expected managed = false beside it: a managed runtime has a socket of its own, below state")
	case len(own) > maxSocket:
		d.refuse("state", "expected a shorter path: the socket %s is %d bytes long, %d are possible", own, len(own), maxSocket)
	}
}

// checkNetwork keeps in step with what node/network can use.
func (d *document) checkNetwork(n Network) {
	subnet, uplinks := d.checkPrefix("network.subnet", n.Subnet, 12, 23), d.checkPrefix("network.uplinks", n.Uplinks, 1, 31)
	if subnet && uplinks {
		if most := n.Subnet.Bits() + 8; n.Uplinks.Bits() > most {
			d.refuse("network.uplinks", "expected /%d or larger, an address for each /24 of subnet %v, got %v", most, n.Subnet, n.Uplinks)
		}
		if n.Subnet.Overlaps(n.Uplinks) {
			d.refuse("network.uplinks", "expected addresses outside of subnet %v, got %v", n.Subnet, n.Uplinks)
		}
	}
	if subnet {
		if most := 1<<(24-n.Subnet.Bits()) - 1; n.Pool < 0 || n.Pool > most {
			d.refuse("network.pool", "expected 0 to %d, the networks that subnet %v holds, got %d", most, n.Subnet, n.Pool)
		}
	}
	if n.MTU != 0 && (n.MTU < 576 || n.MTU > 65535) {
		d.refuse("network.mtu", "expected 576 to 65535, or 0 for that of the default route, got %d", n.MTU)
	}
	d.check("network.instance", n.Instance, matches(instancePattern, "one to four of a-z and 0-9"))
}

func (d *document) checkDocker(c *Config) {
	k := c.Docker
	own := filepath.Join(c.State, "docker", "daemon", "dockerd.sock")
	switch {
	case !k.Managed:
		d.check("docker.address", k.Address, socket)
	case k.Address != "":
		d.refuse("docker.address", "expected managed = false beside it: a managed dockerd has a socket of its own, below state")
	case k.Enabled && len(own) > maxSocket:
		d.refuse("state", "expected a shorter path: the socket %s is %d bytes long, %d are possible", own, len(own), maxSocket)
	}
	if len(d.problems) > 0 || !d.checkPrefix("docker.networks", k.Networks, 8, 24) {
		return // what it is compared with is to be trusted
	}
	for name, other := range map[string]netip.Prefix{"subnet": c.Network.Subnet, "uplinks": c.Network.Uplinks} {
		if k.Networks.Overlaps(other) {
			d.refuse("docker.networks", "expected addresses outside of network.%s %v, got %v", name, other, k.Networks)
		}
	}
}

func (d *document) checkPrefix(key string, p netip.Prefix, least, most int) bool {
	switch {
	case !p.Addr().Is4() || p.Bits() < least || p.Bits() > most:
		d.refuse(key, "expected an IPv4 prefix of /%d to /%d, got %v", least, most, p)
	case p != p.Masked():
		d.refuse(key, "expected %v, got %v: bits of hosts are set", p.Masked(), p)
	default:
		return true
	}
	return false
}

// check refuses a value that the test returns an error for.
func (d *document) check(key, value string, test func(string) error) {
	if err := test(value); err != nil {
		d.refuse(key, "%v", err)
	}
}

func expect(what, got string) error { return fmt.Errorf("expected %s, got %q", what, got) }

func absolute(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return expect("an absolute path without . and ..", path)
	}
	return nil
}

func directory(path string) error {
	if path == "/" {
		return expect("a directory below /", path)
	}
	return absolute(path)
}

func socket(path string) error {
	if len(path) > maxSocket {
		return expect(fmt.Sprintf("a path of %d bytes at most, as sockets have to have", maxSocket), path)
	}
	return directory(path)
}

func identifier(s string) error {
	if identifiers.Validate(s) != nil {
		return expect("a name of letters, digits and single _.-", s)
	}
	return nil
}

func matches(p *regexp.Regexp, what string) func(string) error {
	return func(s string) error {
		if !p.MatchString(s) {
			return expect(what, s)
		}
		return nil
	}
}

func oneOf(known ...string) func(string) error {
	return func(s string) error {
		if !slices.Contains(known, s) {
			return fmt.Errorf("%w%s", expect("one of the known values", s), suggest(s, slices.Values(known)))
		}
		return nil
	}
}
