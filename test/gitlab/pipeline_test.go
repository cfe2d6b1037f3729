package gitlab

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParsePipeline(t *testing.T) {
	p, err := ParsePipeline([]byte(`
stages: [one, two]
variables: &common
  A: "1"
default:
  image: alpine
  tags: [berth]
  before_script: [echo before]
.hidden: &hidden
  timeout: 1h 30m
full:
  <<: *hidden
  stage: one
  image: {name: busybox, entrypoint: ["", x], pull_policy: always, docker: {user: "1000"}}
  services:
    - redis:7
    - {name: postgres, alias: "db,pg", variables: {P: q}}
  variables:
    <<: *common
    B: {value: $A, expand: false}
  script:
    - echo one
    - [echo two, echo three]
  cache: {key: k, paths: [x], policy: pull, fallback_keys: [f]}
  artifacts: {paths: [out/], reports: {junit: r.xml}}
  hooks: {pre_get_sources_script: echo hook}
small:
  stage: two
  script: echo
  needs: []
  allow_failure: true
`))
	require.NoError(t, err)
	require.Equal(t, []string{"one", "two"}, p.Stages)
	require.Len(t, p.Jobs, 2)

	full := p.Jobs[0].Spec
	require.Equal(t, []string{"echo before", "echo one", "echo two", "echo three"}, full.Script)
	require.Equal(t, []string{"berth"}, full.Tags)
	require.Equal(t, 90*time.Minute, full.Timeout)
	require.Equal(t, "busybox", full.Image.Name)
	require.Equal(t, []string{"", "x"}, full.Image.Entrypoint)
	require.Equal(t, []string{"always"}, full.Image.PullPolicies)
	require.Equal(t, "1000", full.Image.ExecutorOptions.Docker.User)
	require.Equal(t, "redis:7", full.Services[0].Name)
	require.Equal(t, "db,pg", full.Services[1].Alias)
	require.Equal(t, []Variable{
		{Key: "A", Value: "1", Public: true},
		{Key: "A", Value: "1", Public: true},
		{Key: "B", Value: "$A", Public: true, Raw: true},
	}, full.Variables)
	require.Equal(t, []Cache{{Key: "k", Paths: []string{"x"}, Policy: "pull", FallbackKeys: []string{"f"}}}, full.Cache)
	require.Equal(t, "junit", full.Artifacts[1].Type)
	require.Equal(t, "pre_get_sources_script", full.Hooks[0].Name)

	small := p.Jobs[1]
	require.Equal(t, "alpine", small.Spec.Image.Name)
	require.NotNil(t, small.needs)
	require.True(t, small.Spec.AllowFailure)
}

func TestParsePipelineRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no mapping":      "- a",
		"no YAML":         "a: [",
		"unknown keyword": "job: {script: x, retry: 2}",
		"unknown cache":   "job: {script: x, cache: {keys: x}}",
		"unknown stage":   "job: {script: x, stage: nowhere}",
		"no script":       "job: {stage: test}",
		"bad timeout":     "job: {script: x, timeout: soon}",
		"include":         "include: other.yml",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParsePipeline([]byte(text))
			require.Error(t, err)
		})
	}
}

func TestReadable(t *testing.T) {
	trace := "2026-11-22T00:30:17.731227Z 00O section_start:1795307417:prepare\r\x1b[0K\n" +
		"2026-11-22T00:30:17.731231Z 00O+\x1b[0K\x1b[36;1mPreparing\x1b[0;m\n" +
		"2026-11-22T00:30:17.731231Z 01O one\n" +
		"2026-11-22T00:30:17.731231Z 01E two"
	require.Equal(t, "\x1b[36;1mPreparing\x1b[0;m\none\ntwo", readable([]byte(trace)))
	require.Equal(t, "Preparing\none\ntwo", plain([]byte(trace)))
}
