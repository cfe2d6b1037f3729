package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"gitlab.com/berth-ci/berth/node/docker/ledger"
	"gitlab.com/berth-ci/berth/node/docker/proxy"
)

const (
	// removals is how many containers are removed at once.
	removals = 8
	// daemonPatience is how long a release waits for a daemon that is being
	// started again.
	daemonPatience = 30 * time.Second
)

// End ends a job's endpoint and its containers. It is idempotent.
func (d *Docker) End(ctx context.Context, job string) error {
	d.mu.Lock()
	e := d.endpoints[job]
	d.mu.Unlock()
	if e != nil {
		e.close()
		if err := e.drain(ctx); err != nil {
			return err
		}
		d.mu.Lock()
		delete(d.endpoints, job)
		d.mu.Unlock()
	}
	if touched, err := d.touched(job); err != nil || !touched {
		return err
	}
	if err := d.serving(ctx); err != nil {
		return fmt.Errorf("remove docker containers: %w", err)
	}
	for {
		containers, err := d.containers(ctx, job)
		if err != nil || len(containers) == 0 {
			return err
		}
		group, removing := errgroup.WithContext(ctx)
		group.SetLimit(removals)
		for _, id := range containers {
			group.Go(func() error {
				err := d.daemon.Engine.Call(removing, http.MethodDelete, "/containers/"+id, url.Values{"force": {"1"}, "v": {"1"}}, nil, nil)
				if errdefs.IsNotFound(err) || errdefs.IsConflict(err) { // it is just being removed
					return nil
				}
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return fmt.Errorf("remove docker containers: %w", err)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// pause keeps a removal that another one is in the way of from spinning.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(20 * time.Millisecond):
		return nil
	}
}

// Remove removes what else a job has, after End: volumes, networks, images
// without a name, binds, the record of it all. It is idempotent.
func (d *Docker) Remove(ctx context.Context, job string) error {
	touched, err := d.touched(job)
	if err != nil {
		return err
	}
	if touched {
		if err := d.serving(ctx); err != nil {
			return fmt.Errorf("remove docker objects: %w", err)
		}
		if err := errors.Join(d.removeVolumes(ctx, job), d.removeNetworks(ctx, job), d.removeImages(ctx, job)); err != nil {
			return err
		}
	}
	if err := d.node.Binds.Release(job); err != nil {
		return err
	}
	d.node.Release(job)
	if err := d.node.Ledger.Remove(job); err != nil {
		return err
	}
	d.mu.Lock()
	delete(d.suspects, job)
	d.mu.Unlock()
	return nil
}

// touched tells whether a job may have anything on the daemon: most never ask
// it for anything.
func (d *Docker) touched(job string) (bool, error) {
	d.mu.Lock()
	suspect := d.suspects[job]
	d.mu.Unlock()
	if suspect {
		return true, nil
	}
	jobs, err := d.node.Ledger.Jobs()
	return slices.Contains(jobs, job), err
}

// serving waits for a daemon that is started, or started again.
func (d *Docker) serving(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, daemonPatience)
	defer cancel()
	if err := d.daemon.Wait(ctx); err != nil {
		return err
	}
	for {
		err := d.daemon.Engine.Serving(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func labelled(label string) url.Values {
	text, _ := json.Marshal(map[string][]string{"label": {label}}) // of strings
	return url.Values{"filters": {string(text)}}
}

// containers lists a job's containers.
func (d *Docker) containers(ctx context.Context, job string) (ids []string, err error) {
	query := labelled(proxy.JobLabel + "=" + job)
	query.Set("all", "1")
	var all []struct{ ID string }
	if err := d.daemon.Engine.Call(ctx, http.MethodGet, "/containers/json", query, nil, &all); err != nil {
		return nil, err
	}
	for _, one := range all {
		ids = append(ids, one.ID)
	}
	return ids, nil
}

func (d *Docker) removeVolumes(ctx context.Context, job string) error {
	var labelledOnes struct{ Volumes []struct{ Name string } }
	if err := d.daemon.Engine.Call(ctx, http.MethodGet, "/volumes", labelled(proxy.JobLabel+"="+job), nil, &labelledOnes); err != nil {
		return err
	}
	var names []string
	for _, v := range labelledOnes.Volumes {
		names = append(names, v.Name)
	}
	if err := d.node.Ledger.Each(job, func(kind, id string, _ json.RawMessage) error {
		if kind == ledger.Volume && !slices.Contains(names, id) {
			names = append(names, id)
		}
		return nil
	}); err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		err := d.daemon.Engine.Call(ctx, http.MethodDelete, "/volumes/"+url.PathEscape(name), url.Values{"force": {"1"}}, nil, nil)
		if err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("remove docker volume: %w", err))
		}
	}
	return errors.Join(errs...)
}

func (d *Docker) removeNetworks(ctx context.Context, job string) error {
	var errs []error
	for _, label := range []string{proxy.JobLabel, proxy.NetworkLabel} {
		var all []struct{ ID string }
		if err := d.daemon.Engine.Call(ctx, http.MethodGet, "/networks", labelled(label+"="+job), nil, &all); err != nil {
			return err
		}
		for _, n := range all {
			err := d.daemon.Engine.Call(ctx, http.MethodDelete, "/networks/"+n.ID, nil, nil, nil)
			if err != nil && !errdefs.IsNotFound(err) {
				errs = append(errs, fmt.Errorf("remove docker network: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

func (d *Docker) removeImages(ctx context.Context, job string) error {
	var ids []string
	if err := d.node.Ledger.Each(job, func(kind, id string, _ json.RawMessage) error {
		if kind == ledger.Image {
			ids = append(ids, id)
		}
		return nil
	}); err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		errs = append(errs, d.node.RemoveDangling(ctx, job, id))
	}
	return errors.Join(errs...)
}

// Jobs lists the jobs that have anything, for what a crash left to be found.
func (d *Docker) Jobs(ctx context.Context) ([]string, error) {
	jobs, err := d.node.Ledger.Jobs()
	if err != nil {
		return nil, err
	}
	bound, err := d.node.Binds.Jobs()
	if err != nil {
		return nil, err
	}
	jobs = append(jobs, bound...)
	if d.daemon.Engine.Serving(ctx) != nil {
		return jobs, nil // whatever is on it is found when it serves again
	}
	type one struct{ Labels map[string]string }
	var containers, networks []one
	var volumes struct{ Volumes []one }
	query := labelled(proxy.JobLabel)
	query.Set("all", "1")
	if err := errors.Join(
		d.daemon.Engine.Call(ctx, http.MethodGet, "/containers/json", query, nil, &containers),
		d.daemon.Engine.Call(ctx, http.MethodGet, "/networks", nil, nil, &networks),
		d.daemon.Engine.Call(ctx, http.MethodGet, "/volumes", labelled(proxy.JobLabel), nil, &volumes),
	); err != nil {
		return jobs, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	suspect := func(job string) {
		if job != "" && d.endpoints[job] == nil {
			d.suspects[job] = true
			jobs = append(jobs, job)
		}
	}
	for _, o := range slices.Concat(containers, networks, volumes.Volumes) {
		suspect(o.Labels[proxy.JobLabel])
	}
	// Containers have the labels of their images, too, which say anything.
	for _, n := range networks {
		suspect(n.Labels[proxy.NetworkLabel])
	}
	slices.Sort(jobs)
	return slices.Compact(jobs), nil
}
