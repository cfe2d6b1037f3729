package images

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/registry"
)

// Tokens is a registry that asks for tokens, as GitLab's does, and its token
// server at /token. To Username it gives all that is asked for of repositories
// below "reader/", and to read of others.
func Tokens() http.Handler {
	t := &tokens{registry: registry.New(registry.Logger(discard())), given: map[string][]string{}}
	mux := http.NewServeMux()
	mux.HandleFunc("/token", t.give)
	mux.HandleFunc("/v2/", t.serve)
	return mux
}

type tokens struct {
	registry http.Handler

	mu    sync.Mutex
	given map[string][]string // what each token is good for
}

// give answers to both forms of the request for a token.
func (t *tokens) give(w http.ResponseWriter, r *http.Request) {
	user, password, ok := r.BasicAuth()
	if r.Method == http.MethodPost {
		user, password, ok = r.PostFormValue("username"), r.PostFormValue("password"), true
	}
	if ok && (user != Username || password != Password) {
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "incorrect username or password")
		return
	}
	var rights []string
	for _, scope := range append(r.Form["scope"], r.URL.Query()["scope"]...) {
		for _, one := range strings.Fields(scope) {
			parts := strings.Split(one, ":") // repository:NAME:pull,push
			if len(parts) != 3 {
				continue
			}
			for _, action := range strings.Split(parts[2], ",") {
				if ok && (action == "pull" || strings.HasPrefix(parts[1], "reader/")) {
					rights = append(rights, action+" "+parts[1])
				}
			}
		}
	}
	token := rand.Text()
	t.mu.Lock()
	t.given[token] = rights
	t.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 300})
}

func (t *tokens) serve(w http.ResponseWriter, r *http.Request) {
	repository, action := strings.TrimPrefix(r.URL.Path, "/v2/"), "pull"
	for _, part := range []string{"/manifests/", "/blobs/", "/tags/"} {
		if before, _, ok := strings.Cut(repository, part); ok {
			repository = before
			break
		}
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		action = "push"
	}
	token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	t.mu.Lock()
	rights, known := t.given[token]
	t.mu.Unlock()
	if bearer && known && (repository == "" || slices.Contains(rights, action+" "+repository)) {
		t.registry.ServeHTTP(w, r)
		return
	}
	challenge := `Bearer realm="http://` + r.Host + `/token",service="` + r.Host + `"`
	if repository != "" {
		challenge += `,scope="repository:` + repository + `:` + map[string]string{"pull": "pull", "push": "pull,push"}[action] + `"`
	}
	if bearer {
		challenge += `,error="insufficient_scope"`
	}
	w.Header().Set("WWW-Authenticate", challenge)
	refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}
