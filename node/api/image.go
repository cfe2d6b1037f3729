package api

import "time"

// Image is a name of an image on the node that is there by Berth.
type Image struct {
	// Name is containerd's; Image is how jobs write it.
	Name  string `json:"name"`
	Image string `json:"image"`
	// Project is whose name it is, by its path in GitLab where that is known;
	// empty for what is there for all. Protected tells the tier.
	Project   string `json:"project,omitempty"`
	Protected bool   `json:"protected,omitempty"`
	Digest    string `json:"digest"`
	// Size is of all that the image consists of, compressed and unpacked;
	// Unique of what becomes free with it.
	Size   int64     `json:"size"`
	Unique int64     `json:"unique"`
	Used   time.Time `json:"used"`
	// Users are the jobs, containers and leases that have it.
	Users []string `json:"users,omitempty"`
	// Reason says why the image was removed.
	Reason string `json:"reason,omitempty"`
}

// ImageRemoval names an image to remove.
type ImageRemoval struct {
	Name string `json:"name"`
}

// ImagePrune says what images to remove.
type ImagePrune struct {
	Room
	// DryRun tells what would be removed.
	DryRun bool `json:"dry_run,omitempty"`
}
