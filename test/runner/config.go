package runner

import (
	"fmt"
	"os"
	"time"

	"github.com/BurntSushi/toml"

	"gitlab.com/berth-ci/berth/test/runner/job"
)

// Config is the part of gitlab-runner's config.toml that the driver knows, so
// that the same file serves both programs.
type Config struct {
	Concurrent    int      `toml:"concurrent"`
	CheckInterval int      `toml:"check_interval"` // seconds
	Runners       []Runner `toml:"runners"`
}

// Runner is one [[runners]] of the file.
type Runner struct {
	Name           string          `toml:"name"`
	URL            string          `toml:"url"`
	CloneURL       string          `toml:"clone_url,omitempty"`
	ID             int             `toml:"id"`
	Token          string          `toml:"token"`
	Executor       string          `toml:"executor"` // custom or docker
	BuildsDir      string          `toml:"builds_dir,omitempty"`
	CacheDir       string          `toml:"cache_dir,omitempty"`
	Environment    []string        `toml:"environment,omitempty"`
	OutputLimit    int             `toml:"output_limit,omitempty"` // KiB
	FeatureFlags   map[string]bool `toml:"feature_flags,omitempty"`
	CustomBuildDir CustomBuildDir  `toml:"custom_build_dir"`
	Custom         Custom          `toml:"custom"`
	Docker         *Docker         `toml:"docker,omitempty"`
}

// CustomBuildDir allows GIT_CLONE_PATH.
type CustomBuildDir struct {
	Enabled bool `toml:"enabled"`
}

// Custom are the programs of the custom executor; time-outs in seconds.
type Custom struct {
	ConfigExec  string   `toml:"config_exec,omitempty"`
	ConfigArgs  []string `toml:"config_args,omitempty"`
	PrepareExec string   `toml:"prepare_exec,omitempty"`
	PrepareArgs []string `toml:"prepare_args,omitempty"`
	RunExec     string   `toml:"run_exec,omitempty"`
	RunArgs     []string `toml:"run_args,omitempty"`
	CleanupExec string   `toml:"cleanup_exec,omitempty"`
	CleanupArgs []string `toml:"cleanup_args,omitempty"`

	ConfigExecTimeout   int `toml:"config_exec_timeout,omitempty"`
	PrepareExecTimeout  int `toml:"prepare_exec_timeout,omitempty"`
	CleanupExecTimeout  int `toml:"cleanup_exec_timeout,omitempty"`
	GracefulKillTimeout int `toml:"graceful_kill_timeout,omitempty"`
	ForceKillTimeout    int `toml:"force_kill_timeout,omitempty"`
}

// Docker configures the docker executor.
type Docker struct {
	Host        string   `toml:"host,omitempty"`
	Image       string   `toml:"image"`
	HelperImage string   `toml:"helper_image,omitempty"`
	Volumes     []string `toml:"volumes,omitempty"`
	NetworkMode string   `toml:"network_mode,omitempty"`
}

// LoadConfig reads a config.toml. Keys that only gitlab-runner knows are left
// alone.
func LoadConfig(file string) (Config, error) {
	var c Config
	if _, err := toml.DecodeFile(file, &c); err != nil {
		return Config{}, fmt.Errorf("load configuration: %w", err)
	}
	c.Concurrent = max(c.Concurrent, 1)
	for _, r := range c.Runners {
		switch {
		case r.Executor != "custom" && r.Executor != "docker":
			return Config{}, fmt.Errorf("load configuration: %s: executor %q is neither custom nor docker", file, r.Executor)
		case r.Executor == "docker" && (r.Docker == nil || r.Docker.Image == "" || r.Docker.HelperImage == ""):
			return Config{}, fmt.Errorf("load configuration: %s: [runners.docker] needs image and helper_image", file)
		}
	}
	return c, nil
}

// Write writes a config.toml.
func (c Config) Write(file string) error {
	data, err := toml.Marshal(c)
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return os.WriteFile(file, data, 0o600)
}

func (r Runner) forJob() job.Runner {
	return job.Runner{
		URL: r.URL, Token: r.Token, CloneURL: r.CloneURL, Environment: r.Environment,
		FeatureFlags: r.FeatureFlags, CustomBuildDir: r.CustomBuildDir.Enabled, Executor: r.Executor,
	}
}

// seconds is n seconds, or otherwise where n is not set.
func seconds(n int, otherwise time.Duration) time.Duration {
	if n <= 0 {
		return otherwise
	}
	return time.Duration(n) * time.Second
}
