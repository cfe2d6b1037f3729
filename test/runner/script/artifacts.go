package script

import (
	"strconv"

	"gitlab.com/berth-ci/berth/test/gitlab"
)

func (s Writer) download(w *writer) (bool, error) {
	s.begin(w)
	var jobs []gitlab.Dependency
	for _, d := range s.Job.Dependencies {
		if d.ArtifactsFile.Filename != "" {
			jobs = append(jobs, d)
		}
	}
	if len(jobs) == 0 {
		return false, nil
	}
	s.guarded(w, "Artifacts downloading", func() {
		for _, d := range jobs {
			id := strconv.FormatInt(d.ID, 10)
			w.notice("Downloading artifacts for %s (%s)...", d.Name, id)
			w.command(s.Command, "artifacts-downloader", "--url", s.Job.Runner.URL, "--token", d.Token, "--id", id)
		}
	})
	s.changeOwner(w, s.Job.CacheDir, s.Job.RootDir)
	return true, nil
}

func (s Writer) upload(w *writer, success bool) (bool, error) {
	if s.Job.Runner.URL == "" {
		return false, nil
	}
	s.begin(w)
	needed := false
	for _, a := range s.Job.Artifacts {
		var files []string
		for _, p := range a.Paths {
			files = append(files, "--path", p)
		}
		for _, p := range a.Exclude {
			files = append(files, "--exclude", p)
		}
		if a.Untracked {
			files = append(files, "--untracked")
		}
		if !due(a.When, success) || len(files) == 0 {
			continue
		}
		needed = true
		args := append([]string{
			s.Command, "artifacts-uploader", "--url", s.Job.Runner.URL, "--token", s.Job.Token,
			"--id", strconv.FormatInt(s.Job.ID, 10), "--timeout", "1h0m0s", "--response-header-timeout", "10m0s",
		}, files...)
		for _, option := range [][2]string{
			{"--name", a.Name}, {"--expire-in", a.ExpireIn}, {"--artifact-format", a.Format}, {"--artifact-type", a.Type},
		} {
			if option[1] != "" {
				args = append(args, option[0], option[1])
			}
		}
		s.guarded(w, "Uploading artifacts", func() {
			w.notice("Uploading artifacts...")
			w.command(args...)
		})
	}
	return needed, nil
}
