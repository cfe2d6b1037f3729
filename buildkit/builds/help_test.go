package builds_test

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"

	"gitlab.com/berth-ci/berth/node/cgroup"
)

// rawOps sends operations as they are, the first on an image.
func (j *job) rawOps(ops ...*pb.Op) (string, error) {
	j.Helper()
	base, err := llb.Image(j.busybox()).Marshal(j.Context())
	j.must(err)
	def := &llb.Definition{Def: base.Def[:1]}
	last := digest.FromBytes(base.Def[0])
	for _, op := range append(ops, &pb.Op{}) {
		op.Inputs = []*pb.Input{{Digest: string(last)}}
		text, err := op.Marshal()
		j.must(err)
		def.Def = append(def.Def, text)
		last = digest.FromBytes(text)
	}
	return j.solveDefinition(def)
}

func (j *job) solveCacheTo(r request, to client.CacheOptionsEntry) (string, error) {
	j.Helper()
	dir := j.TempDir()
	j.must(os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(r.dockerfile), 0o644))
	fs, err := fsutil.NewFS(dir)
	j.must(err)
	return j.solve(j.Context(), client.SolveOpt{
		Frontend: "dockerfile.v0", LocalMounts: map[string]fsutil.FS{"context": fs, "dockerfile": fs},
		CacheExports: []client.CacheOptionsEntry{to},
	})
}

func removeCgroup(f *fixture, path string) {
	tree, err := cgroup.Host()
	f.check(err)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(f.Context()), 10*time.Second)
	defer cancel()
	f.check(tree.Remove(ctx, path))
}

// sleep is a step that does not end.
func (f *fixture) sleep() *pb.Definition {
	f.Helper()
	def, err := llb.Image(f.busybox()).Run(llb.Args([]string{"sleep", "1000"})).Root().Marshal(f.Context())
	f.must(err)
	return def.ToPB()
}
