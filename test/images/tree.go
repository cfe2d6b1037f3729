package images

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const architecture = runtime.GOARCH

const (
	modeDir     = os.ModeDir
	modeSymlink = os.ModeSymlink
)

// tree is the content of a layer, by absolute path.
type tree map[string]entry

// entry is a directory, a symbolic link or a file; a file's content is here or
// in a file of this machine.
type entry struct {
	mode     os.FileMode
	uid, gid int
	link     string
	content  string
	source   string
}

func directory(mode os.FileMode) entry { return entry{mode: modeDir | mode} }
func symlink(to string) entry          { return entry{mode: modeSymlink | 0o777, link: to} }
func text(content string) entry        { return entry{mode: 0o644, content: content} }
func copyOf(file string) entry         { return entry{mode: 0o755, source: file} }

// script is a tree with a shell script.
func script(name, body string) tree {
	return tree{name: {mode: 0o755, content: "#!/bin/sh\n" + body}}
}

// layer packs the tree, the same in each run as long as its files are.
func (t tree) layer() (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(t.complete())) {
		if err := t[name].write(w, name); err != nil {
			return nil, fmt.Errorf("pack %s: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("pack layer: %w", err)
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}

// complete adds the directories that files are in.
func (t tree) complete() tree {
	for _, name := range slices.Collect(maps.Keys(t)) {
		for dir := filepath.Dir(name); dir != "/"; dir = filepath.Dir(dir) {
			if _, ok := t[dir]; !ok {
				t[dir] = directory(0o755)
			}
		}
	}
	return t
}

func (e entry) write(w *tar.Writer, name string) error {
	content := []byte(e.content)
	if e.source != "" {
		var err error
		if content, err = os.ReadFile(e.source); err != nil {
			return err
		}
	}
	h := &tar.Header{
		Name: name[1:], Mode: int64(e.mode.Perm()), Uid: e.uid, Gid: e.gid, Linkname: e.link,
		Typeflag: tar.TypeReg, Size: int64(len(content)),
	}
	switch e.mode.Type() {
	case modeDir:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	case modeSymlink:
		h.Typeflag = tar.TypeSymlink
	}
	if e.mode&os.ModeSticky != 0 {
		h.Mode |= 0o1000
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}
