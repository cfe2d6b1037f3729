package test

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

func TestImages(t *testing.T) {
	if missing != "" {
		t.Skip(missing)
	}
	image := func(name string) gitlab.Image { return gitlab.Image{Name: registry.Image(name)} }
	entrypoint := func(name string, words ...string) gitlab.Image {
		return gitlab.Image{Name: registry.Image(name), Entrypoint: words}
	}
	login := gitlab.Credential{Type: "registry", URL: registry.PrivateAddress, Username: images.Username, Password: images.Password}
	wrong := login
	wrong.Password = "guess"
	private := gitlab.Image{Name: registry.Private(images.Web), PullPolicies: []string{"always"}}
	runJobs(t, []jobCase{
		{
			name: "entrypoint",
			spec: gitlab.JobSpec{
				Image: image(images.Entrypoint), Variables: variables("GREETING", "with a greeting"), Script: []string{`echo "[$FROM_ENTRYPOINT]"`},
				AfterScript: []string{`echo "<$FROM_ENTRYPOINT>"`},
			},
			says: []string{"\nThe entrypoint speaks.\n", "\n[yes, with a greeting]\n", "\n<yes, with a greeting>\n"},
		},
		{
			name: "no entrypoint",
			spec: gitlab.JobSpec{Image: entrypoint(images.Entrypoint, ""), Script: []string{`echo "[$FROM_ENTRYPOINT]"`}},
			says: []string{"\n[]\n"},
			not:  []string{"The entrypoint speaks."},
		},
		{
			name: "entrypoint of the job's",
			spec: gitlab.JobSpec{Image: entrypoint(images.Entrypoint, "env", "MINE=yes"), Script: []string{`echo "[$MINE $FROM_ENTRYPOINT]"`}},
			says: []string{"\n[yes ]\n"},
		},
		{
			name:  "entrypoint that runs nothing",
			spec:  gitlab.JobSpec{Image: image(images.DeafEntrypoint), Script: []string{"echo not reached"}},
			fails: true, exitCode: 1,
			says: []string{"\nI run nothing.\n", "the entrypoint of image ", "it must run the command that it is given"},
			not:  []string{"\nnot reached\n"},
		},
		{
			name:  "no shell",
			spec:  gitlab.JobSpec{Image: image(images.NoShell), Script: []string{"echo not reached"}},
			fails: true, exitCode: 1,
			says: []string{"has neither bash nor sh"},
		},
		{
			name: "user",
			spec: gitlab.JobSpec{
				Image: image(images.User), Script: []string{
					"id", "stat -c '%U:%G %a' . README src src/main", "echo mine >src/new; mkdir d; rm README",
					"find /builds -perm -2 ! -type l | wc -l",
				},
			},
			says: []string{"uid=1000(app) gid=1000(app)", "app:app 7", "app:app 6", "\n0\n"},
		},
		{
			name: "user without an entry",
			spec: gitlab.JobSpec{
				Image: image(images.NumericUser), Script: []string{"id", "stat -c '%u:%g %a' . README", "echo mine >new; rm README"},
			},
			says: []string{"uid=1234 gid=1234", "1234:1234 7", "1234:1234 6"},
		},
		{
			name: "user of the job's",
			spec: gitlab.JobSpec{
				Image: gitlab.Image{Name: registry.Image(images.Busybox), ExecutorOptions: gitlab.ExecutorOptions{
					Docker: gitlab.DockerOptions{User: "4321:4321"},
				}},
				Script: []string{"id", "touch new"},
			},
			says: []string{"uid=4321 gid=4321"},
		},
		{
			name: "credentials",
			spec: gitlab.JobSpec{Image: private, Credentials: []gitlab.Credential{login}, Script: []string{"echo reached"}},
			says: []string{"Authenticating with credentials from job payload", "\nreached\n"},
		},
		{
			name:  "refused credentials",
			spec:  gitlab.JobSpec{Image: private, Credentials: []gitlab.Credential{wrong}, Script: []string{"echo not reached"}},
			fails: true, exitCode: 1,
			says: []string{"refused the credentials from job payload"},
			not:  []string{"guess"},
		},
		{
			name:  "no credentials",
			spec:  gitlab.JobSpec{Image: private, Script: []string{"echo not reached"}},
			fails: true, exitCode: 1,
			says: []string{"wants credentials and there are none for it"},
		},
		{
			name:  "unknown image",
			spec:  gitlab.JobSpec{Image: gitlab.Image{Name: registry.Address + "/test/none:7"}, Script: []string{"echo not reached"}},
			fails: true, exitCode: 1,
			says: []string{"/test/none:7: registry ", "does not have it"},
		},
		{
			name:  "image that is none",
			spec:  gitlab.JobSpec{Image: gitlab.Image{Name: "Not/An IMAGE"}, Script: []string{"echo not reached"}},
			fails: true, exitCode: 1,
			says: []string{`image "Not/An IMAGE" is not an image name`},
		},
		{
			name: "never pulled",
			spec: gitlab.JobSpec{
				Image: gitlab.Image{Name: registry.Address + "/test/none:8", PullPolicies: []string{"never"}}, Script: []string{"echo not reached"},
			},
			fails: true, exitCode: 1,
			says: []string{"/test/none:8"},
		},
		{
			name: "image not allowed", profile: "strict",
			spec:  gitlab.JobSpec{Image: image(images.User), Script: []string{"echo not reached"}},
			fails: true, exitCode: 1,
			says: []string{`is not allowed by profile "strict"; allowed are: `},
		},
	})
}

// TestRegistryDown has the runner try three times, since it may be back soon.
func TestRegistryDown(t *testing.T) {
	s, project := theServer(t)
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	l.Close()
	j := s.enqueue(t, "default", gitlab.JobSpec{
		Project: project, Image: gitlab.Image{Name: address + "/test/any:1"}, Script: []string{"echo not reached"},
	})
	require.Equal(t, gitlab.Failed, end(t, j))
	require.Equal(t, "runner_system_failure", j.FailureReason())
	said := "registry " + address + " cannot be reached"
	inOrder(t, j.Log(), said, "Will be retried", said, "Will be retried", said)
}
