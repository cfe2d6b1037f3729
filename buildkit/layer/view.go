package layer

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// View is a directory as overlayfs shows it: those of the layers that show through, held open. It is read by names of
// one component alone, so that no link is followed even if somebody writes to a layer meanwhile.
type View struct {
	parts []part // from the uppermost down
}

type part struct {
	dir    *os.File
	layer  int // its place in the stack
	opaque bool
}

// Entry is one name in a View.
type Entry struct {
	Name  string
	Layer int // the uppermost that has it, by its place in the stack
	Stat  unix.Stat_t

	dir *os.File
}

// OpenView opens what overlayfs shows of a stack of layers, given from the uppermost down. That of none is
// an empty directory, which has no path.
func OpenView(layers []string) (*View, error) {
	v := &View{}
	for i, path := range layers {
		dir, err := openDir(unix.AT_FDCWD, path)
		if err != nil {
			v.Close()
			return nil, fmt.Errorf("open layer: %w", err)
		}
		v.parts = append(v.parts, part{dir: dir, layer: i})
	}
	return v, nil
}

// openDir opens a directory; unix.ENOTDIR if it is something else, be it a link.
func openDir(at int, name string) (*os.File, error) {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Close closes the view, and none of those opened from it.
func (v *View) Close() {
	for _, p := range v.parts {
		p.dir.Close()
	}
}

// Open opens a directory, "." for the same once more; errdefs.ErrNotFound if what is there, if anything, is none.
func (v *View) Open(name string) (*View, error) {
	sub := &View{}
	for _, p := range v.parts {
		dir, err := openDir(int(p.dir.Fd()), name)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			break // it hides what is below, as a whiteout does
		}
		if err != nil {
			sub.Close()
			return nil, fmt.Errorf("read layer: %w", err)
		}
		opaque := p.opaque
		if name != "." { // the kernel does not look at that of a root
			opaque, err = Opaque(At(dir, "."))
		}
		if err != nil {
			dir.Close()
			sub.Close()
			return nil, err
		}
		sub.parts = append(sub.parts, part{dir: dir, layer: p.layer, opaque: opaque})
		if opaque {
			break
		}
	}
	if len(sub.parts) == 0 && name != "." {
		return nil, fmt.Errorf("%s is no directory: %w", name, errdefs.ErrNotFound)
	}
	return sub, nil
}

// Lookup looks for one name; errdefs.ErrNotFound if there is nothing.
func (v *View) Lookup(name string) (Entry, error) {
	for _, p := range v.parts {
		e := Entry{Name: name, Layer: p.layer, dir: p.dir}
		err := unix.Fstatat(int(p.dir.Fd()), name, &e.Stat, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return Entry{}, fmt.Errorf("stat %s: %w", name, err)
		}
		if Whiteout(&e.Stat) {
			break
		}
		return e, nil
	}
	return Entry{}, fmt.Errorf("%s: %w", name, errdefs.ErrNotFound)
}

// Entries lists what is in the directory, in order. What goes meanwhile is left out.
func (v *View) Entries() ([]Entry, error) {
	var entries []Entry
	taken := map[string]bool{} // by a layer further up
	for i, p := range v.parts {
		if _, err := p.dir.Seek(0, 0); err != nil {
			return nil, fmt.Errorf("read layer: %w", err)
		}
		names, err := p.dir.Readdirnames(-1)
		if err != nil {
			return nil, fmt.Errorf("read layer: %w", err)
		}
		for _, name := range names {
			if taken[name] {
				continue
			}
			if i < len(v.parts)-1 {
				taken[name] = true
			}
			e := Entry{Name: name, Layer: p.layer, dir: p.dir}
			err := unix.Fstatat(int(p.dir.Fd()), name, &e.Stat, unix.AT_SYMLINK_NOFOLLOW)
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("stat %s: %w", name, err)
			}
			if !Whiteout(&e.Stat) {
				entries = append(entries, e)
			}
		}
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return entries, nil
}

// Top is the directory whose attributes are shown, and its layer's place in the stack.
func (v *View) Top() (dir *os.File, layer int) { return v.parts[0].dir, v.parts[0].layer }

// Opaque tells whether the topmost directory hides all below.
func (v *View) Opaque() bool { return v.parts[0].opaque }

// Path names the topmost directory for calls that take a path, as long as the view is open.
func (v *View) Path() string { return At(v.parts[0].dir, ".") }

// IsDir tells whether the entry is a directory.
func (e *Entry) IsDir() bool { return e.Stat.Mode&unix.S_IFMT == unix.S_IFDIR }

// IsLink tells whether the entry is a symbolic link.
func (e *Entry) IsLink() bool { return e.Stat.Mode&unix.S_IFMT == unix.S_IFLNK }

// Path names the entry for calls that take a path and follow no link at its end, as long as its view is open.
func (e *Entry) Path() string { return At(e.dir, e.Name) }

// Link makes a hardlink to the entry.
func (e *Entry) Link(target string) error {
	if err := unix.Linkat(int(e.dir.Fd()), e.Name, unix.AT_FDCWD, target, 0); err != nil {
		return fmt.Errorf("link %s: %w", e.Name, err)
	}
	return nil
}

// At names something in an open directory, wherever that is.
func At(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

// Hidden tells whether a whiteout, in some layer of the directory, says that there is no such name.
func (v *View) Hidden(name string) (bool, error) {
	for _, p := range v.parts {
		var st unix.Stat_t
		err := unix.Fstatat(int(p.dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("stat %s: %w", name, err)
		}
		return Whiteout(&st), nil
	}
	return false, nil
}

// Marked lists the whiteouts of the topmost directory.
func (v *View) Marked() ([]string, error) {
	dir := v.parts[0].dir
	if _, err := dir.Seek(0, 0); err != nil {
		return nil, fmt.Errorf("read layer: %w", err)
	}
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return nil, fmt.Errorf("read layer: %w", err)
	}
	var names []string
	for _, entry := range entries {
		if entry.Type()&os.ModeCharDevice == 0 {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), entry.Name(), &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && Whiteout(&st) {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}
