package worktree

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const dirty = `[remote "origin"]
	url = https://gitlab-ci-token:glcbt-secret@gitlab.example.com/group/project.git
	pushurl = "https://glpat-secret@gitlab.example.com/group/project.git"
[url "https://gitlab-ci-token:glcbt-secret@gitlab.example.com/"]
	insteadOf = https://gitlab.example.com/
[http "https://gitlab.example.com"]
	extraHeader = AUTHORIZATION: basic secret
	extraheader = "X: \
secret"
[submodule "x"]
	url = ssh://git@gitlab.example.com:22/x.git
`

const scrubbedConfig = `[remote "origin"]
	url = https://gitlab.example.com/group/project.git
	pushurl = "https://gitlab.example.com/group/project.git"
[url "https://gitlab.example.com/"]
	insteadOf = https://gitlab.example.com/
[http "https://gitlab.example.com"]
	extraHeader =
	extraheader =
[submodule "x"]
	url = ssh://git@gitlab.example.com:22/x.git
`

func TestScrub(t *testing.T) {
	n := newNode(t)
	configs := []string{".git/config", ".git/modules/lib/config", ".git/modules/lib/modules/objects/config", ".git/modules/a/b/config", ".git/config.worktree"}
	o := n.overlay()
	n.mount(o)
	for _, name := range configs {
		n.write(n.tree(), name, dirty)
		n.must(os.Chmod(n.tree()+"/"+name, 0o600))
		n.must(os.Chown(n.tree()+"/"+name, 12, 34))
	}
	n.write(n.tree(), ".git/HEAD", "ref", ".git/modules/c/config/x", "", "src/config", dirty)
	n.must(os.Symlink("/etc/passwd", n.tree()+"/.git/modules/d"))
	n.must(os.Link(n.tree()+"/.git/config", n.tree()+"/kept"))
	n.unmount(o)
	before := n.look(o.Upper, true)
	s, err := Scrub(o.Upper)
	n.must(err)
	for _, text := range []string{fmt.Sprint(s), fmt.Sprintf("%+v", s), fmt.Sprintf("%#v", s)} {
		if strings.Contains(text, "secret") || text != "5 scrubbed files" {
			t.Errorf("it says %s", text)
		}
	}
	for _, name := range configs {
		data, err := os.ReadFile(o.Upper + "/" + name)
		n.must(err)
		if d := cmp.Diff(scrubbedConfig, string(data)); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	for _, name := range []string{"kept", "src/config"} {
		if data, err := os.ReadFile(o.Upper + "/" + name); err != nil || string(data) != dirty {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Published; the job goes on upon it.
	next := n.overlay(o.Upper)
	published := n.look(o.Upper, true)
	n.must(s.Restore(next.Upper, next.Lower))
	n.mount(next)
	if d := cmp.Diff(before, n.look(n.tree(), true)); d != "" {
		t.Error(d)
	}
	n.unmount(next)
	if d := cmp.Diff(published, n.look(o.Upper, true)); d != "" {
		t.Error(d)
	}
	again, err := Scrub(o.Upper)
	n.must(err)
	if again.String() != "0 scrubbed files" {
		t.Error(again)
	}
}

func TestScrubRefuses(t *testing.T) {
	n := newNode(t)
	upper := n.mkdir("upper")
	if s, err := Scrub(upper); err != nil || s.String() != "0 scrubbed files" {
		t.Errorf("no repository: %v, %v", s, err)
	}
	outside := n.mkdir("outside")
	n.write(outside, "config", dirty)
	n.must(os.Symlink(outside, upper+"/.git"))
	_, err := Scrub(upper)
	n.must(err)
	n.must(os.Remove(upper + "/.git"))
	n.must(os.Mkdir(upper+"/.git", 0o755))
	n.must(os.Symlink(outside+"/config", upper+"/.git/config"))
	n.must(unix.Mkfifo(upper+"/.git/config.worktree", 0o600))
	_, err = Scrub(upper)
	n.must(err)
	if data, err := os.ReadFile(outside + "/config"); err != nil || string(data) != dirty {
		t.Errorf("outside: %v", err)
	}
	n.must(os.Remove(upper + "/.git/config"))
	n.write(upper, ".git/config", strings.Repeat(dirty, 1<<20/len(dirty)+1))
	if _, err := Scrub(upper); !errdefs.IsResourceExhausted(err) {
		t.Errorf("too large: %v", err)
	}
}
