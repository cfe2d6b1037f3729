package executor

import (
	"slices"
	"strings"
)

// ServiceNames are the host names of a service: its aliases, and those that
// gitlab-runner derives from the image's name, by which tutorial/wordpress
// is reachable as tutorial__wordpress and tutorial-wordpress.
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
		if !slices.Contains(names, derived) {
			names = append(names, derived)
		}
	}
	return names
}
