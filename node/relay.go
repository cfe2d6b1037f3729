package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/node/relay"
	"gitlab.com/berth-ci/berth/node/supervise"
)

// relaySockets are the Sockets of a relay process. It outlives berthd.
type relaySockets struct {
	*relay.Keeper
	supervisor *supervise.Supervisor
}

// relaySocket is where berthd hands over to its relay.
func relaySocket(c *config.Config) string { return filepath.Join(c.State, "relay.sock") }

// startRelay adopts or starts the relay, which is this program under another
// name. One of another build gives its sockets to a new one, and ends with the
// last of its streams.
func startRelay(ctx context.Context, c *config.Config, version string, log *logrus.Entry) (*relaySockets, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find berthd's own program: %w", err)
	}
	s := &relaySockets{Keeper: relay.NewKeeper(relaySocket(c))}
	s.supervisor = supervise.New(supervise.Program{
		Name:    "relay",
		Path:    program,
		Args:    []string{"relay", "--socket", relaySocket(c), "--log-level", c.LogLevel},
		Env:     os.Environ(),
		Dir:     "/",
		Ready:   s.Teach,
		PIDFile: filepath.Join(c.State, "relay.pid"),
		LogFile: filepath.Join(c.Root, "relay.log"),
	}, log)
	if err := s.supervisor.Start(ctx); err != nil {
		return nil, err
	}
	build, err := buildID(version)
	if err != nil {
		return nil, err
	}
	if v, err := s.Version(ctx); err == nil && v.Version == build {
		return s, nil
	}
	log.Info("replacing the relay of another berthd")
	if err := s.supervisor.Disown(); err != nil {
		return nil, err
	}
	return s, s.supervisor.Start(ctx)
}

// ServeRelay is the relay's process.
func ServeRelay(ctx context.Context, socket, version string, log *logrus.Entry) error {
	build, err := buildID(version)
	if err != nil {
		return err
	}
	return relay.Serve(ctx, relay.Options{Socket: socket, Version: build, Log: log})
}

// Release ends what is kept of a job.
func (s *relaySockets) Release(ctx context.Context, job string) error {
	return persist(ctx, func() error { return s.Keeper.Release(ctx, job) })
}
