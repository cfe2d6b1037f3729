package doctor

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Table prints checks to be read.
func Table(w io.Writer, checks []Check) error {
	width := 0
	for _, c := range checks {
		width = max(width, len(c.Name))
	}
	count := map[Status]int{}
	var b strings.Builder
	for _, c := range checks {
		count[c.Status]++
		margin := "\n" + strings.Repeat(" ", len("warn  ")+width+2)
		fmt.Fprintf(&b, "%-4s  %-*s  %s\n", c.Status, width, c.Name, strings.ReplaceAll(c.Detail, "\n", margin))
		if c.Remedy != "" {
			fmt.Fprintf(&b, "%s-> %s\n", margin[1:], strings.ReplaceAll(c.Remedy, "\n", margin))
		}
	}
	fmt.Fprintf(&b, "\n%d ok, %d to look at, %d to mend\n", count[OK], count[Warn], count[Fail])
	_, err := io.WriteString(w, b.String())
	return err
}

// JSON prints checks as a list of objects.
func JSON(w io.Writer, checks []Check) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(checks)
}
