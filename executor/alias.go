package executor

import (
	"regexp"
	"slices"
	"strings"
)

// hostName matches what a service may be called. Names become lines of
// /etc/hosts and answers of the nameserver.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*$`)

const maxHostName = 253

func isHostName(name string) bool { return len(name) <= maxHostName && hostName.MatchString(name) }

// ServiceNames are the host names of a service: its aliases, and those that
// gitlab-runner derives from the image's name, by which tutorial/wordpress
// is reachable as tutorial__wordpress and tutorial-wordpress. Of a long path
// they may be no host names; nobody can ask for those, so they are left out.
func ServiceNames(image string, aliases []string) []string {
	name, _, _ := strings.Cut(image, "@")
	if slash := strings.LastIndex(name, "/"); strings.LastIndex(name, ":") > slash {
		name = name[:strings.LastIndex(name, ":")]
	}
	if host, rest, ok := strings.Cut(name, "/"); ok {
		// A registry's port is no part of a host name.
		host, _, _ = strings.Cut(host, ":")
		name = host + "/" + rest
	}
	names := slices.Clone(aliases)
	for _, derived := range []string{strings.ReplaceAll(name, "/", "__"), strings.ReplaceAll(name, "/", "-")} {
		if isHostName(derived) && !slices.Contains(names, derived) {
			names = append(names, derived)
		}
	}
	return names
}
