package node

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/gpu"
	"gitlab.com/berth-ci/berth/node/api"
	"gitlab.com/berth-ci/berth/node/cache"
	"gitlab.com/berth-ci/berth/node/imagegc"
)

const (
	// maxBody is more than any request needs: a job has at most 128 services.
	maxBody = 4 << 20
	// maxStep is for the names of the untracked files of a large working tree.
	maxStep = 128 << 20
	// writeTimeout is how long a caller may leave a line of a stream unread.
	writeTimeout = 30 * time.Second
)

// handler serves the calls of package api's client.
type handler struct {
	jobs   *Jobs
	keeper *cache.Keeper
	images *imagegc.Keeper
	gpus   *gpu.Keeper
	about  api.Version
	log    *logrus.Entry
}

func (h *handler) routes() http.Handler {
	mux := http.NewServeMux()
	for pattern, serve := range map[string]func(*reply, *http.Request) error{
		"POST /v1/jobs/admit":              h.admit,
		"POST /v1/jobs/{job}/release":      h.release,
		"POST /v1/jobs/{job}/end":          h.end,
		"POST /v1/jobs/{job}/outcome":      h.outcome,
		"POST /v1/jobs/{job}/cache/{step}": h.cacheStep,
		"GET /v1/jobs":                     h.list,
		"GET /v1/jobs/watch":               h.watch,
		"GET /v1/jobs/{job}":               h.admission,
		"GET /v1/version":                  h.version,
		"GET /v1/caches":                   h.caches,
		"POST /v1/caches/pin":              h.pin,
		"POST /v1/caches/rollback":         h.rollback,
		"POST /v1/caches/remove":           h.removeCache,
		"POST /v1/caches/prune":            h.prune,
		"GET /v1/images":                   h.listImages,
		"POST /v1/images/remove":           h.removeImage,
		"POST /v1/images/prune":            h.pruneImages,
		"GET /v1/gpus":                     h.listGPUs,
		"POST /v1/gpus/{gpu}/quarantine":   h.quarantineGPU,
		"POST /v1/gpus/{gpu}/release":      h.releaseGPU,
		"GET /v1/jobs/{job}/gpus":          h.useOfGPUs,
		"/":                                h.unknown,
	} {
		mux.Handle(pattern, h.guard(serve, bodyLimit(pattern)))
	}
	return mux
}

func bodyLimit(pattern string) int64 {
	if strings.HasSuffix(pattern, "/cache/{step}") {
		return maxStep
	}
	return maxBody
}

// guard answers errors, and keeps a panic from being more than an error.
func (h *handler) guard(serve func(*reply, *http.Request) error, limit int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		log := h.log.WithField("call", r.Method+" "+r.URL.Path)
		to := &reply{ResponseWriter: w}
		err := h.jobs.guard(func() error {
			r.Body = http.MaxBytesReader(w, r.Body, limit)
			return serve(to, r)
		})
		switch {
		case err == nil:
		case to.begun:
			panic(http.ErrAbortHandler) // all that is left to say
		default:
			log.WithError(err).Debug("refused a call")
			e := api.NewError(err)
			to.status = e.Status
			to.answer(e)
		}
	})
}

func (h *handler) admit(w *reply, r *http.Request) error {
	var request api.AdmitRequest
	if err := decode(r.Body, &request); err != nil {
		return err
	}
	if request.Request.Job.ID <= 0 || request.Runner.PID <= 0 {
		return fmt.Errorf("request.job.id and runner.pid: expected positive numbers: %w", errdefs.ErrInvalidArgument)
	}
	admission, err := h.jobs.Admit(r.Context(), request, func(line string) {
		w.line(api.AdmitEvent{Progress: line})
	})
	switch {
	case err == nil:
		w.line(api.AdmitEvent{Admission: admission})
	case w.begun:
		w.line(api.AdmitEvent{Error: api.NewError(err)})
	default:
		return err
	}
	return nil
}

func (h *handler) release(_ *reply, r *http.Request) error {
	return h.jobs.Release(r.Context(), r.PathValue("job"))
}

func (h *handler) end(_ *reply, r *http.Request) error {
	return h.jobs.End(r.Context(), r.PathValue("job"))
}

func (h *handler) outcome(_ *reply, r *http.Request) error {
	var o api.Outcome
	if err := decode(r.Body, &o); err != nil {
		return err
	}
	return h.jobs.Outcome(r.PathValue("job"), o)
}

func (h *handler) cacheStep(w *reply, r *http.Request) error {
	var step api.CacheStep
	if err := decode(r.Body, &step); err != nil {
		return err
	}
	result, err := h.jobs.CacheStep(r.Context(), r.PathValue("job"), r.PathValue("step"), step, func(line string) {
		w.line(api.CacheEvent{Progress: line})
	})
	switch {
	case err == nil:
		w.line(api.CacheEvent{Result: result})
	case w.begun:
		w.line(api.CacheEvent{Error: api.NewError(err)})
	default:
		return err
	}
	return nil
}

func (h *handler) list(w *reply, _ *http.Request) error {
	w.answer(h.jobs.List())
	return nil
}

func (h *handler) admission(w *reply, r *http.Request) error {
	a, err := h.jobs.Admission(r.PathValue("job"))
	if err != nil {
		return err
	}
	w.answer(a)
	return nil
}

func (h *handler) version(w *reply, _ *http.Request) error {
	w.answer(h.about)
	return nil
}

func (h *handler) unknown(_ *reply, r *http.Request) error {
	return fmt.Errorf("this berthd has no %s %s: %w", r.Method, r.URL.Path, errdefs.ErrNotFound)
}

func (h *handler) watch(w *reply, r *http.Request) error {
	now, changes, stop := h.jobs.Watch()
	defer stop()
	w.begin()
	for _, job := range now {
		if !w.line(api.Event{Job: job}) {
			return nil
		}
	}
	for {
		select {
		case <-r.Context().Done():
			return nil
		case e, ok := <-changes:
			if !ok || !w.line(e) {
				return nil
			}
		}
	}
}

// decode reads a request: one JSON value of known fields.
func decode(body io.Reader, into any) error {
	d := json.NewDecoder(body)
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("more follows the request")
		}
	}
	if err != nil {
		return fmt.Errorf("read request: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// reply is an answer: one JSON value, or a line for each as it comes.
type reply struct {
	http.ResponseWriter
	status int
	begun  bool
}

// Unwrap is for http.ResponseController.
func (w *reply) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// answer sends all there is to say. Who does not read it has gone.
func (w *reply) answer(v any) {
	w.begun = true
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(cmp.Or(w.status, http.StatusOK))
	_ = json.NewEncoder(w).Encode(v)
}

// begin says that lines follow, before the first comes.
func (w *reply) begin() {
	w.begun = true
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
}

// line sends a line and tells whether it is on its way.
func (w *reply) line(v any) bool {
	if !w.begun {
		w.begin()
	}
	c := http.NewResponseController(w)
	return errors.Join(
		c.SetWriteDeadline(time.Now().Add(writeTimeout)),
		json.NewEncoder(w).Encode(v),
		c.Flush(),
		c.SetWriteDeadline(time.Time{}), // the connection serves more calls
	) == nil
}
