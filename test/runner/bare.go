package runner

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// bareRun runs a script with nothing around it. The gitlab-runner that scripts
// call is the program that made the call.
const bareRun = `#!/bin/sh
ln -sfn "/proc/$PPID/exe" "$TMPDIR/gitlab-runner"
PATH="$TMPDIR:$PATH" bash "$1" && exit
echo $? >"$BUILD_EXIT_CODE_FILE"
exit "$BUILD_FAILURE_EXIT_CODE"
`

// Bare writes into dir the scripts of a custom executor without any isolation,
// which works below dir: the least that a job can cost, and a way to test a
// driver.
func Bare(dir string) (Custom, error) {
	answer, err := json.Marshal(map[string]any{
		"driver":     map[string]string{"name": "bare", "version": "1"},
		"builds_dir": filepath.Join(dir, "builds"),
		"cache_dir":  filepath.Join(dir, "cache"),
	})
	if err != nil {
		return Custom{}, err
	}
	scripts := map[string]string{
		"config": "#!/bin/sh\ncat <<'EOF'\n" + string(answer) + "\nEOF\n",
		"run":    bareRun,
	}
	for name, text := range scripts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			return Custom{}, fmt.Errorf("write bare executor: %w", err)
		}
	}
	return Custom{
		ConfigExec: filepath.Join(dir, "config"),
		RunExec:    filepath.Join(dir, "run"),
	}, nil
}
