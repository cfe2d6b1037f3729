package job

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What get_sources does to the working tree.
const (
	StrategyClone = "clone"
	StrategyFetch = "fetch"
	StrategyNone  = "none"
	StrategyEmpty = "empty"
)

// Settings are what a job chooses by its variables.
type Settings struct {
	ClonePath        string
	Strategy         string
	Checkout         bool
	Submodules       string // none, normal or recursive
	SubmodulePaths   []string
	SubmoduleDepth   int
	SubmoduleFlags   []string
	SubmoduleHTTPS   bool
	CleanFlags       []string
	CloneFlags       []string
	FetchFlags       []string
	SkipLFS          bool
	Trace            bool
	Debug            bool // Trace, or the logs of services
	CacheTimeout     int  // minutes
	SourcesAttempts  int
	CacheAttempts    int
	DownloadAttempts int
	// Warnings name the variables whose values are of no use.
	Warnings []string
}

// Settings reads the variables.
func (j *Job) Settings() Settings {
	var s Settings
	text := func(key, otherwise string) string {
		if v := j.Value(key); v != "" {
			return v
		}
		return otherwise
	}
	choice := func(key, otherwise string, options ...string) string {
		v := text(key, otherwise)
		if v != otherwise && !slices.Contains(options, v) {
			s.Warnings = append(s.Warnings, fmt.Sprintf("%s: expected one of %v, got %q", key, options, v))
			return otherwise
		}
		return v
	}
	number := func(key string, otherwise int) int {
		n, err := strconv.Atoi(text(key, strconv.Itoa(otherwise)))
		if err != nil {
			s.Warnings = append(s.Warnings, fmt.Sprintf("%s: expected a number: using %d", key, otherwise))
			return otherwise
		}
		return n
	}
	attempts := func(key string) int { return max(1, min(10, number(key, 1))) }
	fields := func(key string, otherwise ...string) []string {
		switch v := j.Value(key); v {
		case "":
			return otherwise
		case "none":
			return nil
		default:
			return strings.Fields(v)
		}
	}
	strategy := StrategyClone
	if j.AllowGitFetch {
		strategy = StrategyFetch
	}
	s.ClonePath = text("GIT_CLONE_PATH", "")
	s.Strategy = choice("GIT_STRATEGY", strategy, StrategyClone, StrategyFetch, StrategyNone, StrategyEmpty)
	s.Submodules = choice("GIT_SUBMODULE_STRATEGY", "none", "normal", "recursive")
	s.Checkout = parseBool(j.Value("GIT_CHECKOUT"), true)
	if s.Strategy == StrategyNone || s.Strategy == StrategyEmpty {
		s.Checkout, s.Submodules = false, "none"
	}
	s.SubmodulePaths = strings.Fields(j.Value("GIT_SUBMODULE_PATHS"))
	s.SubmoduleDepth = number("GIT_SUBMODULE_DEPTH", j.GitInfo.Depth)
	s.SubmoduleFlags = fields("GIT_SUBMODULE_UPDATE_FLAGS")
	s.SubmoduleHTTPS = parseBool(j.Value("GIT_SUBMODULE_FORCE_HTTPS"), false)
	s.CleanFlags = fields("GIT_CLEAN_FLAGS", "-ffdx")
	s.CloneFlags = fields("GIT_CLONE_EXTRA_FLAGS")
	s.FetchFlags = fields("GIT_FETCH_EXTRA_FLAGS", "--prune", "--quiet")
	s.SkipLFS = parseBool(j.Value("GIT_LFS_SKIP_SMUDGE"), false)
	s.Trace = parseBool(j.Value("CI_DEBUG_TRACE"), false)
	s.Debug = s.Trace || parseBool(j.Value("CI_DEBUG_SERVICES"), false)
	s.CacheTimeout = number("CACHE_REQUEST_TIMEOUT", 10)
	s.SourcesAttempts = attempts("GET_SOURCES_ATTEMPTS")
	s.CacheAttempts = attempts("RESTORE_CACHE_ATTEMPTS")
	s.DownloadAttempts = attempts("ARTIFACT_DOWNLOAD_ATTEMPTS")
	return s
}

// Timeout is how long the whole job may take.
func (j *Job) Timeout() time.Duration {
	if j.RunnerInfo.Timeout <= 0 {
		return 2 * time.Hour
	}
	return time.Duration(j.RunnerInfo.Timeout) * time.Second
}

func parseBool(s string, otherwise bool) bool {
	b, err := strconv.ParseBool(strings.ToLower(s))
	if err != nil {
		return otherwise
	}
	return b
}
