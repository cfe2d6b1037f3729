package executor

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func request(image string) Request {
	return Request{Image: ImageRequest{Name: image}, Helper: "v19.4.0"}
}

func TestGrantFillsInDefaults(t *testing.T) {
	p := DefaultProfile()
	p.Image, p.Memory, p.CPUs, p.User = "debian:13", 1<<30, 2, "app"
	g, err := p.Grant("default", request(""))
	require.NoError(t, err)
	require.Equal(t, "docker.io/library/debian:13", g.Build.Name)
	require.Equal(t, "app", g.Build.User)
	require.Equal(t, []string{PullAlways}, g.Build.PullPolicies)
	require.Contains(t, g.Helper.Name, "-v19.4.0")
	require.Equal(t, Limits{CPUs: 2, Memory: 1 << 30, PIDs: 8192, SHMSize: 64 << 20}, g.Limits)
}

func TestGrantRefuses(t *testing.T) {
	strict := DefaultProfile()
	strict.AllowedImages = []string{"golang:*", "registry.example.com/group/**"}
	strict.AllowedServices = []string{"postgres:*"}
	strict.AllowedPullPolicies = []string{PullAlways}
	strict.CPUs, strict.CPUsMax = 2, 4
	strict.Memory, strict.MemoryMax = 1<<30, 4<<30
	limits := func(key, value string) Request {
		r := request("golang:1.26")
		r.Variables = map[string]string{key: value}
		return r
	}
	policy := request("golang:1.26")
	policy.Image.PullPolicies = []string{PullNever}
	service := request("golang:1.26")
	service.Services = []ImageRequest{{Name: "mysql:9"}}
	alias := func(name string) Request {
		r := request("golang:1.26")
		r.Services = []ImageRequest{{Name: "postgres:17", Aliases: []string{name}}}
		return r
	}
	unnamed := request("golang:1.26")
	unnamed.Services = []ImageRequest{{}}
	for _, tt := range []struct {
		name    string
		request Request
		want    string
	}{
		{"no image", request(""), "names no image"},
		{"bad name", request("Not/AN image"), `"Not/AN image" is not an image name`},
		{"image by pattern", request("alpine"), `"alpine" is not allowed by profile "strict"; allowed are: golang:*`},
		{"other registry", request("evil.example.com/golang:1.26"), "not allowed"},
		{"group by prefix only", request("registry.example.com/group2/x"), "not allowed"},
		{"service", service, `service "mysql:9" is not allowed`},
		{"service without name", unnamed, "services[0]"},
		{"pull policy", policy, `pull_policy "never"`},
		{"cpus", limits(CPULimitVariable, "4.5"), `BERTH_CPU_LIMIT: 4.5 is more than profile "strict" allows: ask for 4 at most`},
		{"cpus are no number", limits(CPULimitVariable, "many"), `BERTH_CPU_LIMIT: cpu count "many"`},
		{"no cpus", limits(CPULimitVariable, "0"), "cpu count"},
		{"negative cpus", limits(CPULimitVariable, "-1"), "cpu count"},
		{"not a number", limits(CPULimitVariable, "NaN"), "cpu count"},
		{"memory", limits(MemoryLimitVariable, "5g"), "5GiB is more"},
		{"memory is no size", limits(MemoryLimitVariable, "lots"), `BERTH_MEMORY_LIMIT: size "lots"`},
		{"hardly any memory", limits(MemoryLimitVariable, "1k"), "too little"},
		{"shm", limits(SHMSizeVariable, "1g"), "BERTH_SHM_SIZE: 1GiB is more"},
		{"no shm, which is no limit", limits(SHMSizeVariable, "0"), "BERTH_SHM_SIZE: 0B is too little"},
		{"alias is no name", alias("a..b"), `alias "a..b" of service "postgres:17" is not a host name`},
		{"alias is the root", alias("."), "is not a host name"},
		{"alias is too long", alias(strings.Repeat("a", 64)), "is not a host name"},
		{"alias is two", alias("two words"), "is not a host name"},
		{"alias with a comment", alias("#"), "is not a host name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := strict.Grant("strict", tt.request)
			require.ErrorContains(t, err, tt.want)
			var failure *BuildFailure
			require.True(t, errors.As(err, &failure), "the job's own failure, never retried")
		})
	}
}

