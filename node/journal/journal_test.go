package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/network"
)

func record(n int) Record {
	id := executor.Identity{Server: "https://gitlab.example.com", ID: int64(n), ProjectID: 7, Project: "group/project"}
	return Record{
		Job: api.Job{
			Key: id.Key(), Identity: id, Profile: "default", State: api.StateAdmitted,
			Runner: api.Process{PID: 42, Start: 4711}, Since: time.Unix(1e9, 0).UTC(),
			Last: &api.Outcome{Stage: "build_script", Status: "failed", ExitCode: 3},
		},
		Admission: api.Admission{
			Job: id.Key(), Lease: "berth-" + id.Key(), Cgroup: "/berth/" + id.Key(),
			Grant: executor.Grant{Profile: executor.DefaultProfile()},
		},
		Boot:    "8a0c5b9e-9d8f-4b0e-a6a7-2f8e7e0f7d11",
		TempDir: "/tmp/custom-executor1",
		Network: network.Network{Slot: n, Job: id.Key(), Netns: "/run/berth/netns/b-1"},
	}
}

func opened(t testing.TB, path string) *Journal {
	j, moved, err := Open(path)
	require.NoError(t, err)
	require.Empty(t, moved)
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func TestJournalRemembers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	j := opened(t, path)
	for n := range 3 {
		require.NoError(t, j.Put(record(n)))
	}
	changed := record(1)
	changed.Job.State = api.StateReleasing
	require.NoError(t, j.Put(changed))
	require.NoError(t, j.Delete(record(2).Job.Key))
	require.NoError(t, j.Delete("j0-00000000"), "deleting what is not there is no error")
	require.NoError(t, j.Close())

	again := opened(t, path)
	got, err := again.Records()
	require.NoError(t, err)
	require.Equal(t, []Record{record(0), changed}, got)
	projects, err := again.Projects()
	require.NoError(t, err)
	require.Equal(t, map[string]string{changed.Job.Identity.ProjectKey(): "group/project"}, projects)

	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

func TestJournalHoldsNoSecrets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	j := opened(t, path)
	r := record(1)
	r.Admission.Grant.Profile.Environment = map[string]string{"TOKEN": "hunter2"}
	require.NoError(t, j.Put(r))
	require.Equal(t, "hunter2", r.Admission.Grant.Profile.Environment["TOKEN"], "the caller's record is left alone")
	require.NoError(t, j.Close())
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NotContains(t, string(b), "hunter2")
	require.NotContains(t, string(b), "TOKEN")
}

func TestOpenRefuses(t *testing.T) {
	t.Run("later schema", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "journal.db")
		j := opened(t, path)
		require.NoError(t, j.db.Update(func(tx *bbolt.Tx) error {
			return tx.Bucket(metaBucket).Put(schemaKey, []byte("2"))
		}))
		require.NoError(t, j.Close())
		_, moved, err := Open(path)
		require.ErrorContains(t, err, "later berthd")
		require.True(t, errdefs.IsFailedPrecondition(err))
		require.Empty(t, moved)
		require.FileExists(t, path)
	})
	t.Run("in use", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "journal.db")
		opened(t, path)
		_, moved, err := Open(path)
		require.ErrorContains(t, err, "another process")
		require.Empty(t, moved)
	})
	t.Run("a directory", func(t *testing.T) {
		_, moved, err := Open(t.TempDir())
		require.Error(t, err)
		require.Empty(t, moved)
	})
}

func TestOpenMovesDamageAside(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, path string){
		"text": func(t *testing.T, path string) {
			require.NoError(t, os.WriteFile(path, []byte(strings.Repeat("not a database\n", 5000)), 0o600))
		},
		"another's database": func(t *testing.T, path string) {
			require.NoError(t, os.Remove(path))
			db, err := bbolt.Open(path, 0o600, nil)
			require.NoError(t, err)
			require.NoError(t, db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("v1")); return err }))
			require.NoError(t, db.Close())
		},
		"cut off": func(t *testing.T, path string) {
			require.NoError(t, os.Truncate(path, 3*int64(os.Getpagesize())))
		},
		"cut off within the head": func(t *testing.T, path string) {
			require.NoError(t, os.Truncate(path, 100))
		},
		"overwritten pages": func(t *testing.T, path string) {
			overwrite(t, path, 2, 1000)
		},
		"overwritten heads": func(t *testing.T, path string) {
			overwrite(t, path, 0, 2)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "journal.db")
			j, _, err := Open(path)
			require.NoError(t, err)
			for n := range 200 {
				require.NoError(t, j.Put(record(n)))
			}
			require.NoError(t, j.Close())
			damage(t, path)
			before, err := os.ReadFile(path)
			require.NoError(t, err)

			j, moved, err := Open(path)
			require.NoError(t, err)
			defer func() { require.NoError(t, j.Close()) }()
			require.Regexp(t, `journal\.db\.corrupt-\d{8}T\d{6}`, moved)
			after, err := os.ReadFile(moved)
			require.NoError(t, err)
			require.Equal(t, before, after)
			require.NoError(t, j.Put(record(1)))
			records, err := j.Records()
			require.NoError(t, err)
			require.Len(t, records, 1)
		})
	}
}

// overwrite fills pages with what could be anything.
func overwrite(t *testing.T, path string, from, to int) {
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	page := os.Getpagesize()
	for i := from * page; i < min(to*page, len(b)); i++ {
		b[i] = byte(i * 7)
	}
	require.NoError(t, os.WriteFile(path, b, 0o600))
}

// TestRecordsKeepUnreadable: a record that cannot be decoded still names a
// job to release.
func TestRecordsKeepUnreadable(t *testing.T) {
	j := opened(t, filepath.Join(t.TempDir(), "journal.db"))
	require.NoError(t, j.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(jobsBucket).Put([]byte("j5-0123abcd"), []byte(`{"job":{"key":"x","runner":7}}`))
	}))
	records, err := j.Records()
	require.NoError(t, err)
	require.Equal(t, []Record{{Job: api.Job{Key: "j5-0123abcd"}}}, records)
}

func BenchmarkPutDelete(b *testing.B) {
	dir := os.Getenv("BERTH_BENCH_DIR") // a directory on a real disk
	if dir == "" {
		dir = b.TempDir()
	}
	j := opened(b, filepath.Join(dir, fmt.Sprintf("journal-%d.db", os.Getpid())))
	for b.Loop() {
		require.NoError(b, j.Put(record(1)))
		require.NoError(b, j.Delete(record(1).Job.Key))
	}
}
