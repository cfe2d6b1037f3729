// Package layer handles the directories that overlayfs puts on top of each other: it mounts them, flattens a stack
// of them into one, and copies what belongs to a layer as a whole.
//
// It works on directories alone and knows neither snapshots nor caches.
package layer

import (
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
)

// Overlay is a stack of layers and the directories that take the writes. All are read and written by root alone,
// from outside of any mount.
type Overlay struct {
	Lower       []string // from the uppermost down; empty for none
	Upper, Work string
}

// FromMounts reads the overlay of a snapshot. That of one without a parent is a bare directory, whose work directory
// lies beside it.
func FromMounts(mounts []mount.Mount, workBeside func(upper string) string) (Overlay, error) {
	if len(mounts) != 1 {
		return Overlay{}, fmt.Errorf("snapshot has %d mounts, expected one: %w", len(mounts), errdefs.ErrNotImplemented)
	}
	m := mounts[0]
	switch m.Type {
	case "bind":
		return Overlay{Upper: m.Source, Work: workBeside(m.Source)}, nil
	case "overlay":
	default:
		return Overlay{}, fmt.Errorf("snapshot is mounted as %s, expected overlay: %w", m.Type, errdefs.ErrNotImplemented)
	}
	var o Overlay
	for _, option := range m.Options {
		name, value, _ := strings.Cut(option, "=")
		switch name {
		case "lowerdir":
			o.Lower = strings.Split(value, ":")
		case "upperdir":
			o.Upper = value
		case "workdir":
			o.Work = value
		}
	}
	return o, nil
}
