package runner_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/runner"
)

// recorder is a bare executor that keeps of each call the environment, the job
// and the script.
const recorder = `#!/bin/bash
call=$1 script=$2 stage=$3
calls=("$RECORD"/*)
to=$RECORD/$(printf %02d ${#calls[@]})-$call-$stage
mkdir "$to"
env -0 | sort -z | tr '\0' '\n' >"$to/env"
cp "$JOB_RESPONSE_FILE" "$to/job"
stat -c '%a %F' "$JOB_RESPONSE_FILE" $script >"$to/modes"
case $call in
config) echo '{"driver":{"name":"recorder"},"hostname":"node","builds_dir":"'$WORK/builds'","cache_dir":"'$WORK/cache'","job_env":{"FROM":"config","CI":"hidden"}}' ;;
run)
	cp "$script" "$to/script"
	ln -sfn "/proc/$PPID/exe" "$TMPDIR/gitlab-runner"
	PATH=$TMPDIR:$PATH bash "$script" && exit
	echo $? >"$BUILD_EXIT_CODE_FILE"
	exit $BUILD_FAILURE_EXIT_CODE
	;;
esac
`

// varying is what differs between two runs of the same job.
var varying = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`127\.0\.0\.1\\*:\d+|127\\*\.0\\*\.0\\*\.1\\*:\d+`), "HOST"},
	{regexp.MustCompile(`_PORT=\d{4,5}\b`), "_PORT=N"},
	{regexp.MustCompile(`("CI_SERVER_PORT","value":")\d+`), "${1}N"},
	{regexp.MustCompile(`glcbt-64_\w+`), "TOKEN"},
	{regexp.MustCompile(`(CI_RUNNER_SHORT_TOKEN=)\w+`), "${1}SHORT"},
	{regexp.MustCompile(`\b[0-9a-f]{40}\b`), "SHA"},
	{regexp.MustCompile(`(Checking out |SHORT_SHA=|SHORT_SHA","value":")[0-9a-f]{8}`), "${1}SHA"},
	{regexp.MustCompile(`[0-9a-f]{32}\b`), "CORRELATION"},
	{regexp.MustCompile(`custom-executor\d+`), "TMP"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`), "TIME"},
	{regexp.MustCompile(`"time_in_queue_seconds":[^,]*`), "QUEUE"},
	{regexp.MustCompile(`(?m)^(_|PWD|OLDPWD|SHLVL|RECORD|WORK|INVOCATION_ID)=.*\n`), ""},
}

func normalise(text, dir string) string {
	text = strings.ReplaceAll(text, dir, "DIR")
	for _, v := range varying {
		text = v.pattern.ReplaceAllString(text, v.with)
	}
	return text
}

// record runs jobs with a program and returns its calls, by name.
func record(t *testing.T, program string, specs []gitlab.JobSpec) ([]string, map[string]string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	srv, err := gitlab.New(l)
	require.NoError(t, err)
	defer func() { require.NoError(t, srv.Close()) }()
	sub, err := srv.AddProject("group/sub", fstest.MapFS{"file": {Data: []byte("sub")}})
	require.NoError(t, err)
	project, err := srv.AddProject("group/project", fstest.MapFS{"README": {Data: []byte("x")}})
	require.NoError(t, err)
	require.NoError(t, project.AddSubmodule("sub", sub))
	require.NoError(t, project.Tag("v1", gitlab.DefaultBranch))

	dir := t.TempDir()
	file := filepath.Join(dir, "recorder")
	require.NoError(t, os.WriteFile(file, []byte(recorder), 0o755))
	records := filepath.Join(dir, "records")
	require.NoError(t, os.Mkdir(records, 0o755))
	config := runner.Runner{
		Name: "same", ID: 1, URL: srv.URL(), Token: srv.AddRunner(), Executor: "custom",
		Environment: []string{"FROM_CONFIG=yes $CI_PROJECT_NAME"},
		Custom: runner.Custom{
			ConfigExec: file, ConfigArgs: []string{"config"}, PrepareExec: file, PrepareArgs: []string{"prepare"},
			RunExec: file, RunArgs: []string{"run"}, CleanupExec: file, CleanupArgs: []string{"cleanup"},
		},
	}
	p, err := runner.Start(program, dir, runner.Config{Concurrent: 1, CheckInterval: 1, Runners: []runner.Runner{config}},
		[]string{"RECORD=" + records, "WORK=" + dir})
	require.NoError(t, err)
	for _, spec := range specs {
		spec.Project = project
		j, err := srv.Enqueue(spec)
		require.NoError(t, err)
		end(t, j)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, p.Stop(ctx))

	files, err := filepath.Glob(filepath.Join(records, "*", "*"))
	require.NoError(t, err)
	found := map[string]string{}
	var names []string
	for _, f := range files {
		text, err := os.ReadFile(f)
		require.NoError(t, err)
		name, err := filepath.Rel(records, f)
		require.NoError(t, err)
		names = append(names, name)
		found[name] = normalise(string(text), dir)
	}
	slices.Sort(names)
	return names, found
}

// TestSameAsGitlabRunner compares every call of the stand-in with that of the
// real program: their order, environment, payload and script, to the byte.
func TestSameAsGitlabRunner(t *testing.T) {
	real := runner.Real()
	if real == "" {
		t.Skip("there is no gitlab-runner to compare with: name one in GITLAB_RUNNER")
	}
	version, err := exec.Command(real, "--version").CombinedOutput()
	require.NoError(t, err, string(version))
	if !bytes.Contains(version, []byte("19.4.")) {
		t.Skipf("the stand-in is made after gitlab-runner 19.4, whose scripts others do not share; %s is:\n%s", real, version)
	}
	standIn, err := runner.Build(t.Context(), t.TempDir())
	require.NoError(t, err)
	variables := func(keysAndValues ...string) []gitlab.Variable {
		var list []gitlab.Variable
		for i := 0; i < len(keysAndValues); i += 2 {
			list = append(list, gitlab.Variable{Key: keysAndValues[i], Value: keysAndValues[i+1], Public: true})
		}
		return list
	}
	for name, spec := range map[string]gitlab.JobSpec{
		"everything": {
			Image: gitlab.Image{
				Name: "registry.test/$CI_PROJECT_NAME:1", Entrypoint: []string{"/bin/sh", "-c"}, PullPolicies: []string{"if-not-present"},
				ExecutorOptions: gitlab.ExecutorOptions{Docker: gitlab.DockerOptions{Platform: "linux/amd64", User: "1000"}},
			},
			Services: []gitlab.Image{
				{Name: "postgres:16", Alias: "db, pg", Command: []string{"postgres", "-c", "fsync=off"}, Variables: variables("PASSWORD", "p$CI_PIPELINE_ID")},
				{Name: "group/redis:7"},
			},
			Variables: append(variables("EXPANDED", "in $CI_PROJECT_PATH", "QUOTED", "it's \"q\" \\ `x` $(y)\nline\té\x01", "EMPTY", ""),
				gitlab.Variable{Key: "KUBECONFIG", Value: "line 1\nit's \"2\"\n", File: true},
				gitlab.Variable{Key: "AT", Value: "see $KUBECONFIG"},
				gitlab.Variable{Key: "RAW", Value: "$CI $$ ${X}", Raw: true},
				gitlab.Variable{Key: "SECRET", Value: "s3cr3t-value", Masked: true}),
			Script:      []string{"mkdir -p out deps; touch out/a out/b deps/d", "echo 'a\nb'\necho c", "", "  cat $KUBECONFIG"},
			AfterScript: []string{"echo $CI_JOB_STATUS", "if true; then\n  echo yes\nfi"},
			Artifacts: []gitlab.Artifact{
				{Name: "out $CI_JOB_NAME", Paths: []string{"out/"}, Exclude: []string{"out/b"}, ExpireIn: "1 day"},
				{Paths: []string{"deps/d"}, Type: "junit", Format: "gzip", When: "always", Name: "junit.xml"},
				{Paths: []string{"never"}, When: "on_failure"},
			},
			Cache: []gitlab.Cache{
				{Key: "k $CI_COMMIT_REF_SLUG/../x", Paths: []string{"deps/", "more*"}, FallbackKeys: []string{"a", "$EMPTY"}},
				{Key: "pull", Paths: []string{"x"}, Policy: "pull"},
				{Key: "push", Untracked: true, Policy: "push"},
				{Key: "failed", Paths: []string{"x"}, When: "on_failure"},
			},
			Hooks:       []gitlab.Hook{{Name: "pre_get_sources_script", Script: []string{"echo pre"}}, {Name: "post_get_sources_script", Script: []string{"echo post"}}},
			Credentials: []gitlab.Credential{{Type: "registry", URL: "registry.test", Username: "u", Password: "p"}},
			ExtraSteps:  []gitlab.Step{{Name: "release", Script: []string{"echo release $CI_JOB_NAME ${QUOTED}"}}},
		},
		"clone with submodules": {
			Variables: variables("GIT_STRATEGY", "clone", "GIT_SUBMODULE_STRATEGY", "recursive", "GIT_DEPTH", "0",
				"GIT_SUBMODULE_DEPTH", "1", "GIT_SUBMODULE_UPDATE_FLAGS", "--jobs 2", "GIT_SUBMODULE_FORCE_HTTPS", "true",
				"GIT_SUBMODULE_PATHS", "sub", "GIT_CLEAN_FLAGS", "-ffd -e keep", "GIT_FETCH_EXTRA_FLAGS", "--no-tags"),
			Script: []string{"cat sub/file"},
		},
		"normal submodules of a tag": {
			Ref: "v1", Tag: true,
			Variables: variables("GIT_SUBMODULE_STRATEGY", "normal", "GIT_LFS_SKIP_SMUDGE", "1", "GIT_CLEAN_FLAGS", "none"),
			Script:    []string{"cat sub/file"},
		},
		"no checkout":       {Variables: variables("GIT_CHECKOUT", "false"), Script: []string{"true"}},
		"strategy none":     {Variables: variables("GIT_STRATEGY", "none"), Script: []string{"true"}, Cache: []gitlab.Cache{{Paths: []string{"x"}}}},
		"strategy empty":    {Variables: variables("GIT_STRATEGY", "empty"), Script: []string{"true"}},
		"strategy nonsense": {Variables: variables("GIT_STRATEGY", "nonsense", "GIT_DEPTH", "x"), Script: []string{"true"}},
		"feature flags": {
			Variables: variables("FF_USE_LEGACY_BASH_EVAL", "true", "FF_SCRIPT_SECTIONS", "1", "CI_DEBUG_TRACE", "true"),
			Script:    []string{"echo a\necho b"},
		},
		"failure": {
			Script: []string{"touch x; exit 3"}, AfterScript: []string{"echo $CI_JOB_STATUS"},
			Cache:     []gitlab.Cache{{Key: "c", Paths: []string{"x"}, When: "always"}, {Key: "s", Paths: []string{"x"}}},
			Artifacts: []gitlab.Artifact{{Paths: []string{"x"}, When: "always"}},
		},
		"failing checkout": {
			Variables: variables("GET_SOURCES_ATTEMPTS", "2"),
			Script:    []string{"true"}, AfterScript: []string{"echo not reached"},
			Edit: func(p *gitlab.Payload) { p.GitInfo.SHA = strings.Repeat("0", 40) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			spec.Name = "the job"
			want, wantText := record(t, real, []gitlab.JobSpec{spec})
			got, gotText := record(t, standIn, []gitlab.JobSpec{spec})
			require.Equal(t, want, got, "calls")
			for _, file := range want {
				if wantText[file] != gotText[file] {
					t.Errorf("%s: %s", file, firstDifference(wantText[file], gotText[file]))
				}
			}
		})
	}
}

// firstDifference shows where two texts part.
func firstDifference(want, got string) string {
	n := 0
	for n < len(want) && n < len(got) && want[n] == got[n] {
		n++
	}
	around := func(s string) string { return s[max(0, n-60):min(len(s), n+120)] }
	return fmt.Sprintf("differs at byte %d\nwant …%q…\ngot  …%q…", n, around(want), around(got))
}
