// Package buildkit embeds BuildKit in berthd: one engine, on the node's containerd, that keeps the node's caches.
//
// The engine's parts are packages of their own: cachemount keeps directories that jobs and builds share, generation
// keeps caches of which each job gets a copy, gc makes room. This package opens and closes them together, guards them
// against the clients of BuildKit's API, and takes back after a restart what surviving jobs hold.
// It is not BuildKit's API, and it knows nothing about jobs but their names.
package buildkit
