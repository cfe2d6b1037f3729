package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing/fstest"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/config"
	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
	"gitlab.com/berth-ci/berth/test/runner"
	"gitlab.com/berth-ci/berth/test/testnode"
)

// many is how many jobs run at once where not one does.
const many = 10

// files is how many small ones a job checks out.
const files = 400

// testbed is a node, a docker daemon and a GitLab with runners for both.
type testbed struct {
	dir      string
	programs testnode.Programs
	registry *images.Registry
	node     *testnode.Node
	docker   *dockerd
	server   *gitlab.Server
	projects []*gitlab.Project
	lanes    []*lane // of the stand-in runner
	real     []*lane // of the gitlab-runner that GITLAB_RUNNER names
}

func (t *testbed) start(ctx context.Context) (err error) {
	bin, err := t.subdir("bin")
	if err != nil {
		return err
	}
	if t.programs, err = testnode.Build(ctx, bin); err != nil {
		return err
	}
	if t.registry, err = images.Serve(ctx); err != nil {
		return err
	}
	t.node, err = testnode.Start(ctx, testnode.Config{Programs: t.programs, Images: t.registry, Change: t.profiles})
	if err != nil {
		return err
	}
	if t.server, err = t.node.GitLab(); err != nil {
		return err
	}
	tree := fstest.MapFS{}
	for i := range files {
		tree[fmt.Sprintf("dir%d/file%d", i%20, i)] = &fstest.MapFile{Data: fmt.Appendf(nil, "This is file %d.\n", i)}
	}
	// A project for each job at once: the bare executor keeps one's jobs apart
	// only one after the other.
	for i := range many {
		p, err := t.server.AddProject(fmt.Sprintf("group/project%d", i), tree)
		if err != nil {
			return err
		}
		t.projects = append(t.projects, p)
	}
	if t.docker, err = startDockerd(ctx, filepath.Join(t.dir, "dockerd"), t.node, t.registry.Address); err != nil {
		return err
	}
	if err := t.docker.pull(ctx, t.image()); err != nil {
		return err
	}
	if t.lanes, err = t.openLanes("", t.programs.Runner, "default", t.image()); err != nil {
		return err
	}
	if program := runner.Real(); program != "" {
		if t.real, err = t.openReal(ctx, program); err != nil {
			return err
		}
	}
	// What only the first job pays is no part of any figure.
	for _, l := range append(t.lanes[:len(t.lanes):len(t.lanes)], t.real...) {
		if _, err := l.run(ctx, t.jobs(1)); err != nil {
			return err
		}
	}
	return nil
}

// profiles adds one that pulls as gitlab-runner's docker executor does unless
// told otherwise.
func (t *testbed) profiles(c *config.Config) {
	p := testnode.Profile(t.registry)
	p.PullPolicy = []string{executor.PullAlways}
	c.Profiles["always"] = p
}

func (t *testbed) image() string { return t.registry.Image(images.Git) }

// jobs are n trivial ones: a checkout and an echo.
func (t *testbed) jobs(n int) []gitlab.JobSpec {
	specs := make([]gitlab.JobSpec, n)
	for i := range specs {
		specs[i] = gitlab.JobSpec{
			Project: t.projects[i], Name: "trivial", Script: []string{"echo done"},
			// Neither volumes nor directories of earlier jobs save any work.
			Variables: []gitlab.Variable{{Key: "GIT_STRATEGY", Value: "clone"}},
		}
	}
	return specs
}

// openLanes starts three runners of a kind. The prefix goes before their tags.
func (t *testbed) openLanes(prefix, program, profile, helper string) (lanes []*lane, err error) {
	for _, name := range []string{bare, berth, docker} {
		tag := prefix + name
		dir, err := t.subdir(tag)
		if err != nil {
			return lanes, err
		}
		token := t.server.AddRunner(tag)
		r := runner.Runner{Name: tag, ID: 1, URL: t.server.URL(), Token: token}
		switch name {
		case berth:
			r = t.node.Runner(profile, t.server.URL(), token)
		case bare:
			r.Executor = "custom"
			if r.Custom, err = runner.Bare(dir); err != nil {
				return lanes, err
			}
		case docker:
			r.Executor = "docker"
			// The volume is what `gitlab-runner register` writes.
			r.Docker = &runner.Docker{Host: t.docker.host(), Image: t.image(), HelperImage: helper, Volumes: []string{"/cache"}}
		}
		l, err := openLane(t.server, name, tag, program, dir, r)
		if err != nil {
			return lanes, err
		}
		if name == bare {
			l.builds = filepath.Join(dir, "builds")
		}
		lanes = append(lanes, l)
	}
	return lanes, nil
}

// stop ends and removes everything.
func (t *testbed) stop(ctx context.Context) error {
	var errs []error
	for _, l := range append(t.lanes, t.real...) {
		errs = append(errs, l.close(ctx))
	}
	if t.docker != nil {
		errs = append(errs, t.docker.stop(ctx))
	}
	if t.server != nil {
		errs = append(errs, t.server.Close())
	}
	if t.node != nil {
		errs = append(errs, t.node.AwaitClean(ctx), t.node.Stop(ctx))
	}
	if t.registry != nil {
		errs = append(errs, t.registry.Close())
	}
	return errors.Join(errs...)
}
