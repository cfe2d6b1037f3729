package strict_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/docker/strict"
)

func TestDecode(t *testing.T) {
	for name, c := range map[string]struct{ text, fault string }{
		"good":                     {`{"Image":"a","HostConfig":{"Binds":["/a:/b"],"PortBindings":{"80/tcp":[{"HostPort":"1"}]}}}`, ""},
		"old field, empty":         {`{"Image":"a","MacAddress":"","HostConfig":{"KernelMemory":0}}`, ""},
		"old field":                {`{"Image":"a","HostConfig":{"KernelMemory":1}}`, `"HostConfig.KernelMemory" is unknown`},
		"unknown":                  {`{"Image":"a","Privileged":true}`, `"Privileged" is unknown`},
		"other case":               {`{"HostConfig":{},"hostconfig":{"Privileged":true}}`, `"hostconfig": it is written "HostConfig"`},
		"other case, empty":        {`{"hostconfig":null}`, `it is written "HostConfig"`},
		"other case, other letter": {`{"HostConfig":{"privileged":true}}`, `it is written "Privileged"`},
		// U+017F folds to s, which encoding/json takes for one.
		"folded":       {`{"Ho\u017ftConfig":{"Privileged":true}}`, `it is written "HostConfig"`},
		"twice":        {`{"Image":"a","Image":"b"}`, `"Image" comes twice`},
		"twice, deep":  {`{"Labels":{"a":"1","a":"2"}}`, `"Labels.a" comes twice`},
		"escaped":      {`{"Image":"a","Im\u0061ge":"b"}`, `"Image" comes twice`},
		"more":         {`{}{}`, `more follows`},
		"deep":         {strings.Repeat("[", 100) + strings.Repeat("]", 100), `too deeply`},
		"many":         {`{"Cmd":[` + strings.Repeat(`"",`, 1<<16) + `""]}`, `more than 65536 values`},
		"list of maps": {`{"HostConfig":{"Mounts":[{"Type":"bind","type":"bind"}]}}`, `it is written "Type"`},
		"cut off":      {`{"Image":`, `EOF`},
		"wrong type":   {`{"Image":[]}`, `cannot unmarshal`},
	} {
		t.Run(name, func(t *testing.T) {
			var r container.CreateRequest
			err := strict.Decode(strings.NewReader(c.text), &r)
			if c.fault == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.fault)
		})
	}
}

// FuzzDecode looks for a text that is let pass but of which a decoder of
// another mind reads more than what is sent on.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		`{"Image":"a","HostConfig":{"Privileged":true,"Binds":["/:/host"]}}`,
		`{"HostConfig":{},"hostconfig":{"Privileged":true}}`,
		`{"HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"1"}]}}}`,
		`{"NetworkingConfig":{"EndpointsConfig":{"a":{"Aliases":["b"]}}}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var r container.CreateRequest
		if strict.Decode(bytes.NewReader(text), &r) != nil {
			return
		}
		sent, err := json.Marshal(r)
		require.NoError(t, err)
		var again container.CreateRequest
		require.NoError(t, strict.Decode(bytes.NewReader(sent), &again))
		require.True(t, reflect.DeepEqual(jsonOf(t, r), jsonOf(t, again)))
		// All that the text says, but for what says nothing, is in what is sent.
		var said, meant map[string]any
		if json.Unmarshal(text, &said) != nil || json.Unmarshal(sent, &meant) != nil {
			return
		}
		for key, value := range said {
			switch value {
			case nil, false, "", float64(0):
				continue
			}
			if v := reflect.ValueOf(value); (v.Kind() == reflect.Map || v.Kind() == reflect.Slice) && v.Len() == 0 {
				continue
			}
			require.Contains(t, meant, key)
		}
	})
}

func jsonOf(t *testing.T, v any) any {
	t.Helper()
	b, err := json.Marshal(v)
	require.NoError(t, err)
	var out any
	require.NoError(t, json.Unmarshal(b, &out))
	return out
}
