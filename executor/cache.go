package executor

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gitlab.com/gitlab-org/gitlab-runner/cache/cachekey"
)

// Variables by which a job says what it wants of the node's caches.
const (
	// CacheVariablePrefix and a number name a cache mount: BERTH_CACHE_1.
	CacheVariablePrefix = "BERTH_CACHE_"
	// CacheNativeVariable set to false leaves `cache:` to the runner's own script.
	CacheNativeVariable = "BERTH_CACHE_NATIVE"
	// CachePublishVariable set to true has a job of a protected ref publish
	// what only scheduled pipelines would; set to false, a job publishes nothing.
	CachePublishVariable = "BERTH_CACHE_PUBLISH"
	// CacheHitVariablePrefix and a cache's id tell the job what it got.
	CacheHitVariablePrefix = "BERTH_CACHE_HIT_"
)

// Publication policies: whose writes become what later jobs get.
const (
	PublishNever     = "never"
	PublishProtected = "protected" // jobs of protected refs
	PublishScheduled = "scheduled" // those of them that a schedule started
	PublishAlways    = "always"    // all; what untrusted jobs publish, trusted ones never read
)

// PublishPolicies are all of them.
var PublishPolicies = []string{PublishNever, PublishProtected, PublishScheduled, PublishAlways}

// CachePolicy is what a profile says of caches.
type CachePolicy struct {
	// Publish is for caches that do not say otherwise.
	Publish string `toml:"publish" json:"publish"`
	// Wait is how long a job waits for a cache that others have.
	Wait Duration `toml:"wait" json:"wait"`
	// Native says that `cache:` is served by copy-on-write rather than by zip.
	Native bool `toml:"native" json:"native"`
	// Workspace says that projects keep their working tree from job to job.
	Workspace bool `toml:"workspace" json:"workspace"`
	// Mounts are caches of all jobs, as in BERTH_CACHE_1, and with a scope.
	Mounts []string `toml:"mounts" json:"mounts,omitempty"`
}

// Cache is one entry of a job's `cache:`, with its variables expanded.
type Cache struct {
	Key          string   `json:"key"`
	Paths        []string `json:"paths,omitempty"`
	Untracked    bool     `json:"untracked,omitempty"`
	Policy       string   `json:"policy,omitempty"` // pull, push or pull-push
	When         string   `json:"when,omitempty"`   // on_success, on_failure or always
	FallbackKeys []string `json:"fallback_keys,omitempty"`
	// Script says why only the runner's own script can serve it.
	Script string `json:"script,omitempty"`
}

// Pulls tells whether the job gets the cache.
func (c Cache) Pulls() bool { return c.Policy != "push" }

// Pushes tells whether a job that ended so may change the cache.
func (c Cache) Pushes(success bool) bool {
	switch {
	case c.Policy == "pull":
		return false
	case c.When == "always":
		return true
	case c.When == "on_failure":
		return !success
	default:
		return success
	}
}

// Sources says where the job's working tree is and how it comes there.
type Sources struct {
	// Dir is the project's directory below the builds directory; empty where
	// there is none that Berth could know.
	Dir      string `json:"dir,omitempty"`
	Strategy string `json:"strategy,omitempty"` // fetch, clone, empty or none
}

// Keeps tells whether the strategy works in the tree of an earlier job.
func (s Sources) Keeps() bool { return s.Dir != "" && (s.Strategy == "fetch" || s.Strategy == "none") }

// BuildsDir is where a job finds its files, in all of its containers.
const BuildsDir = "/builds"

func newSources(c *Call) Sources {
	s := Sources{Strategy: c.Variable("GIT_STRATEGY")}
	if s.Strategy == "" {
		s.Strategy = "fetch"
	}
	dir, below := strings.CutPrefix(c.Variable("CI_PROJECT_DIR"), BuildsDir+"/")
	if below && path.Clean("/" + dir)[1:] == dir {
		s.Dir = dir
	}
	return s
}

// payloadCache is an entry of the payload's `cache`.
type payloadCache struct {
	Key          string   `json:"key"`
	Paths        []string `json:"paths"`
	Untracked    bool     `json:"untracked"`
	Policy       string   `json:"policy"`
	When         string   `json:"when"`
	FallbackKeys []string `json:"fallback_keys"`
}

