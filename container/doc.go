// Package container makes and removes the containers of a job in containerd:
// the build container, the helper, the services. All carry the job's label
// and are held by its lease, so that what a crash leaves can be found.
//
// What a job may have is decided elsewhere (package executor); what runs in
// the containers is package agent's.
package container

// Labels on everything of ours in containerd.
const (
	// JobLabel holds the key of the job that a container, lease or snapshot
	// belongs to.
	JobLabel = "berth.job"
	// RoleLabel says what a container is to its job.
	RoleLabel = "berth.role"
)

// Roles of a job's containers.
const (
	RoleBuild   = "build"
	RoleHelper  = "helper"
	RoleService = "service"
)

// LeaseName is the id of a job's lease.
func LeaseName(job string) string { return "berth-" + job }

// ID is the name of a job's container: service containers are numbered.
func ID(job, role string) string { return job + "-" + role }
