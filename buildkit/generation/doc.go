// Package generation keeps caches of which every job gets a copy-on-write clone of its own, made in constant time.
//
// A clone may be published: it becomes the newest generation of its key, at once and as a whole. Who published last
// wins, and nobody waits. Generations are records of BuildKit's cache manager, in layers, each upon the one it was
// cloned from; chains that grow deep are flattened.
// It does not decide who may publish, and it knows keys only as text that its caller has made safe.
package generation

import "github.com/moby/buildkit/client"

// Types of BuildKit's records, by which clients of BuildKit are kept from pruning them.
const (
	TypeClone      client.UsageRecordType = "berth.clone"
	TypeGeneration client.UsageRecordType = "berth.generation"
)
