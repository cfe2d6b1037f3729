package ledger_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/docker/ledger"
)

func open(t *testing.T, path string) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(path)
	require.NoError(t, err)
	return l
}

// objects are those of a job, by kind and id.
func objects(t *testing.T, l *ledger.Ledger, job string) map[string]string {
	t.Helper()
	all := map[string]string{}
	require.NoError(t, l.Each(job, func(kind, id string, about json.RawMessage) error {
		all[kind+" "+id] = string(about)
		return nil
	}))
	return all
}

func TestLedger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "objects.db")
	l := open(t, path)
	require.NoError(t, l.Put("j1", ledger.Container, "a", map[string]string{"name": "web"}))
	require.NoError(t, l.Put("j1", ledger.Volume, "a", struct{}{}))
	require.NoError(t, l.Put("j2", ledger.Container, "b", 1))
	require.NoError(t, l.Put("j1", ledger.Container, "a", map[string]string{"name": "renamed"}))
	require.NoError(t, l.Close())

	l = open(t, path) // a later berthd
	defer l.Close()
	require.Equal(t, map[string]string{"container a": `{"name":"renamed"}`, "volume a": "{}"}, objects(t, l, "j1"))
	require.Empty(t, objects(t, l, "j3"))
	jobs, err := l.Jobs()
	require.NoError(t, err)
	require.Equal(t, []string{"j1", "j2"}, jobs)

	require.NoError(t, l.Delete("j1", ledger.Container, "a"))
	require.NoError(t, l.Delete("j1", ledger.Container, "a"), "a second time")
	require.NoError(t, l.Delete("j1", ledger.Image, "a"), "of a kind that it has none of")
	require.NoError(t, l.Delete("j3", ledger.Image, "a"), "of a job that has none")
	require.Equal(t, map[string]string{"volume a": "{}"}, objects(t, l, "j1"))

	fault := errors.New("enough")
	require.ErrorIs(t, l.Each("j2", func(string, string, json.RawMessage) error { return fault }), fault)
	require.NoError(t, l.Remove("j1"))
	require.NoError(t, l.Remove("j1"), "a second time")
	jobs, err = l.Jobs()
	require.NoError(t, err)
	require.Equal(t, []string{"j2"}, jobs)
}

// TestDamaged has a record that nobody can read be put aside.
func TestDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "objects.db")
	require.NoError(t, os.WriteFile(path, []byte("not a database, though as long as one needs to be"), 0o600))
	l := open(t, path)
	require.NoError(t, l.Put("j1", ledger.Call, "first", struct{}{}))
	require.NoError(t, l.Close())
	require.FileExists(t, path+".damaged")
}
