package journal

import (
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/cache"
	"gitlab.com/berth-ci/berth/node/network"
)

// Record is one job and all it holds on the node. What is not listed follows
// from the job's key.
type Record struct {
	Job       api.Job       `json:"job"`
	Admission api.Admission `json:"admission"`
	// Boot is the boot of the host that the job runs in: pids and start times
	// begin again with the next.
	Boot string `json:"boot"`
	// Caller is the process that prepares the job, or did.
	Caller api.Process `json:"caller,omitzero"`
	// TempDir is the runner's directory for the job, in the runner's view.
	TempDir string          `json:"temp_dir,omitempty"`
	Network network.Network `json:"network"`
	// Caches is what the job has of the node's caches.
	Caches *cache.Record `json:"caches,omitempty"`
}

// withoutSecrets leaves out what operators may keep secrets in; it is read
// from the configuration again when a record is replayed.
func (r Record) withoutSecrets() Record {
	r.Admission.Grant.Profile.Environment = nil
	return r
}
