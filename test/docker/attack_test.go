package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// request calls an endpoint as it is: no client is in the way.
func request(t testing.TB, socket, method, path, body string, headers ...string) (int, string) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, strings.NewReader(body))
	require.NoError(t, err)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	res, err := c.Do(r)
	require.NoError(t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	require.NoError(t, err)
	return res.StatusCode, string(text)
}

func (j *job) api(method, path, body string, headers ...string) (int, string) {
	j.t.Helper()
	return request(j.t, j.socket(), method, path, body, headers...)
}

// bare is the daemon's own socket, which no job has.
func bare() string { return filepath.Join(node.Config.State, "docker", "daemon", "dockerd.sock") }

func (j *job) pull(name string) {
	j.t.Helper()
	status, text := j.api("POST", "/images/create?fromImage="+name, "")
	require.Equal(j.t, http.StatusOK, status, text)
	require.NotContains(j.t, text, `"error"`)
}

// TestHost has a job ask for the host in every way that there is: in a body
// for create each time. Most of it bare dockerd takes, or would if the victim
// were there.
func TestHost(t *testing.T) {
	j := hold(t, "default", gitlab.JobSpec{})
	busybox := registry.Image(images.Busybox)
	j.pull(busybox)
	secret := filepath.Join(scratch, "secret")
	require.NoError(t, os.WriteFile(secret, []byte("of the host"), 0o600))
	for _, c := range []struct {
		name, body string
		// bare is what dockerd itself answers.
		bare int
	}{
		{"privileged", `"HostConfig":{"Privileged":true}`, 201},
		{"privileged by case", `"HostConfig":{},"hostconfig":{"Privileged":true}`, 201},
		{"privileged by fold", `"HostConfig":{},"Ho\u017ftConfig":{"Privileged":true}`, 201},
		{"privileged twice", `"HostConfig":{"Privileged":true},"HostConfig":{}`, 201},
		{"inner case", `"HostConfig":{"privileged":true}`, 201},
		{"pid", `"HostConfig":{"PidMode":"host","CapAdd":["ALL"]}`, 201},
		{"ipc", `"HostConfig":{"IpcMode":"host"}`, 201},
		{"uts", `"HostConfig":{"UTSMode":"host"}`, 201},
		{"users", `"HostConfig":{"UsernsMode":"host"}`, 201},
		{"network", `"HostConfig":{"NetworkMode":"host"}`, 201},
		{"all capabilities", `"HostConfig":{"CapAdd":["ALL"]}`, 201},
		{"a capability", `"HostConfig":{"CapAdd":["cap_sys_admin"]}`, 201},
		{"devices", `"HostConfig":{"Devices":[{"PathOnHost":"/dev/vda","PathInContainer":"/dev/vda","CgroupPermissions":"rwm"}]}`, 201},
		{"device rules", `"HostConfig":{"DeviceCgroupRules":["a *:* rwm"]}`, 201},
		{"device requests", `"HostConfig":{"DeviceRequests":[{"Driver":"cdi","DeviceIDs":["nvidia.com/gpu=all"]}]}`, 201},
		{"volume driver", `"HostConfig":{"VolumeDriver":"evil"}`, 201},
		{"volumes of others", `"HostConfig":{"VolumesFrom":["victim"]}`, 400},
		{"inline bind volume", `"HostConfig":{"Mounts":[{"Type":"volume","Source":"vol","Target":"/x","VolumeOptions":{"DriverConfig":{"Name":"local","Options":{"type":"none","o":"bind","device":"/"}}}}]}`, 201},
		{"inline device", `"HostConfig":{"Mounts":[{"Type":"volume","Target":"/x","VolumeOptions":{"DriverConfig":{"Options":{"type":"ext4","device":"/dev/vda"}}}}]}`, 201},
		{"shared propagation", `"HostConfig":{"Binds":["/builds:/x:shared"]}`, 201},
		{"propagation, longer", `"HostConfig":{"Mounts":[{"Type":"bind","Source":"/builds","Target":"/x","BindOptions":{"Propagation":"rshared"}}]}`, 400},
		{"proc", `"HostConfig":{"Binds":["/proc:/x"]}`, 201},
		{"sys", `"HostConfig":{"Mounts":[{"Type":"bind","Source":"/sys","Target":"/x"}]}`, 201},
		{"cgroups", `"HostConfig":{"Binds":["/sys/fs/cgroup:/x"]}`, 201},
		{"proc by a link", `"HostConfig":{"Binds":["/builds/../proc/self/root:/x"]}`, 201},
		{"log driver", `"HostConfig":{"LogConfig":{"Type":"syslog","Config":{"syslog-address":"udp://127.0.0.1:514"}}}`, 201},
		{"storage", `"HostConfig":{"StorageOpt":{"size":"1G"}}`, 201},
		{"killed last", `"HostConfig":{"OomScoreAdj":-1000}`, 201},
		{"never killed", `"HostConfig":{"OomKillDisable":true}`, 201},
		{"cgroup", `"HostConfig":{"Cgroup":"container:victim"}`, 201},
		{"sysctl", `"HostConfig":{"Sysctls":{"kernel.core_pattern":"|/bin/sh"}}`, 201},
		{"runtime", `"HostConfig":{"Runtime":"evil"}`, 400},
		{"annotations", `"HostConfig":{"Annotations":{"a":"b"}}`, 201},
		{"no masks", `"HostConfig":{"MaskedPaths":[],"ReadonlyPaths":[]}`, 201},
		{"no seccomp", `"HostConfig":{"SecurityOpt":["seccomp=unconfined"]}`, 201},
		{"no apparmor", `"HostConfig":{"SecurityOpt":["apparmor=unconfined"]}`, 201},
		{"own seccomp", `"HostConfig":{"SecurityOpt":["seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}"]}`, 201},
		{"system paths", `"HostConfig":{"SecurityOpt":["systempaths=unconfined"]}`, 500},
		{"real time", `"HostConfig":{"CpuRealtimeRuntime":95000}`, 201},
		{"real-time ulimit", `"HostConfig":{"Ulimits":[{"Name":"rtprio","Soft":99,"Hard":99}]}`, 201},
		{"other's network", `"HostConfig":{"NetworkMode":"container:victim"}`, 201},
		{"other's processes", `"HostConfig":{"PidMode":"container:victim"}`, 400},
		{"links", `"HostConfig":{"Links":["victim:v"]}`, 400},
		{"a label", `"Labels":{"berth.job":"j1-00000000"}`, 201},
		{"unknown", `"HostConfig":{"NewPower":true}`, 201},
		{"endpoint of others", `"NetworkingConfig":{"EndpointsConfig":{"victim":{}}}`, 201},
		{"endpoint options", `"NetworkingConfig":{"EndpointsConfig":{"bridge":{"DriverOpts":{"a":"b"}}}}`, 201},
		{"cluster volume", `"HostConfig":{"Mounts":[{"Type":"cluster","Source":"v","Target":"/x"}]}`, 400},
		{"named pipe", `"HostConfig":{"Mounts":[{"Type":"npipe","Source":"/x","Target":"/x"}]}`, 400},
		{"cgroup by another name", `"HostConfig":{"CgroupParent":"/","Cgroup":"host"}`, 201},
		{"cgroups, writable", `"HostConfig":{"SecurityOpt":["writable-cgroups=true"]}`, 201},
		{"no labels", `"HostConfig":{"SecurityOpt":["label=disable"]}`, 201},
		{"network of the host, by case", `"HostConfig":{"NetworkMode":"Host"}`, 201},
		{"network of a path", `"HostConfig":{"NetworkMode":"ns:/proc/1/ns/net"}`, 201},
		{"endpoint of the host", `"NetworkingConfig":{"EndpointsConfig":{"host":{}}}`, 201},
		{"processes of a path", `"HostConfig":{"PidMode":"ns:/proc/1/ns/pid"}`, 400},
		{"other's IPC", `"HostConfig":{"IpcMode":"container:victim"}`, 400},
		{"other's image as a mount", `"HostConfig":{"Mounts":[{"Type":"image","Source":"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","Target":"/x"}]}`, 404},
		{"image mount, outside", `"HostConfig":{"Mounts":[{"Type":"image","Source":"IMAGE","Target":"/x","ImageOptions":{"Subpath":"../../.."}}]}`, 400},
		{"volume, outside", `"HostConfig":{"Mounts":[{"Type":"volume","Source":"vol","Target":"/x","VolumeOptions":{"Subpath":"../../.."}}]}`, 400},
		{"volume by a path", `"HostConfig":{"Binds":["../v:/x"]}`, 400},
		{"volume label", `"HostConfig":{"Mounts":[{"Type":"volume","Source":"vol","Target":"/x","VolumeOptions":{"Labels":{"berth.job":"j1-00000000"}}}]}`, 201},
		{"memory with options", `"HostConfig":{"Mounts":[{"Type":"volume","Target":"/x","VolumeOptions":{"DriverConfig":{"Options":{"type":"tmpfs","device":"tmpfs","o":"size=1m,context=x"}}}}]}`, 201},
		{"tmpfs of another mount", `"HostConfig":{"Tmpfs":{"/x":"remount,rw"}}`, 201},
		{"tmpfs as a bind", `"HostConfig":{"Tmpfs":{"/x":"rbind,shared"}}`, 201},
		{"log to a file", `"HostConfig":{"LogConfig":{"Type":"json-file","Config":{"path":"/etc/cron.d/x"}}}`, 400},
		{"log to fluentd", `"HostConfig":{"LogConfig":{"Type":"fluentd","Config":{"fluentd-address":"unix:///run/x"}}}`, 201},
		{"a network's label", `"Labels":{"berth.network":"j1-00000000"}`, 201},
		{"sysctl by a slash", `"HostConfig":{"Sysctls":{"kernel/core_pattern":"x"}}`, 201},
		{"sysctl, outside", `"HostConfig":{"Sysctls":{"net/../kernel/core_pattern":"x"}}`, 201},
		{"sysctl of the host's network", `"HostConfig":{"Sysctls":{"vm.overcommit_memory":"1"}}`, 201},
		{"weight of a device", `"HostConfig":{"BlkioWeightDevice":[{"Path":"/dev/vda","Weight":10}]}`, 201},
		{"device by CDI", `"HostConfig":{"DeviceRequests":[{"Driver":"cdi","DeviceIDs":["vendor.com/class=all"]}]}`, 201},
		{"sysctls of an endpoint", `"HostConfig":{"NetworkMode":"bridge"},"NetworkingConfig":{"EndpointsConfig":{"bridge":{"DriverOpts":{"com.docker.network.endpoint.sysctls":"net.ipv4.ip_forward=1"}}}}`, 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.ReplaceAll(fmt.Sprintf(`{"Image":%q,"Cmd":["true"],%s}`, busybox, c.body), "IMAGE", busybox)
			status, answer := request(t, j.socket(), "POST", "/containers/create", text)
			require.GreaterOrEqual(t, status, 400, answer)
			require.Less(t, status, 500, answer)
			status, answer = request(t, bare(), "POST", "/containers/create", text)
			if status == http.StatusCreated {
				request(t, bare(), "DELETE", "/containers/"+field(t, answer, "Id")+"?v=1", "")
				request(t, bare(), "DELETE", "/volumes/vol", "")
			}
			require.Equal(t, c.bare, status, answer)
		})
	}
	// Paths of the host are paths of the job's.
	for _, body := range []string{
		fmt.Sprintf(`{"Image":%q,"Cmd":["cat","/x/secret"],"HostConfig":{"Binds":["%s:/x"]}}`, busybox, scratch),
		fmt.Sprintf(`{"Image":%q,"Cmd":["cat","/x%s"],"HostConfig":{"Binds":["/:/x"]}}`, busybox, secret),
		fmt.Sprintf(`{"Image":%q,"Cmd":["cat","/x%s"],"HostConfig":{"Mounts":[{"Type":"bind","Source":"/builds/../../../..","Target":"/x"}]}}`, busybox, secret),
	} {
		status, answer := j.api("POST", "/containers/create", body)
		require.Equal(t, http.StatusCreated, status, answer)
		id := field(t, answer, "Id")
		out, _ := j.docker("start", "-a", id) // there is nothing to cat
		require.NotContains(t, out, "of the host")
	}
	// Only what was meant is there: bodies without a length and of other types.
	status, answer := request(t, j.socket(), "POST", "/containers/create?name=x&Privileged=1", `Image=x&HostConfig={"Privileged":true}`, "Content-Type", "application/x-www-form-urlencoded")
	require.Equal(t, http.StatusBadRequest, status, answer)
}

