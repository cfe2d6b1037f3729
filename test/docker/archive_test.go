package docker

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"gitlab.com/berth-ci/berth/node/docker/names"
	"gitlab.com/berth-ci/berth/test/gitlab"
	"gitlab.com/berth-ci/berth/test/images"
)

// layout is an archive in OCI's format, as a hostile job writes one.
type layout struct {
	t     *testing.T
	blobs map[string][]byte
}

// reference is a descriptor.
type reference struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    map[string]string `json:"platform,omitempty"`
}

const (
	indexType    = "application/vnd.oci.image.index.v1+json"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar"
)

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func (l *layout) add(kind string, content any) reference {
	l.t.Helper()
	b, ok := content.([]byte)
	if !ok {
		var err error
		b, err = json.Marshal(content)
		require.NoError(l.t, err)
	}
	l.blobs[digestOf(b)] = b
	return reference{MediaType: kind, Digest: digestOf(b), Size: len(b)}
}

// evil is an image with a file /evil upon nothing.
func (l *layout) evil() reference {
	l.t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	require.NoError(l.t, w.WriteHeader(&tar.Header{Name: "evil", Mode: 0o644, Size: 5}))
	_, err := w.Write([]byte("evil\n"))
	require.NoError(l.t, err)
	require.NoError(l.t, w.Close())
	layer := l.add(layerType, b.Bytes())
	config := l.add(configType, map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{layer.Digest}}})
	return l.add(manifestType, map[string]any{"schemaVersion": 2, "mediaType": manifestType, "config": config, "layers": []reference{layer}})
}

func (l *layout) index(all ...reference) map[string]any {
	return map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": all}
}

// archive is the whole of it, with index.json of some images.
func (l *layout) archive(all ...reference) string {
	l.t.Helper()
	text, err := json.Marshal(l.index(all...))
	require.NoError(l.t, err)
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": text}
	for digest, b := range l.blobs {
		files["blobs/"+strings.Replace(digest, ":", "/", 1)] = b
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		require.NoError(l.t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}))
		_, err := w.Write(content)
		require.NoError(l.t, err)
	}
	require.NoError(l.t, w.Close())
	return b.String()
}

func (r reference) called(name string) reference {
	r.Annotations = map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "1"}
	return r
}

// TestArchiveNames loads archives that name images of others.
func TestArchiveNames(t *testing.T) {
	attacker := hold(t, "default", gitlab.JobSpec{Protected: &not})
	trusted := hold(t, "default", gitlab.JobSpec{Protected: &yes})
	busybox := registry.Image(images.Busybox)
	for _, j := range []*job{attacker, trusted} {
		j.pull(busybox)
	}
	scope := names.Scope{Project: trusted.identity().ProjectKey(), Protected: true}
	for name, status := range map[string]int{
		busybox: http.StatusOK, // for itself
		names.Domain + "/" + scope.Tier() + "/docker.io/library/app:1": 0,
		"moby-dangling@sha256:" + strings.Repeat("0", 64):              http.StatusOK,
		strings.ToUpper(names.Domain) + "/x:1":                         0,
		"../../app:1":                                                  0,
	} {
		l := &layout{t, map[string][]byte{}}
		got, answer := attacker.api("POST", "/images/load", l.archive(l.evil().called(name)), "Content-Type", "application/x-tar")
		if status != 0 {
			require.Equal(t, status, got, answer)
			continue
		}
		require.NotContains(t, answer, "Loaded image", name)
	}
	image, err := node.Client.Jobs(t.Context()) // berthd is well
	require.NoError(t, err)
	require.NotEmpty(t, image)
	trusted.must("run", "--rm", busybox, "true")
	_, err = trusted.docker("image", "inspect", "app:1")
	require.Error(t, err)
	out, err := attacker.docker("run", "--rm", "--pull", "never", busybox, "true")
	require.Error(t, err, "it has no more than /evil: %s", out)
}

// TestArchiveOfOthers loads archives that name by its digest what another
// project has on the node, and hold nothing of it.
func TestArchiveOfOthers(t *testing.T) {
	owner := hold(t, "default", gitlab.JobSpec{Protected: &yes})
	attacker := hold(t, "default", gitlab.JobSpec{Project: projectOf(t, "other"), Protected: &yes})
	busybox := registry.Image(images.Busybox)
	owner.pull(busybox)
	attacker.pull(busybox)
	owner.must("run", "--name", "private", busybox, "sh", "-c", "echo hunter2 >/secret")
	owner.must("commit", "private", "private:1")
	var about []struct {
		Descriptor reference
	}
	require.NoError(t, json.Unmarshal([]byte(owner.must("image", "inspect", "private:1")), &about))
	secret := about[0].Descriptor
	require.NotEmpty(t, secret.Digest)
	secret.Annotations = nil
	secret.Platform = nil

	l := &layout{t, map[string][]byte{}}
	direct := l.archive(secret.called("docker.io/library/stolen:1"))
	l = &layout{t, map[string][]byte{}}
	below := l.archive(l.add(indexType, l.index(secret)).called("docker.io/library/stolen:1"))
	l = &layout{t, map[string][]byte{}}
	platform := secret
	platform.Platform = map[string]string{"architecture": "amd64", "os": "linux"}
	beside := l.archive(l.add(indexType, l.index(l.evil(), platform)).called("docker.io/library/stolen:1"))
	// With something else in its place.
	l = &layout{t, map[string][]byte{secret.Digest: bytes.Repeat([]byte(" "), secret.Size)}}
	forged := l.archive(secret.called("docker.io/library/stolen:1"))
	for name, archive := range map[string]string{"direct": direct, "below": below, "beside": beside, "forged": forged} {
		for _, query := range []string{"", "?platform=%7B%22os%22%3A%22linux%22%2C%22architecture%22%3A%22arm64%22%7D"} {
			status, answer := attacker.api("POST", "/images/load"+query, archive, "Content-Type", "application/x-tar")
			require.Equal(t, http.StatusBadRequest, status, "%s: %s", name, answer)
			require.Contains(t, answer, "is not in the archive")
			out, err := attacker.docker("run", "--rm", "--pull", "never", "stolen:1", "cat", "/secret")
			require.Error(t, err)
			require.NotContains(t, out, "hunter2")
		}
	}
	// dockerd alone gives it to whoever knows the digest.
	status, answer := request(t, bare(), "POST", "/images/load", direct, "Content-Type", "application/x-tar")
	require.Equal(t, http.StatusOK, status, answer)
	out, err := client(t, "unix://"+bare(), "", "run", "--rm", "--network", "none", "stolen:1", "cat", "/secret")
	require.NoError(t, err, out)
	require.Contains(t, out, "hunter2")
	_, err = client(t, "unix://"+bare(), "", "rmi", "-f", "stolen:1")
	require.NoError(t, err)

	// What the owner saves, the owner and others may load.
	file := filepath.Join(t.TempDir(), "private.tar")
	owner.must("save", "--output", file, "private:1")
	owner.must("load", "--input", file)
	attacker.must("load", "--input", file)
	require.Equal(t, "hunter2", attacker.must("run", "--rm", "private:1", "cat", "/secret"))
}
