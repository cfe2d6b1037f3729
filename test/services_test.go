package test

import (
	"testing"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

func TestServices(t *testing.T) {
	if missing != "" {
		t.Skip(missing)
	}
	web := registry.Image(images.Web)
	get := func(host string) string { return "wget -q -O - http://" + host }
	runJobs(t, []jobCase{
		{
			name: "aliases",
			spec: gitlab.JobSpec{
				Services: []gitlab.Image{{Name: web, Alias: "one two,three", Variables: variables("GREETING", "hello")}},
				Script: []string{
					get("one:8080"), get("two:8080"), get("three:8080"), get("127.0.0.1__test__web:8080"), get("127.0.0.1-test-web:8080"),
					"nslookup two | tail -n +3 | grep -c Address",
				},
			},
			says: []string{
				"one:8080\nhello\n", "two:8080\nhello\n", "three:8080\nhello\n", "__test__web:8080\nhello\n", "-test-web:8080\nhello\n",
				"\n1\n",
			},
		},
		{
			name: "variables",
			spec: gitlab.JobSpec{
				Variables: append(variables("WHO", "everybody", "PORT", "9000"), gitlab.Variable{Key: "SECRET", Value: "kept from services"}),
				Services: []gitlab.Image{{
					Name: web, Alias: "web",
					Variables: variables("GREETING", "hello $WHO on $PORT$SECRET_X", "PORT", "7000", "HEALTHCHECK_TCP_PORT", "7000"),
				}},
				Script: []string{get("web:7000")},
			},
			says: []string{"\nhello everybody on 7000\n"},
			not:  []string{"probably didn't start properly"},
		},
		{
			name: "same port twice",
			spec: gitlab.JobSpec{
				Services: []gitlab.Image{
					{Name: web, Alias: "first", Variables: variables("GREETING", "the first")},
					{Name: web, Alias: "second", Variables: variables("GREETING", "the second")},
				},
				Script: []string{get("first:8080"), get("second:8080")},
			},
			says: []string{"\nthe first\n", "\nthe second\n"},
		},
		{
			name: "reach the build and each other",
			spec: gitlab.JobSpec{
				Services: []gitlab.Image{
					{Name: web, Alias: "web", Variables: variables("GREETING", "the web")},
					{
						Name: registry.Image(images.Busybox), Alias: "asker", Entrypoint: []string{"sh", "-c"},
						Command: []string{"while ! wget -q -O /builds/from-build http://build:8000/README; do sleep 0.1; done; wget -q -O /builds/from-web http://web:8080/"},
					},
				},
				Script: []string{"httpd -p 8000", "while ! [ -s /builds/from-web ]; do sleep 0.1; done", "cat /builds/from-build /builds/from-web"},
			},
			says: []string{"\nread me\nthe web\n"},
		},
		{
			name: "entrypoint and command", // an entrypoint of the job's, and the image's command is dropped
			spec: gitlab.JobSpec{
				Services: []gitlab.Image{{
					Name: web, Alias: "web", Entrypoint: []string{"sh", "-c"}, Command: []string{"GREETING=mine exec /serve"},
				}},
				Script: []string{get("web:8080")},
			},
			says: []string{"\nmine\n"},
		},
		{
			name: "silent", profile: "hasty",
			spec: gitlab.JobSpec{
				Services: []gitlab.Image{{Name: registry.Image(images.Silent), Alias: "silent"}}, Script: []string{"echo goes on"},
			},
			says: []string{"probably didn't start properly", "no answer on TCP port 8080 within 2s", "\nNot listening.\n", "\ngoes on\n"},
		},
		{
			name: "ends at once", profile: "hasty",
			spec: gitlab.JobSpec{
				Services: []gitlab.Image{{Name: registry.Image(images.Quitter), Alias: "quitter"}}, Script: []string{"echo goes on"},
			},
			says: []string{"probably didn't start properly", "exited with status 3", "\nCannot find my configuration.\n", "\ngoes on\n"},
		},
		{
			name: "CI_DEBUG_SERVICES",
			spec: gitlab.JobSpec{
				Variables: variables("CI_DEBUG_SERVICES", "true"),
				Services:  []gitlab.Image{{Name: web, Alias: "web", Variables: variables("GREETING", "hello")}},
				Script:    []string{get("web:8080"), "sleep 1"},
			},
			says: []string{"[service:web] Serving hello\n"},
		},
		{
			name: "not allowed", profile: "strict",
			spec:  gitlab.JobSpec{Services: []gitlab.Image{{Name: registry.Image(images.Silent)}}, Script: []string{"true"}},
			fails: true, exitCode: 1,
			says: []string{"is not allowed by profile \"strict\"; allowed are: "},
		},
		{
			name:  "hostile alias",
			spec:  gitlab.JobSpec{Services: []gitlab.Image{{Name: web, Alias: "$(id);../../etc/passwd"}}, Script: []string{"true"}},
			fails: true, exitCode: 1,
			says: []string{`alias "$(id);../../etc/passwd" of service `, "is not a host name"},
		},
		{
			name:  "does not exist",
			spec:  gitlab.JobSpec{Services: []gitlab.Image{{Name: registry.Address + "/test/none:1"}}, Script: []string{"true"}},
			fails: true, exitCode: 1,
			says: []string{"does not have it"},
		},
		{
			name: "nothing to run",
			spec: gitlab.JobSpec{
				Services: []gitlab.Image{{Name: web, Entrypoint: []string{"/does/not/exist"}}}, Script: []string{"true"},
			},
			fails: true, exitCode: 1,
			says: []string{"/does/not/exist", "no such file or directory"},
		},
	})
}
