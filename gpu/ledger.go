package gpu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ledger keeps what jobs have made of their devices in a file for each, for
// the berthd after this one. Jobs do not outlive the boot, nor need the files.
type ledger string // a directory; empty keeps nothing

func (l ledger) file(job string) string { return filepath.Join(string(l), job+".json") }

func (l ledger) put(job string, u []byte) error {
	if l == "" {
		return nil
	}
	file := l.file(job)
	if err := errors.Join(os.MkdirAll(string(l), 0o700), os.WriteFile(file+".next", u, 0o600)); err != nil {
		return fmt.Errorf("note what job %s makes of its GPUs: %w", job, err)
	}
	return os.Rename(file+".next", file)
}

// get is nil for a job of which nothing is known.
func (l ledger) get(job string) (*use, error) {
	if l == "" {
		return nil, nil
	}
	b, err := os.ReadFile(l.file(job))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	u := new(use)
	if err == nil {
		err = json.Unmarshal(b, u)
	}
	if err != nil {
		return nil, fmt.Errorf("read what job %s has made of its GPUs: %w", job, err)
	}
	return u, nil
}

func (l ledger) remove(job string) error {
	if l == "" {
		return nil
	}
	if err := os.Remove(l.file(job)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget what job %s has made of its GPUs: %w", job, err)
	}
	return nil
}

// tidy removes the files of other jobs than those that are to be kept from a
// directory.
func tidy(dir string, keep func(job string) bool) error {
	if dir == "" {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if !keep(strings.TrimSuffix(e.Name(), ".json")) {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return err
}
