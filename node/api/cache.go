package api

import "time"

// Caches is what a job has of the node's caches.
type Caches struct {
	// Serves says that berthd wants to know of the job's stages: it keeps the
	// working tree, or serves `cache:`.
	Serves bool `json:"serves,omitempty"`
	// Mounts are to be bound into the build container.
	Mounts []CacheMount `json:"mounts,omitempty"`
	// Env is for the job's scripts.
	Env map[string]string `json:"env,omitempty"`
	// Content is what keys name of the commit: "tree:src", "file:go.sum".
	Content []string `json:"content,omitempty"`
	// Finish says that something is published when the last script has ended.
	Finish bool `json:"finish,omitempty"`
	// Untracked says that a cache wants to know what git does not track.
	Untracked bool `json:"untracked,omitempty"`
}

// CacheMount is a cache's directory in a container.
type CacheMount struct {
	Source   string `json:"source"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"read_only,omitempty"`
	// Late says that the cache is mounted on Source while the container runs.
	Late bool `json:"late,omitempty"`
	// Fresh says that nobody has written to it: it is to belong to whom the
	// container runs as.
	Fresh bool `json:"fresh,omitempty"`
}

// Steps of a job's stages at which berthd has to do with caches.
const (
	StepFetch    = "fetch"    // before get_sources
	StepRefetch  = "refetch"  // before get_sources is tried again, with an empty tree
	StepCheckout = "checkout" // after get_sources
	StepSave     = "save"     // in place of archive_cache's script
	StepFinish   = "finish"   // after the last script
)

// CacheStep reports a step.
type CacheStep struct {
	UID int `json:"uid"` // of the build container's user
	GID int `json:"gid"`
	// Content is the hash of each of Caches.Content that there is.
	Content map[string]string `json:"content,omitempty"`
	// Untracked is what git lists in the working tree that it does not track,
	// each followed by a zero byte.
	Untracked []byte `json:"untracked,omitempty"`
	// Success tells whether the job's script has succeeded.
	Success bool `json:"success,omitempty"`
}

// CacheResult is what came of a step.
type CacheResult struct {
	// Lines are for the job log.
	Lines []string `json:"lines,omitempty"`
	// Restored are lines for the stage that would restore `cache:`.
	Restored []string `json:"restored,omitempty"`
	// Again says that get_sources has to be done again, from its first step on.
	Again bool `json:"again,omitempty"`
	// Kept says that the working tree is that of an earlier job.
	Kept bool `json:"kept,omitempty"`
	// Native says that `cache:` is served: the runner's own script is not needed.
	Native bool `json:"native,omitempty"`
	// Env is for the scripts that follow.
	Env map[string]string `json:"env,omitempty"`
}

// CacheEvent is one line of the answer to a CacheStep.
type CacheEvent struct {
	Progress string       `json:"progress,omitempty"`
	Result   *CacheResult `json:"result,omitempty"`
	Error    *Error       `json:"error,omitempty"`
}

// Kinds of what the node keeps.
const (
	CacheMounts      = "mount"      // a directory that jobs and builds share
	CacheGenerations = "generation" // of which each job gets a copy
	CacheBuilds      = "build"      // results of build steps
	CacheDirectories = "directory"  // /cache, which a project's jobs share
)

// Cache is one thing that the node keeps.
type Cache struct {
	Key  string `json:"key"`
	Kind string `json:"kind"`
	// ID tells directories of one key apart.
	ID string `json:"id,omitempty"`
	// Project is its path in GitLab, where it is known.
	Project string    `json:"project"`
	Size    int64     `json:"size"`
	Used    time.Time `json:"used"`
	Held    bool      `json:"held,omitempty"` // in use
	Pinned  bool      `json:"pinned,omitempty"`
	// Holders are the jobs that have it.
	Holders     []string     `json:"holders,omitempty"`
	Generations []Generation `json:"generations,omitempty"`
}

// Generation is one state of a cache, as a job has left it.
type Generation struct {
	Number    int       `json:"number"`
	Job       string    `json:"job"`
	Created   time.Time `json:"created"`
	Size      int64     `json:"size"`
	Layers    int       `json:"layers"`
	Note      string    `json:"note,omitempty"`
	Withdrawn bool      `json:"withdrawn,omitempty"`
	Pinned    bool      `json:"pinned,omitempty"`
}

// CacheChange changes what is kept under a key.
type CacheChange struct {
	Key string `json:"key"`
	// Number of the generation that is meant; 0 for all, or for a directory.
	Number int `json:"number,omitempty"`
	// Pinned is for pin.
	Pinned bool `json:"pinned,omitempty"`
}

// CachePrune says what caches to remove.
type CachePrune struct{ Room }
