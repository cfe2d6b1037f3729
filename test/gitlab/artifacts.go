package gitlab

import (
	"cmp"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
)

// upload is an artifact that lies in a file of the server's.
type upload struct {
	name string
	file string
	size int64
}

// ErrNoArtifact is returned for an artifact that the job did not upload.
var ErrNoArtifact = errors.New("no such artifact")

// Artifact returns an artifact by its type, such as "archive" or "junit".
func (j *Job) Artifact(kind string) ([]byte, error) {
	a, ok := j.upload(kind)
	if !ok {
		return nil, ErrNoArtifact
	}
	return os.ReadFile(a.file)
}

func (j *Job) upload(kind string) (upload, bool) {
	j.srv.mu.Lock()
	defer j.srv.mu.Unlock()
	a, ok := j.artifacts[kind]
	return a, ok
}

func (s *Server) uploadArtifacts(w http.ResponseWriter, r *http.Request, j *Job) {
	parts, err := r.MultipartReader()
	if err != nil {
		refuse(w, http.StatusBadRequest)
		return
	}
	for {
		part, err := parts.NextPart()
		if err != nil { // io.EOF included: the file never came
			refuse(w, http.StatusBadRequest)
			return
		}
		if part.FormName() != "file" {
			continue
		}
		a, err := s.store(part, filepath.Base(part.FileName()))
		if err != nil {
			refuse(w, http.StatusInternalServerError)
			return
		}
		s.mu.Lock()
		j.artifacts[cmp.Or(r.URL.Query().Get("artifact_type"), "archive")] = a
		s.mu.Unlock()
		reply(w, http.StatusCreated, map[string]string{"message": "201 Created"})
		return
	}
}

func (s *Server) store(r io.Reader, name string) (_ upload, err error) {
	f, err := os.CreateTemp(s.dir, "artifact")
	if err != nil {
		return upload{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	n, err := io.Copy(f, r)
	return upload{name: name, file: f.Name(), size: n}, err
}

func (s *Server) downloadArtifacts(w http.ResponseWriter, r *http.Request, j *Job) {
	a, ok := j.upload("archive")
	if !ok {
		refuse(w, http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeFile(w, r, a.file)
}