func field(t *testing.T, text, key string) string {
	t.Helper()
	var m map[string]any
	require.NoError(t, json.Unmarshal([]byte(text), &m), text)
	s, _ := m[key].(string)
	return s
}

// TestOthers has a job look for another's objects.
func TestOthers(t *testing.T) {
	victim := hold(t, "default", gitlab.JobSpec{})
	attacker := hold(t, "default", gitlab.JobSpec{Project: projectOf(t, "other")})
	busybox := registry.Image(images.Busybox)
	victim.pull(busybox)
	id := victim.must("run", "-d", "--name", "victim", "-v", "data:/data", "-v", "/anonymous", busybox, "sh", "-c", "echo secret >/data/s; exec sleep 1000")
	victim.must("network", "create", "inside")
	netID := victim.must("network", "inspect", "-f", "{{.Id}}", "inside")
	bridgeID := victim.must("network", "inspect", "-f", "{{.Id}}", "bridge")
	var volume, exec string
	for _, name := range strings.Fields(victim.must("volume", "ls", "-q")) {
		if name != "data" {
			volume = name
		}
	}
	require.NotEmpty(t, volume)
	_, text := victim.api("POST", "/containers/victim/exec", `{"Cmd":["sleep","100"]}`)
	exec = field(t, text, "Id")
	inner := victim.admission.Job + ".victim"

	attacker.pull(busybox)
	for _, ref := range []string{"victim", id, id[:12], inner, "/" + inner, "%2F" + inner, "..%2F" + id, "%252e%252e", inner + "%2Fjson%3F"} {
		for _, call := range []string{
			"GET /containers/%s/json", "GET /containers/%s/logs?stdout=1", "GET /containers/%s/top", "GET /containers/%s/changes", "GET /containers/%s/export",
			"GET /containers/%s/stats?stream=0", "GET /containers/%s/archive?path=/data", "HEAD /containers/%s/archive?path=/data", "GET /containers/%s/attach/ws?stdout=1&logs=1",
			"POST /containers/%s/attach?stdout=1&logs=1", "POST /containers/%s/exec", "POST /containers/%s/kill", "POST /containers/%s/stop", "POST /containers/%s/restart",
			"POST /containers/%s/start", "POST /containers/%s/pause", "POST /containers/%s/unpause", "POST /containers/%s/rename?name=mine", "POST /containers/%s/update",
			"POST /containers/%s/wait", "POST /containers/%s/resize?h=1&w=1", "PUT /containers/%s/archive?path=/", "DELETE /containers/%s?force=1",
			"POST /commit?container=%s&repo=stolen", "POST /networks/bridge/connect %s",
		} {
			method, path, _ := strings.Cut(call, " ")
			body := ""
			if method == "POST" {
				body = "{}"
			}
			if path, connect, ok := strings.Cut(path, " "); ok {
				body = fmt.Sprintf(`{"Container":%q}`, fmt.Sprintf(connect, ref))
				status, answer := attacker.api(method, path, body)
				require.Equal(t, http.StatusNotFound, status, "%s %s: %s", path, body, answer)
				continue
			}
			status, answer := attacker.api(method, fmt.Sprintf(path, ref), body)
			require.Contains(t, []int{http.StatusNotFound, http.StatusBadRequest}, status, "%s: %s", fmt.Sprintf(call, ref), answer)
		}
	}
	for _, ref := range []string{"inside", netID, netID[:12], bridgeID, victim.admission.Job, victim.admission.Job + ".inside"} {
		for _, call := range []string{"GET /networks/%s", "DELETE /networks/%s", "POST /networks/%s/connect", "POST /networks/%s/disconnect"} {
			method, path, _ := strings.Cut(call, " ")
			status, answer := attacker.api(method, fmt.Sprintf(path, ref), `{"Container":"x"}`)
			require.Equal(t, http.StatusNotFound, status, "%s: %s", fmt.Sprintf(call, ref), answer)
		}
		status, answer := attacker.api("POST", "/containers/create", fmt.Sprintf(`{"Image":%q,"HostConfig":{"NetworkMode":%q}}`, busybox, ref))
		require.Equal(t, http.StatusNotFound, status, answer)
	}
	for _, ref := range []string{volume, victim.admission.Job + ".data", "data"} {
		for _, call := range []string{"GET /volumes/%s", "DELETE /volumes/%s"} {
			method, path, _ := strings.Cut(call, " ")
			status, answer := attacker.api(method, fmt.Sprintf(path, ref), "")
			require.Equal(t, http.StatusNotFound, status, "%s: %s", fmt.Sprintf(call, ref), answer)
		}
		require.NotContains(t, attacker.must("run", "--rm", "-v", ref+":/data", busybox, "sh", "-c", "cat /data/* || true"), "secret")
		attacker.must("volume", "rm", ref) // its own, of the same name
	}
	for _, call := range []string{"GET /exec/%s/json", "POST /exec/%s/start", "POST /exec/%s/resize?h=1&w=1"} {
		method, path, _ := strings.Cut(call, " ")
		status, answer := attacker.api(method, fmt.Sprintf(path, exec), "{}")
		require.Equal(t, http.StatusNotFound, status, answer)
	}
	// Lists, numbers and prunes are of the attacker's own.
	for _, path := range []string{"/containers/json?all=1", "/networks", "/volumes", "/system/df", "/events?since=0&until=" + strconv.FormatInt(time.Now().Unix(), 10), "/info",
		`/containers/json?all=1&filters={"label":["berth.job=` + victim.admission.Job + `"]}`,
		`/containers/json?all=1&filters={"id":["` + id + `"]}`, "/networks/none", "/networks/host", "/networks/bridge"} {
		status, answer := attacker.api("GET", strings.NewReplacer(`"`, "%22", "{", "%7B", "}", "%7D").Replace(path), "")
		require.Equal(t, http.StatusOK, status, answer)
		secrets := []string{id, id[:12], netID, bridgeID}
		if !strings.HasPrefix(path, "/events") { // where it made things of these names itself
			secrets = append(secrets, volume, victim.admission.Job, "inside")
		}
		for _, secret := range secrets {
			require.NotContains(t, answer, secret, path)
		}
	}
	// Who else has an image is not told.
	status, answer := attacker.api("GET", "/images/json?manifests=1", "")
	require.Equal(t, http.StatusOK, status, answer)
	require.Contains(t, answer, `"Manifests"`)
	require.NotContains(t, answer, id)
	status, answer = request(t, bare(), "GET", "/images/json?manifests=1", "")
	require.Equal(t, http.StatusOK, status, answer)
	require.Contains(t, answer, id)
	// Labels of an image do not make its containers another's.
	attacker.must("create", "--name", "labelled", busybox, "sleep", "1000")
	attacker.must("commit", "--change", "LABEL berth.job="+victim.admission.Job, "--change", "LABEL berth.network="+victim.admission.Job, "labelled", "labelled:1")
	attacker.must("run", "-d", "--name", "disguised", "labelled:1")
	require.NotContains(t, victim.must("ps", "-a", "--format", "{{.Names}}"), "disguised")
	require.Contains(t, attacker.must("ps", "--format", "{{.Names}}"), "disguised")

	for _, what := range []string{"containers", "networks", "volumes", "images"} {
		for _, filters := range []string{"", "?filters=%7B%22all%22%3A%5B%22true%22%5D%7D", "?filters=%7B%22dangling%22%3A%5B%22false%22%5D%7D"} {
			attacker.api("POST", "/"+what+"/prune"+filters, "")
		}
	}
	_, _ = attacker.docker("system", "prune", "-af", "--volumes")
	require.Equal(t, "secret", victim.must("exec", "victim", "cat", "/data/s"))
	require.Equal(t, netID, victim.must("network", "inspect", "-f", "{{.Id}}", "inside"))
	victim.must("run", "--rm", "--network", "inside", busybox, "true")
	victim.must("image", "inspect", busybox)

	// Bare dockerd would have shown it all: the test can fail.
	status, answer = request(t, bare(), "GET", "/containers/"+inner+"/json", "")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, answer, victim.admission.Job)
}

