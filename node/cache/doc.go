// Package cache gives jobs their share of the node's caches: cache mounts, generations, the working tree of their
// project and what `cache:` names, all kept by the engine of package buildkit.
//
// It decides what a job may read and what of its writes later jobs get to see, it mounts and unmounts in the order of
// the job's stages, and it says in the job log what came of it. A fault of a cache never fails a job: it goes on with
// an empty one. It runs no containers and keeps no journal; both are package node's.
package cache
