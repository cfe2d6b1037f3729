// Package worktree handles the one overlay that a job sees as its project directory: the workspace's layers, those of
// its caches, and the job's own writes on top.
//
// Root mounts and unmounts below a directory that the job owns and may change at any moment. Plan finds what a cache
// of the job is to publish, and makes a layer of it. Scrub keeps the job's token out of what is published.
// The package works on directories alone. It does not know where layers come from, nor who may publish them.
package worktree
