package cache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"gitlab.com/berth-ci/berth/buildkit/cachemount"
	"gitlab.com/berth-ci/berth/buildkit/generation"
	"gitlab.com/berth-ci/berth/executor"
)

// describe says what a job gets.
func describe(g generation.Info) string {
	return fmt.Sprintf("generation %d, %s, %s old", g.Number, sizeText(g.Size),
		strings.ToLower(units.HumanDuration(time.Since(g.Created))))
}

func sizeText(n int64) string { return units.BytesSize(float64(n)) }

func took(began time.Time) string {
	d := time.Since(began)
	if d < time.Second {
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

// holders names jobs by their numbers: job logs may be public, and projects are not named in them.
func holders(list []cachemount.Holder) string {
	var names []string
	for _, h := range list {
		if number, _, ok := strings.Cut(strings.TrimPrefix(h.Job, "j"), "-"); ok && strings.HasPrefix(h.Job, "j") {
			names = append(names, "job "+number)
		} else {
			names = append(names, h.Job)
		}
	}
	if len(names) == 0 {
		return "nobody"
	}
	return strings.Join(names, ", ")
}

// explain says to a job why it has no cache, without what only operators need.
func explain(err error) string {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return "the disk of the runner host is full"
	case errdefs.IsUnavailable(err):
		return "it did not become free in time"
	case errors.Is(err, context.DeadlineExceeded):
		return "it took too long"
	case errdefs.IsInvalidArgument(err):
		return strings.TrimSuffix(err.Error(), ": "+errdefs.ErrInvalidArgument.Error())
	}
	return "a fault on the runner host, whose log says more"
}

// hitVariable is the variable that tells what a job got of a cache. It is the same for all hashes that a name has in it.
func hitVariable(id string) string {
	id = strings.Trim(contentKey.ReplaceAllString(id, ""), "-_./")
	for _, suffix := range []string{unprotectedSuffix, protectedSuffix} {
		id = strings.TrimSuffix(id, suffix)
	}
	return executor.CacheHitVariablePrefix + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, id)
}
