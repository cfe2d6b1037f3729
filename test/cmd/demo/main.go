// Command demo runs the example pipeline from nothing: it starts a berthd with
// a containerd of its own in a scratch directory, and a stand-in GitLab, shows
// the log of each job as GitLab would and then what took how long, and removes
// everything again.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"gitlab.com/berth-ci/berth/test/images"
	"gitlab.com/berth-ci/berth/test/testnode"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	if missing := testnode.Missing(); missing != "" {
		return errors.New(missing)
	}
	dir, err := os.MkdirTemp("", "berth-demo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	fmt.Println("A CI pipeline on a node with Berth, from nothing.")
	fmt.Println()
	var node testnode.Config
	var d demo
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"Build berth, berthd and a runner that stands in for gitlab-runner", func() (err error) {
			node.Programs, err = testnode.Build(ctx, dir)
			return err
		}},
		{"Make images, and a registry that has them", func() (err error) {
			node.Images, err = images.Serve(ctx)
			return err
		}},
		{"Start berthd, which starts a containerd of its own", func() (err error) {
			d.node, err = testnode.Start(ctx, node)
			return err
		}},
		{"Start a GitLab stand-in and push the project to it", func() error {
			return d.push(node.Images)
		}},
	} {
		begin := time.Now()
		if err = step.do(); err != nil {
			break
		}
		fmt.Printf("  %-68s %5.1f s\n", step.what, time.Since(begin).Seconds())
	}
	if err == nil {
		err = d.run(ctx, dir)
	}
	return errors.Join(err, d.tidy(node.Images))
}

// tidy removes everything, in a time of its own.
func (d *demo) tidy(registry *images.Registry) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	if d.gitlab != nil {
		errs = append(errs, d.gitlab.Close())
	}
	if d.node != nil {
		begin := time.Now()
		err := d.node.Stop(ctx)
		if errs = append(errs, err); err == nil {
			fmt.Printf("\nEverything that the demo started or made is removed (%.1f s).\n", time.Since(begin).Seconds())
		}
	}
	if registry != nil {
		errs = append(errs, registry.Close())
	}
	return errors.Join(errs...)
}
