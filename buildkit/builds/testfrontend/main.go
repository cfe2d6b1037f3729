// Command testfrontend is a hostile frontend, for tests: an image of it is named in a Dockerfile's syntax line. It builds
// what the build arguments say with a cache of any id, as a step or in a container of its own.
package main

import (
	"context"
	"errors"
	"os"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/frontend/gateway/grpcclient"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/appcontext"
)

func main() {
	if err := grpcclient.RunFromEnvironment(appcontext.Context(), build); err != nil {
		os.Exit(1)
	}
}

func build(ctx context.Context, c client.Client) (*client.Result, error) {
	opts := c.BuildOpts().Opts
	image, id, script := opts["build-arg:IMAGE"], opts["build-arg:ID"], opts["build-arg:SCRIPT"]
	st := llb.Image(image)
	if opts["build-arg:CONTAINER"] == "" {
		st = st.Run(llb.Args([]string{"sh", "-c", script}), llb.IgnoreCache,
			llb.AddMount("/c", llb.Scratch(), llb.AsPersistentCacheDir(id, llb.CacheMountShared))).Root()
	}
	def, err := st.Marshal(ctx)
	if err != nil {
		return nil, err
	}
	res, err := c.Solve(ctx, client.SolveRequest{Definition: def.ToPB(), Evaluate: true})
	if err != nil || opts["build-arg:CONTAINER"] == "" {
		return res, err
	}
	ctr, err := c.NewContainer(ctx, client.NewContainerRequest{Mounts: []client.Mount{
		{Dest: "/", Ref: res.Ref},
		{Dest: "/c", MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{ID: id}},
	}})
	if err != nil {
		return nil, err
	}
	p, err := ctr.Start(ctx, client.StartRequest{Args: []string{"sh", "-c", script}})
	return res, errors.Join(err, p.Wait(), ctr.Release(ctx))
}
