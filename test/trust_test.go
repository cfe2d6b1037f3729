package test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// TestUntrustedJobs attacks, by jobs of merge requests, what jobs of protected refs read.
func TestUntrustedJobs(t *testing.T) {
	for _, profile := range []string{"default", "open"} {
		t.Run(profile, func(t *testing.T) { attack(t, profile) })
	}
}

func attack(t *testing.T, profile string) {
	p := newProject(t, fstest.MapFS{"README": {Data: []byte("read me\n")}, "src/main": {Data: []byte("main\n")}})
	p.profile = profile
	mounts := []string{"BERTH_CACHE_1", "id=m,target=/m", "BERTH_CACHE_2", "id=s,target=/s,sharing=shared", "BERTH_CACHE_3", "id=in,target=in/side"}
	trusted := gitlab.JobSpec{
		Image: image(images.Git), Variables: variables(mounts...),
		Cache:  []gitlab.Cache{{Key: "deps", Paths: []string{"deps"}}, {Key: "again", Paths: []string{"again"}, FallbackKeys: []string{"deps"}}},
		Script: []string{"mkdir -p deps again; for d in deps again /m /s in/side; do echo good >$d/f; done"},
	}
	p.run(trusted)
	verify := trusted
	verify.Script = []string{
		"for d in deps again /m /s in/side; do ls -A $d; cat $d/*; done >/tmp/seen; printf 'f\\ngood\\nf\\ngood\\nf\\ngood\\nf\\ngood\\nf\\ngood\\n' | diff - /tmp/seen",
		"cat README src/main; git status --short --ignored; ls .git/hooks 2>/dev/null || true; cat .git/config; ls -A",
	}
	p.run(verify)
	before := protectedKeys(t, p.ID)
	host := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(host, "secret"), []byte("of the host\n"), 0o644))

	evil := "for d in deps again /m /s in/side; do mkdir -p $d; rm -f $d/f; echo evil | tee $d/f $d/evil; done; echo evil >README; true"
	hook := func(script ...string) func(*gitlab.JobSpec) {
		return func(s *gitlab.JobSpec) {
			s.Hooks = []gitlab.Hook{{Name: "pre_get_sources_script", Script: script}}
		}
	}
	set := func(keysAndValues ...string) func(*gitlab.JobSpec) {
		return func(s *gitlab.JobSpec) { s.Variables = append(s.Variables, variables(keysAndValues...)...) }
	}
	rekey := func(key string) func(*gitlab.JobSpec) {
		return func(s *gitlab.JobSpec) {
			s.Edit = func(payload *gitlab.Payload) {
				for i := range payload.Cache {
					payload.Cache[i].Key, payload.Cache[i].When = key, "always"
				}
			}
		}
	}
	script := func(lines ...string) func(*gitlab.JobSpec) { return func(s *gitlab.JobSpec) { s.Script = lines } }
	own := fmt.Sprintf("p%d", p.ID)
	var jobs []*gitlab.Job
	for name, change := range map[string]func(*gitlab.JobSpec){
		"plainly":             set(),
		"forced":              set("BERTH_CACHE_PUBLISH", "true", "CI_PIPELINE_SOURCE", "schedule"),
		"as protected":        set("CI_COMMIT_REF_PROTECTED", "true", "CI_COMMIT_REF_NAME", "main", "CI_DEFAULT_BRANCH", "main"),
		"elsewhere":           set("CI_PROJECT_DIR", "/builds/other/project", "CI_PROJECT_ID", "1", "CI_PROJECT_PATH", "other/project"),
		"by clone path":       set("GIT_CLONE_PATH", "/builds/"+p.Path),
		"by key":              rekey("deps-protected"),
		"by path in the key":  rekey("../" + own + "-protected/cache/0.0/deps-protected"),
		"by owner in the key": rekey("0.0/deps-protected"),
		"by namespace in ids": set("BERTH_CACHE_1", "id="+own+"-protected/snapshot/m,target=/m,publish=always", "BERTH_CACHE_2", "id=protected/s,target=/s,sharing=shared"),
		"by another mode":     set("BERTH_CACHE_2", "id=s,target=/s,sharing=locked"),
		"by hooks of git": hook("cd $CI_PROJECT_DIR && mkdir -p .git/hooks && printf '#!/bin/sh\\ntouch evil-hook\\n' | tee .git/hooks/post-checkout .git/hooks/pre-commit >/dev/null && chmod 755 .git/hooks/*",
			"git config --global core.fsmonitor 'touch evil-monitor'; git config core.fsmonitor 'touch evil-monitor'; git config core.hooksPath /builds/evil; git config filter.x.smudge 'echo evil'; echo '* filter=x' >>.git/info/attributes || true"),
		"failing in the tree": hook("if [ -e $CI_PROJECT_DIR/README ]; then exit 1; fi"),
		"a link for the tree": hook("cd /builds; mv ${CI_PROJECT_DIR%/*} moved; ln -s " + host + " ${CI_PROJECT_DIR%/*}"),
		"a link for a target": hook("mkdir -p $CI_PROJECT_DIR; rm -rf $CI_PROJECT_DIR/in; ln -s " + host + " $CI_PROJECT_DIR/in; echo in >$CI_PROJECT_DIR/../exclude"),
		"links for caches":    script("rm -rf deps again; ln -s " + host + " deps; ln -s / again; " + "rm -rf in/side/*; ln -s " + host + " in/side/f"),
		"marks of layers": script("rm -rf deps again; mkdir -p deps; mknod deps/f c 0 0 || true; mknod again c 0 0 || true; mknod README2 c 0 0 || true",
			"mknod /m/f2 c 0 0; mknod /m/disk b 8 0; cp /bin/busybox /m/root; chmod 4755 /m/root; setfattr -n trusted.overlay.opaque -v y deps || true"),
		"many and deep": script("d=deps; for i in $(seq 150); do d=$d/d; done; mkdir -p $d; i=0; while [ $i -lt 2000 ]; do : >deps/$i; i=$((i+1)); done; " + evil),
		"from behind":   script(evil, "setsid sh -c 'exec 3>>deps/f; while :; do echo late >&3; echo late >>/s/f; sleep 0.01; done' >/dev/null 2>&1 &"),
		"by a service": func(s *gitlab.JobSpec) {
			s.Services = []gitlab.Image{{Name: registry.Image(images.Busybox), Command: []string{"sh", "-c",
				"while :; do for d in /builds/*/project /builds/*/*/project; do echo evil >$d/README; mkdir -p $d/.git/hooks $d/deps; echo evil >$d/deps/f; done 2>/dev/null; sleep 0.01; done"}}}
		},
		"by the socket": script("find / -xdev -name '*.sock' 2>/dev/null | head; test ! -e "+node.Config.Socket, evil),
	} {
		spec := trusted
		spec.Name, spec.Protected = name, no
		spec.Variables = variables(mounts...)
		spec.Script = []string{evil}
		change(&spec)
		jobs = append(jobs, p.start(spec))
	}
	for _, j := range jobs {
		// Some are refused, which is as good.
		end(t, j)
		require.NotContains(t, j.Log(), "of the host", j.Name())
		require.NoError(t, node.AwaitGone(t.Context(), j.ID))
	}
	entries, err := os.ReadDir(host)
	require.NoError(t, err)
	require.Len(t, entries, 1, "in a directory of the host")
	require.Equal(t, before, protectedKeys(t, p.ID))
	for range 2 {
		log := p.run(verify, "\nread me\nmain\n")
		require.NotContains(t, log, "evil")
		require.NotContains(t, log, "filter")
		require.NotContains(t, log, "empty, since")
	}
	// Nor has any of them read what is the host's into what they leave each other.
	spec := verify
	spec.Protected, spec.Script = no, []string{"cat deps/secret again/etc/shadow in/side/f/secret 2>/dev/null || true; ls deps again in/side || true"}
	require.NotContains(t, p.run(spec), "of the host")
}

