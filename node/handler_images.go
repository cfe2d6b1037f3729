package node

import (
	"net/http"

	"gitlab.com/berth-ci/berth/node/api"
)

func (h *handler) listImages(w *reply, r *http.Request) error {
	list, err := h.images.List(r.Context())
	if err != nil {
		return err
	}
	w.answer(list)
	return nil
}

func (h *handler) removeImage(_ *reply, r *http.Request) error {
	var removal api.ImageRemoval
	if err := decode(r.Body, &removal); err != nil {
		return err
	}
	return h.images.Remove(r.Context(), removal.Name)
}

func (h *handler) pruneImages(w *reply, r *http.Request) error {
	var p api.ImagePrune
	if err := decode(r.Body, &p); err != nil {
		return err
	}
	removed, err := h.images.Prune(r.Context(), p)
	if err != nil {
		return err
	}
	w.answer(removed)
	return nil
}
