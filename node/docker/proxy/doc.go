// Package proxy is a job's view of the node's docker daemon: the Docker Engine
// API, of which each operation is in a table (table.go) with what becomes of
// it. What is not in the table is refused.
//
//   - Nothing of a request is passed on as it came. Paths are matched, objects
//     resolved to ids in the job's own record, query parameters picked by name,
//     bodies decoded into moby's types by package strict, checked, and encoded
//     anew.
//   - Other jobs' objects do not exist. A job's have names of their own on the
//     daemon, with the job's key before them, so that two jobs may each have a
//     container "web"; answers give them back as the job wrote them.
//   - Images are named by package names. Registries are reached by berthd, not
//     by dockerd, so that no name is ever made that others would read.
//   - Containers are in the job's cgroup and on its network, whose router is
//     the job's own network namespace; published ports are ports there.
package proxy
