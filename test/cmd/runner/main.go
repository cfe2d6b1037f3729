// Command runner stands in for gitlab-runner in tests and benchmarks: it runs
// jobs like it, and is the helper program that the jobs' scripts call.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"gitlab.com/berth-ci/berth/test/runner/job"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "FATAL:", err)
		os.Exit(1)
	}
}

func run() error {
	root := &cobra.Command{
		Use:           "runner",
		Short:         "Stand in for gitlab-runner in tests",
		Version:       job.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		serveCommand(), execCommand(), pipelineCommand(),
		cacheArchiverCommand(), cacheExtractorCommand(), cacheInitCommand(),
		artifactsUploaderCommand(), artifactsDownloaderCommand(),
	)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	defer stop()
	return root.ExecuteContext(ctx)
}

// say is the helper commands' log, which gitlab-runner has on stderr, too.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
