package proxy

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// treatment is what becomes of an operation.
type treatment string

const (
	// passed: it concerns no job's objects, and goes to dockerd.
	passed treatment = "passed"
	// scoped: it goes to dockerd, for objects of the job's own alone.
	scopedToJob treatment = "scoped"
	// answered: berthd does it.
	answered treatment = "answered"
	// refused: jobs may not.
	refused treatment = "refused"
)

// operation is one of the Docker Engine API.
type operation struct {
	method, path string
	treatment    treatment
	serve        func(*call) error
	// query are the parameters that count; others are dropped.
	query []string

	pattern *regexp.Regexp
}

// operations are a table, by method and first part of the path.
type operations map[string][]*operation

func newTable(all []*operation) operations {
	t := operations{}
	for _, op := range all {
		op.pattern = pattern(op.path)
		key := op.method + " " + first(op.path)
		t[key] = append(t[key], op)
	}
	for _, ops := range t {
		// Paths without parameters come first: /containers/json is no container.
		slices.SortStableFunc(ops, func(a, b *operation) int {
			return strings.Count(a.path, "{") - strings.Count(b.path, "{")
		})
	}
	return t
}

func first(path string) string {
	part, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return part
}

// pattern matches an escaped path. Names of images have slashes in them.
func pattern(path string) *regexp.Regexp {
	quoted := regexp.QuoteMeta(path)
	quoted = strings.ReplaceAll(quoted, `\{image\}`, `(.+)`)
	quoted = regexp.MustCompile(`\\\{[a-z]+\\\}`).ReplaceAllString(quoted, `([^/]+)`)
	return regexp.MustCompile("^" + quoted + "/?$")
}

// find finds the operation of an escaped path, and its parameters. They are
// unescaped once; what is escaped still is refused where it is looked up, since
// no object has a percent sign in its name.
func (t operations) find(method, path string) (*operation, []string, error) {
	for _, op := range t[method+" "+first(path)] {
		m := op.pattern.FindStringSubmatch(path)
		if m == nil {
			continue
		}
		params := m[1:]
		for i := range params {
			plain, err := url.PathUnescape(params[i])
			if err != nil {
				return nil, nil, invalid("path %q: %v", path, err)
			}
			params[i] = plain
		}
		return op, params, nil
	}
	return nil, nil, missing("page not found: %s %s is no operation that Berth knows", method, path)
}
