package api

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"gitlab.com/berth-ci/berth/executor"
)

// GPUs are what a job has of the node's GPUs, as the spec of a container has
// it. A job without any has none of this but Withheld.
type GPUs struct {
	// Devices are the UUIDs of the job's GPUs, or of its MIG instances.
	Devices []string `json:"devices,omitempty"`
	// Services says that the job's services have them, too.
	Services bool `json:"services,omitempty"`

	Env    []string            `json:"env,omitempty"`
	Nodes  []specs.LinuxDevice `json:"nodes,omitempty"`
	Mounts []specs.Mount       `json:"mounts,omitempty"`
	Hooks  *specs.Hooks        `json:"hooks,omitempty"`
	GIDs   []uint32            `json:"gids,omitempty"`

	// Withheld are the device nodes of all that is not the job's. Privileged
	// containers, which have all of the node's devices, have all but these.
	Withheld []specs.LinuxDevice `json:"withheld,omitempty"`
}

// GPUList is what the node has.
type GPUList struct {
	Driver string `json:"driver,omitempty"`
	CUDA   string `json:"cuda,omitempty"`
	// Reason says why there are none, or why those listed cannot be used.
	Reason string `json:"reason,omitempty"`
	// Faults tell of GPUs that cannot be read.
	Faults []string `json:"faults,omitempty"`
	GPUs   []GPU    `json:"gpus"`
	// Waiting is how many jobs wait for some.
	Waiting int `json:"waiting,omitempty"`
}

// States of a GPU.
const (
	GPUFree        = "free"
	GPULeased      = "leased"
	GPUQuarantined = "quarantined"
	GPUUnusable    = "unusable"
	GPUGone        = "gone"
)

// GPU is one that jobs can have, or a MIG instance.
type GPU struct {
	UUID   string         `json:"uuid"`
	Index  int            `json:"index"`
	Model  string         `json:"model"`
	MIG    string         `json:"mig,omitempty"`
	GPU    string         `json:"gpu"`
	Memory executor.Bytes `json:"memory"`
	PCI    string         `json:"pci,omitempty"`
	NUMA   int            `json:"numa"`
	CPUs   string         `json:"cpus,omitempty"`
	State  string         `json:"state"`
	// Persistence tells whether the driver stays when nothing uses it; nil if
	// that is not known.
	Persistence *bool `json:"persistence,omitempty"`
	// Reason says why no job can have it.
	Reason     string         `json:"reason,omitempty"`
	Quarantine *GPUQuarantine `json:"quarantine,omitempty"`
	Holder     *GPUHolder     `json:"holder,omitempty"`
	Reading    *GPUReading    `json:"reading,omitempty"`
	Links      []GPULink      `json:"links,omitempty"`
	// Unread lists what the driver should have told but did not.
	Unread []string `json:"unread,omitempty"`
}

// Causes of a quarantine.
const (
	QuarantineOperator = "operator"
	QuarantineLeftover = "leftover"
	QuarantineLost     = "lost"
	QuarantineMemory   = "memory"
	QuarantineXID      = "xid"
)

// GPUQuarantine says why a GPU is kept from jobs.
type GPUQuarantine struct {
	Cause  string    `json:"cause"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
}

// GPUHolder is the job that has a GPU.
type GPUHolder struct {
	Job     string    `json:"job"`
	ID      int64     `json:"id"`
	Project string    `json:"project"`
	Since   time.Time `json:"since"`
}

// GPUReading is how a GPU was when it was looked at last.
type GPUReading struct {
	At          time.Time      `json:"at"`
	Utilisation *int           `json:"utilisation,omitempty"`
	MemoryUsed  executor.Bytes `json:"memory_used"`
	PIDs        []int          `json:"pids,omitempty"`
	Uncorrected uint64         `json:"uncorrected,omitempty"`
	Throttled   []string       `json:"throttled,omitempty"`
}

// GPULink is the connection with another GPU.
type GPULink struct {
	To      string `json:"to"`
	NVLinks int    `json:"nvlinks,omitempty"`
	Path    string `json:"path"`
}

// GPUUse is what a job has made of its GPUs so far.
type GPUUse struct {
	Since time.Time `json:"since"`
	// Unwatched is for how long nobody looked, for want of a berthd or of an
	// answer of the driver. Only energy is known of that time.
	Unwatched time.Duration  `json:"unwatched,omitempty"`
	Devices   []GPUDeviceUse `json:"devices"`
}

// GPUDeviceUse is the use of one device.
type GPUDeviceUse struct {
	UUID   string         `json:"uuid"`
	Name   string         `json:"name"`
	Memory executor.Bytes `json:"memory"`
	// Samples are how often it was looked.
	Samples int `json:"samples"`
	// Mean and Peak of the utilisation, in percent; nil where the device does
	// not tell it.
	Mean       *float64       `json:"mean,omitempty"`
	Peak       *int           `json:"peak,omitempty"`
	MemoryPeak executor.Bytes `json:"memory_peak"`
	// Energy in joules; nil where the device does not tell it.
	Energy *float64 `json:"energy,omitempty"`
	// Used tells whether anything was seen to run on it.
	Used bool `json:"used"`
	// XIDs are the faults that the driver reported meanwhile.
	XIDs []uint64 `json:"xids,omitempty"`
	// Throttled lists what slowed the device down.
	Throttled []string `json:"throttled,omitempty"`
	// Lost says why the device could not be spoken with, at some time.
	Lost string `json:"lost,omitempty"`
}

// GPUQuarantineRequest asks to keep a GPU from jobs.
type GPUQuarantineRequest struct {
	Reason string `json:"reason"`
}

// GPUs lists the node's.
func (c *Client) GPUs(ctx context.Context) (*GPUList, error) {
	list := new(GPUList)
	if err := c.call(ctx, http.MethodGet, "/v1/gpus", nil, list); err != nil {
		return nil, err
	}
	return list, nil
}

// QuarantineGPU keeps a GPU from further jobs.
func (c *Client) QuarantineGPU(ctx context.Context, uuid, reason string) error {
	return c.call(ctx, http.MethodPost, "/v1/gpus/"+url.PathEscape(uuid)+"/quarantine", GPUQuarantineRequest{Reason: reason}, nil)
}

// ReleaseGPU ends a GPU's quarantine.
func (c *Client) ReleaseGPU(ctx context.Context, uuid string) error {
	return c.call(ctx, http.MethodPost, "/v1/gpus/"+url.PathEscape(uuid)+"/release", nil, nil)
}

// GPUUse tells what a job has made of its GPUs.
func (c *Client) GPUUse(ctx context.Context, job string) (*GPUUse, error) {
	use := new(GPUUse)
	if err := c.call(ctx, http.MethodGet, "/v1/jobs/"+url.PathEscape(job)+"/gpus", nil, use); err != nil {
		return nil, err
	}
	return use, nil
}
