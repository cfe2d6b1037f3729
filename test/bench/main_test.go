// Package bench measures what Berth costs a job, beside the same scripts with
// no isolation at all and beside the docker executor. All of them run in turn,
// round by round, so that what else the machine does hits them alike; what is
// shown are medians. A figure that misses its target is said, and no failure.
//
// It tests nothing: packages and package test do.
package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"gitlab.com/berth-ci/berth/test/testnode"
)

// bed is what all benchmarks run on; nil where missing says why.
var (
	missing string
	bed     *testbed
)

func TestMain(m *testing.M) {
	flag.Parse()
	status, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

func run(m *testing.M) (status int, err error) {
	if flag.Lookup("test.bench").Value.String() == "" {
		return m.Run(), nil
	}
	if missing = testnode.Missing(); missing != "" {
		return m.Run(), nil
	}
	dir, err := os.MkdirTemp("", "berth-bench")
	if err != nil {
		return 0, err
	}
	bed = &testbed{dir: dir}
	stop := sync.OnceValue(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		return errors.Join(bed.stop(ctx), os.RemoveAll(dir))
	})
	interrupted, ignore := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer ignore()
	ctx, cancel := context.WithTimeout(interrupted, 5*time.Minute)
	defer cancel()
	if err := bed.start(ctx); err != nil {
		return 0, errors.Join(err, stop())
	}
	// A benchmark cannot be interrupted, but what it runs on be taken away.
	unhook := context.AfterFunc(interrupted, func() {
		fmt.Fprintln(os.Stderr, errors.Join(errors.New("interrupted"), stop()))
		os.Exit(1)
	})
	status = m.Run()
	fmt.Print(report.String())
	if verdicts.Len() > 0 {
		fmt.Printf("\nTargets\n-------\n%s", verdicts.String())
	}
	unhook()
	return status, stop()
}

func needBed(b *testing.B) {
	b.Helper()
	if missing != "" {
		b.Skip(missing)
	}
	// The time of a round is not a figure of anything.
	b.Cleanup(func() { b.ReportMetric(0, "ns/op") })
}

// subdir makes a directory of the bed's.
func (t *testbed) subdir(name string) (string, error) {
	dir := filepath.Join(t.dir, name)
	return dir, os.Mkdir(dir, 0o755)
}
