// Package api is how berth speaks with berthd: the types and a light client
// for HTTP with JSON over a unix socket. It imports nothing of the daemon.
package api

import (
	"net/netip"
	"time"

	"gitlab.com/berth-ci/berth/executor"
)

// DefaultSocket is where berthd listens unless configured otherwise.
const DefaultSocket = "/run/berth/berthd.sock"

// Process names a process beyond its pid, which may be used again.
type Process struct {
	PID int `json:"pid"`
	// Start is the start time in clock ticks since boot: field 22 of
	// /proc/PID/stat.
	Start uint64 `json:"start"`
}

// AdmitRequest asks for a berth.
type AdmitRequest struct {
	Profile string           `json:"profile"`
	Request executor.Request `json:"request"`
	// Runner is the gitlab-runner process; the job ends with it.
	Runner Process `json:"runner"`
	// Caller is the process that prepares the job. When the job is released
	// before it is done, it is ended, or it would go on to make containers.
	Caller Process `json:"caller,omitzero"`
	// TempDir is the runner's directory for the job, as seen by the runner.
	// It is gone when the runner is through with the job.
	TempDir string `json:"temp_dir"`
}

// AdmitEvent is one line of the answer to an AdmitRequest: progress while
// the job waits, then the admission or an error.
type AdmitEvent struct {
	Progress  string     `json:"progress,omitempty"`
	Admission *Admission `json:"admission,omitempty"`
	Error     *Error     `json:"error,omitempty"`
}

// Admission is a job's berth: all that the stages need to run it without
// asking berthd again.
type Admission struct {
	Job        string         `json:"job"`
	Profile    string         `json:"profile"`
	Grant      executor.Grant `json:"grant"`
	Containerd Containerd     `json:"containerd"`
	// Lease holds all that the job makes in containerd.
	Lease string `json:"lease"`
	// Cgroup is the job's cgroup, parent of its containers', from the root
	// of each hierarchy.
	Cgroup  string  `json:"cgroup"`
	Dirs    Dirs    `json:"dirs"`
	Network Network `json:"network"`
	// GPUs is nil on a node that has none.
	GPUs   *GPUs  `json:"gpus,omitempty"`
	Caches Caches `json:"caches,omitzero"`
	Builds Builds `json:"builds,omitzero"`
	// Docker is the job's docker; nil where it has none.
	Docker *Docker `json:"docker,omitempty"`
}

// Docker is where a job reaches its docker.
type Docker struct {
	// Dir holds run/docker.sock, and certs/client where the job asked for
	// docker:dind as a service.
	Dir string `json:"dir"`
}

// Builds says where the job finds its BuildKit; nowhere if Dir is empty.
type Builds struct {
	Dir    string `json:"dir"`
	Socket string `json:"socket"` // in it
}

// Containerd says where the job's containers live.
type Containerd struct {
	Address     string `json:"address"`
	Namespace   string `json:"namespace"`
	Snapshotter string `json:"snapshotter"`
}

// Dirs are directories on the node.
type Dirs struct {
	// Job is the job's own, removed with it.
	Job string `json:"job"`
	// Builds is the job's /builds, below Job.
	Builds string `json:"builds"`
	// Cache is the project's /cache, kept from job to job.
	Cache string `json:"cache"`
	// Locks is where jobs take turns at pulling the same image.
	Locks string `json:"locks"`
	// Registries holds containerd's hosts.toml files.
	Registries string `json:"registries"`
	// Runners holds copies of the runner's binary for helper containers.
	Runners string `json:"runners"`
	// DockerConfig is the node's file of registry logins; it may not exist.
	DockerConfig string `json:"docker_config"`
}

// Network is where the job's containers are on the net.
type Network struct {
	// Netns is the network namespace of the build and helper containers.
	Netns string `json:"netns"`
	// Address of the job's router, where `build` and the nameserver are.
	Address netip.Addr `json:"address"`
	// Services have a namespace and an address each, in the order of the request.
	Services []Endpoint `json:"services,omitempty"`
}

// Endpoint is a service's place in the job's network.
type Endpoint struct {
	Netns   string     `json:"netns"`
	Address netip.Addr `json:"address"`
}

// Outcome reports how a stage of the job ended.
type Outcome struct {
	Stage    string `json:"stage"`
	Status   string `json:"status"` // success, failed, canceled, system_failure
	ExitCode int    `json:"exit_code,omitempty"`
}

// States of a job.
const (
	StateWaiting   = "waiting"
	StateAdmitted  = "admitted"
	StateReleasing = "releasing"
	StateReleased  = "released"
)

// Job is what berthd tells of a job.
type Job struct {
	Key      string            `json:"key"`
	Identity executor.Identity `json:"identity"`
	Profile  string            `json:"profile"`
	State    string            `json:"state"`
	Image    string            `json:"image"`
	Runner   Process           `json:"runner"`
	Since    time.Time         `json:"since"`
	// Last is the outcome of the job's last stage so far.
	Last *Outcome `json:"last,omitempty"`
}

// Event is one line of the answer to a watch.
type Event struct {
	Job Job `json:"job"`
	// Reason says why, where the state alone does not: "runner process is gone".
	Reason string `json:"reason,omitempty"`
}

// Version of a berthd, and the programs that it works with.
type Version struct {
	Berthd     string `json:"berthd"`
	Containerd string `json:"containerd"`
	Root       string `json:"root"`
}
