package main

import (
	"encoding/json"
	"io"
)

// printJSON prints an object a line.
func printJSON[T any](w io.Writer, list []T) error {
	e := json.NewEncoder(w)
	for _, one := range list {
		if err := e.Encode(one); err != nil {
			return err
		}
	}
	return nil
}
