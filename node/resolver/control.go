package resolver

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errhttp"
)

const maxBody = 4 << 20

// failure is the body of an answer that is no success.
type failure struct {
	Error string `json:"error"`
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/version", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, Version{Version: s.version, PID: os.Getpid()})
	})
	mux.HandleFunc("GET /v1/zones", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, s.list())
	})
	mux.HandleFunc("PUT /v1/zones/{job}", func(w http.ResponseWriter, r *http.Request) {
		var z Zone
		body := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		body.DisallowUnknownFields()
		err := body.Decode(&z)
		if err != nil {
			err = fmt.Errorf("read zone: %w: %w", err, errdefs.ErrInvalidArgument)
		} else {
			err = s.put(r.PathValue("job"), z)
		}
		finish(w, err)
	})
	mux.HandleFunc("DELETE /v1/zones/{job}", func(w http.ResponseWriter, r *http.Request) {
		s.remove(r.PathValue("job"))
		finish(w, nil)
	})
	return mux
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// The only failure is a client that has gone.
	_ = json.NewEncoder(w).Encode(v)
}

func finish(w http.ResponseWriter, err error) {
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(errhttp.ToHTTP(err))
	_ = json.NewEncoder(w).Encode(failure{Error: err.Error()})
}
