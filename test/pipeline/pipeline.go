// Package pipeline is the example project that the demo and tests run: its
// .gitlab-ci.yml uses most of what a pipeline is made of.
package pipeline

import "embed"

// Files are the project's.
//
//go:embed .gitlab-ci.yml build.sh check.sh log
var Files embed.FS

// File is where its pipeline is defined.
const File = ".gitlab-ci.yml"