// TestOutside has a job call what is no operation for jobs.
func TestOutside(t *testing.T) {
	j := hold(t, "default", gitlab.JobSpec{})
	for _, call := range []string{
		"GET /debug/pprof/", "GET /debug/vars", "GET /metrics", "POST /swarm/init", "GET /secrets", "POST /plugins/pull?remote=x", "POST /plugins/create?name=x",
		"GET /v1.41/debug/pprof/heap", "POST /containers/x/checkpoints", "GET /nothing", "PATCH /containers/json", "GET /v1.41/../debug/vars", "GET //debug/vars",
		"GET /v9.99/v1.41/debug/vars", "POST /images/create?fromSrc=http://127.0.0.1:1/x", "TRACE /info", "GET /containers/..%2F..%2Fdebug%2Fvars/json", "GET /images/..%2F..%2Finfo%3F/json",
	} {
		method, path, _ := strings.Cut(call, " ")
		status, answer := j.api(method, path, "")
		require.Contains(t, []int{400, 403, 404, 503, 301, 307}, status, "%s: %s", call, answer)
		require.NotContains(t, answer, "cmdline", call)
	}
	for _, body := range []string{
		`{"Name":"n","Driver":"macvlan","Options":{"parent":"eth0"}}`, `{"Name":"n","Driver":"host"}`, `{"Name":"n","Options":{"com.docker.network.bridge.name":"eth0"}}`,
		`{"Name":"n","ConfigFrom":{"Network":"x"}}`, `{"Name":"n","Ingress":true}`, `{"Name":"bridge"}`, `{"Name":"host"}`, `{"Name":"n","IPAM":{"Driver":"evil"}}`,
		`{"Name":"n","Labels":{"berth.job":"x"}}`, `{"Name":"n","Options":{"com.docker.network.bridge.inhibit_ipv4":"false"}}`,
		`{"Name":"n","name":"x"}`, `{"Name":"n","IPAM":{"Config":[{"Subnet":"` + j.admission.Network.Address.String() + `/24"}]}}`,
		// What others are about to get.
		`{"Name":"n","IPAM":{"Config":[{"Subnet":"` + node.Config.Network.Subnet.String() + `"}]}}`, `{"Name":"n","IPAM":{"Config":[{"Subnet":"` + node.Config.Docker.Networks.String() + `"}]}}`,
		`{"Name":"n","IPAM":{"Config":[{"Subnet":"10.0.0.0/8"}]}}`, `{"Name":"n","IPAM":{"Config":[{"Subnet":"` + node.Config.Network.Uplinks.String() + `"}]}}`,
	} {
		status, answer := j.api("POST", "/networks/create", body)
		require.Contains(t, []int{400, 403}, status, "%s: %s", body, answer)
	}
	for _, body := range []string{
		`{"Name":"v","DriverOpts":{"type":"none","o":"bind","device":"/"}}`, `{"Name":"v","DriverOpts":{"device":"/dev/vda","type":"ext4"}}`, `{"Name":"v","Driver":"evil"}`,
		`{"Name":"v","DriverOpts":{"type":"nfs","o":"addr=127.0.0.1","device":":/"}}`, `{"Name":"v","DriverOpts":{"type":"tmpfs","device":"tmpfs","o":"size=1m,bind"}}`,
		`{"Name":"v","Labels":{"berth.x":"y"}}`, `{"Name":"../v"}`, `{"Name":"v","ClusterVolumeSpec":{"Group":"x"}}`,
	} {
		status, answer := j.api("POST", "/volumes/create", body)
		require.Contains(t, []int{400, 403}, status, "%s: %s", body, answer)
	}
	// exec and update are no way around.
	busybox := registry.Image(images.Busybox)
	j.must("run", "-d", "--name", "mine", busybox, "sleep", "1000")
	status, answer := j.api("POST", "/containers/mine/exec", `{"Cmd":["true"],"Privileged":true}`)
	require.Equal(t, http.StatusForbidden, status, answer)
	status, answer = j.api("POST", "/containers/mine/update", `{"CgroupParent":"/"}`)
	require.Equal(t, http.StatusForbidden, status, answer)
	status, answer = j.api("POST", "/containers/mine/update", `{"Devices":[{"PathOnHost":"/dev/vda"}]}`)
	require.Equal(t, http.StatusForbidden, status, answer)
	require.Equal(t, "/", j.must("exec", "mine", "sh", "-c", "test -e /sys/fs/cgroup && pwd"))
	// It is in the job's cgroup.
	groups, err := os.ReadFile("/proc/" + j.must("inspect", "-f", "{{.State.Pid}}", "mine") + "/cgroup")
	require.NoError(t, err)
	require.Contains(t, string(groups), j.admission.Cgroup+"/")
	require.True(t, bytes.Contains(groups, []byte(j.admission.Job)))
}

