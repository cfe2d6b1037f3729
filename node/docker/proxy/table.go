package proxy

// table is every operation of the Docker Engine API, version 1.56, documented
// or not, with what becomes of it. TestTable compares it with dockerd's own
// routes.
var table operations

func init() { table = newTable(all()) }

func all() []*operation {
	get, head, post, put, del := "GET", "HEAD", "POST", "PUT", "DELETE"
	q := func(names ...string) []string { return names }
	op := func(method, path string, t treatment, serve func(*call) error, query ...string) *operation {
		return &operation{method: method, path: path, treatment: t, serve: serve, query: query}
	}
	swarm := func(method, path string) *operation { return op(method, path, refused, notSwarm) }
	plugin := no("plugins: they run as root on the node")
	return []*operation{
		// The daemon.
		op(get, "/_ping", passed, through),
		op(head, "/_ping", passed, through),
		op(get, "/version", passed, through),
		op(get, "/info", scopedToJob, info),
		op(get, "/events", scopedToJob, events, q("since", "until", "filters")...),
		op(get, "/system/df", scopedToJob, diskUsage, q("type", "verbose")...),
		op(post, "/auth", answered, auth),

		// Containers.
		op(get, "/containers/json", scopedToJob, listContainers, q("all", "limit", "size", "filters")...),
		op(post, "/containers/create", scopedToJob, createContainer, q("name", "platform")...),
		op(post, "/containers/prune", scopedToJob, pruneContainers, q("filters")...),
		op(get, "/containers/{id}/json", scopedToJob, inspectContainer, q("size")...),
		op(get, "/containers/{id}/top", scopedToJob, onContainer("/top"), q("ps_args")...),
		op(get, "/containers/{id}/logs", scopedToJob, lasting("/logs", notFollowed), q("follow", "stdout", "stderr", "since", "until", "timestamps", "tail", "details", "format")...),
		op(get, "/containers/{id}/changes", scopedToJob, onContainer("/changes")),
		op(get, "/containers/{id}/export", scopedToJob, lasting("/export")),
		op(get, "/containers/{id}/stats", scopedToJob, statistics, q("stream", "one-shot")...),
		op(post, "/containers/{id}/resize", scopedToJob, onContainer("/resize"), q("h", "w")...),
		op(post, "/containers/{id}/start", scopedToJob, startContainer("/start"), q("detachKeys")...),
		op(post, "/containers/{id}/restart", scopedToJob, startContainer("/restart"), q("signal", "t")...),
		op(post, "/containers/{id}/stop", scopedToJob, stopContainer("/stop"), q("signal", "t")...),
		op(post, "/containers/{id}/kill", scopedToJob, stopContainer("/kill"), q("signal")...),
		op(post, "/containers/{id}/update", scopedToJob, updateContainer),
		op(post, "/containers/{id}/rename", scopedToJob, renameContainer, q("name")...),
		op(post, "/containers/{id}/pause", scopedToJob, onContainer("/pause")),
		op(post, "/containers/{id}/unpause", scopedToJob, onContainer("/unpause")),
		op(post, "/containers/{id}/attach", scopedToJob, attach, q("detachKeys", "logs", "stream", "stdin", "stdout", "stderr")...),
		op(get, "/containers/{id}/attach/ws", scopedToJob, attachSocket, q("detachKeys", "logs", "stream", "stdin", "stdout", "stderr")...),
		op(post, "/containers/{id}/wait", scopedToJob, lasting("/wait"), q("condition")...),
		op(del, "/containers/{id}", scopedToJob, removeContainer, q("v", "force", "link")...),
		op(head, "/containers/{id}/archive", scopedToJob, onContainer("/archive"), q("path")...),
		op(get, "/containers/{id}/archive", scopedToJob, lasting("/archive"), q("path")...),
		op(put, "/containers/{id}/archive", scopedToJob, copyIn, q("path", "noOverwriteDirNonDir", "copyUIDGID")...),
		op(post, "/containers/{id}/exec", scopedToJob, execIn),
		op(post, "/exec/{id}/start", scopedToJob, startExec),
		op(post, "/exec/{id}/resize", scopedToJob, onExec("/resize"), q("h", "w")...),
		op(get, "/exec/{id}/json", scopedToJob, onExec("/json")),
		op(post, "/commit", scopedToJob, commit, q("container", "repo", "tag", "comment", "author", "pause", "changes")...),
		op(get, "/containers/{id}/checkpoints", refused, no("checkpoints")),
		op(post, "/containers/{id}/checkpoints", refused, no("checkpoints")),
		op(del, "/containers/{id}/checkpoints/{checkpoint}", refused, no("checkpoints")),

		// Images.
		op(get, "/images/json", scopedToJob, listImages, q("all", "filters", "filter", "shared-size", "digests", "manifests")...),
		op(post, "/images/create", answered, createImage, q("fromImage", "fromSrc", "repo", "tag", "message", "changes", "platform")...),
		op(get, "/images/search", passed, search, q("term", "limit", "filters")...),
		op(post, "/images/load", answered, loadImages, q("quiet", "platform")...),
		op(post, "/images/prune", answered, pruneImages, q("filters")...),
		op(get, "/images/get", answered, saveImages, q("names", "platform")...),
		op(get, "/images/{image}/get", answered, saveImages, q("platform")...),
		op(get, "/images/{image}/json", scopedToJob, inspectImage, q("manifests", "platform")...),
		op(get, "/images/{image}/history", scopedToJob, aboutImage("history"), q("platform")...),
		op(get, "/images/{image}/attestations", scopedToJob, aboutImage("attestations"), q("platform", "type", "statement")...),
		op(post, "/images/{image}/push", answered, pushImage, q("tag", "platform")...),
		op(post, "/images/{image}/tag", answered, tagImage, q("repo", "tag")...),
		op(del, "/images/{image}", answered, removeImage, q("force", "noprune", "platforms")...),
		op(get, "/distribution/{image}/json", answered, distribution),

		// Builds.
		op(post, "/build", answered, build),
		op(post, "/build/prune", answered, build),
		op(post, "/build/cancel", answered, build),
		op(post, "/session", answered, build),
		op(post, "/grpc", answered, build),

		// Networks.
		op(get, "/networks", scopedToJob, listNetworks, q("filters")...),
		op(post, "/networks/create", scopedToJob, createNetwork),
		op(post, "/networks/prune", answered, pruneNetworks, q("filters")...),
		op(get, "/networks/{id}", scopedToJob, inspectNetwork, q("verbose", "scope")...),
		op(del, "/networks/{id}", scopedToJob, removeNetwork),
		op(post, "/networks/{id}/connect", scopedToJob, connectNetwork),
		op(post, "/networks/{id}/disconnect", scopedToJob, disconnectNetwork),

		// Volumes.
		op(get, "/volumes", scopedToJob, listVolumes, q("filters")...),
		op(post, "/volumes/create", scopedToJob, createVolume),
		op(post, "/volumes/prune", answered, pruneVolumes, q("filters")...),
		op(get, "/volumes/{name}", scopedToJob, inspectVolume),
		op(put, "/volumes/{name}", refused, no("volumes of a cluster")),
		op(del, "/volumes/{name}", scopedToJob, removeVolume, q("force")...),

		// Plugins and swarms: not for jobs.
		op(get, "/plugins", answered, nothing([]any{})),
		op(get, "/plugins/privileges", refused, plugin),
		op(get, "/plugins/{image}/json", answered, noPlugin),
		op(del, "/plugins/{image}", refused, plugin),
		op(post, "/plugins/pull", refused, plugin),
		op(post, "/plugins/create", refused, plugin),
		op(post, "/plugins/{image}/enable", refused, plugin),
		op(post, "/plugins/{image}/disable", refused, plugin),
		op(post, "/plugins/{image}/upgrade", refused, plugin),
		op(post, "/plugins/{image}/push", refused, plugin),
		op(post, "/plugins/{image}/set", refused, plugin),
		swarm(get, "/swarm"), swarm(post, "/swarm/init"), swarm(post, "/swarm/join"), swarm(post, "/swarm/leave"),
		swarm(post, "/swarm/update"), swarm(get, "/swarm/unlockkey"), swarm(post, "/swarm/unlock"),
		swarm(get, "/nodes"), swarm(get, "/nodes/{id}"), swarm(del, "/nodes/{id}"), swarm(post, "/nodes/{id}/update"),
		swarm(get, "/services"), swarm(post, "/services/create"), swarm(get, "/services/{id}"), swarm(del, "/services/{id}"),
		swarm(post, "/services/{id}/update"), swarm(get, "/services/{id}/logs"),
		swarm(get, "/tasks"), swarm(get, "/tasks/{id}"), swarm(get, "/tasks/{id}/logs"),
		swarm(get, "/secrets"), swarm(post, "/secrets/create"), swarm(get, "/secrets/{id}"), swarm(del, "/secrets/{id}"), swarm(post, "/secrets/{id}/update"),
		swarm(get, "/configs"), swarm(post, "/configs/create"), swarm(get, "/configs/{id}"), swarm(del, "/configs/{id}"), swarm(post, "/configs/{id}/update"),

		// What tells of the daemon's insides.
		op(get, "/debug/pprof/", refused, no("the daemon's insides")),
		op(get, "/debug/pprof/cmdline", refused, no("the daemon's insides")),
		op(get, "/debug/pprof/profile", refused, no("the daemon's insides")),
		op(get, "/debug/pprof/symbol", refused, no("the daemon's insides")),
		op(get, "/debug/pprof/trace", refused, no("the daemon's insides")),
		op(get, "/debug/pprof/{name}", refused, no("the daemon's insides")),
		op(get, "/debug/vars", refused, no("the daemon's insides")),
	}
}
