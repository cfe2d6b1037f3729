package config

import (
	"cmp"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"gitlab.com/berth-ci/berth/executor"
)

// Error is one problem of a configuration.
type Error struct {
	File string
	Line int    // 0 where unknown
	Key  string // in full, such as profile.gpu.memory
	// Problem says what was expected and what was found.
	Problem string
}

func (e *Error) Error() string {
	where := e.File
	if e.Line > 0 {
		where = fmt.Sprintf("%s:%d", e.File, e.Line)
	}
	if e.Key == "" {
		return where + ": " + e.Problem
	}
	return where + ": " + e.Key + ": " + e.Problem
}

// document is a configuration file in the course of being read. It collects
// all problems, where the TOML library stops at the first and lets unknown
// keys pass.
type document struct {
	file     string
	meta     toml.MetaData
	lines    map[string]int // of each key
	problems []*Error
	broken   bool // not TOML at all
}

// decode reads text into c, over what c holds.
func decode(file string, text []byte, c *Config) *document {
	d := &document{file: file, lines: map[string]int{}}
	var top map[string]toml.Primitive
	meta, err := toml.Decode(string(text), &top)
	if err != nil {
		d.broken = true
		e := &Error{File: file, Problem: err.Error()}
		var syntax toml.ParseError
		if errors.As(err, &syntax) {
			e.Line, e.Key, e.Problem = syntax.Position.Line, syntax.LastKey, syntax.Message
		}
		d.problems = append(d.problems, e)
		return d
	}
	d.meta = meta
	d.members("", top, reflect.ValueOf(c).Elem())
	return d
}

// refuse notes a problem with a key, unless the key or what it is part of was
// refused before.
func (d *document) refuse(key, format string, args ...any) {
	line := 0
	for part := key; part != ""; part = part[:max(strings.LastIndexAny(part, ".["), 0)] {
		if slices.ContainsFunc(d.problems, func(e *Error) bool { return e.Key == part }) {
			return
		}
		if line == 0 { // elements of a list have no line of their own
			line = d.lines[part]
		}
	}
	d.problems = append(d.problems, &Error{File: d.file, Line: line, Key: key, Problem: fmt.Sprintf(format, args...)})
}

// err joins the problems found so far.
func (d *document) err() error {
	slices.SortStableFunc(d.problems, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Key, b.Key))
	})
	errs := make([]error, len(d.problems))
	for i, p := range d.problems {
		errs[i] = p
	}
	return errors.Join(errs...)
}

// members decodes the members of a table into the fields of a struct.
func (d *document) members(table string, members map[string]toml.Primitive, into reflect.Value) {
	fields := map[string]reflect.Value{}
	for i := range into.NumField() {
		fields[into.Type().Field(i).Tag.Get("toml")] = into.Field(i)
	}
	for name, value := range members {
		key := join(table, name)
		d.lines[key] = d.line(value)
		if field, ok := fields[name]; ok {
			d.value(key, value, field)
		} else {
			d.refuse(key, "unknown key%s", suggest(name, maps.Keys(fields)))
		}
	}
}

// value decodes one value into a field.
func (d *document) value(key string, value toml.Primitive, into reflect.Value) {
	_, text := into.Addr().Interface().(encoding.TextUnmarshaler)
	if kind := into.Kind(); text || kind != reflect.Struct && kind != reflect.Map {
		if err := d.meta.PrimitiveDecode(value, into.Addr().Interface()); err != nil {
			d.mismatch(key, value, into.Type(), err)
		}
		return
	}
	var members map[string]toml.Primitive
	if _, ok := d.raw(value).(map[string]any); !ok || d.meta.PrimitiveDecode(value, &members) != nil {
		d.refuse(key, "expected a table, got %s", written(d.raw(value)))
		return
	}
	if into.Kind() == reflect.Struct {
		d.members(key, members, into)
		return
	}
	into.Set(reflect.MakeMap(into.Type()))
	for name, value := range members {
		member := reflect.New(into.Type().Elem()).Elem()
		if p, ok := member.Addr().Interface().(*executor.Profile); ok {
			*p = executor.DefaultProfile()
		}
		d.lines[join(key, name)] = d.line(value)
		d.value(join(key, name), value, member)
		into.SetMapIndex(reflect.ValueOf(name), member)
	}
}

// expected says what a type looks like in TOML.
var expected = map[reflect.Type]string{
	reflect.TypeFor[string]():       "a string",
	reflect.TypeFor[bool]():         "true or false",
	reflect.TypeFor[int]():          "a whole number",
	reflect.TypeFor[int64]():        "a whole number",
	reflect.TypeFor[float64]():      "a number",
	reflect.TypeFor[[]string]():     `a list of strings, such as ["a", "b"]`,
	reflect.TypeFor[netip.Prefix](): `an IPv4 prefix, such as "10.201.0.0/16"`,
}

// mismatch says what was expected in place of a value.
func (d *document) mismatch(key string, value toml.Primitive, want reflect.Type, err error) {
	raw := d.raw(value)
	_, number := raw.(int64)
	_, table := raw.(map[string]any)
	var refusal toml.ParseError
	switch {
	case number && want == reflect.TypeFor[executor.Duration]():
		d.refuse(key, `expected a duration with a unit, got %d; did you mean "%ds"?`, raw, raw)
	case table && want.Kind() == reflect.String:
		d.refuse(key, "expected a string, got a table: a name with dots in it has to be in quotes")
	case expected[want] != "":
		d.refuse(key, "expected %s, got %s", expected[want], written(raw))
	case errors.As(err, &refusal): // the type's own UnmarshalText
		d.refuse(key, "%s", refusal.Message)
	default:
		d.refuse(key, "%v", err)
	}
}

// line finds where a value stands, which the library tells only in errors.
func (d *document) line(value toml.Primitive) int {
	var place toml.ParseError
	errors.As(d.meta.PrimitiveDecode(value, new(refuser)), &place)
	return place.Position.Line
}

type refuser struct{}

func (*refuser) UnmarshalTOML(any) error { return errors.New("refused") }

// join adds a part to a key, quoted where TOML wants it so.
func join(table, name string) string {
	if table == "" {
		return toml.Key{name}.String()
	}
	return table + "." + toml.Key{name}.String()
}

// raw is a value as the library decodes it by itself.
func (d *document) raw(value toml.Primitive) any {
	var v any
	if err := d.meta.PrimitiveDecode(value, &v); err != nil {
		return err
	}
	return v
}

// written is a value about as it was written.
func written(raw any) string {
	b, err := json.Marshal(raw)
	if err != nil { // nan and inf
		return fmt.Sprint(raw)
	}
	return string(b)
}
