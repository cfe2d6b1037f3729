package gpu

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/executor"
)

func TestParseRequest(t *testing.T) {
	for _, tt := range []struct {
		name      string
		variables map[string]string
		want      Request
		err       string
	}{
		{"none", nil, Request{}, ""},
		{"empty", map[string]string{CountVariable: ""}, Request{}, ""},
		{"none by count", map[string]string{CountVariable: "0", ModelVariable: "a100"}, Request{Model: "a100"}, ""},
		{"two", map[string]string{CountVariable: "2"}, Request{Count: 2}, ""},
		{"model means one", map[string]string{ModelVariable: "A100-PCIE-40GB"}, Request{Count: 1, Model: "A100-PCIE-40GB"}, ""},
		{"memory", map[string]string{CountVariable: "1", MemoryVariable: "40g"}, Request{Count: 1, Memory: 40 << 30}, ""},
		{"instance", map[string]string{MIGProfileVariable: "1g.5gb"}, Request{Count: 1, MIGProfile: "1g.5gb"}, ""},
		{"instance with attributes", map[string]string{MIGProfileVariable: "1c.2g.10gb+me"}, Request{Count: 1, MIGProfile: "1c.2g.10gb+me"}, ""},
		{"no number", map[string]string{CountVariable: "all"}, Request{}, `BERTH_GPU_COUNT: count "all"`},
		{"negative", map[string]string{CountVariable: "-1"}, Request{}, "BERTH_GPU_COUNT"},
		{"too many", map[string]string{CountVariable: "99999999999999999999"}, Request{}, "BERTH_GPU_COUNT"},
		{"odd model", map[string]string{ModelVariable: "a100; rm"}, Request{}, "BERTH_GPU_MODEL"},
		{"no size", map[string]string{MemoryVariable: "big"}, Request{}, `BERTH_GPU_MEMORY: size "big"`},
		{"no profile", map[string]string{MIGProfileVariable: "8g.5gb"}, Request{}, "BERTH_GPU_MIG_PROFILE"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseRequest(tt.variables)
			if tt.err != "" {
				var failure *executor.BuildFailure
				require.True(t, errors.As(err, &failure))
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}
