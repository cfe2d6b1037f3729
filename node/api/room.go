package api

import "time"

// Room says what to remove beyond what the configuration does, and that nobody
// uses or has pinned. Zero is no limit.
type Room struct {
	MaxBytes int64         `json:"max_bytes,omitempty"`
	MinFree  int64         `json:"min_free,omitempty"`
	MaxAge   time.Duration `json:"max_age,omitempty"`
	// All removes everything.
	All bool `json:"all,omitempty"`
	// Project limits it to what that project has.
	Project string `json:"project,omitempty"`
}
