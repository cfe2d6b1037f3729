package script

import (
	"fmt"
	"path"
	"strings"

	"gitlab.com/berth-ci/berth/test/gitlab"
)

const (
	reset  = "\x1b[0;m"
	green  = "\x1b[32;1m"
	yellow = "\x1b[0;33m"
	clear  = "\x1b[0K"
)

// writer collects the lines of one script.
type writer struct {
	body   strings.Builder
	indent int
	tmpDir string
}

func (w *writer) line(text string) {
	w.body.WriteString(strings.Repeat("  ", w.indent) + text + "\n")
}

func (w *writer) linef(format string, args ...any) { w.line(fmt.Sprintf(format, args...)) }

// command quotes its words; expanded leaves variables in the arguments alive.
func (w *writer) command(words ...string)  { w.line(quoteAll(words)) }
func (w *writer) expanded(words ...string) { w.line(expandable(words)) }

func quoteAll(words []string) string {
	quoted := make([]string, len(words))
	for i, word := range words {
		quoted[i] = quote(word)
	}
	return strings.Join(quoted, " ")
}

func expandable(words []string) string {
	quoted := []string{quote(words[0])}
	for _, word := range words[1:] {
		quoted = append(quoted, `"`+word+`"`)
	}
	return strings.Join(quoted, " ")
}

// ifThen writes an if with the lines of then and, unless nil, of otherwise.
func (w *writer) ifThen(condition string, then, otherwise func()) {
	w.linef("if %s; then", condition)
	w.indent++
	then()
	if otherwise != nil {
		w.indent--
		w.line("else")
		w.indent++
		otherwise()
	}
	w.indent--
	w.line("fi")
}

// succeeds is the condition that a command does; quietly, its output is dropped.
func succeeds(words ...string) string { return quoteAll(words) + " " }
func quietly(words ...string) string  { return quoteAll(words) + " >/dev/null 2>&1 " }

func (w *writer) notice(format string, args ...any) {
	w.line("echo " + quote(green+fmt.Sprintf(format, args...)+reset))
}

func (w *writer) warning(format string, args ...any) {
	w.line("echo " + quote(yellow+fmt.Sprintf(format, args...)+reset))
}

func (w *writer) tmpFile(name string) string { return absolute(path.Join(w.tmpDir, name)) }

func absolute(dir string) string {
	if path.IsAbs(dir) || strings.HasPrefix(dir, "$PWD") {
		return dir
	}
	return path.Join("$PWD", dir)
}

// variable exports a variable, a file variable by its path.
func (w *writer) variable(v gitlab.Variable) {
	switch {
	case v.File:
		file := w.tmpFile(v.Key)
		w.linef("mkdir -p %q", w.tmpDir)
		w.linef("printf '%%s' %s > %q", quote(v.Value), file)
		w.linef("export %s=%q", quote(v.Key), file)
	case strings.HasPrefix(v.Value, w.tmpDir):
		w.linef("export %s=%s", quote(v.Key), quote(absolute(v.Value)))
	default:
		w.linef("export %s=%s", quote(v.Key), quote(v.Value))
	}
}

func (w *writer) export(key, value string) { w.variable(gitlab.Variable{Key: key, Value: value}) }

func (w *writer) removeFile(file string) { w.expanded("rm", "-f", file) }

func (w *writer) removeDir(dir string) {
	w.ifThen(fmt.Sprintf("[ -d %q ]", dir), func() { w.expanded("chmod", "-R", "u+rwX", dir) }, nil)
	w.expanded("rm", "-r", "-f", dir)
}

// removeNamed removes what find finds below dir: files (f) or directories (d).
func (w *writer) removeNamed(dir, name, kind string) {
	remove := "-type f -exec rm -f {}"
	if kind == "d" {
		remove = "-type d -depth -exec rm -rf -- {}"
	}
	w.ifThen(fmt.Sprintf("[ -d %q ]", dir), func() {
		w.linef(`et='+' ; find /dev/null -exec true {} + 2>/dev/null || et=';' ; find %q -name %q %s "${et}"`, dir, name, remove)
	}, nil)
}

func (w *writer) section(name, title string) {
	stamp := "$(awk 'BEGIN{srand(); print srand()}'):section_" + name
	w.line(`printf '%b\n' section_start:` + stamp + "[hide_duration=true,collapsed=true]\r" + clear + quote(green+title+reset))
	w.line(`printf '%b\n' section_end:` + stamp + "\r" + clear)
}

// finish makes the script of the lines. The user's part runs in an eval in a
// subshell without stdin, so that a script can neither read on in itself nor
// be printed when it is killed.
func (w *writer) finish(trace, legacy bool) string {
	const onTerm = "trap 'exit 1' TERM"
	var b strings.Builder
	b.WriteString("#!/usr/bin/env bash\n\n" + onTerm + "\n\n")
	if trace {
		b.WriteString("set -o xtrace\n")
	}
	b.WriteString(`case "$(set -o)" in *"pipefail"*) set -o pipefail;; esac; set -o errexit` + "\nset +o noclobber\n")
	if legacy {
		b.WriteString(": | eval " + quote(w.body.String()) + "\n")
	} else {
		b.WriteString("(" + onTerm + "; eval " + quote(w.body.String()) + ") < /dev/null\n")
	}
	b.WriteString("exit 0\n")
	return b.String()
}

// quote gives bash a word: as it is where nothing in it is special, else in
// ANSI-C quotes.
func quote(word string) string {
	if word == "" {
		return "''"
	}
	special := false
	var b strings.Builder
	for _, c := range []byte(word) {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', strings.IndexByte(",-./@_", c) >= 0:
			b.WriteByte(c)
			continue
		case strings.IndexByte("\a\b\t\n\v\f\r", c) >= 0:
			b.WriteByte('\\')
			b.WriteByte("abtnvfr"[c-'\a'])
		case c == '\'' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c > '~':
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
		special = true
	}
	if special {
		return "$'" + b.String() + "'"
	}
	return b.String()
}
