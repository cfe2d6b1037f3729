package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/executor"
)

func TestErrorsKeepTheirClass(t *testing.T) {
	for _, class := range []error{
		errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrInvalidArgument, errdefs.ErrUnavailable,
		errdefs.ErrFailedPrecondition, errdefs.ErrResourceExhausted, errdefs.ErrInternal,
	} {
		got := sent(t, fmt.Errorf("admit job: %w", class))
		require.ErrorIs(t, got, class)
		require.ErrorContains(t, got, "admit job")
	}
	require.ErrorIs(t, sent(t, errors.New("odd")), errdefs.ErrInternal)

	var build *executor.BuildFailure
	got := sent(t, fmt.Errorf("admit job: %w", executor.Failf("no such profile")))
	require.True(t, errors.As(got, &build))
	require.EqualError(t, got, "admit job: no such profile")
}

// sent is an error at the other end of the socket.
func sent(t *testing.T, err error) error {
	b, e := json.Marshal(NewError(err))
	require.NoError(t, e)
	var received Error
	require.NoError(t, json.Unmarshal(b, &received))
	return received.Err()
}
