package gitlab

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
)

// AddLFS stores content as an LFS object and returns the pointer that stands
// for it in the repository, in a file that .gitattributes gives to LFS.
func (p *Project) AddLFS(content []byte) ([]byte, error) {
	sum := sha256.Sum256(content)
	oid := hex.EncodeToString(sum[:])
	if err := os.MkdirAll(p.lfsDir(), 0o755); err != nil {
		return nil, fmt.Errorf("store LFS object: %w", err)
	}
	if err := os.WriteFile(filepath.Join(p.lfsDir(), oid), content, 0o644); err != nil {
		return nil, fmt.Errorf("store LFS object: %w", err)
	}
	return fmt.Appendf(nil, "version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n", oid, len(content)), nil
}

func (p *Project) lfsDir() string { return filepath.Join(p.dir, "lfs") }

type lfsObject struct {
	OID     string               `json:"oid"`
	Size    int64                `json:"size"`
	Actions map[string]lfsAction `json:"actions,omitempty"`
	Error   *lfsError            `json:"error,omitempty"`
}

type lfsAction struct {
	Href   string            `json:"href"`
	Header map[string]string `json:"header,omitempty"`
}

type lfsError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

var lfsOID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// serveLFS answers the batch API for downloads, and the downloads.
func (p *Project) serveLFS(w http.ResponseWriter, r *http.Request, rest string) {
	if r.Method == http.MethodGet && lfsOID.MatchString(filepath.Base(rest)) {
		http.ServeFile(w, r, filepath.Join(p.lfsDir(), filepath.Base(rest)))
		return
	}
	var req struct {
		Operation string      `json:"operation"`
		Objects   []lfsObject `json:"objects"`
	}
	w.Header().Set("Content-Type", "application/vnd.git-lfs+json")
	if rest != "objects/batch" || json.NewDecoder(r.Body).Decode(&req) != nil || req.Operation != "download" {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"message":"not supported"}`)
		return
	}
	for i := range req.Objects {
		o := &req.Objects[i]
		if info, err := os.Stat(filepath.Join(p.lfsDir(), filepath.Base(o.OID))); err != nil || info.Size() != o.Size {
			o.Error = &lfsError{http.StatusNotFound, "object does not exist"}
			continue
		}
		o.Actions = map[string]lfsAction{"download": {
			Href:   p.url() + ".git/info/lfs/objects/" + o.OID,
			Header: map[string]string{"Authorization": r.Header.Get("Authorization")},
		}}
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"transfer": "basic", "objects": req.Objects})
}
