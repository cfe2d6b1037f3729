// Command berth is a GitLab Runner custom executor: the four calls that
// gitlab-runner makes for each job, and what operators use to look at a node.
package main

import (
	"fmt"
	"os"

	"gitlab.com/berth-ci/berth/agent"
)

// version is set by the linker.
var version = "development"

func main() {
	// Within a job's container this binary is the agent.
	if len(os.Args) == 2 && os.Args[1] == "agent" {
		if err := agent.Serve(); err != nil {
			fmt.Fprintln(os.Stderr, "berth agent:", err)
			os.Exit(1)
		}
	}
	os.Exit(execute())
}
