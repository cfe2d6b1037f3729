package layer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Flatten fills the empty directory dst with what overlayfs shows of a stack of layers, given from the uppermost
// down. Files are hardlinks, so they keep everything they have, and neither dst nor the layers may be written after.
func Flatten(ctx context.Context, dst string, layers []string) error {
	return merge(ctx, dst, layers)
}

// merge fills dst with the directories dirs of layers, of which none hides the next. Directories get their times
// last, since filling them changes these.
func merge(ctx context.Context, dst string, dirs []string) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	taken := map[string]bool{} // by a layer further up
	for i, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("read layer: %w", err)
		}
		for _, entry := range entries {
			name := entry.Name()
			if taken[name] {
				continue
			}
			taken[name] = true
			if err := mergeEntry(ctx, dst, name, dirs[i:]); err != nil {
				return err
			}
		}
	}
	return copyAttributes(dst, dirs[0], false)
}

// mergeEntry makes one name of dst; dirs[0] is the uppermost that has it.
func mergeEntry(ctx context.Context, dst, name string, dirs []string) error {
	src, target := filepath.Join(dirs[0], name), filepath.Join(dst, name)
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return fmt.Errorf("stat %s: %w", src, err)
	}
	if whiteout(&st) {
		return nil
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return link(src, target)
	}
	stack, err := below(name, dirs)
	if err != nil {
		return err
	}
	if err := unix.Mkdir(target, 0o700); err != nil {
		return fmt.Errorf("make directory %s: %w", target, err)
	}
	return merge(ctx, target, stack)
}

// below lists the directories of that name that show through: down to the first that is opaque, or is none.
func below(name string, dirs []string) ([]string, error) {
	var stack []string
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err == unix.ENOENT {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("stat %s: %w", path, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			break
		}
		stack = append(stack, path)
		hides, err := Opaque(path)
		if err != nil {
			return nil, err
		}
		if hides {
			break
		}
	}
	return stack, nil
}

func link(src, dst string) error {
	if err := unix.Linkat(unix.AT_FDCWD, src, unix.AT_FDCWD, dst, 0); err != nil {
		return fmt.Errorf("link %s: %w", src, err)
	}
	return nil
}

// Link fills the empty layer dst with the layer src as it is, whiteouts and opaque directories included. Its files
// are hardlinks: nobody may write to those of src after, or writes into dst.
func Link(ctx context.Context, dst, src string) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	entries, err := os.ReadDir(src)
	if err != nil {
		return fmt.Errorf("read layer: %w", err)
	}
	for _, entry := range entries {
		from, to := filepath.Join(src, entry.Name()), filepath.Join(dst, entry.Name())
		if !entry.IsDir() {
			if err := link(from, to); err != nil {
				return err
			}
			continue
		}
		if err := unix.Mkdir(to, 0o700); err != nil {
			return fmt.Errorf("make directory %s: %w", to, err)
		}
		if err := Link(ctx, to, from); err != nil {
			return err
		}
	}
	return copyAttributes(dst, src, true)
}

// Same tells whether a layer changes nothing but times of the directory below: it has no entries, and its root has
// the owner, mode and attributes of that.
func Same(upper, below string) (bool, error) {
	entries, err := os.ReadDir(upper)
	if err != nil {
		return false, fmt.Errorf("read layer: %w", err)
	}
	if len(entries) > 0 {
		return false, nil
	}
	a, err := describe(upper)
	if err != nil {
		return false, err
	}
	b, err := describe(below)
	return a == b, err
}
