// Package doctor examines a node: whether its kernel, disk, network and
// programs are what Berth needs, and whether berthd and gitlab-runner are set
// up to work together. Every finding says how to mend it. It changes nothing:
// what it tries, it tries in namespaces of its own and in a scratch directory.
package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/config"
)

// Status of a check.
type Status string

// Jobs may fail with a warning; with a failure they will.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Check is one finding.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	Detail string `json:"detail"`
	// Remedy is what to do about it, in a sentence.
	Remedy string `json:"remedy,omitempty"`
}

// Options say what to examine. Zero values mean the usual places.
type Options struct {
	// Config is berthd's configuration file.
	Config string
	// Socket of berthd, if it is not the one that Config names.
	Socket string
	// Version of berth, to compare with berthd's.
	Version string
	// RunnerConfig is gitlab-runner's configuration file.
	RunnerConfig string
	// Timeout of each check that waits for something; 5 seconds if zero.
	Timeout time.Duration
}

// node is what the checks look at.
type node struct {
	Options
	config *config.Config
	// berthd's answer, nil if there is none.
	berthd *api.Version
}

// Run makes all checks. It needs root for most of them.
func Run(ctx context.Context, o Options) []Check {
	if o.Config == "" {
		o.Config = config.DefaultPath
	}
	if o.RunnerConfig == "" {
		o.RunnerConfig = "/etc/gitlab-runner/config.toml"
	}
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	n := &node{Options: o}
	var checks []Check
	for _, examine := range []func(context.Context) []Check{
		n.user,
		n.configuration, // the next ones need to know it
		n.daemon,
		n.kernel,
		n.cgroups,
		n.security,
		n.storage,
		n.clock,
		n.programs,
		n.containerd,
		n.docker,
		n.network,
		n.firewall,
		n.leftovers,
		n.gpus,
		n.nameservers,
		n.runner,
	} {
		checks = append(checks, examine(ctx)...)
	}
	return checks
}

// Failed tells whether any check failed.
func Failed(checks []Check) bool {
	for _, c := range checks {
		if c.Status == Fail {
			return true
		}
	}
	return false
}

func ok(name, format string, args ...any) Check {
	return Check{Name: name, Status: OK, Detail: fmt.Sprintf(format, args...)}
}

func warn(name, remedy, format string, args ...any) Check {
	return Check{Name: name, Status: Warn, Detail: fmt.Sprintf(format, args...), Remedy: remedy}
}

func fail(name, remedy, format string, args ...any) Check {
	return Check{Name: name, Status: Fail, Detail: fmt.Sprintf(format, args...), Remedy: remedy}
}

func (n *node) user(context.Context) []Check {
	if uid := os.Geteuid(); uid != 0 {
		return []Check{fail("user", "Run it as root: sudo berth doctor.", "uid %d can not try what berthd does as root; the findings below may be wrong", uid)}
	}
	return []Check{ok("user", "root")}
}

// existing is the nearest directory upwards that there is.
func existing(dir string) string {
	for {
		if s, err := os.Stat(dir); err == nil && s.IsDir() || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}