// caches are the job's, as gitlab-runner understands them. Entries without
// paths are none.
func caches(c *Call, p *Payload) []Cache {
	var list []Cache
	for _, entry := range p.Cache {
		if len(entry.Paths) == 0 && !entry.Untracked {
			continue
		}
		cache := Cache{
			Untracked: entry.Untracked, When: entry.When,
			Policy: c.Expand(entry.Policy),
		}
		var err error
		if cache.Key, err = p.cacheKey(c, entry.Key); err != nil {
			cache.Script = err.Error()
		}
		switch cache.Policy {
		case "", "pull-push", "pull", "push":
		default:
			cache.Script = fmt.Sprintf("its policy %q is none", cache.Policy)
		}
		for _, path := range entry.Paths {
			if unusual.MatchString(path) {
				cache.Script = fmt.Sprintf("its path %q is an expression of the shell", path)
			}
			cache.Paths = append(cache.Paths, c.Expand(path))
		}
		for _, key := range fallbackKeys(c, entry.FallbackKeys) {
			if key, err := p.cacheKey(c, key); err == nil && !slices.Contains(cache.FallbackKeys, key) {
				cache.FallbackKeys = append(cache.FallbackKeys, key)
			}
		}
		list = append(list, cache)
	}
	return list
}

// unusual is what gitlab-runner's archiver would have a shell's expansion do,
// beyond plain variables.
var unusual = regexp.MustCompile("\\$\\{[A-Za-z0-9_]*[^A-Za-z0-9_}]|\\$\\(|`|\\\\|['\"]")

// fallbackKeys are those of the entry, then the global one, which may not
// name the caches of protected refs.
func fallbackKeys(c *Call, keys []string) []string {
	global := c.Variable("CACHE_FALLBACK_KEY")
	if global == "" || strings.HasSuffix(strings.TrimRight(global, ". "), "-protected") {
		return keys
	}
	return append(keys[:len(keys):len(keys)], global)
}

// cacheKey expands a key and keeps it from leading anywhere. An empty one
// stands for the job and the ref.
func (p *Payload) cacheKey(c *Call, key string) (string, error) {
	raw := path.Join("/", p.JobInfo.Name, p.GitInfo.Ref)[1:]
	if key != "" {
		raw = c.expandKey(key)
	}
	return cachekey.Sanitize(raw)
}

// contentKey stands in a key for the hash of a tree or file of the commit. It
// looks like a variable, and is none.
var contentKey = regexp.MustCompile(`\$\{(?:tree|file):[^{}$\x00-\x1f]+\}`)

// expandKey expands the variables of a key around what stands for content.
func (c *Call) expandKey(key string) string {
	var b strings.Builder
	end := 0
	for _, at := range contentKey.FindAllStringIndex(key, -1) {
		b.WriteString(c.Expand(key[end:at[0]]))
		b.WriteString(key[at[0]:at[1]])
		end = at[1]
	}
	b.WriteString(c.Expand(key[end:]))
	return b.String()
}

// cacheMounts are the job's BERTH_CACHE_<N> variables in the order of their
// numbers, with variables expanded. gitlab-runner takes ${tree:…} for a
// variable and drops it from the environment of its calls, so the payload's
// text comes first.
func cacheMounts(c *Call, p *Payload) []CacheMount {
	var mounts []CacheMount
	for name, value := range c.Variables() {
		number, err := strconv.Atoi(strings.TrimPrefix(name, CacheVariablePrefix))
		if err != nil || number < 0 || !strings.HasPrefix(name, CacheVariablePrefix) {
			continue
		}
		if raw, ok := p.last(name); ok {
			value = c.expandKey(raw)
		}
		if value = strings.TrimSpace(value); value != "" {
			mounts = append(mounts, CacheMount{Variable: name, Number: number, Spec: value})
		}
	}
	slices.SortFunc(mounts, func(a, b CacheMount) int { return a.Number - b.Number })
	return mounts
}

// CacheMount is a cache that the job asks for by a variable.
type CacheMount struct {
	Variable string `json:"variable"`
	Number   int    `json:"number"`
	Spec     string `json:"spec"`
}

// last is the value that holds of a variable that may be given several times.
func (p *Payload) last(key string) (string, bool) {
	for _, v := range slices.Backward(p.Variables) {
		if v.Key == key {
			return v.Value, true
		}
	}
	return "", false
}
