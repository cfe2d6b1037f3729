package test

import (
	"testing"

	"gitlab.com/berth-ci/berth/test/gitlab"
)

func TestLimits(t *testing.T) {
	// tail keeps all of a line that never ends.
	const eat = "head -c 200m /dev/zero | tail | wc -c"
	runJobs(t, []jobCase{
		{
			name: "out of memory", profile: "small",
			spec:  gitlab.JobSpec{Script: []string{eat, "echo not reached"}, Variables: variables("FF_ENABLE_BASH_EXIT_CODE_CHECK", "1")},
			fails: true, exitCode: 137,
			says: []string{"the job ran out of memory (limit 64MiB)", "BERTH_MEMORY_LIMIT"},
		},
		{
			name: "more memory asked for", profile: "small",
			spec: gitlab.JobSpec{
				Variables: variables("BERTH_MEMORY_LIMIT", "128m"),
				Script:    []string{"head -c 80m /dev/zero | tail | wc -c"},
			},
			says: []string{"\n83886080\n"},
		},
		{
			name: "too much memory asked for", profile: "small",
			spec:  gitlab.JobSpec{Variables: variables("BERTH_MEMORY_LIMIT", "1g"), Script: []string{"echo not reached"}},
			fails: true, exitCode: 1,
			says: []string{`BERTH_MEMORY_LIMIT: 1GiB is more than profile "small" allows: ask for 128MiB at most`},
		},
		{
			name: "too many cpus asked for", profile: "small",
			spec:  gitlab.JobSpec{Variables: variables("BERTH_CPU_LIMIT", "64"), Script: []string{"echo not reached"}},
			fails: true, exitCode: 1,
			says: []string{`BERTH_CPU_LIMIT: 64 is more than profile "small" allows`},
		},
		{
			name:  "nonsense asked for",
			spec:  gitlab.JobSpec{Variables: variables("BERTH_MEMORY_LIMIT", "plenty"), Script: []string{"echo not reached"}},
			fails: true, exitCode: 1,
			says: []string{`BERTH_MEMORY_LIMIT: size "plenty"`},
		},
		{
			name: "shared memory asked for",
			spec: gitlab.JobSpec{Variables: variables("BERTH_SHM_SIZE", "32m"), Script: []string{"df -k /dev/shm | tail -n 1"}},
			says: []string{" 32768 "},
		},
		{
			name:  "GPUs where there are none",
			spec:  gitlab.JobSpec{Variables: variables("BERTH_GPU_COUNT", "1"), Script: []string{"echo not reached"}},
			fails: true, exitCode: 1,
			says: []string{"this node offers none"},
		},
	})
}