// protectedKeys is the newest generation of each of the keys that jobs of protected refs publish.
func protectedKeys(t *testing.T, project int64) map[string]int {
	t.Helper()
	kept, err := node.Client.Caches(t.Context())
	require.NoError(t, err)
	keys := map[string]int{}
	for _, c := range kept {
		namespace, _, _ := strings.Cut(c.Key, "/")
		if strings.HasPrefix(namespace, fmt.Sprintf("p%d-", project)) && strings.HasSuffix(namespace, "-protected") {
			keys[c.Key] = 0
			for _, g := range c.Generations {
				if !g.Withdrawn {
					keys[c.Key] = g.Number
				}
			}
		}
	}
	require.NotEmpty(t, keys)
	return maps.Clone(keys)
}

// TestOddTargets has caches over directories that a container needs; it is the job's to have another.
func TestOddTargets(t *testing.T) {
	p := newProject(t, files)
	for _, target := range []string{"/etc", "/tmp", "/run/x", "/var"} {
		spec := gitlab.JobSpec{Variables: variables("BERTH_CACHE_1", "id=odd"+strings.ReplaceAll(target, "/", "-")+",target="+target), Script: []string{
			"cat " + target + "/kept 2>/dev/null || echo cold", "echo warm >" + target + "/kept", "cat README",
		}}
		p.run(spec, "\ncold\n", "\nread me\n")
		p.run(spec, "\nwarm\n", "\nread me\n")
	}
	p.fail(gitlab.JobSpec{Variables: variables("BERTH_CACHE_1", "id=bin,target=/bin"), Script: []string{"true"}}, "has neither bash nor sh")
}
