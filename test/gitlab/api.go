package gitlab

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v4/runners/verify", s.verifyRunner)
	mux.HandleFunc("POST /api/v4/jobs/request", s.requestJob)
	mux.HandleFunc("PUT /api/v4/jobs/{id}", s.forJob(s.updateJob))
	mux.HandleFunc("PATCH /api/v4/jobs/{id}/trace", s.forJob(s.patchTrace))
	mux.HandleFunc("POST /api/v4/jobs/{id}/artifacts", s.forJob(s.uploadArtifacts))
	mux.HandleFunc("GET /api/v4/jobs/{id}/artifacts", s.forJob(s.downloadArtifacts))
	mux.HandleFunc("/api/", func(w http.ResponseWriter, _ *http.Request) {
		// Newer endpoints, such as the job router's discovery: runners go on without.
		reply(w, http.StatusNotFound, map[string]string{"error": "404 Not Found"})
	})
	mux.HandleFunc("/", s.serveRepository)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.intercept != nil && s.intercept(w, r) {
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func refuse(w http.ResponseWriter, status int) {
	reply(w, status, map[string]string{"message": fmt.Sprintf("%d %s", status, http.StatusText(status))})
}

// runnerRequest is what runners send about themselves, in any call.
type runnerRequest struct {
	Token string `json:"token"`
}

func (s *Server) verifyRunner(w http.ResponseWriter, r *http.Request) {
	var req runnerRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		refuse(w, http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	_, known := s.runners[req.Token]
	s.mu.Unlock()
	if !known {
		refuse(w, http.StatusForbidden)
		return
	}
	reply(w, http.StatusOK, map[string]any{"id": 1, "token": req.Token, "token_expires_at": nil})
}

func (s *Server) requestJob(w http.ResponseWriter, r *http.Request) {
	var req runnerRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		refuse(w, http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	tags, known := s.runners[req.Token]
	if !known {
		refuse(w, http.StatusForbidden)
		return
	}
	for i, j := range s.queue {
		if j.state != Pending || !containsAll(tags, j.spec.Tags) {
			continue
		}
		s.queue = slices.Delete(s.queue, i, i+1)
		j.state, j.started = Running, time.Now()
		s.notify()
		reply(w, http.StatusCreated, j.payload(tags))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func containsAll(have, want []string) bool {
	return !slices.ContainsFunc(want, func(tag string) bool { return !slices.Contains(have, tag) })
}

// forJob finds the job of the path and checks the token of the call, which is
// the job's own: runners download a dependency with that job's token, too.
func (s *Server) forJob(handle func(http.ResponseWriter, *http.Request, *Job)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
		s.mu.Lock()
		j := s.jobs[id]
		s.mu.Unlock()
		if err != nil || j == nil {
			refuse(w, http.StatusNotFound)
			return
		}
		if r.Header.Get("JOB-TOKEN") != j.token {
			refuse(w, http.StatusForbidden)
			return
		}
		handle(w, r, j)
	}
}

// setStatus tells the runner what became of the job on the server's side.
// s.mu is held.
func (j *Job) setStatus(h http.Header) {
	h.Set("Job-Status", string(j.state))
	h.Set("X-GitLab-Trace-Update-Interval", "1")
}

// updateJob takes the final state, and in between a sign of life.
func (s *Server) updateJob(w http.ResponseWriter, r *http.Request, j *Job) {
	var req struct {
		State         State  `json:"state"`
		FailureReason string `json:"failure_reason"`
		ExitCode      int    `json:"exit_code"`
	}
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		refuse(w, http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if j.state != Running && j.state != Canceling {
		j.setStatus(w.Header())
		refuse(w, http.StatusForbidden)
		return
	}
	j.setStatus(w.Header()) // as it was: the runner need not be told its own news
	if req.State == Success || req.State == Failed {
		j.finish(req.State, req.FailureReason, req.ExitCode)
	}
	reply(w, http.StatusOK, "200")
}

// patchTrace appends to the log. Content-Range must start where the log ends.
func (s *Server) patchTrace(w http.ResponseWriter, r *http.Request, j *Job) {
	body, err := io.ReadAll(r.Body)
	from, _, _ := strings.Cut(r.Header.Get("Content-Range"), "-")
	start, errStart := strconv.Atoi(from)
	if err != nil || errStart != nil {
		refuse(w, http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	j.setStatus(w.Header())
	if j.state != Running && j.state != Canceling {
		refuse(w, http.StatusForbidden)
		return
	}
	status := http.StatusAccepted
	if start == len(j.trace) {
		j.trace = append(j.trace, body...)
		s.notify()
	} else {
		status = http.StatusRequestedRangeNotSatisfiable
	}
	w.Header().Set("Range", fmt.Sprintf("0-%d", len(j.trace)))
	w.WriteHeader(status)
}
