package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Login opens the private door of a registry.
const (
	Username = "reader"
	Password = "open-sesame"
)

// Registry serves the images on the loopback, from memory: to everybody at
// Address and, for Username and Password alone, at PrivateAddress.
type Registry struct {
	Address, PrivateAddress string
	// TokenAddress is that of another, which has no images, and Tokens.
	TokenAddress string
	servers      []*http.Server
}

// Serve makes the images and a registry that has them.
func Serve(ctx context.Context) (_ *Registry, err error) {
	r := &Registry{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	handler := registry.New(registry.Logger(discard()))
	if r.Address, err = r.listen(handler); err != nil {
		return nil, err
	}
	if r.PrivateAddress, err = r.listen(guarded(handler)); err != nil {
		return nil, err
	}
	if r.TokenAddress, err = r.listen(Tokens()); err != nil {
		return nil, err
	}
	made, err := all()
	if err != nil {
		return nil, err
	}
	for repository, img := range made {
		tag, err := name.NewTag(r.Image(repository), name.Insecure)
		if err != nil {
			return nil, fmt.Errorf("name image %s: %w", repository, err)
		}
		if err := remote.Write(tag, img, remote.WithContext(ctx)); err != nil {
			return nil, fmt.Errorf("push image %s: %w", repository, err)
		}
	}
	return r, nil
}

func discard() *log.Logger { return log.New(io.Discard, "", 0) }

func (r *Registry) listen(h http.Handler) (address string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("listen for registry: %w", err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	r.servers = append(r.servers, s)
	go func() { _ = s.Serve(l) }() // ends with Close
	return l.Addr().String(), nil
}

// guarded asks for the login.
func guarded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != Username || password != Password {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// Add adds an image that is one static program of this machine and nothing
// else, by REPOSITORY:TAG.
func (r *Registry) Add(ctx context.Context, as, path, program string) error {
	tag, err := name.NewTag(r.Address+"/"+as, name.Insecure)
	if err != nil {
		return fmt.Errorf("name image %s: %w", as, err)
	}
	made, err := image(empty.Image, tree{path: copyOf(program)}, v1.Config{Cmd: []string{path}})
	if err != nil {
		return fmt.Errorf("make image %s: %w", as, err)
	}
	if err := remote.Write(tag, made, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("push image %s: %w", as, err)
	}
	return nil
}

// Image is an image's name at the open door.
func (r *Registry) Image(repository string) string { return r.Address + "/test/" + repository + ":1" }

// Private is an image's name at the private door.
func (r *Registry) Private(repository string) string {
	return r.PrivateAddress + "/test/" + repository + ":1"
}

// Close ends the registry.
func (r *Registry) Close() error {
	var errs []error
	for _, s := range r.servers {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}
