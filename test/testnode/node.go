// Package testnode runs a node for tests, benchmarks and the demo: a real
// berthd with a containerd of its own below a scratch directory, images to
// run, and an outside in which a GitLab can listen as far away from the jobs
// as a real one is. When it stops, nothing of it is left, and it can tell at
// any time what jobs have left.
//
// It is no way to run berthd in production.
package testnode

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
	"gitlab.com/berth-ci/berth/test/runner"
)

// Config says what a node is made of.
type Config struct {
	Programs Programs
	// Images are those that jobs run. They stay open when the node stops.
	Images *images.Registry
	// Dir is where the node has its files; a temporary directory if empty.
	Dir string
	// Docker gives the node a docker daemon.
	Docker bool
	// Change, if set, changes berthd's configuration.
	Change func(*config.Config)
}

// Node is a running node.
type Node struct {
	Config *config.Config // berthd's
	Client *api.Client

	programs Programs
	dir      string
	lock     net.Listener
	outside  outside
	daemon   *daemon
}

// Missing says why no node can run here; empty means that one can.
func Missing() string {
	if os.Geteuid() != 0 {
		return "a node needs root"
	}
	if _, err := runtimeDir(); err != nil {
		return err.Error()
	}
	return ""
}

// Start starts a node. Several may run at once.
func Start(ctx context.Context, c Config) (_ *Node, err error) {
	n := &Node{programs: c.Programs}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start node: %w", err), n.Stop(context.WithoutCancel(ctx)))
		}
	}()
	number, lock, err := takeNumber()
	if err != nil {
		return nil, err
	}
	n.lock = lock
	if n.dir = c.Dir; n.dir == "" {
		if n.dir, err = os.MkdirTemp("", "berth-node"); err != nil {
			return nil, fmt.Errorf("make directory: %w", err)
		}
	}
	if err := n.configure(c, number); err != nil {
		return nil, err
	}
	n.Client = api.NewClient(n.Config.Socket)
	if n.outside, err = openOutside(filepath.Join(n.dir, "outside"), number); err != nil {
		return nil, err
	}
	return n, n.StartDaemon(ctx)
}

// takeNumber finds a number that no other node of this machine has. It is
// taken for as long as the listener is open, or the process lives.
func takeNumber() (int, net.Listener, error) {
	const most = 50
	for number := range most {
		l, err := net.Listen("unix", fmt.Sprintf("@berth-testnode-%d", number))
		if err != nil {
			continue
		}
		// A test that was killed may have left its berthd.
		network, err := net.Listen("unix", fmt.Sprintf("@berth-network-t%d", number))
		if err != nil {
			l.Close()
			continue
		}
		network.Close()
		return number, l, nil
	}
	return 0, nil, fmt.Errorf("all %d test nodes are in use", most)
}

// Program is the test runner's, which can stand in for gitlab-runner.
func (n *Node) Program() string { return n.programs.Runner }

// GitLab starts a stand-in GitLab outside of the node, reachable for jobs by
// their uplinks and for the runner by a link of its own.
func (n *Node) GitLab(opts ...gitlab.Option) (*gitlab.Server, error) {
	l, err := n.outside.listen()
	if err != nil {
		return nil, err
	}
	return gitlab.New(l, opts...)
}

// Runner is the configuration of a runner of a profile.
func (n *Node) Runner(profile, url, token string) runner.Runner {
	args := func(call string) []string {
		return []string{"--socket", n.Config.Socket, call, "--profile", profile}
	}
	berth := n.programs.Berth
	return runner.Runner{
		Name: profile, ID: 1, URL: url, Token: token, Executor: "custom",
		Custom: runner.Custom{
			ConfigExec: berth, ConfigArgs: args("config"),
			PrepareExec: berth, PrepareArgs: args("prepare"),
			RunExec: berth, RunArgs: args("run"),
			CleanupExec: berth, CleanupArgs: args("cleanup"),
			GracefulKillTimeout: 30, ForceKillTimeout: 10,
		},
		CustomBuildDir: runner.CustomBuildDir{Enabled: true},
	}
}

// Stop ends the node and removes everything of it. What berthd should have
// removed but did not is an error, and removed all the same.
func (n *Node) Stop(ctx context.Context) error {
	var errs []error
	if n.daemon != nil {
		errs = append(errs, n.StopDaemon(ctx))
	}
	if n.Config != nil {
		errs = append(errs, n.sweep(ctx))
	}
	errs = append(errs, n.outside.close())
	if n.dir != "" {
		errs = append(errs, os.RemoveAll(n.dir))
	}
	if n.lock != nil {
		n.lock.Close()
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop node: %w", err)
	}
	return nil
}
