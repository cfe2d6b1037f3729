// Package spec reads how a job or a profile asks for a cache:
// id=…,target=…[,sharing=…][,pool=N][,readonly][,publish=…][,scope=…].
//
// It says what is asked for, not what is granted, and it puts no id into a project's namespace: that is its caller's.
package spec

import (
	"encoding/csv"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Sharing says what jobs that want the same cache at the same time get.
type Sharing string

// The ways to share. All but Snapshot are BuildKit's own.
const (
	Snapshot Sharing = "snapshot" // a copy each, of what was published last
	Shared   Sharing = "shared"   // one directory, at once
	Locked   Sharing = "locked"   // one directory, one after another
	Private  Sharing = "private"  // one of several directories
)

// Publish says whose writes become what later jobs get.
type Publish string

// The policies of publication.
const (
	Never     Publish = "never"
	Protected Publish = "protected" // jobs of protected refs
	Scheduled Publish = "scheduled" // those of them that a schedule started
	Always    Publish = "always"
)

// Scope says who has a cache in common.
type Scope string

// The scopes. Operators alone give others than the first.
const (
	Project Scope = "project"
	Group   Scope = "group"
	Node    Scope = "node"
)

// MaxPool bounds the copies of a private cache.
const MaxPool = 64

// Cache is a cache that is asked for.
type Cache struct {
	ID       string
	Target   string  // in the container; relative to the project's directory unless absolute
	Sharing  Sharing // Snapshot unless said
	Pool     int     // copies of a private cache, 0 for no limit
	ReadOnly bool
	Publish  Publish // empty for what the profile says
	Scope    Scope   // empty for Project
}

// Parse reads a cache's text, whose fields are as in Dockerfile's RUN --mount: separated by commas, quoted as in CSV.
func Parse(text string) (Cache, error) {
	fields, err := split(text)
	if err != nil {
		return Cache{}, err
	}
	c := Cache{Sharing: Snapshot}
	seen := map[string]bool{}
	for _, field := range fields {
		name, value, valued := strings.Cut(field, "=")
		if name = strings.ToLower(strings.TrimSpace(name)); name == "ro" {
			name = "readonly"
		}
		if seen[name] {
			return Cache{}, fault(name, "is given twice; once is enough")
		}
		seen[name] = true
		if err := c.set(name, strings.TrimSpace(value), valued); err != nil {
			return Cache{}, err
		}
	}
	if err := c.Validate(); err != nil {
		return Cache{}, err
	}
	return c, nil
}

func split(text string) ([]string, error) {
	if strings.TrimSpace(text) == "" {
		return nil, fault("cache", "is empty; expected id=NAME,target=PATH")
	}
	r := csv.NewReader(strings.NewReader(text))
	r.FieldsPerRecord = -1
	records, err := r.ReadAll()
	if err != nil || len(records) != 1 {
		return nil, fault("cache", "is not one line of fields separated by commas, like id=NAME,target=PATH; a field with a comma in it goes in double quotes")
	}
	return records[0], nil
}

func (c *Cache) set(name, value string, valued bool) (err error) {
	if name != "readonly" && !valued {
		return fault(name, unknown(name, "has no value; expected "+name+"=VALUE"))
	}
	switch name {
	case "id":
		c.ID = value
	case "target":
		c.Target = value
	case "sharing":
		c.Sharing = Sharing(value)
	case "scope":
		if c.Scope = Scope(value); c.Scope == Project {
			c.Scope = ""
		}
	case "publish":
		if value == "" {
			return fault(name, expectPublish)
		}
		c.Publish = Publish(value)
	case "pool":
		if c.Pool, err = strconv.Atoi(value); err != nil || c.Pool < 1 {
			return fault(name, fmt.Sprintf("is %q; expected a number from 1 to %d", value, MaxPool))
		}
	case "readonly":
		c.ReadOnly = true
		if valued {
			if c.ReadOnly, err = strconv.ParseBool(value); err != nil {
				return fault(name, fmt.Sprintf("is %q; expected true or false, or no value", value))
			}
		}
	default:
		return fault(name, unknown(name, ""))
	}
	return nil
}

var names = []string{"id", "target", "sharing", "pool", "readonly", "publish", "scope"}

// unknown explains a field that is none, or else says what is given.
func unknown(name, otherwise string) string {
	for _, n := range names {
		if n == name {
			return otherwise
		}
	}
	return "is no field of a cache; expected one of " + strings.Join(names, ", ")
}

// fault is an error about one field.
func fault(field, what string) error {
	if field == "cache" {
		return fmt.Errorf("cache %s: %w", what, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("cache field %q %s: %w", field, what, errdefs.ErrInvalidArgument)
}

// String is the text that Parse reads.
func (c Cache) String() string {
	fields := []string{"id=" + c.ID, "target=" + c.Target, "sharing=" + string(c.Sharing)}
	if c.Pool > 0 {
		fields = append(fields, "pool="+strconv.Itoa(c.Pool))
	}
	if c.ReadOnly {
		fields = append(fields, "readonly")
	}
	if c.Publish != "" {
		fields = append(fields, "publish="+string(c.Publish))
	}
	if c.Scope != "" {
		fields = append(fields, "scope="+string(c.Scope))
	}
	var text strings.Builder
	w := csv.NewWriter(&text)
	if err := w.Write(fields); err != nil {
		return err.Error() // the separator is no comma: cannot be
	}
	w.Flush()
	return strings.TrimSuffix(text.String(), "\n")
}
