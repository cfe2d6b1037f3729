package testnode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/cgroup"
	"gitlab.com/berth-ci/berth/node/relay"
)

// patience is more than berthd takes to start, or to try again what has failed,
// in a machine that is emulated, too.
const patience = 5 * time.Minute

// AwaitClean waits until jobs have left nothing, and else says what they have
// left.
func (n *Node) AwaitClean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last []string
	for {
		left, err := n.Leftovers(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			return err
		case err == nil && len(left) == 0:
			return nil
		case err == nil:
			last = left
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("left over:\n%s\n\nberthd's log:\n%s", strings.Join(last, "\n"), n.logOf(last))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

var jobKey = regexp.MustCompile(`\bj[0-9]+-[0-9a-f]{8}\b`)

// logOf is what berthd has logged about the jobs that texts name, and when it
// was started.
func (n *Node) logOf(texts []string) string {
	names := []string{"berthd serves"}
	for _, text := range texts {
		names = append(names, jobKey.FindAllString(text, -1)...)
	}
	var b strings.Builder
	for line := range strings.Lines(n.Log()) {
		if slices.ContainsFunc(names, func(name string) bool { return strings.Contains(line, name) }) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// Leftovers lists what there is of jobs. While none is on a node that serves
// that is nothing; networks that wait for jobs do not count, nor do images.
func (n *Node) Leftovers(ctx context.Context) ([]string, error) {
	jobs, err := n.Client.Jobs(ctx)
	if err != nil {
		return nil, err
	}
	var left []string
	for _, j := range jobs {
		left = append(left, fmt.Sprintf("job %s, %s", j.Key, j.State))
	}
	for _, find := range []func(context.Context) ([]string, error){
		n.containers, n.files, n.mounts, n.networks, n.cgroups, n.processes, n.sockets,
	} {
		found, err := find(ctx)
		if err != nil {
			return nil, fmt.Errorf("look for leftovers: %w", err)
		}
		left = append(left, found...)
	}
	return left, nil
}

// files lists the files of jobs, and of their containers in runc's directory,
// which all nodes of a machine share.
func (n *Node) files(context.Context) (left []string, err error) {
	for _, pattern := range []string{"jobs/*", "trash/*", "runners/.copy-*"} {
		found, err := filepath.Glob(filepath.Join(n.Config.Root, pattern))
		if err != nil {
			return nil, err
		}
		left = append(left, found...)
	}
	states, err := filepath.Glob("/run/containerd/runc/*/*/state.json")
	if err != nil {
		return nil, err
	}
	for _, file := range states {
		if text, err := os.ReadFile(file); err == nil && bytes.Contains(text, []byte(n.dir+"/")) {
			left = append(left, file)
		}
	}
	return left, nil
}

// mounts lists what is mounted in the node's directories, but for the network
// namespaces that it has.
func (n *Node) mounts(context.Context) (left []string, err error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(n.dir))
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		switch {
		case filepath.Dir(m.Mountpoint) == n.netnsDir(), m.Mountpoint == n.outside.netns:
		case m.Mountpoint == n.dir, m.Mountpoint == n.Config.Root: // the caller's
		case m.Mountpoint == filepath.Join(n.Config.Root, "docker"): // dockerd's, for as long as it runs
		case m.Mountpoint == filepath.Join(n.Config.State, "docker", "binds"):
		default:
			left = append(left, "mount "+m.Mountpoint)
		}
	}
	return left, nil
}

func (n *Node) netnsDir() string { return filepath.Join(n.Config.State, "netns") }

// networks lists the links, namespaces and rules of jobs' networks. berthd
// labels the bridge of a network when a job gets it.
func (n *Node) networks(context.Context) (left []string, err error) {
	links, err := n.links()
	if err != nil {
		return nil, err
	}
	count := map[string]int{}
	for _, link := range links {
		name, alias := link.Attrs().Name, link.Attrs().Alias
		count[name[:2]]++
		if alias != "" || strings.HasPrefix(name, "be") {
			left = append(left, fmt.Sprintf("link %s of %q", name, alias))
		}
	}
	files, err := os.ReadDir(n.netnsDir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if waiting := len(files); waiting > n.Config.Network.Pool || count["bj"] != waiting || count["bv"] != waiting || count["bu"] != waiting {
		left = append(left, fmt.Sprintf("%d network namespaces, %d bridges, %d legs and %d uplinks for a pool of %d",
			waiting, count["bj"], count["bv"], count["bu"], n.Config.Network.Pool))
	}
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	table := &nftables.Table{Name: n.table(), Family: nftables.TableFamilyINet}
	for _, name := range []string{"bridges", "node", "outside"} {
		set, err := conn.GetSetByName(table, name)
		if err != nil {
			return nil, fmt.Errorf("find nftables set %s: %w", name, err)
		}
		elements, err := conn.GetSetElements(set)
		if err != nil {
			return nil, fmt.Errorf("list nftables set %s: %w", name, err)
		}
		if len(elements) > 0 {
			left = append(left, fmt.Sprintf("%d elements of nftables set %s", len(elements), name))
		}
	}
	return left, nil
}

func (n *Node) table() string { return "berth_" + n.Config.Network.Instance }

// links lists the links of the node's jobs.
func (n *Node) links() (ours []netlink.Link, err error) {
	links, err := netlink.LinkList()
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return n.links()
	}
	for _, link := range links {
		if n.isLink(link.Attrs().Name) {
			ours = append(ours, link)
		}
	}
	return ours, err
}

func (n *Node) isLink(name string) bool {
	return len(name) > 2 && name[0] == 'b' && strings.HasPrefix(name[2:], n.Config.Network.Instance+"-")
}

func (n *Node) cgroups(context.Context) (left []string, err error) {
	tree, err := cgroup.Host()
	if err != nil {
		return nil, err
	}
	jobs, err := tree.Children(n.Config.Limits.Cgroup)
	for _, job := range jobs {
		left = append(left, "cgroup "+filepath.Join(n.Config.Limits.Cgroup, job))
	}
	return left, err
}

// sockets lists what the relay has.
func (n *Node) sockets(ctx context.Context) (left []string, err error) {
	jobs, err := relay.NewClient(n.RelaySocket()).List(ctx)
	for job, held := range jobs {
		left = append(left, fmt.Sprintf("sockets and streams of job %s in the relay: %+v", job, held))
	}
	return left, err
}

// RelaySocket is where berthd's relay is controlled.
func (n *Node) RelaySocket() string { return filepath.Join(n.Config.State, "relay.sock") }

func (n *Node) processes(context.Context) (left []string, err error) {
	all, err := n.Processes()
	for pid, command := range all {
		left = append(left, fmt.Sprintf("process %d: %s", pid, command))
	}
	return left, err
}

// Processes finds those that have to do with jobs, such as shims, and their
// commands. berthd and what it keeps running on its own account do not count.
func (n *Node) Processes() (map[int]string, error) {
	all, err := n.processIDs()
	maps.DeleteFunc(all, func(_ int, command string) bool {
		program, _, _ := strings.Cut(command, " ")
		return program == n.programs.Berthd || program == filepath.Join(n.Config.Runtime.Path, "containerd") ||
			program == filepath.Join(n.Config.Runtime.Path, "dockerd")
	})
	return all, err
}

// processIDs finds the processes that name something of the node's in their
// command line, or are in a job's cgroup.
func (n *Node) processIDs() (map[int]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	found := map[int]string{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// Either fails for a process that has just ended.
		command, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		groups, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		if len(command) > 0 && n.ours(string(command)+" "+string(groups)) {
			found[pid] = string(bytes.ReplaceAll(bytes.TrimRight(command, "\x00"), []byte{0}, []byte(" ")))
		}
	}
	return found, nil
}

// sweep removes what a berthd that has ended left of a node without jobs,
// which should be nothing but files and the parent of the jobs' cgroups.
func (n *Node) sweep(ctx context.Context) error {
	var left []string
	processes, err := n.processIDs()
	if err != nil {
		return err
	}
	for pid, command := range processes {
		left = append(left, "process "+command)
		_ = unix.Kill(pid, unix.SIGKILL) // it may have ended
	}
	tree, err := cgroup.Host()
	if err != nil {
		return err
	}
	cgroups, err := n.cgroups(ctx)
	if err != nil {
		return err
	}
	left = append(left, cgroups...)
	errs := []error{tree.Remove(ctx, n.Config.Limits.Cgroup)}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(n.dir))
	errs = append(errs, err)
	for _, m := range mounts {
		if m.Mountpoint == n.outside.netns || m.Mountpoint == n.dir || m.Mountpoint == n.Config.Root {
			continue
		}
		left = append(left, "mount "+m.Mountpoint)
		errs = append(errs, unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
	}
	links, err := n.links()
	errs = append(errs, err)
	for _, link := range links {
		left = append(left, "link "+link.Attrs().Name)
		errs = append(errs, removeLink(link.Attrs().Name))
	}
	rules, err := n.sweepRules(ctx)
	left = append(left, rules...)
	if errs = append(errs, err); len(left) > 0 {
		errs = append(errs, fmt.Errorf("berthd left:\n%s", strings.Join(left, "\n")))
	}
	return errors.Join(errs...)
}

// sweepRules removes the node's nftables table. Rules of iptables are only
// reported.
func (n *Node) sweepRules(ctx context.Context) (left []string, err error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	for _, table := range tables {
		if table.Name == n.table() {
			left = append(left, "nftables table "+table.Name)
			conn.DelTable(table)
		}
	}
	if err := conn.Flush(); err != nil {
		return left, err
	}
	save, err := exec.LookPath("iptables-save")
	if err != nil {
		return left, nil
	}
	rules, err := exec.CommandContext(ctx, save).Output()
	for line := range strings.Lines(string(rules)) {
		if strings.Contains(line, "bu"+n.Config.Network.Instance+"-") || strings.Contains(line, "bj"+n.Config.Network.Instance+"-") {
			left = append(left, "iptables rule "+strings.TrimSpace(line))
		}
	}
	return left, err
}

// AwaitGone waits until berthd has no job of this id any more.
func (n *Node) AwaitGone(ctx context.Context, id int64) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		jobs, err := n.Client.Jobs(ctx)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(jobs, func(j api.Job) bool { return j.Identity.ID == id }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of job %d: %w", id, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
