package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		says string
		ok   bool
	}{
		"empty":       {"", "is fine: 1 profiles, root /var/lib/berth, socket /run/berth/berthd.sock", true},
		"profiles":    {"[profile.a]\n[profile.b]\n", "is fine: 2 profiles", true},
		"unknown key": {"rot = \"/x\"\n", "berthd.toml:1: rot: unknown key", false},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "berthd.toml")
			require.NoError(t, os.WriteFile(file, []byte(c.text), 0o600))
			var out bytes.Buffer
			root := rootCommand()
			root.SetArgs([]string{"--check", "--config", file})
			root.SetOut(&out)
			err := root.ExecuteContext(t.Context())
			if c.ok {
				require.NoError(t, err)
				require.Contains(t, out.String(), c.says)
			} else {
				require.ErrorContains(t, err, c.says)
			}
		})
	}
}

func TestCheckNeedsTheFileItIsGiven(t *testing.T) {
	root := rootCommand()
	root.SetArgs([]string{"--check", "--config", filepath.Join(t.TempDir(), "none.toml")})
	require.ErrorIs(t, root.ExecuteContext(t.Context()), os.ErrNotExist)
}
