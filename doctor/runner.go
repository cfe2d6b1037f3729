package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"gitlab.com/berth-ci/berth/executor"
)

// runnerConfig is what counts here of gitlab-runner's config.toml.
type runnerConfig struct {
	Runners []struct {
		Name     string       `toml:"name"`
		Executor string       `toml:"executor"`
		Custom   customConfig `toml:"custom"`
	} `toml:"runners"`
}

type customConfig struct {
	ConfigExec          string   `toml:"config_exec"`
	ConfigArgs          []string `toml:"config_args"`
	PrepareExec         string   `toml:"prepare_exec"`
	PrepareArgs         []string `toml:"prepare_args"`
	RunExec             string   `toml:"run_exec"`
	RunArgs             []string `toml:"run_args"`
	CleanupExec         string   `toml:"cleanup_exec"`
	CleanupArgs         []string `toml:"cleanup_args"`
	GracefulKillTimeout *int     `toml:"graceful_kill_timeout"`
	ForceKillTimeout    *int     `toml:"force_kill_timeout"`
}

// runner looks at gitlab-runner: its program, its configuration, its unit.
func (n *node) runner(context.Context) []Check {
	var checks []Check
	if path, err := exec.LookPath("gitlab-runner"); err != nil {
		checks = append(checks, warn("gitlab-runner", "Install it: https://docs.gitlab.com/runner/install/.", "not on the PATH"))
	} else {
		checks = append(checks, ok("gitlab-runner", "%s", path))
	}
	checks = append(checks, n.runnerProcesses()...)

	const name = "config.toml"
	text, err := os.ReadFile(n.RunnerConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return append(checks, warn(name, "Register a runner: gitlab-runner register --executor custom.", "there is no %s", n.RunnerConfig))
	}
	if err != nil {
		return append(checks, warn(name, "Run it as root.", "%v", err))
	}
	return append(checks, checkRunners(n.RunnerConfig, string(text), n.config.Profiles)...)
}

// checkRunners reads gitlab-runner's configuration.
func checkRunners(path, text string, profiles map[string]executor.Profile) []Check {
	const name = "config.toml"
	var config runnerConfig
	if _, err := toml.Decode(text, &config); err != nil {
		return []Check{fail(name, "Correct the file.", "%s: %v", path, err)}
	}
	var checks []Check
	for _, r := range config.Runners {
		c := r.Custom
		calls := []string{c.ConfigExec, c.PrepareExec, c.RunExec, c.CleanupExec}
		if r.Executor != "custom" || !slices.ContainsFunc(calls, isBerth) {
			continue
		}
		if problem, remedy := checkCustom(c, profiles); problem != "" {
			checks = append(checks, fail(name, remedy, "runner %q: %s", r.Name, problem))
			continue
		}
		if c.GracefulKillTimeout == nil || c.ForceKillTimeout == nil {
			checks = append(checks, warn(name, "Set graceful_kill_timeout = 30 and force_kill_timeout = 10 in [runners.custom].", "runner %q waits for ten minutes before it kills a cancelled job", r.Name))
			continue
		}
		checks = append(checks, ok(name, "runner %q uses profile %q", r.Name, profileOf(c.PrepareArgs)))
	}
	if checks == nil {
		return []Check{warn(name, "Give a runner executor = \"custom\" and a [runners.custom] as in Berth's config.toml.example.", "no runner of %s uses berth", path)}
	}
	return checks
}

// checkCustom says what is wrong with a runner's calls, and what to do.
func checkCustom(c customConfig, profiles map[string]executor.Profile) (problem, remedy string) {
	for _, call := range []struct {
		name, exec string
		args       []string
	}{
		{"config", c.ConfigExec, c.ConfigArgs},
		{"prepare", c.PrepareExec, c.PrepareArgs},
		{"run", c.RunExec, c.RunArgs},
		{"cleanup", c.CleanupExec, c.CleanupArgs},
	} {
		if !isBerth(call.exec) || len(call.args) == 0 || call.args[0] != call.name {
			return fmt.Sprintf("%s_exec is %q with arguments %q", call.name, call.exec, call.args),
				fmt.Sprintf("Set %[1]s_exec to the path of berth, and %[1]s_args = [%[1]q].", call.name)
		}
		if s, err := os.Stat(call.exec); err != nil || s.Mode()&0o111 == 0 {
			return fmt.Sprintf("%s_exec %s is no program", call.name, call.exec), "Name berth by its full path, such as /usr/local/bin/berth."
		}
	}
	if profile := profileOf(c.PrepareArgs); !hasKey(profiles, profile) {
		return fmt.Sprintf("berthd has no profile %q", profile), fmt.Sprintf("Add [profile.%s] to berthd's configuration, or name another by --profile.", profile)
	}
	return "", ""
}

func hasKey(profiles map[string]executor.Profile, name string) bool {
	_, ok := profiles[name]
	return ok
}

func isBerth(exec string) bool { return filepath.Base(exec) == "berth" }

// profileOf finds --profile NAME or --profile=NAME.
func profileOf(args []string) string {
	for i, arg := range args {
		if name, found := strings.CutPrefix(arg, "--profile="); found {
			return name
		}
		if arg == "--profile" && i+1 < len(args) {
			return args[i+1]
		}
	}
	return "default"
}

// runnerProcesses finds a gitlab-runner whose /tmp is not the node's: berthd
// tells by the directory there when the runner is through with a job.
func (n *node) runnerProcesses() []Check {
	host := mountNamespace(1)
	files, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil || host == "" {
		return nil
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(b)) != "gitlab-runner" {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(file, "/proc/%d/comm", &pid); err != nil {
			continue
		}
		if own := mountNamespace(pid); own != "" && own != host {
			return []Check{warn("mounts of gitlab-runner", "Set PrivateTmp=no and no other of systemd's mount options in its unit, and do not run it in a container.", "process %d has a mount namespace of its own, so that berthd does not see its files", pid)}
		}
	}
	return nil
}