func TestGrantAllows(t *testing.T) {
	p := DefaultProfile()
	p.AllowedImages = []string{"golang:*", "registry.example.com/group/**", "docker.io/library/alpine"}
	p.PrivilegedImages = []string{"registry.example.com/group/dind:*"}
	for image, privileged := range map[string]bool{
		"golang:1.26":                            false,
		"docker.io/library/golang:1.26":          false,
		"registry.example.com/group/sub/app:v1":  false,
		"registry.example.com/group/dind:latest": true,
		"golang:1.26@sha256:" + digest:           false,
	} {
		g, err := p.Grant("default", request(image))
		require.NoError(t, err, image)
		require.Equal(t, privileged, g.Build.Privileged, image)
	}
}

const digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

func TestGrantLimits(t *testing.T) {
	for _, tt := range []struct {
		name           string
		byDefault, max float64
		asked          string
		want           CPUs
	}{
		{"default", 2, 4, "", 2},
		{"less", 2, 4, "500m", 0.5},
		{"the most", 2, 4, "4", 4},
		{"no bound", 0, 0, "64", 64},
		{"default is the bound", 2, 0, "2", 2},
		{"bound without default", 0, 4, "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := DefaultProfile()
			p.CPUs, p.CPUsMax = tt.byDefault, tt.max
			r := request("alpine")
			if tt.asked != "" {
				r.Variables = map[string]string{CPULimitVariable: tt.asked}
			}
			g, err := p.Grant("default", r)
			require.NoError(t, err)
			require.Equal(t, tt.want, g.Limits.CPUs)
		})
	}
}

func TestServiceNames(t *testing.T) {
	for _, tt := range []struct {
		image   string
		aliases []string
		want    []string
	}{
		{"postgres", nil, []string{"postgres"}},
		{"postgres:17", []string{"db"}, []string{"db", "postgres"}},
		{"tutorial/wordpress:latest", nil, []string{"tutorial__wordpress", "tutorial-wordpress"}},
		{"registry.example.com:5000/a/b:1", nil, []string{"registry.example.com__a__b", "registry.example.com-a-b"}},
		{"registry.example.com/a/b@sha256:" + digest, nil, []string{"registry.example.com__a__b", "registry.example.com-a-b"}},
		{"docker:27-dind", []string{"docker"}, []string{"docker"}},
		{"registry.example.com/" + strings.Repeat("a", 30) + "/" + strings.Repeat("b", 30), []string{"db"}, []string{"db"}},
		{"[::1]:5000/a", nil, nil},
	} {
		require.Equal(t, tt.want, ServiceNames(tt.image, tt.aliases), tt.image)
	}
}

func TestDind(t *testing.T) {
	p := DefaultProfile()
	for name, docker := range map[string]bool{
		"docker:dind": true, "docker:24.0.5-dind": true, "docker:27-dind-rootless": true, "registry.example.com:5000/mirror/docker:dind": true,
		"docker:cli": false, "docker": false, "mydocker:dind": false, "docker-dind:1": false,
	} {
		r := Request{Image: ImageRequest{Name: "debian:12"}, Services: []ImageRequest{{Name: name}}}
		g, err := p.Grant("default", r)
		require.NoError(t, err)
		require.Equal(t, docker, g.Services[0].Docker, name)
		require.Equal(t, docker, g.HasDocker(), name)
	}
	p.Docker = false
	g, err := p.Grant("default", Request{Image: ImageRequest{Name: "debian:12"}, Services: []ImageRequest{{Name: "docker:dind"}}})
	require.NoError(t, err)
	require.False(t, g.HasDocker())
}
