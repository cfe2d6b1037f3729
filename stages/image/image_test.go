package image

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestParse(t *testing.T) {
	const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	tests := []struct{ ref, want, complaint string }{
		{"alpine", "docker.io/library/alpine:latest", ""},
		{"alpine:3.20", "docker.io/library/alpine:3.20", ""},
		{"group/image", "docker.io/group/image:latest", ""},
		{"index.docker.io/library/alpine", "docker.io/library/alpine:latest", ""},
		{"localhost/image", "localhost/image:latest", ""},
		{"registry.test:5000/group/image:1", "registry.test:5000/group/image:1", ""},
		{"alpine@" + digest, "docker.io/library/alpine@" + digest, ""},
		{"alpine:3.20@" + digest, "docker.io/library/alpine@" + digest, ""},
		{"", "", "set image:"},
		{"Alpine", "", "lowercase"},
		{"alpine:$TAG", "", "a variable in it has no value"},
		{"alpine:", "", "invalid reference format"},
		{"alpine@sha256:12", "", "invalid reference format"},
		{"https://registry.test/image", "", "invalid reference format"},
		{"evil\nimage", "", `evil\nimage`},
		{strings.Repeat("a", 1<<20), "", "must not be more than 255 characters"},
	}
	for _, tt := range tests {
		got, err := parse(tt.ref)
		if tt.complaint == "" {
			if err != nil || got.String() != tt.want {
				t.Errorf("%.80q: got %v, %v, want %s", tt.ref, got, err, tt.want)
			}
			continue
		}
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tt.complaint) || len(err.Error()) > 500 {
			t.Errorf("%.80q: error is %.600v, want an invalid argument that says %q", tt.ref, err, tt.complaint)
		}
	}
}

func TestPlatformMustBeOne(t *testing.T) {
	_, err := (&Puller{}).Pull(t.Context(), Request{Ref: "alpine", Platform: "linux/amd64/v3/x"})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "linux/amd64/v3/x") {
		t.Errorf("error is %v", err)
	}
}
