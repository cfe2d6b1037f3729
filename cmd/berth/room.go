package main

import (
	"errors"
	"fmt"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"gitlab.com/berth-ci/berth/node/api"
)

// roomFlags adds the flags that say what to remove. Read sets it by them.
func roomFlags(c *cobra.Command, r *api.Room) (read func() error) {
	var keep, free string
	c.Flags().StringVar(&keep, "keep", "", "how much may be left, as 100GiB")
	c.Flags().StringVar(&free, "free", "", "how much is to be free on the disk, as 50GiB")
	c.Flags().DurationVar(&r.MaxAge, "older-than", 0, "remove what was not used for so long")
	c.Flags().BoolVar(&r.All, "all", false, "remove everything")
	c.Flags().StringVar(&r.Project, "project", "", "only what this project has, as group/project")
	return func() error {
		for _, s := range []struct {
			flag, text string
			to         *int64
		}{{"keep", keep, &r.MaxBytes}, {"free", free, &r.MinFree}} {
			if s.text == "" {
				continue
			}
			n, err := units.RAMInBytes(s.text)
			if err != nil || n <= 0 {
				return fmt.Errorf("--%s %q: expected a size, such as 100GiB", s.flag, s.text)
			}
			*s.to = n
		}
		if keep == "" && free == "" && r.MaxAge == 0 && !r.All {
			return errors.New("say what to remove: --keep SIZE, --free SIZE, --older-than TIME or --all")
		}
		return nil
	}
}
