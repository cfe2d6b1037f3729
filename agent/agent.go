// Package agent runs stage scripts inside a job's containers.
//
// The agent is the main process of the build and helper containers: berth's
// own binary, mounted read-only. `berth run` connects to it, hands over the
// script and its own output streams as file descriptors, and learns the exit
// status. Compared with an exec through containerd and runc, a stage starts in
// about a millisecond, the environment that an image's ENTRYPOINT made reaches
// the scripts, and output is copied once: from the script's pipe to the
// runner's.
//
// The agent shares its container with the job and is not a security boundary:
// a job that tampers with it harms itself alone. Nothing that berth hands in
// gives access to anything outside, and nothing that comes back is trusted
// beyond being this job's result.
package agent

const (
	// Dir is where the agent lives in a container: a small tmpfs.
	Dir = "/.berth"
	// Program is the agent's binary in a container.
	Program = Dir + "/berth"
	// BinDir is first on the helper's PATH; it holds gitlab-runner.
	BinDir = Dir + "/bin"

	// RunDir is where the job finds the sockets that berthd answers.
	RunDir = Dir + "/run"

	socket = Dir + "/agent.sock"
)

// hello is the agent's first message: as whom it runs, once the image's
// entrypoint has had its say.
type hello struct {
	UID   int    `json:"uid"`
	GID   int    `json:"gid"`
	Shell string `json:"shell"`
}

// start asks for a stage; the script and its two output streams come with it
// as file descriptors.
type start struct {
	User *User `json:"user,omitempty"`
	// Env is added to the agent's own.
	Env []string `json:"env,omitempty"`
}

// User is whom a stage runs as, where it is not the agent's own user. It keeps
// the right to read and change files whoever owns them, so that files it
// makes belong to the user while caches of other users stay writable.
type User struct {
	UID int `json:"uid"`
	GID int `json:"gid"`
}

// stop asks for the end of the running stage.
type stop struct{}

// ended is the agent's last message.
type ended struct {
	Code   int    `json:"code"`
	Signal int    `json:"signal,omitempty"`
	Error  string `json:"error,omitempty"`
}
