package config

import (
	"regexp"

	"gitlab.com/berth-ci/berth/executor"
)

// modelPattern keeps in step with what package gpu lets jobs ask for.
var modelPattern = regexp.MustCompile(`^(\*|[A-Za-z0-9][A-Za-z0-9 ._-]{0,63})$`)

func (d *document) checkGPUs(key string, g executor.GPUs) {
	d.each(key+".models", g.Models, matches(modelPattern, `a part of a model's name, such as a100 or A100-PCIE-40GB, or "*" for all`))
	for field, n := range map[string]int{"per_job": g.PerJob, "total": g.Total, "count": g.Count} {
		if n < 0 {
			d.refuse(key+"."+field, "expected 0 or more, got %d", n)
		}
	}
	switch {
	case g.Count > 0 && len(g.Models) == 0:
		d.refuse(key+".count", "expected models beside it: no GPU is allowed, got %d", g.Count)
	case g.PerJob > 0 && g.Count > g.PerJob:
		d.refuse(key+".count", "expected per_job (%d) or less, got %d", g.PerJob, g.Count)
	case g.Total > 0 && g.Count > g.Total:
		d.refuse(key+".count", "expected total (%d) or less, got %d", g.Total, g.Count)
	}
}
