package proxy

import (
	"encoding/json"
	"maps"
	"net/url"
	"slices"
)

// filters are those of a list, as the API has them: names with values.
type filters map[string]map[string]bool

// filtersOf reads filters in both forms that the API has had.
func filtersOf(query url.Values) (filters, error) {
	f := filters{}
	written := query.Get("filters")
	if written == "" {
		return f, nil
	}
	if json.Unmarshal([]byte(written), &f) == nil {
		return f, nil
	}
	var older map[string][]string
	if err := json.Unmarshal([]byte(written), &older); err != nil {
		return nil, invalid("invalid filters: %v", err)
	}
	f = filters{}
	for key, values := range older {
		for _, v := range values {
			f.add(key, v)
		}
	}
	return f, nil
}

func (f filters) add(key, value string) {
	if f[key] == nil {
		f[key] = map[string]bool{}
	}
	f[key][value] = true
}

// take removes a filter and gives its values.
func (f filters) take(key string) []string {
	values := slices.Sorted(maps.Keys(f[key]))
	delete(f, key)
	return values
}

// translate replaces the values of a filter.
func (f filters) translate(key string, change func(string) string) {
	for _, v := range f.take(key) {
		f.add(key, change(v))
	}
}

// into puts the filters into a copy of a query.
func (f filters) into(query url.Values) url.Values {
	q := maps.Clone(query)
	if q == nil {
		q = url.Values{}
	}
	q.Del("filters")
	if len(f) > 0 {
		text, _ := json.Marshal(f) // of strings
		q.Set("filters", string(text))
	}
	return q
}

// ownFilter asks for what has the job's label.
func (p *Proxy) ownFilter(query url.Values) url.Values {
	f := filters{}
	f.add("label", JobLabel+"="+p.job.Key)
	return f.into(query)
}

// list is a JSON list, none if it is something else.
func list(v any) []any {
	l, _ := v.([]any)
	return l
}

func object(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}
