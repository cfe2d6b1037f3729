package docker

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// session is what people do with docker. $IMAGE is an image, $DIR a directory
// of the client's.
const session = `
pull $IMAGE
pull -q $IMAGE
images --filter reference=$IMAGE --format {{.Repository}}:{{.Tag}}
create --name c1 --label a=b --env X=y --hostname h --workdir /tmp $IMAGE sh -c "echo out; echo err >&2; exec sleep 1000"
ps -a --format {{.Names}}|{{.Image}}|{{.Command}}|{{.Status}}|{{.Ports}}|{{.Labels}}
start c1
inspect -f {{.Name}}|{{.Config.Image}}|{{.Config.Hostname}}|{{.State.Status}}|{{.HostConfig.RestartPolicy.Name}}|{{.Config.Labels}} c1
logs c1
exec c1 sh -c "echo $X; pwd"
exec -e A=b -w / c1 sh -c "echo $A; pwd"
exec c1 sh -c "exit 3"
exec c1 nonesuch
top c1
cp $DIR/in c1:/tmp/in
exec c1 cat /tmp/in
cp c1:/tmp/in $DIR/out-$SIDE
cp c1:/none $DIR/none
diff c1
rename c1 c2
inspect -f {{.Name}} c1
inspect -f {{.Name}} c2
pause c2
ps --format {{.Names}}|{{.Status}}
exec c2 true
unpause c2
stats --no-stream --format {{.Name}}|{{.ID}} c2
update --memory 64m --memory-swap 64m c2
inspect -f {{.HostConfig.Memory}} c2
commit -m msg -a me c2 made:1
images made
image inspect -f {{.Author}}|{{.Comment}}|{{.RepoTags}} made:1
run --rm made:1 cat /tmp/in
tag made:1 made:2
images --format {{.Repository}}:{{.Tag}} made
history -q --no-trunc=false --format {{.Comment}} made:2
rmi made:1
images --format {{.Repository}}:{{.Tag}} made
create --name c2 $IMAGE
restart -t 0 c2
kill c2
wait c2
start c2
rm c2
stop -t 0 c2
rm c2
rm c2
run --name fails $IMAGE sh -c "exit 5"
ps -a --filter name=^/fails$ --format {{.Names}}
ps -a --filter name=ail --format {{.Names}}|{{.Status}}
rm -f fails
run --rm $IMAGE nonesuch
run --rm none/such:image
volume create v1
volume create --label k=v v2
volume ls --format {{.Driver}}|{{.Name}}|{{.Labels}}
volume ls --filter name=v1 -q
run --rm -v v1:/data $IMAGE sh -c "echo kept >/data/file"
run --rm -v v1:/data:ro $IMAGE cat /data/file
run --rm -v v1:/data:ro $IMAGE sh -c "echo no >/data/file"
run --rm --mount type=volume,source=v1,target=/data $IMAGE cat /data/file
run --rm --mount type=volume,source=v3,target=/data,volume-label=a=b,volume-opt=type=tmpfs,volume-opt=device=tmpfs,volume-opt=o=size=1m $IMAGE sh -c "df -k /data | tail -1 | tr -s ' ' | cut -d' ' -f2"
volume inspect -f {{.Name}}|{{.Labels}}|{{.Options}} v3
volume rm v3
run --rm --mount type=tmpfs,target=/t $IMAGE sh -c "mount | grep -c /t"
run --rm --mount type=bind,source=/none/such,target=/t $IMAGE true
volume inspect -f {{.Name}}|{{.Driver}}|{{.Scope}}|{{.Labels}} v2
volume rm v1 v2
volume inspect v1
network create n1
network create n1
network create --label k=v --internal n2
network ls --format {{.Name}}|{{.Driver}}|{{.Scope}} --filter name=n1
network inspect -f {{.Name}}|{{.Driver}}|{{.Internal}}|{{.Labels}} n2
run -d --name aa --network n1 --network-alias other $IMAGE sleep 1000
run --rm --network n1 $IMAGE sh -c "nslookup aa | grep -c Name; nslookup other | grep -c Name"
network connect --alias more n2 aa
inspect -f "{{range $k, $v := .NetworkSettings.Networks}}{{$k}} {{end}}" aa
run --rm --network n2 $IMAGE sh -c "nslookup more | grep -c Name"
network rm n1
network disconnect n2 aa
run --rm --network container:aa $IMAGE hostname
rm -f aa
network rm n1 n2
network rm n2
network inspect n2
run -d --name pp -p 28080:80 -p 127.0.0.1:25353:53/udp $IMAGE sleep 1000
inspect -f {{.HostConfig.PortBindings}} pp
port pp
port pp 53/udp
run --rm --name taken -p 28080:80 $IMAGE true
ps -a --format {{.Names}}|{{.Ports}}
rm -f pp
run --rm --read-only --tmpfs /run --cap-drop ALL --user 1000:1000 --ulimit nofile=100 $IMAGE sh -c "id -u; ulimit -n; touch /x"
run --rm --memory 32m --cpus 0.5 --pids-limit 50 $IMAGE true
run --rm --entrypoint echo $IMAGE entry
run --rm --env-file $DIR/env $IMAGE sh -c "echo $FROM_FILE"
run --rm --add-host example.test:192.0.2.1 $IMAGE grep example.test /etc/hosts
run --rm --dns 192.0.2.2 $IMAGE true
run --rm --shm-size 1m $IMAGE sh -c "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2"
run --rm --label x=y --log-driver none $IMAGE echo none
export --output $DIR/tar-$SIDE nonesuch
save --output $DIR/image-$SIDE made:2
rmi made:2
load --input $DIR/image-$SIDE
run --rm made:2 cat /tmp/in
rmi made:2
rmi made:2
import $DIR/empty.tar imported:1
image inspect -f {{.RepoTags}} imported:1
image rm imported:1
container prune -f
network prune -f --filter label=k=v
logs nonesuch
stop nonesuch
`