// TestSubnets has two jobs choose the same subnet, which one dockerd cannot
// have twice, and one make more networks than it may.
func TestSubnets(t *testing.T) {
	one := hold(t, "default", gitlab.JobSpec{})
	two := hold(t, "default", gitlab.JobSpec{Project: projectOf(t, "other")})
	busybox := registry.Image(images.Busybox)
	one.pull(busybox)
	one.must("network", "create", "--subnet", "172.30.5.0/24", "mine")
	require.Contains(t, one.must("run", "--rm", "--network", "mine", "--ip", "172.30.5.77", busybox, "ip", "addr"), "172.30.5.77/24")
	for _, subnet := range []string{"172.30.5.0/24", "172.30.0.0/16", "172.30.5.128/25"} {
		out, err := two.docker("network", "create", "--subnet", subnet, "mine")
		require.Error(t, err)
		require.Contains(t, out, subnet+" overlaps with the subnet of another network, of this job or of one beside it on the node: choose another, or leave --subnet out")
	}
	two.must("network", "create", "--subnet", "172.30.6.0/24", "mine")
	one.must("network", "rm", "mine")
	two.must("network", "create", "--subnet", "172.30.5.0/24", "freed")
	var out string
	var err error
	made := 2
	for ; err == nil; made++ {
		require.Less(t, made, 100)
		out, err = two.docker("network", "create", fmt.Sprintf("n%d", made))
	}
	require.Contains(t, out, "more than 31 networks of one job")
	one.must("network", "create", "another")
}
