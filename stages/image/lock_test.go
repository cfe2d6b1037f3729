package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestLock(t *testing.T) {
	dir := t.TempDir()
	mark := filepath.Join(t.TempDir(), "inside")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			release, err := lock(t.Context(), dir, "image", nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer release()
			if err := os.Mkdir(mark, 0o700); err != nil {
				t.Errorf("two hold the lock: %v", err)
			}
			if err := os.Remove(mark); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestLockWaitsAndCancels(t *testing.T) {
	dir := t.TempDir()
	release, err := lock(t.Context(), dir, "image", nil)
	if err != nil {
		t.Fatal(err)
	}
	other, err := lock(t.Context(), dir, "other image", func() { t.Error("another image makes one wait") })
	if err != nil {
		t.Fatal(err)
	}
	other()

	ctx, cancel := context.WithCancel(t.Context())
	waits := 0
	if _, err := lock(ctx, dir, "image", func() { waits++; cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want canceled", err)
	}
	if waits != 1 {
		t.Errorf("said %d times that it waits", waits)
	}
	release()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}
