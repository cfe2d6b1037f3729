package node

import (
	"cmp"
	"net/http"

	"gitlab.com/berth-ci/berth/node/api"
)

func (h *handler) listGPUs(w *reply, _ *http.Request) error {
	w.answer(h.gpus.List())
	return nil
}

func (h *handler) quarantineGPU(_ *reply, r *http.Request) error {
	var q api.GPUQuarantineRequest
	if err := decode(r.Body, &q); err != nil {
		return err
	}
	return h.gpus.Quarantine(r.PathValue("gpu"), cmp.Or(q.Reason, "no reason was given"))
}

func (h *handler) releaseGPU(_ *reply, r *http.Request) error {
	return h.gpus.Unquarantine(r.PathValue("gpu"))
}

func (h *handler) useOfGPUs(w *reply, r *http.Request) error {
	use, err := h.gpus.Use(r.Context(), r.PathValue("job"))
	if err != nil {
		return err
	}
	w.answer(use)
	return nil
}
