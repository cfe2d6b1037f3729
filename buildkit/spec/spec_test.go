package spec

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]Cache{
		"id=pip,target=/root/.cache/pip":                             {ID: "pip", Target: "/root/.cache/pip", Sharing: Snapshot},
		"id=pip , target=deps, sharing = shared":                     {ID: "pip", Target: "deps", Sharing: Shared},
		"id=apt,target=/var/cache/apt,sharing=locked":                {ID: "apt", Target: "/var/cache/apt", Sharing: Locked},
		"id=go,target=/gocache,sharing=private,pool=3":               {ID: "go", Target: "/gocache", Sharing: Private, Pool: 3},
		"ID=a,Target=b,readonly":                                     {ID: "a", Target: "b", Sharing: Snapshot, ReadOnly: true},
		"id=a,target=b,ro":                                           {ID: "a", Target: "b", Sharing: Snapshot, ReadOnly: true},
		"id=a,target=b,readonly=false":                               {ID: "a", Target: "b", Sharing: Snapshot},
		"id=a,target=b,readonly=true,publish=never":                  {ID: "a", Target: "b", Sharing: Snapshot, ReadOnly: true, Publish: Never},
		"id=a,target=b,publish=always":                               {ID: "a", Target: "b", Sharing: Snapshot, Publish: Always},
		"id=a,\"target=a,b\"":                                        {ID: "a", Target: "a,b", Sharing: Snapshot},
		"id=/root/.cache,target=/root/.cache":                        {ID: "/root/.cache", Target: "/root/.cache", Sharing: Snapshot},
		"id=npm-${file:web/package-lock.json},target=node_modules":   {ID: "npm-${file:web/package-lock.json}", Target: "node_modules", Sharing: Snapshot},
		"id=${tree:lib}/${tree:src},target=out,publish=protected":    {ID: "${tree:lib}/${tree:src}", Target: "out", Sharing: Snapshot, Publish: Protected},
		"id=a==b,target=x=y":                                         {ID: "a==b", Target: "x=y", Sharing: Snapshot},
		"id=" + strings.Repeat("i", maxID) + ",target=../x/../../y/": {},
	} {
		got, err := Parse(text)
		if want == (Cache{}) {
			if err == nil {
				t.Errorf("%s: no error", text)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", text, d)
		}
		if got.HasContentKey() != strings.Contains(text, "${") {
			t.Errorf("%s: content key: %v", text, got.HasContentKey())
		}
	}
}

// Each error names the field, says what is wrong with it, and what is expected.
func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                             `cache is empty; expected id=NAME,target=PATH`,
		"\n":                           `cache is empty`,
		"id=a,target=b\nid=c,target=d": `cache is not one line`,
		`id="a,target=b`:               `cache is not one line`,
		"target=b":                     `"id" is missing; expected id=NAME`,
		"id=,target=b":                 `"id" is missing`,
		"id=a":                         `"target" is missing; expected target=PATH`,
		"id,target=b":                  `"id" has no value; expected id=VALUE`,
		"id=a,target=b,":               `"" is no field`,
		"id=a,target=b,foo=1":          `"foo" is no field of a cache; expected one of id, target,`,
		"id=a,target=b,foo":            `"foo" is no field of a cache`,
		"id=a,id=b,target=c":           `"id" is given twice`,
		"id=a,target=b,readonly,ro":    `"readonly" is given twice`,
		"id=a b,target=c":              `"id" is "a b"; expected letters`,
		"id=a::b,target=c":             `"id" is "a::b"; expected letters`,
		"id=../other/a,target=c":       `expected no . or .. between slashes`,
		"id=a/../../b,target=c":        `expected no . or .. between slashes`,
		"id=a/.,target=c":              `expected no . or ..`,
		"id=${tree:a,target=c":         `"id" is "${tree:a"`,
		"id=${env:HOME},target=c":      `expected letters`,
		"id=" + strings.Repeat("i", 201) + ",target=b": `"id" is 201 bytes long; expected at most 200`,
		"id=a,target=/":                               `"target" is "/"; expected a directory below it`,
		"id=a,target=.":                               `expected a directory below it`,
		"id=a,target=./":                              `expected a directory below it`,
		"id=a,target=/x/..":                           `expected a directory below it`,
		"id=a,target=..":                              `expected an absolute path, or one inside the project's directory`,
		"id=a,target=x/../../y":                       `expected an absolute path, or one inside`,
		"id=a,target=b\x00c":                          `expected a path of printable characters`,
		"id=a,target=" + strings.Repeat("t", 1025):    `"target" is 1025 bytes long`,
		"id=a,target=b,sharing=exclusive":             `"sharing" is "exclusive"; expected snapshot, shared, locked or private`,
		"id=a,target=b,sharing=":                      `"sharing" is ""; expected snapshot`,
		"id=a,target=b,pool=2":                        `"pool" counts the copies of a private cache, and this one is snapshot; expected sharing=private`,
		"id=a,target=b,sharing=private,pool=0":        `"pool" is "0"; expected a number from 1 to 64`,
		"id=a,target=b,sharing=private,pool=x":        `"pool" is "x"; expected a number`,
		"id=a,target=b,sharing=private,pool=65":       `"pool" is 65; expected a number from 1 to 64`,
		"id=a,target=b,readonly=perhaps":              `"readonly" is "perhaps"; expected true or false`,
		"id=a,target=b,publish=":                      `"publish" is empty; expected never, protected, scheduled or always`,
		"id=a,target=b,publish=sometimes":             `"publish" is "sometimes"; expected never, protected, scheduled or always`,
		"id=a,target=b,sharing=shared,publish=always": `"publish" is about snapshots`,
		"id=a,target=b,readonly,publish=always":       `a readonly cache has nothing to publish`,
	} {
		_, err := Parse(text)
		if err == nil || !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %s", text, err, want)
		}
	}
}

// What is accepted is valid, stays in its namespace, and reads the same when written again.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"id=pip,target=/root/.cache/pip", "id=a,target=b,sharing=private,pool=3", "id=a,target=b,readonly,publish=never",
		`"id=${tree:a}","target=a,b"`, "id=../x,target=..", "id=a::b,target=/", "ro,=,",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse(text)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) || c != (Cache{}) {
				t.Fatalf("%q: %+v, %v", text, c, err)
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatalf("%q was accepted: %v", text, err)
		}
		if strings.Contains(c.ID, "::") && !c.HasContentKey() || strings.Contains("/"+contentKey.ReplaceAllString(c.ID, "x")+"/", "/../") {
			t.Fatalf("%q has id %q", text, c.ID)
		}
		again, err := Parse(c.String())
		if err != nil || again != c {
			t.Fatalf("%q reads %+v; written as %s it reads %+v, %v", text, c, c, again, err)
		}
	})
}
