// Package executor is Berth's side of the contract with gitlab-runner: the
// job payload, the environment of the four calls, exit codes, and the
// profiles by which an operator says what a job may have.
//
// It decides and describes; it touches no container, image or socket.
package executor
