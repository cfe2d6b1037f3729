package config

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
	"github.com/distribution/reference"

	"gitlab.com/berth-ci/berth/buildkit/spec"
	"gitlab.com/berth-ci/berth/executor"
)

// leastMemory is what runc needs to start a container.
const leastMemory = 6 << 20

var (
	pullPolicies    = []string{executor.PullAlways, executor.PullIfNotPresent, executor.PullNever}
	helperPattern   = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*$`)
	userPattern     = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?$`)
	variablePattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

func (d *document) checkProfile(key, name string, p executor.Profile) {
	before := len(d.problems)
	at := func(field string) string { return key + "." + field }

	if p.Image != "" {
		d.check(at("image"), p.Image, image)
	}
	d.check(at("helper_image"), p.HelperImage, helperImage)
	if len(p.AllowedImages) == 0 {
		d.refuse(at("allowed_images"), `expected at least one pattern, such as "**": no job could run`)
	}
	d.each(at("allowed_images"), p.AllowedImages, pattern)
	d.each(at("allowed_services"), p.AllowedServices, pattern)
	d.each(at("privileged_images"), p.PrivilegedImages, pattern)
	d.each(at("privileged_services"), p.PrivilegedServices, pattern)
	d.each(at("docker_privileged_images"), p.DockerPrivilegedImages, pattern)
	d.checkPullPolicies(key, p)
	d.each(at("credential_helpers"), p.CredentialHelpers, matches(helperPattern, "the end of the name of a docker-credential-… program, such as ecr-login"))

	if p.Concurrent < 0 {
		d.refuse(at("concurrent"), "expected 0, for no limit, or more, got %d", p.Concurrent)
	}
	if p.PIDs < 0 {
		d.refuse(at("pids"), "expected 0, for no limit, or more, got %d", p.PIDs)
	}
	d.checkCPUs(at("cpus"), p.CPUs)
	d.checkCPUs(at("cpus_max"), p.CPUsMax)
	if p.CPUsMax != 0 && p.CPUsMax < p.CPUs {
		d.refuse(at("cpus_max"), "expected cpus (%v) or more, got %v", p.CPUs, p.CPUsMax)
	}
	d.checkSize(key, "memory", p.Memory, p.MemoryMax, leastMemory)
	d.checkSize(key, "shm_size", p.SHMSize, p.SHMSizeMax, 0)

	d.each(at("cap_add"), p.CapAdd, capability)
	d.each(at("cap_drop"), p.CapDrop, capability)
	d.each(at("devices"), p.Devices, device)
	d.pairs(at("ulimits"), p.Ulimits, ulimit)
	d.pairs(at("sysctls"), p.Sysctls, sysctl)
	d.pairs(at("tmpfs"), p.Tmpfs, tmpfs)
	d.each(at("extra_hosts"), p.ExtraHosts, extraHost)
	d.each(at("dns"), p.DNS, address)
	d.each(at("dns_search"), p.DNSSearch, domain)
	d.each(at("mounts"), p.Mounts, mount)
	if p.User != "" {
		d.check(at("user"), p.User, matches(userPattern, "a user, such as 1000, 1000:1000 or name:group"))
	}
	d.pairs(at("environment"), p.Environment, variable)

	d.each(at("egress.node"), p.Egress.Node, port)
	d.each(at("egress.allow"), p.Egress.Allow, destination)
	d.each(at("egress.deny"), p.Egress.Deny, destination)
	d.check(at("egress.default"), p.Egress.Default, oneOf("allow", "deny"))

	d.checkGPUs(key+".gpu", p.GPU)
	d.check(at("cache.publish"), p.Cache.Publish, oneOf(executor.PublishPolicies...))
	d.each(at("cache.mounts"), p.Cache.Mounts, cacheMount)
	d.each(at("builds.entitlements"), p.Builds.Entitlements, oneOf(executor.BuildEntitlements...))

	if p.Image != "" && len(d.problems) == before {
		if _, err := p.Grant(name, executor.Request{}); err != nil {
			d.refuse(at("image"), "expected an image that the profile itself allows: %v", err)
		}
	}
}

func (d *document) checkPullPolicies(key string, p executor.Profile) {
	used, allowed := key+".pull_policy", key+".allowed_pull_policies"
	if len(p.PullPolicy) == 0 {
		d.refuse(used, "expected at least one of %s", strings.Join(pullPolicies, ", "))
	}
	d.each(used, p.PullPolicy, oneOf(pullPolicies...))
	d.each(allowed, p.AllowedPullPolicies, oneOf(pullPolicies...))
	for i, policy := range p.PullPolicy {
		if slices.Contains(pullPolicies, policy) && !slices.Contains(p.AllowedPullPolicies, policy) {
			d.refuse(element(used, i), "expected one of allowed_pull_policies (%s), got %q", strings.Join(p.AllowedPullPolicies, ", "), policy)
		}
	}
}

func (d *document) checkCPUs(key string, cpus float64) {
	if cpus != 0 && !(cpus >= 0.01 && cpus <= 1<<16) { // so that NaN is refused, too
		d.refuse(key, "expected a number of cpus from 0.01, or 0 for no limit, got %v", cpus)
	}
}

func (d *document) checkSize(key, name string, size, most, least executor.Bytes) {
	for field, n := range map[string]executor.Bytes{name: size, name + "_max": most} {
		if n != 0 && n < least {
			d.refuse(key+"."+field, "expected %v or more, without which no container starts, got %v", least, n)
		}
	}
	if most != 0 && most < size {
		d.refuse(key+"."+name+"_max", "expected %s (%v) or more, got %v", name, size, most)
	}
}

// each checks the elements of a list.
func (d *document) each(key string, list []string, test func(string) error) {
	for i, s := range list {
		d.check(element(key, i), s, test)
	}
}

func element(key string, i int) string { return fmt.Sprintf("%s[%d]", key, i) }

// pairs checks the members of a table.
func (d *document) pairs(key string, table map[string]string, test func(name, value string) error) {
	for _, name := range slices.Sorted(maps.Keys(table)) {
		if err := test(name, table[name]); err != nil {
			d.refuse(join(key, name), "%v", err)
		}
	}
}

func cacheMount(text string) error {
	_, err := spec.Parse(text)
	return err
}

func image(name string) error {
	if _, err := reference.ParseDockerRef(name); err != nil {
		return fmt.Errorf("%w: %w", expect("an image, such as golang:1.26 or registry.example.com/group/app@sha256:…", name), err)
	}
	return nil
}

func helperImage(name string) error {
	if strings.ContainsAny(strings.NewReplacer("{arch}", "", "{version}", "").Replace(name), "{}") {
		return expect("no placeholders but {arch} and {version}", name)
	}
	return image(strings.NewReplacer("{arch}", "x86_64", "{version}", "1.0.0").Replace(name))
}

func pattern(s string) error {
	if s == "" || !doublestar.ValidatePattern(s) {
		return expect("a pattern, such as registry.example.com/** or {golang,node}:*", s)
	}
	return nil
}
