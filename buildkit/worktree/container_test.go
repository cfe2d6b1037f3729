package worktree

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// containerEnv makes the test binary a process of a job: SOURCE and TARGET of what it has bound, and
// the directory that it attacks, if any.
const containerEnv = "BERTH_TEST_CONTAINER"

func TestMain(m *testing.M) {
	if binds := os.Getenv(containerEnv); binds != "" {
		fmt.Fprintln(os.Stderr, contain(binds))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// contain becomes a shell that sees a directory as a container does.
func contain(binds string) error {
	source, rest, _ := strings.Cut(binds, " ")
	target, outside, _ := strings.Cut(rest, " ")
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Mount("", target, "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if outside != "" {
		attack(target, outside)
	}
	return unix.Exec("/bin/sh", []string{"sh"}, append(os.Environ(), "B="+target))
}

// attack puts links to outside in the place of directories, and back, until it is killed.
func attack(target, outside string) {
	dirs := []string{"group", "group/project", "group/project/cache"}
	for _, dir := range dirs {
		evil := filepath.Join(target, filepath.Dir(dir), "evil")
		_ = os.Symlink(filepath.Join(outside, strings.TrimPrefix(dir, "group")), evil)
	}
	for _, dir := range dirs {
		path := filepath.Join(target, dir)
		evil := filepath.Join(filepath.Dir(path), "evil")
		go func() {
			for {
				_ = unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, evil, unix.RENAME_EXCHANGE)
			}
		}()
	}
	fmt.Println("ready")
	select {}
}

// attacker is a process of the job that attacks a directory of the host.
func (n *node) attacker(outside string) (end func()) {
	n.Helper()
	c := n.start(containerEnv + "=" + n.root.path + " " + n.fresh("view") + " " + outside)
	if line, err := c.out.ReadString('\n'); err != nil || line != "ready\n" {
		n.Fatalf("attacker says %q: %v", line, err)
	}
	return c.end
}

// container is a shell in a mount namespace of its own, which has a directory as $B.
type container struct {
	testing.TB
	in  io.Writer
	out *bufio.Reader
	end func()
}

func (n *node) container(dir string) *container {
	n.Helper()
	c := n.start(containerEnv + "=" + dir + " " + n.fresh("view"))
	c.run("true")
	return c
}

func (n *node) start(env string) *container {
	n.Helper()
	cmd := exec.CommandContext(n.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), env)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: unix.SIGKILL}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	n.must(err)
	out, err := cmd.StdoutPipe()
	n.must(err)
	n.must(cmd.Start())
	c := &container{TB: n.TB, in: in, out: bufio.NewReader(out)}
	ended := false
	c.end = func() {
		if !ended {
			ended = true
			_ = cmd.Process.Kill() // and all that it started, as the first of its namespace
			_ = cmd.Wait()
		}
	}
	n.Cleanup(c.end)
	return c
}

// run runs a script, and returns what it says.
func (c *container) run(script string) string {
	c.Helper()
	text, code := c.try(script)
	if code != "0" {
		c.Fatalf("%s: exit %s: %s", script, code, text)
	}
	return text
}

func (c *container) try(script string) (text, code string) {
	c.Helper()
	if _, err := fmt.Fprintf(c.in, "{ %s\n} 2>&1 </dev/null; r=$?; echo; echo done: $r\n", script); err != nil {
		c.Fatal(err)
	}
	for {
		line, err := c.out.ReadString('\n')
		if err != nil {
			c.Fatalf("%s: %v", script, err)
		}
		if code, ok := strings.CutPrefix(line, "done: "); ok {
			return strings.TrimSpace(text), strings.TrimSpace(code)
		}
		text += line
	}
}
