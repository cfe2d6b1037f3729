// Package builds serves BuildKit's API to jobs: each has an endpoint of its own, on which buildctl, buildx and docker
// build with the caches of the job's namespace.
//
// Jobs are kept apart by what they do not share. Each has a BuildKit controller of its own: a solver, sessions, builds
// and their status, so another job's cannot even be named, nor is a step in flight shared with it. The results of steps are
// kept per namespace, since BuildKit's cache keys say nothing of the caches, secrets, hosts and proxies that a step had.
// What they do share is the engine below: layers by their digest, and the cache mounts, whose ids are forced into the
// namespace where steps become operations, whatever way they came.
//
// Registries are reached from where each job is, and the operator's from the node.
//
// It decides neither who may build nor what a name means to whom: that is its caller's, in Job.
package builds
