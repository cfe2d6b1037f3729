package node

import (
	"net/http"

	"gitlab.com/berth-ci/berth/node/api"
)

func (h *handler) caches(w *reply, r *http.Request) error {
	list, err := h.keeper.List(r.Context())
	if err != nil {
		return err
	}
	w.answer(list)
	return nil
}

func (h *handler) pin(_ *reply, r *http.Request) error {
	var c api.CacheChange
	if err := decode(r.Body, &c); err != nil {
		return err
	}
	return h.keeper.Pin(r.Context(), c)
}

func (h *handler) rollback(w *reply, r *http.Request) error {
	var c api.CacheChange
	if err := decode(r.Body, &c); err != nil {
		return err
	}
	g, err := h.keeper.Rollback(r.Context(), c)
	if err != nil {
		return err
	}
	w.answer(g)
	return nil
}

func (h *handler) removeCache(_ *reply, r *http.Request) error {
	var c api.CacheChange
	if err := decode(r.Body, &c); err != nil {
		return err
	}
	return h.keeper.Remove(r.Context(), c)
}

func (h *handler) prune(w *reply, r *http.Request) error {
	var p api.CachePrune
	if err := decode(r.Body, &p); err != nil {
		return err
	}
	removed, err := h.keeper.Prune(r.Context(), p)
	if err != nil {
		return err
	}
	w.answer(removed)
	return nil
}
