package gpu

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/executor"
)

func TestParseRequest(t *testing.T) {
	for _, tt := range []struct {
		name      string
		variables map[string]string
		byDefault int
		want      Request
		err       string
	}{
		{"none", nil, 0, Request{}, ""},
		{"empty", map[string]string{CountVariable: ""}, 0, Request{}, ""},
		{"none by count", map[string]string{CountVariable: "0", ModelVariable: "a100"}, 0, Request{Model: "a100"}, ""},
		{"two", map[string]string{CountVariable: "2"}, 0, Request{Count: 2}, ""},
		{"model means one", map[string]string{ModelVariable: "A100-PCIE-40GB"}, 0, Request{Count: 1, Model: "A100-PCIE-40GB"}, ""},
		{"memory", map[string]string{CountVariable: "1", MemoryVariable: "40g"}, 0, Request{Count: 1, Memory: 40 << 30}, ""},
		{"instance", map[string]string{MIGProfileVariable: "1g.5gb"}, 0, Request{Count: 1, MIGProfile: "1g.5gb"}, ""},
		{"instance with attributes", map[string]string{MIGProfileVariable: "1c.2g.10gb+me"}, 0, Request{Count: 1, MIGProfile: "1c.2g.10gb+me"}, ""},
		{"by default", nil, 2, Request{Count: 2}, ""},
		{"less than the default", map[string]string{CountVariable: "1"}, 2, Request{Count: 1}, ""},
		{"no default wanted", map[string]string{CountVariable: "0"}, 2, Request{}, ""},
		{"a model of the default", map[string]string{ModelVariable: "h100"}, 2, Request{Count: 2, Model: "h100"}, ""},
		{"services", map[string]string{CountVariable: "1", ServicesVariable: "true"}, 0, Request{Count: 1, Services: true}, ""},
		{"services alone ask for none", map[string]string{ServicesVariable: "true"}, 0, Request{Services: true}, ""},
		{"no truth", map[string]string{ServicesVariable: "perhaps"}, 0, Request{}, `BERTH_GPU_SERVICES: "perhaps"`},
		{"no number", map[string]string{CountVariable: "all"}, 0, Request{}, `BERTH_GPU_COUNT: count "all"`},
		{"negative", map[string]string{CountVariable: "-1"}, 0, Request{}, "BERTH_GPU_COUNT"},
		{"too many", map[string]string{CountVariable: "99999999999999999999"}, 0, Request{}, "BERTH_GPU_COUNT"},
		{"digits of another script", map[string]string{CountVariable: "٢"}, 0, Request{}, `BERTH_GPU_COUNT: count "٢"`},
		{"a fraction", map[string]string{CountVariable: "0.5"}, 0, Request{}, "BERTH_GPU_COUNT"},
		{"more than any node has", map[string]string{CountVariable: "1025"}, 0, Request{}, "BERTH_GPU_COUNT"},
		{"two numbers", map[string]string{CountVariable: "1\n2"}, 0, Request{}, "BERTH_GPU_COUNT"},
		{"a nul", map[string]string{CountVariable: "1\x00"}, 0, Request{}, "BERTH_GPU_COUNT"},
		{"lower case is another variable", map[string]string{"berth_gpu_count": "2", "Berth_Gpu_Count": "2"}, 0, Request{}, ""},
		{"NVIDIA's variables ask for nothing", map[string]string{"NVIDIA_VISIBLE_DEVICES": "all", "CUDA_VISIBLE_DEVICES": "0"}, 0, Request{}, ""},
		{"negative memory", map[string]string{MemoryVariable: "-1g"}, 0, Request{}, "BERTH_GPU_MEMORY"},
		{"more memory than there are numbers", map[string]string{MemoryVariable: "9999999999999g"}, 0, Request{}, "BERTH_GPU_MEMORY"},
		{"a model of all", map[string]string{ModelVariable: "*"}, 0, Request{}, "BERTH_GPU_MODEL"},
		{"a model of control characters", map[string]string{ModelVariable: "a100\x1b[2J"}, 0, Request{}, "BERTH_GPU_MODEL"},
		{"a long model", map[string]string{ModelVariable: strings.Repeat("a", 65)}, 0, Request{}, "BERTH_GPU_MODEL"},
		{"a look-alike", map[string]string{ModelVariable: "а100"}, 0, Request{}, "BERTH_GPU_MODEL"},
		{"a profile in another case", map[string]string{MIGProfileVariable: "1G.5GB"}, 0, Request{}, "BERTH_GPU_MIG_PROFILE"},
		{"two profiles", map[string]string{MIGProfileVariable: "1g.5gb,2g.10gb"}, 0, Request{}, "BERTH_GPU_MIG_PROFILE"},
		{"odd model", map[string]string{ModelVariable: "a100; rm"}, 0, Request{}, "BERTH_GPU_MODEL"},
		{"no size", map[string]string{MemoryVariable: "big"}, 0, Request{}, `BERTH_GPU_MEMORY: size "big"`},
		{"no profile", map[string]string{MIGProfileVariable: "8g.5gb"}, 0, Request{}, "BERTH_GPU_MIG_PROFILE"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseRequest(tt.variables, tt.byDefault)
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
