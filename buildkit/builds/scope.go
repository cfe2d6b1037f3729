package builds

import (
	"context"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
)

// scopeKey marks a record of BuildKit's with whose it is.
const scopeKey = "berth.namespace"

// scope is the cache as the sources of a namespace see it. They look for what they fetched before by URL, or by the
// client's word for its directory, and go on with it: in another's they would leave or find files.
type scope struct {
	cache.Accessor
	namespace string
}

func (s scope) Search(ctx context.Context, index string, prefix bool) ([]cache.RefMetadata, error) {
	all, err := s.Accessor.Search(ctx, index, prefix)
	if err != nil {
		return nil, err
	}
	var own []cache.RefMetadata
	for _, md := range all {
		if md.GetString(scopeKey) == s.namespace {
			own = append(own, md)
		}
	}
	return own, nil
}

func (s scope) New(ctx context.Context, parent cache.ImmutableRef, g session.Group, opts ...cache.RefOption) (cache.MutableRef, error) {
	ref, err := s.Accessor.New(ctx, parent, g, opts...)
	if err != nil {
		return nil, err
	}
	if err := ref.SetString(scopeKey, s.namespace, ""); err != nil {
		_ = ref.Release(context.WithoutCancel(ctx))
		return nil, err
	}
	return scoped{ref, s.namespace}, nil
}

// scoped is a new record, and what it becomes.
type scoped struct {
	cache.MutableRef
	namespace string
}

func (s scoped) Commit(ctx context.Context) (cache.ImmutableRef, error) {
	ref, err := s.MutableRef.Commit(ctx)
	if err != nil {
		return nil, err
	}
	if err := ref.SetString(scopeKey, s.namespace, ""); err != nil {
		_ = ref.Release(context.WithoutCancel(ctx))
		return nil, err
	}
	return ref, nil
}
