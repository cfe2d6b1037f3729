package buildkit_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gitlab.com/berth-ci/berth/buildkit"
	"gitlab.com/berth-ci/berth/buildkit/enginetest"
	"gitlab.com/berth-ci/berth/buildkit/generation"
)

const (
	// stressChildEnv makes the test binary a berthd that runs jobs without end.
	stressChildEnv = "BERTH_TEST_JOBS"
	// stressJournalEnv is the directory of the journals of its jobs.
	stressJournalEnv = "BERTH_TEST_JOURNAL"
	// stressRoundsEnv is how often it is killed.
	stressRoundsEnv = "BERTH_STRESS_ROUNDS"

	stressKey   = "p/k"
	stressFiles = 20
	stressJobs  = 20 // at a time
)

// Jobs clone, write, publish or die, and berthd is killed again and again. Each generation is exactly one job's
// complete writes, and none that a job was told of is lost; what a job was about to publish is published, or still its
// own to publish again.
func TestStress(t *testing.T) {
	rounds := 4
	if text := os.Getenv(stressRoundsEnv); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		rounds = n
	}
	e := enginetest.New(t)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e.Engine = nil
	config, err := json.Marshal(e.Config)
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	journal := t.TempDir()
	for round := range rounds {
		if err := stressRound(string(config), journal, round, told); err != nil {
			t.Fatal(err)
		}
	}
	e.Start()
	again, forward, err := stressResume(t.Context(), e.Engine, journal)
	if err != nil {
		t.Fatal(err)
	}
	list := e.Generations().List(stressKey)
	t.Logf("%d kills, %d generations, %d told of; of the last kill %d published again and %d already", rounds, len(list), len(told), again, forward)
	if len(told) == 0 {
		t.Error("no job came to its end")
	}
	for i, info := range list {
		if i > 0 && info.Number != list[i-1].Number+1 {
			t.Errorf("generation %d comes after %d", info.Number, list[i-1].Number)
		}
		delete(told, info.Job)
		checkWhole(t, e, info)
	}
	for job := range told {
		t.Errorf("what %s published is lost", job)
	}
	if left, err := os.ReadDir(filepath.Join(e.Config.Root, "clones")); err != nil || len(left) != 1 {
		t.Errorf("mounts left: %v, %v", left, err)
	}
}

// stressRound lets a berthd run jobs for a while, kills it, and notes what jobs were told.
func stressRound(config, journal string, round int, told map[string]bool) error {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+config, stressChildEnv+"="+strconv.Itoa(round), stressJournalEnv+"="+journal)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() { // it serves
		return errors.Join(errors.New("no jobs"), cmd.Wait())
	}
	// At any moment of some job's.
	for after := rand.IntN(30); lines.Scan(); after-- {
		told[lines.Text()] = true
		if after == 0 {
			time.AfterFunc(time.Duration(rand.IntN(100))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		}
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != -1 {
		return fmt.Errorf("berthd ended by itself: %w", err)
	}
	return nil
}

// stressChild runs jobs until it is killed.
func stressChild(ctx context.Context, e *buildkit.Engine, round string) error {
	journal := os.Getenv(stressJournalEnv)
	if _, _, err := stressResume(ctx, e, journal); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return err
	}
	fmt.Println("serving")
	var wg sync.WaitGroup
	failed := make(chan error, stressJobs)
	for n := range stressJobs {
		wg.Go(func() {
			for m := 0; ; m++ {
				if err := stressJob(ctx, e.Generations(), journal, fmt.Sprintf("job %s.%d.%d", round, n, m)); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	err := <-failed
	fmt.Fprintln(os.Stderr, err)
	return err
}

// stressResume takes back the jobs that were about to publish when berthd was killed, and has them go on.
func stressResume(ctx context.Context, e *buildkit.Engine, journal string) (again, forward int, err error) {
	entries, err := os.ReadDir(journal)
	if err != nil {
		return 0, 0, err
	}
	var held buildkit.Held
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") {
			continue // was being written
		}
		text, err := os.ReadFile(filepath.Join(journal, entry.Name()))
		if err != nil {
			return 0, 0, err
		}
		var r generation.Record
		if err := json.Unmarshal(text, &r); err != nil {
			return 0, 0, err
		}
		held.Clones = append(held.Clones, r)
	}
	taken, err := e.Retake(ctx, held)
	if err != nil {
		return 0, 0, err
	}
	for _, r := range taken.Lost.Clones {
		if info, ok := e.Generations().Published(r); !ok || info.Job != r.Job {
			return 0, 0, fmt.Errorf("what %s was publishing is lost: %+v", r.Job, r)
		}
	}
	for _, c := range taken.Clones {
		if _, _, err := c.Publish(ctx); err != nil {
			return 0, 0, err
		}
	}
	for _, r := range held.Clones {
		if err := os.Remove(filepath.Join(journal, r.Job)); err != nil {
			return 0, 0, err
		}
	}
	return len(taken.Clones), len(taken.Lost.Clones), nil
}

func stressJob(ctx context.Context, s *generation.Store, journal, job string) error {
	c, err := s.Clone(ctx, stressKey, job)
	if err != nil {
		return err
	}
	if err := c.Mount(); err != nil {
		return err
	}
	for n := range stressFiles {
		if rand.IntN(200) == 0 {
			return c.Discard(ctx) // the job dies
		}
		name := filepath.Join(c.Path(), strconv.Itoa(n))
		if rand.IntN(2) == 0 {
			_ = os.Remove(name)
		}
		if err := os.WriteFile(name, []byte(job), 0o644); err != nil {
			return err
		}
	}
	if err := writeRecord(journal, c.Record()); err != nil {
		return err
	}
	if _, _, err := c.Publish(ctx); err != nil {
		return err
	}
	fmt.Println(job)
	return os.Remove(filepath.Join(journal, job))
}

// writeRecord writes the whole of a record, or nothing.
func writeRecord(journal string, r generation.Record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	draft := filepath.Join(journal, "."+r.Job)
	if err := os.WriteFile(draft, text, 0o600); err != nil {
		return err
	}
	return os.Rename(draft, filepath.Join(journal, r.Job))
}

func checkWhole(t *testing.T, e *enginetest.Engine, info generation.Info) {
	t.Helper()
	c, err := e.Generations().CloneOf(t.Context(), info, "reader", "reader")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Mount(); err != nil {
		t.Fatal(err)
	}
	for n := range stressFiles {
		if text, err := os.ReadFile(filepath.Join(c.Path(), strconv.Itoa(n))); err != nil || string(text) != info.Job {
			t.Errorf("file %d of generation %d of %s is of %q, %v", n, info.Number, info.Job, text, err)
		}
	}
	if err := c.Discard(t.Context()); err != nil {
		t.Error(err)
	}
}
