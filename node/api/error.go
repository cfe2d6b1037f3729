package api

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errhttp"

	"gitlab.com/berth-ci/berth/executor"
)

// Error is an error on its way from berthd to berth.
type Error struct {
	Message string `json:"message"`
	// Status is the HTTP status that stands for the error's class.
	Status int `json:"status"`
	// Build marks the job's own failure, which is never retried.
	Build bool `json:"build,omitempty"`
}

// NewError prepares err for the way to berth.
func NewError(err error) *Error {
	var build *executor.BuildFailure
	if errors.As(err, &build) {
		return &Error{Message: err.Error(), Status: http.StatusUnprocessableEntity, Build: true}
	}
	status := errhttp.ToHTTP(err)
	if errdefs.IsAlreadyExists(err) {
		status = http.StatusConflict // which errhttp keeps for ErrConflict
	}
	return &Error{Message: err.Error(), Status: status}
}

// Err turns the error back into what NewError was given: a BuildFailure, or
// an error of the same errdefs class.
func (e *Error) Err() error {
	if e.Build {
		return executor.Failf("%s", e.Message)
	}
	class := errhttp.ToNative(e.Status)
	if e.Status == http.StatusConflict {
		class = errdefs.ErrAlreadyExists
	}
	return &remoteError{message: e.Message, class: class}
}

type remoteError struct {
	message string
	class   error
}

func (e *remoteError) Error() string { return fmt.Sprintf("berthd: %s", e.message) }
func (e *remoteError) Unwrap() error { return e.class }
