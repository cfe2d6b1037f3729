package docker

import (
	"encoding/json"
	"net/url"
	"time"

	"gitlab.com/berth-ci/berth/node/docker/proxy"
)

// watchRetry is how long the watch waits for a daemon that has gone.
const watchRetry = 200 * time.Millisecond

// watch follows what containers do by themselves: they end, and dockerd starts
// them again, at another address maybe.
func (d *Docker) watch() {
	for d.daemon.Wait(d.life) != nil {
		if d.settings.Config.Docker.Managed || !d.pause(watchRetry) {
			return
		}
	}
	filters, _ := json.Marshal(map[string][]string{ // of strings
		"type": {"container"}, "event": {"start", "die", "destroy"}, "label": {proxy.JobLabel},
	})
	for d.life.Err() == nil {
		err := d.daemon.Engine.Events(d.life, url.Values{"filters": {string(filters)}}, d.catchUp, d.event)
		if d.life.Err() != nil {
			return
		}
		d.log.WithError(err).Debug("the docker daemon's events are interrupted")
		if !d.pause(watchRetry) {
			return
		}
	}
}

// pause waits, and tells whether berthd goes on.
func (d *Docker) pause(t time.Duration) bool {
	select {
	case <-d.life.Done():
		return false
	case <-time.After(t):
		return true
	}
}

// event passes an event on to the job that it concerns.
func (d *Docker) event(raw json.RawMessage) {
	var e struct {
		Action string
		Actor  struct {
			ID         string
			Attributes map[string]string
		}
	}
	if json.Unmarshal(raw, &e) != nil {
		return
	}
	if at := d.endpoint(e.Actor.Attributes[proxy.JobLabel]); at != nil {
		at.view.Event(d.life, e.Action, e.Actor.ID)
	}
}

// catchUp has all jobs look what has become of their containers meanwhile.
func (d *Docker) catchUp() {
	d.mu.Lock()
	all := make([]*endpoint, 0, len(d.endpoints))
	for _, e := range d.endpoints {
		all = append(all, e)
	}
	d.mu.Unlock()
	for _, e := range all {
		e.view.CatchUp(d.life)
	}
}
