// Package runner drives executors as gitlab-runner does: it asks a GitLab for
// jobs, writes their scripts, makes the four calls of a custom executor with
// the environment, order, retries and signals of the real program, and sends
// log and outcome back. Tests and benchmarks use it where no gitlab-runner is
// at hand, with the same config.toml and the same server.
//
// It is no runner for daily use: it registers nothing, resolves no secrets and
// has one shell, bash. Start runs it, or the real one, as a subprocess, so that
// executors find a gitlab-runner in their parent's /proc/PID/exe.
package runner
