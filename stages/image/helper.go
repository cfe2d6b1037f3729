package image

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"
)

// helperName keeps a helper's name from being a path.
var helperName = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// helper returns a getter that asks the program docker-credential-NAME. The key is what it is asked for; empty
// stands for the registry that demands credentials.
func (s Source) helper(name, key string) getter {
	return func(ctx context.Context, registry string) (string, string, error) {
		if !helperName.MatchString(name) {
			return "", "", errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(
				"credential helper %.50q of %s is not the name of one", name, s.Name))
		}
		if !s.AnyHelper && !slices.Contains(s.AllowedHelpers, name) {
			return "", "", errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf(
				"credential helper %q of %s may not run on this node; the operator allows it by credential_helpers of the profile", name, s.Name))
		}
		server := key
		switch {
		case server != "":
		case registry == hub:
			server = "https://index.docker.io/v1/"
		default:
			server = registry
		}
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		creds, err := client.Get(func(args ...string) client.Program {
			cmd := exec.CommandContext(ctx, "docker-credential-"+name, args...)
			cmd.WaitDelay = time.Second
			return program{cmd}
		}, server)
		if credentials.IsErrCredentialsNotFound(err) {
			return "", "", nil
		}
		if err != nil {
			return "", "", fmt.Errorf("credential helper %q of %s failed for %s: %w", name, s.Name, server, err)
		}
		if creds.Username == "<token>" {
			return "", creds.Secret, nil
		}
		return creds.Username, creds.Secret, nil
	}
}

// program lets a credential helper end with its context.
type program struct{ *exec.Cmd }

func (p program) Input(in io.Reader) { p.Stdin = in }
