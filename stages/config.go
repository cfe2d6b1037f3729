package stages

import (
	"encoding/json"
	"io"

	"gitlab.com/gitlab-org/gitlab-runner/executors/custom/api"

	"gitlab.com/berth-ci/berth/executor"
)

// Config answers gitlab-runner's config call. It needs no daemon, and is the
// first to see a payload that cannot be read.
func (s *Stage) Config(stdout io.Writer) error {
	if _, err := executor.ReadPayload(s.Call.PayloadFile); err != nil {
		return err
	}
	name, builds, cache, shell, shared := "berth", buildsDir, cacheDir, "bash", false
	return json.NewEncoder(stdout).Encode(api.ConfigExecOutput{
		Driver:            &api.DriverInfo{Name: &name, Version: &s.Version},
		BuildsDir:         &builds,
		CacheDir:          &cache,
		BuildsDirIsShared: &shared,
		Shell:             &shell,
	})
}
