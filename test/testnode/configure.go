package testnode

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/test/images"
)

// configure writes berthd's configuration.
func (n *Node) configure(c Config, number int) error {
	runtime, err := runtimeDir()
	if err != nil {
		return err
	}
	b := config.Default()
	b.Root, b.State = filepath.Join(n.dir, "root"), filepath.Join(n.dir, "state")
	b.Socket = filepath.Join(b.State, "berthd.sock")
	b.LogLevel = "debug"
	b.Runtime.Path = runtime
	b.Network.Instance = fmt.Sprintf("t%d", number)
	b.Network.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(200 + number), 0, 0}), 18)
	b.Network.Uplinks = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(64 + number), 0, 0}), 24)
	// Neither the host's mirrors nor its logins.
	b.Registries.HostsDir = filepath.Join(n.dir, "certs.d")
	b.Registries.DockerConfig = filepath.Join(n.dir, "docker.json")
	b.Docker.Enabled = c.Docker
	b.Docker.Networks = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(200 + number), 64, 0}), 18)
	b.Limits.Cgroup = fmt.Sprintf("/berth-test-%d", number)
	b.Profiles = map[string]executor.Profile{"default": Profile(c.Images)}
	if c.Change != nil {
		c.Change(b)
	}
	n.Config = b
	text, err := toml.Marshal(b)
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if err := nameRegistries(b.Registries.HostsDir, c.Images); err != nil {
		return err
	}
	return os.WriteFile(n.configFile(), text, 0o600)
}

// nameRegistries names the registry of the test for berthd as operators do:
// it is on the node's loopback, where jobs have none of their own business.
func nameRegistries(dir string, r *images.Registry) error {
	for _, address := range []string{r.Address, r.PrivateAddress, r.TokenAddress} {
		own := filepath.Join(dir, address)
		if err := os.MkdirAll(own, 0o755); err != nil {
			return fmt.Errorf("name registry: %w", err)
		}
		if err := os.WriteFile(filepath.Join(own, "hosts.toml"), []byte("server = \"http://"+address+"\"\n"), 0o644); err != nil {
			return fmt.Errorf("name registry: %w", err)
		}
	}
	return nil
}

func (n *Node) configFile() string { return filepath.Join(n.dir, "berthd.toml") }

// Profile is what jobs of a node may have unless told otherwise: everything,
// with images that are on the node already pulled no more.
func Profile(r *images.Registry) executor.Profile {
	p := executor.DefaultProfile()
	p.Image, p.HelperImage = r.Image(images.Git), r.Image(images.Git)
	p.PullPolicy = []string{executor.PullIfNotPresent}
	p.Wait = executor.Duration(time.Minute)
	return p
}

// ours tells whether a text names something of the node's on the host.
func (n *Node) ours(text string) bool {
	for _, name := range []string{n.dir + "/", n.Config.Limits.Cgroup + "/"} {
		if strings.Contains(text, name) {
			return true
		}
	}
	return false
}