// difference is what is left out of a comparison.
type difference struct {
	pattern *regexp.Regexp
	with    string
}

// unlike is what differs from one run to the next.
var unlike = []difference{
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "<id>"},
	{regexp.MustCompile(`\b[0-9a-f]{12}\b`), "<short>"},
	{regexp.MustCompile(`(?m)^\S+\s+\d+\s+\d+ .*$`), "<process>"},
	{regexp.MustCompile(`\d+(\.\d+)? ?[kMG]?B\b`), "<size>"},
	{regexp.MustCompile(`Up (Less than a second|About a \w+|\d+ \w+)`), "Up <time>"},
	{regexp.MustCompile(`(Less than a second|About a \w+|\d+ (seconds?|minutes?)) ago`), "<time> ago"},
	{regexp.MustCompile(`lookup (\S+) on \S+:`), "lookup $1:"},
	{regexp.MustCompile(`  +`), "  "},
	{regexp.MustCompile(`(out|tar|image|page|export)-(bare|job)`), "$1-<side>"},
}

// script is what people type, one docker command a line, in dir. $IMAGE is an
// image, $DIR is dir, $SIDE is job or bare, $BEFORE the second in which the
// line before was begun, $AFTER the one that comes.
type script struct {
	lines string
	dir   string
	// before is put before each line's words.
	before []string
	env    []string
	// bare changes what is said to the bare daemon.
	bare func(args []string) []string
	// unlike is what else differs from one run to the next.
	unlike []difference
}

// compare plays a script with a job's docker and with the bare daemon's, and
// wants the same.
func (s script) compare(t *testing.T, j *job) {
	t.Helper()
	with := s.play(t, "unix://"+j.socket(), "job")
	without := s.play(t, "unix://"+bare(), "bare")
	for i := range with {
		if os.Getenv("BERTH_TEST_LOG") != "" {
			t.Log(with[i])
		}
		if with[i] != without[i] {
			t.Errorf("not the same:\n--- bare: %s\n--- job:  %s", without[i], with[i])
		}
	}
}

func (s script) play(t *testing.T, host, side string) (said []string) {
	t.Helper()
	var before, now time.Time
	for _, line := range strings.Split(strings.TrimSpace(s.lines), "\n") {
		before, now = now, time.Now()
		args := words(strings.NewReplacer(
			"$IMAGE", registry.Image(images.Busybox), "$DIR", s.dir, "$SIDE", side,
			"$BEFORE", strconv.FormatInt(before.Unix(), 10), "$AFTER", strconv.FormatInt(now.Unix()+1, 10),
		).Replace(line))
		if side == "bare" && s.bare != nil {
			args = s.bare(args)
		}
		out, err := command(t, host, s.dir, "", s.env, slices.Concat(s.before, args)...)
		code := "ok"
		if err != nil {
			code = err.Error()
		}
		for _, u := range slices.Concat(s.unlike, unlike) {
			out = u.pattern.ReplaceAllString(out, u.with)
		}
		// What goes to stdout and to stderr has no order.
		sorted := strings.Split(strings.TrimSpace(out), "\n")
		for i := range sorted {
			sorted[i] = strings.TrimSpace(sorted[i])
		}
		slices.Sort(sorted)
		out = strings.Join(sorted, "\n")
		said = append(said, strings.Join(append([]string{"docker"}, s.before...), " ")+" "+line+"\n"+strings.TrimSpace(out)+"\n"+code)
	}
	return said
}

func TestSame(t *testing.T) {
	j := hold(t, "default", gitlab.JobSpec{})
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "in"), []byte("content of in\n"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "env"), []byte("FROM_FILE=yes\n"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "empty.tar"), make([]byte, 10240), 0o644))
	for _, host := range []string{"unix://" + j.socket(), "unix://" + bare()} {
		_, err := client(t, host, "", "pull", registry.Image(images.Busybox))
		require.NoError(t, err)
	}
	// The daemon has no default network of its own.
	_, err := client(t, "unix://"+bare(), "", "network", "create", "same")
	require.NoError(t, err)
	defer func() { _, _ = client(t, "unix://"+bare(), "", "network", "rm", "same") }()
	script{lines: session, dir: dir, bare: func(args []string) []string {
		if (args[0] == "run" || args[0] == "create") && !slices.Contains(args, "--network") {
			return slices.Insert(args, 1, "--network", "same")
		}
		return args
	}}.compare(t, j)
	_, _ = client(t, "unix://"+bare(), "", "rmi", "-f", "made:1", "made:2", "imported:1")
	got, err := os.ReadFile(filepath.Join(dir, "out-job"))
	require.NoError(t, err)
	require.Equal(t, "content of in\n", string(got))
}

// words splits a line as a shell would, with double quotes alone.
func words(line string) (all []string) {
	var word strings.Builder
	quoted, some := false, false
	for _, r := range line {
		switch {
		case r == '"':
			quoted, some = !quoted, true
		case r == ' ' && !quoted:
			if some || word.Len() > 0 {
				all = append(all, word.String())
			}
			word.Reset()
			some = false
		default:
			word.WriteRune(r)
		}
	}
	if some || word.Len() > 0 {
		all = append(all, word.String())
	}
	return all
}
