package executor

// GPUs says which GPUs jobs may have.
type GPUs struct {
	// Models are parts of NVIDIA's names, such as a100; "*" is all.
	Models []string `toml:"models" json:"models,omitempty"`
	// Count is what jobs get that do not say.
	Count int `toml:"count" json:"count,omitempty"`
	// PerJob and Total are how many a job, and all jobs together, have at
	// most; 0 is no limit.
	PerJob int `toml:"per_job" json:"per_job,omitempty"`
	Total  int `toml:"total" json:"total,omitempty"`
	// Wait is how long a job waits for GPUs.
	Wait Duration `toml:"wait" json:"wait"`
}
