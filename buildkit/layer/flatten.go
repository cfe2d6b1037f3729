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
	v, err := OpenView(layers)
	if err != nil {
		return err
	}
	defer v.Close()
	return flatten(ctx, dst, v)
}

// flatten gives directories their times last, since filling them changes these.
func flatten(ctx context.Context, dst string, v *View) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	entries, err := v.Entries()
	if err != nil {
		return err
	}
	for _, e := range entries {
		target := filepath.Join(dst, e.Name)
		if !e.IsDir() {
			err = e.Link(target)
		} else {
			err = flattenDir(ctx, target, v, e.Name)
		}
		if err != nil {
			return err
		}
	}
	return copyAttributes(dst, v.Path(), false)
}

func flattenDir(ctx context.Context, target string, v *View, name string) error {
	sub, err := v.Open(name)
	if err != nil {
		return err
	}
	defer sub.Close()
	if err := unix.Mkdir(target, 0o700); err != nil {
		return fmt.Errorf("make directory %s: %w", target, err)
	}
	return flatten(ctx, target, sub)
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
	return SameAttributes(upper, below)
}
