package script

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"gitlab.com/berth-ci/berth/test/gitlab"
)

// archive is where a cache key's zip lies.
type archive struct {
	key       string
	file      string
	alternate string // under the key's hash, as FF_HASH_CACHE_KEYS names it
}

// archive resolves a key; an empty one stands for the job and the ref.
func (s Writer) archive(w *writer, key string) (archive, error) {
	raw := path.Join("/", s.Job.JobInfo.Name, s.Job.GitInfo.Ref)[1:]
	if key != "" {
		raw = s.Job.Expand(key)
	}
	clean, err := sanitize(raw)
	switch {
	case err != nil:
		w.warning("%s", err.Error())
	case clean != raw:
		w.warning("cache key %q sanitized to %q", raw, clean)
	}
	if clean == "" {
		return archive{}, fmt.Errorf("empty cache key")
	}
	hash := fmt.Sprintf("%x", sha256.Sum256([]byte(clean)))
	a := archive{key: clean}
	for name, file := range map[string]*string{clean: &a.file, hash: &a.alternate} {
		if *file, err = filepath.Rel(s.Job.BuildDir, path.Join(s.Job.CacheDir, name, "cache.zip")); err != nil {
			return archive{}, fmt.Errorf("locate cache: %w", err)
		}
	}
	return a, nil
}

var separators = strings.NewReplacer("%2f", "/", "%2F", "/", "%2e", ".", "%2E", ".", `\`, "/")

// sanitize keeps a key below the cache directory.
func sanitize(key string) (string, error) {
	parts := strings.Split(path.Clean("/" + separators.Replace(key))[1:], "/")
	for len(parts) > 0 {
		last := strings.TrimRightFunc(parts[len(parts)-1], unicode.IsSpace)
		if last != "" {
			parts[len(parts)-1] = last
			return strings.Join(parts, "/"), nil
		}
		parts = parts[:len(parts)-1]
	}
	return "", fmt.Errorf("cache key %q could not be sanitized", key)
}

// selection are the arguments that choose the files.
func selection(paths []string, untracked bool) []string {
	var args []string
	for _, p := range paths {
		args = append(args, "--path", p)
	}
	if untracked {
		args = append(args, "--untracked")
	}
	return args
}

// allows reports whether a cache's policy allows pull or push.
func (s Writer) allows(c gitlab.Cache, wanted string) (bool, error) {
	switch policy := s.Job.Expand(c.Policy); policy {
	case "", "pull-push":
		return true, nil
	case "pull", "push":
		return policy == wanted, nil
	default:
		return false, fmt.Errorf("unknown cache policy %s", policy)
	}
}

func (s Writer) restoreCache(w *writer) (bool, error) {
	s.begin(w)
	needed := false
	for _, c := range s.Job.Cache {
		if len(selection(c.Paths, c.Untracked)) == 0 {
			continue
		}
		needed = true
		first, err := s.archive(w, c.Key)
		if err != nil {
			w.notice("Skipping cache extraction due to %v", err)
			continue
		}
		switch ok, err := s.allows(c, "pull"); {
		case err != nil:
			return false, fmt.Errorf("%w for %s", err, first.key)
		case !ok:
			w.notice("Not downloading cache %s due to policy", first.key)
			continue
		}
		archives := append([]archive{first}, s.fallbacks(w, c)...)
		s.guarded(w, "Extracting cache", func() { s.extract(w, archives) })
	}
	s.changeOwner(w, s.Job.CacheDir, s.Job.RootDir)
	return needed, nil
}

func (s Writer) fallbacks(w *writer, c gitlab.Cache) []archive {
	keys := c.FallbackKeys
	if global := s.Job.Value("CACHE_FALLBACK_KEY"); strings.HasSuffix(strings.TrimRight(global, ". "), "-protected") {
		w.warning("CACHE_FALLBACK_KEY %q not allowed to end in %q", global, "-protected")
	} else {
		keys = append(keys[:len(keys):len(keys)], global)
	}
	var list []archive
	for _, key := range keys {
		if s.Job.Expand(key) == "" {
			continue
		}
		a, err := s.archive(w, key)
		if err != nil {
			w.notice("Skipping cache extraction due to %v", err)
			continue
		}
		list = append(list, a)
	}
	return list
}

// extract tries the archives in turn.
func (s Writer) extract(w *writer, archives []archive) {
	w.notice("Checking cache for %s...", archives[0].key)
	timeout := strconv.Itoa(s.Job.Settings().CacheTimeout)
	w.ifThen(succeeds(s.Command, "cache-extractor", "--file", archives[0].file, "--timeout", timeout), func() {
		w.notice("Successfully extracted cache")
	}, func() {
		w.warning("Failed to extract cache")
		if len(archives) > 1 {
			s.extract(w, archives[1:])
		}
	})
}

func (s Writer) archiveCache(w *writer, success bool) (bool, error) {
	s.begin(w)
	needed := false
	for _, c := range s.Job.Cache {
		files := selection(c.Paths, c.Untracked)
		if !due(c.When, success) || len(files) == 0 {
			continue
		}
		needed = true
		a, err := s.archive(w, c.Key)
		if err != nil {
			w.notice("Skipping cache archiving due to %v", err)
			continue
		}
		switch ok, err := s.allows(c, "push"); {
		case err != nil:
			return false, fmt.Errorf("%w for %s", err, a.key)
		case !ok:
			w.notice("Not uploading cache %s due to policy", a.key)
			continue
		}
		s.guarded(w, "Creating cache", func() { s.create(w, a, files) })
	}
	return needed, nil
}

func (s Writer) create(w *writer, a archive, files []string) {
	w.notice("Creating cache %s...", a.key)
	env := w.tmpFile("gitlab_runner_cache_env")
	metadata, _ := json.Marshal(map[string]string{"cachekey": a.key}) // a map of strings always marshals
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\r", `\r`)
	w.linef("cat << EOF > %s\nCACHE_METADATA=\"%s\"\nEOF\n", env, escape.Replace(string(metadata)))
	args := []string{
		s.Command, "cache-archiver", "--file", a.file, "--alternate-file", a.alternate,
		"--timeout", strconv.Itoa(s.Job.Settings().CacheTimeout),
	}
	args = append(args, files...)
	w.ifThen(succeeds(append(args, "--env-file", env)...),
		func() { w.notice("Created cache") },
		func() { w.warning("Failed to create cache") })
	w.removeFile(env)
}

// due reports whether on_success, on_failure or always fits the outcome.
func due(when string, success bool) bool {
	switch when {
	case "always":
		return true
	case "on_failure":
		return !success
	default:
		return success
	}
}
