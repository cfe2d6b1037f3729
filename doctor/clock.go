package doctor

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// born is before any Berth: a clock that says less is not set.
var born = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (n *node) clock(context.Context) []Check {
	var newest time.Time
	for _, path := range []string{"/etc", "/var/log", n.Config, n.config.Root} {
		if s, err := os.Stat(path); err == nil && s.ModTime().After(newest) {
			newest = s.ModTime()
		}
	}
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	synchronised := err == nil && state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0
	return []Check{checkClock(time.Now(), newest, synchronised)}
}

func checkClock(now, newest time.Time, synchronised bool) Check {
	const remedy = "Set it, and keep it right: systemctl enable --now systemd-timesyncd, or chrony."
	switch {
	case now.Before(born):
		return fail("clock", remedy, "it says %s; certificates of registries and of GitLab are not valid yet", now.Format(time.RFC3339))
	case newest.Sub(now) > time.Hour:
		return fail("clock", remedy, "it says %s, but files were changed at %s already", now.Format(time.RFC3339), newest.Format(time.RFC3339))
	case !synchronised:
		return warn("clock", remedy, "nothing keeps it right; it says %s", now.Format(time.RFC3339))
	}
	return ok("clock", "synchronised")
}
