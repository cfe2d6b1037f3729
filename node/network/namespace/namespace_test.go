package namespace

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func needRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
}

func here(t *testing.T) string {
	t.Helper()
	ns, err := os.Readlink(self)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func TestThreadsComeHome(t *testing.T) {
	needRoot(t)
	home := here(t)
	path := filepath.Join(t.TempDir(), "ns")
	var inside string
	if err := Create(path, func() error { inside = here(t); return nil }); err != nil {
		t.Fatal(err)
	}
	if inside == home {
		t.Fatal("no new namespace")
	}
	failure := errors.New("failure")
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			err := Do(path, func() error {
				if got := here(t); got != inside {
					t.Errorf("in %s, expected %s", got, inside)
				}
				if i%2 == 0 {
					return failure
				}
				return nil
			})
			if (i%2 == 0) != errors.Is(err, failure) {
				t.Error(err)
			}
		})
	}
	wg.Wait()

	// Every thread is at home again.
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		ns, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net")
		if err == nil && ns != home {
			t.Errorf("thread %s is in %s, expected %s", task.Name(), ns, home)
		}
	}
	if err := Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := Remove(path); err != nil {
		t.Errorf("remove again: %v", err)
	}
	if err := Do(path, func() error { return nil }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("enter a removed namespace: %v", err)
	}
}

func TestCreateFails(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "ns")
	failure := errors.New("failure")
	if err := Create(path, func() error { return failure }); !errors.Is(err, failure) {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("file is left: %v", err)
	}
	if err := Create(path, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(path); err != nil {
			t.Error(err)
		}
	})
	if err := Create(path, func() error { return nil }); !errors.Is(err, os.ErrExist) {
		t.Errorf("create twice: %v", err)
	}
	if err := Do(path, func() error { return nil }); err != nil {
		t.Errorf("the first was harmed: %v", err)
	}
}

func TestSocketsStay(t *testing.T) {
	needRoot(t)
	path := filepath.Join(t.TempDir(), "ns")
	if err := Create(path, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(path); err != nil {
			t.Error(err)
		}
	})
	var l net.Listener
	if err := Do(path, func() (err error) {
		l, err = net.Listen("tcp4", "0.0.0.0:5432")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	other, err := net.Listen("tcp4", l.Addr().String())
	if err != nil {
		t.Fatalf("the same port at home: %v", err)
	}
	other.Close()
}
