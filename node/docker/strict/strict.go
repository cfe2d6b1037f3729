// Package strict decodes the bodies of Docker API requests so that what was
// checked is what was meant: keys that a type does not know, that come twice,
// or that differ from a known one in case alone are refused, since decoders
// differ in what they make of them. It knows nothing of what the values mean.
package strict

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	"github.com/containerd/errdefs"
)

// Deeper, and of more values, than any request of the API: a value takes many
// times the memory of its text.
const (
	maxDepth  = 64
	maxValues = 1 << 16
)

// Decode reads one JSON value into what into points to. A key that the type
// does not know is let pass where its value says nothing (null, false, 0, "",
// [], {}): older clients send fields that have since been removed.
func Decode(r io.Reader, into any) error {
	if err := decode(r, into); err != nil {
		return fmt.Errorf("invalid JSON: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

func decode(r io.Reader, into any) error {
	text, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	values := 0
	root, err := read(d, "", 0, &values)
	if err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more follows the value")
	}
	if err := check(root, reflect.TypeOf(into), ""); err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

// value is a JSON value: an object, a list or a scalar.
type value struct {
	keys   []string // of an object
	values []value  // of an object or a list
	kind   json.Delim
	scalar any
}

// empty tells whether a value says nothing.
func (v value) empty() bool {
	if v.kind != 0 {
		return len(v.values) == 0
	}
	switch s := v.scalar.(type) {
	case nil:
		return true
	case bool:
		return !s
	case string:
		return s == ""
	case json.Number:
		return s == "0"
	}
	return false
}

// read reads the next value and refuses keys that come twice.
func read(d *json.Decoder, path string, depth int, values *int) (value, error) {
	if depth > maxDepth {
		return value{}, errors.New("values are nested too deeply")
	}
	if *values++; *values > maxValues {
		return value{}, fmt.Errorf("more than %d values", maxValues)
	}
	token, err := d.Token()
	if err != nil {
		return value{}, err
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return value{scalar: token}, nil
	}
	v := value{kind: delim}
	seen := map[string]bool{}
	for d.More() {
		at := path
		if delim == '{' {
			token, err := d.Token()
			if err != nil {
				return value{}, err
			}
			key := token.(string) // the decoder allows no other
			at = join(path, key)
			if seen[key] {
				return value{}, fmt.Errorf("key %q comes twice", at)
			}
			seen[key] = true
			v.keys = append(v.keys, key)
		}
		next, err := read(d, at, depth+1, values)
		if err != nil {
			return value{}, err
		}
		v.values = append(v.values, next)
	}
	_, err = d.Token() // the end
	return v, err
}

var (
	unmarshaler     = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// check compares the keys of a value with a type.
func check(v value, t reflect.Type, path string) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if p := reflect.PointerTo(t); v.kind == 0 || p.Implements(unmarshaler) || p.Implements(textUnmarshaler) {
		return nil // keys, if any, are its own affair
	}
	switch t.Kind() {
	case reflect.Struct:
		if v.kind != '{' {
			return nil // Unmarshal says more
		}
		known := fields(t)
		for i, key := range v.keys {
			at := join(path, key)
			if field, ok := known[key]; ok {
				if err := check(v.values[i], field, at); err != nil {
					return err
				}
				continue
			}
			for name := range known {
				if strings.EqualFold(name, key) {
					return fmt.Errorf("key %q: it is written %q", at, name)
				}
			}
			if !v.values[i].empty() {
				return fmt.Errorf("key %q is unknown", at)
			}
		}
	case reflect.Map, reflect.Slice, reflect.Array:
		for i, element := range v.values {
			at := path
			if v.kind == '{' {
				at = join(path, v.keys[i])
			}
			if err := check(element, t.Elem(), at); err != nil {
				return err
			}
		}
	}
	return nil
}

// fields are the keys of a struct, embedded ones included.
func fields(t reflect.Type) map[string]reflect.Type {
	all := map[string]reflect.Type{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			embedded := f.Type
			if embedded.Kind() == reflect.Pointer {
				embedded = embedded.Elem()
			}
			if embedded.Kind() == reflect.Struct {
				for name, field := range fields(embedded) {
					if _, ok := all[name]; !ok {
						all[name] = field
					}
				}
				continue
			}
		}
		if !f.IsExported() || name == "-" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		all[name] = f.Type
	}
	return all
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
