package executor

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
)

// Bytes is a size that text writes as docker does: 512m, 4GiB, 1073741824.
// Units are powers of 1024.
type Bytes int64

// UnmarshalText parses a size.
func (b *Bytes) UnmarshalText(text []byte) error {
	n, err := units.RAMInBytes(string(text))
	if err != nil || n < 0 {
		return fmt.Errorf("size %q: expected a number with an optional unit, such as 512m or 4GiB", text)
	}
	*b = Bytes(n)
	return nil
}

// MarshalText writes the size in bytes, so that no digit is lost.
func (b Bytes) MarshalText() ([]byte, error) { return strconv.AppendInt(nil, int64(b), 10), nil }

func (b Bytes) String() string { return units.BytesSize(float64(b)) }

// CPUs counts processors: 0.5, 8, or 1500m for thousandths.
type CPUs float64

// ParseCPUs parses a cpu count.
func ParseCPUs(s string) (CPUs, error) {
	number, milli := strings.CutSuffix(strings.TrimSpace(s), "m")
	f, err := strconv.ParseFloat(number, 64)
	if milli {
		f /= 1000
	}
	if err != nil || math.IsNaN(f) || f < 0.01 || f > 1<<16 {
		return 0, fmt.Errorf("cpu count %q: expected a number of cpus, such as 2, 0.5 or 1500m", s)
	}
	return CPUs(f), nil
}

func (c CPUs) String() string { return strconv.FormatFloat(float64(c), 'g', -1, 64) }

// Duration is a time.Duration that text writes as 90s or 1h30m.
type Duration time.Duration

// UnmarshalText parses a duration.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v < 0 {
		return fmt.Errorf("duration %q: expected a number with a unit, such as 30s, 5m or 1h", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes the duration.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d Duration) String() string { return time.Duration(d).String() }
