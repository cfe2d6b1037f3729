package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errhttp"
	"github.com/sirupsen/logrus"

	"gitlab.com/berth-ci/berth/executor"
	"gitlab.com/berth-ci/berth/node/docker/binds"
	"gitlab.com/berth-ci/berth/node/docker/engine"
	"gitlab.com/berth-ci/berth/node/docker/ledger"
	"gitlab.com/berth-ci/berth/node/docker/names"
	"gitlab.com/berth-ci/berth/node/docker/registry"
	"gitlab.com/berth-ci/berth/node/network"
	"gitlab.com/berth-ci/berth/node/relay"
)

// JobLabel is on all docker objects of a job; NetworkLabel on the network that
// stands for its own.
const (
	JobLabel     = "berth.job"
	NetworkLabel = "berth.network"
	// labelPrefix is kept from jobs.
	labelPrefix = "berth."
)

// Networks makes the bridges of networks that jobs make.
type Networks interface {
	Extend(ctx context.Context, n network.Network, nth int, router netip.Prefix) (bridge string, err error)
	Withdraw(n network.Network, nth int) error
}

// Streams goes on with a stream when berthd has gone. After another error than
// relay.ErrLost the stream is the caller's still.
type Streams interface {
	Join(ctx context.Context, job string, s *relay.Stream) error
}

// Images takes note of what jobs use of the node's images, which keeps it there
// until they end.
type Images interface {
	// Use notes that a job uses an image. The error is one of not found if it
	// has been removed meanwhile.
	Use(ctx context.Context, job string, i images.Image) error
	// Expect notes that a job is about to make an image of that name, or one
	// that is known by its digest alone.
	Expect(job, nameOrDigest string)
}

// Builds answers what has to do with BuildKit: /session, /grpc, /build and
// what hangs on them. The path of the request has no version.
type Builds interface {
	http.Handler
	// ServeConn takes over a connection that speaks HTTP/2 from its first byte.
	ServeConn(c net.Conn)
}

// Builds are those of the job; nil where there are none.
func (p *Proxy) Builds() Builds { return p.builds }

// Unnamed notes an image without a name that the job has built.
func (p *Proxy) Unnamed(id string) error { return p.addImage(id) }

// Node is what all jobs' views have in common.
type Node struct {
	Engine   *engine.Engine
	Client   *containerd.Client
	Ledger   *ledger.Ledger
	Binds    *binds.Stage
	Networks Networks
	Registry *registry.Registry
	// Subnets is where networks that jobs make are cut from.
	Subnets netip.Prefix
	// Reserved is what no network may have that a job chooses the subnet of.
	Reserved []netip.Prefix
	// Names makes the names of a job's containers known in its network.
	Names   func(ctx context.Context, job string, names map[string][]netip.Addr) error
	Streams Streams
	Images  Images
	Log     *logrus.Entry

	subnets subnets
}

// Job is whose view it is.
type Job struct {
	Key     string
	Scope   names.Scope
	Cgroup  string
	Network network.Network
	// Container is the build container's id in containerd; paths are its.
	Container string
	Profile   executor.Profile
	// GPUs are the UUIDs of those that the job has.
	GPUs []string
}

// Proxy is the view of one job.
type Proxy struct {
	*Node
	job    Job
	builds Builds // nil where there are none
	log    *logrus.Entry

	objects objects
	ports   ports
	touched atomic.Bool
	bodies  chan struct{} // being read
	// network is the id of the docker network that stands for the job's.
	networkOnce sync.Mutex
	network     string
}

// New makes a job's view, with what is on record of it.
func New(node *Node, job Job, builds Builds) (*Proxy, error) {
	p := &Proxy{Node: node, job: job, builds: builds, log: node.Log.WithField("job", job.Key), bodies: make(chan struct{}, maxBodies)}
	p.objects.init()
	if err := p.recall(); err != nil {
		return nil, err
	}
	return p, nil
}

// maxBody is more than any request with a JSON body needs, and maxBodies how
// many of a job are in memory at once.
const (
	maxBody   = 8 << 20
	maxBodies = 32
)

var versioned = regexp.MustCompile(`^/v([0-9]+\.[0-9]+)(/.*)$`)

// ServeHTTP answers a call of the job's.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{Proxy: p, ctx: r.Context(), w: w, r: r}
	path := r.URL.EscapedPath()
	if m := versioned.FindStringSubmatch(path); m != nil {
		c.version, path = "/v"+m[1], m[2]
	}
	c.path = path
	err := p.guard(func() error {
		op, params, err := table.find(r.Method, path)
		if err != nil {
			return err
		}
		c.op, c.params = op, params
		given := r.URL.Query()
		c.query = make(map[string][]string, len(op.query))
		for _, name := range op.query {
			if values, ok := given[name]; ok {
				c.query[name] = values
			}
		}
		if err := p.touch(r.Method); err != nil {
			return err
		}
		return op.serve(c)
	})
	if err != nil {
		c.fail(err)
	}
}

// touch notes before the first call that may make something that the job has
// called at all: nothing is looked for of jobs that never did.
func (p *Proxy) touch(method string) error {
	if method == http.MethodGet || method == http.MethodHead || p.touched.Load() {
		return nil
	}
	if err := p.Ledger.Put(p.job.Key, ledger.Call, "first", struct{}{}); err != nil {
		return err
	}
	p.touched.Store(true)
	return nil
}

// guard makes an error of a panic.
func (p *Proxy) guard(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			if aborted, ok := v.(error); ok && errors.Is(aborted, http.ErrAbortHandler) {
				panic(v)
			}
			p.log.Errorf("panic: %v", v)
			err = fmt.Errorf("a fault in berthd, its log says more: %w", errdefs.ErrInternal)
		}
	}()
	return f()
}

// fail answers an error as dockerd does.
func (c *call) fail(err error) {
	if c.begun {
		panic(http.ErrAbortHandler)
	}
	if c.ctx.Err() != nil {
		return // nobody reads it
	}
	status := errhttp.ToHTTP(err)
	var answered *engine.Error
	if errors.As(err, &answered) {
		status = answered.Status
	}
	text := c.outerText(err.Error())
	if c.ref != "" {
		// As the job called it, where dockerd was told the id.
		text = strings.Replace(text, c.refID, c.ref, 1)
	}
	c.log.WithError(err).WithField("call", c.r.Method+" "+c.path).Debug("refused a docker call")
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(status)
	_ = json.NewEncoder(c.w).Encode(map[string]string{"message": text})
}

// refuse is an error for what a job may not do, with what it may.
func refuse(format string, args ...any) error {
	return errdefs.ErrPermissionDenied.WithMessage("refused by Berth: " + fmt.Sprintf(format, args...))
}

func missing(format string, args ...any) error {
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf(format, args...))
}

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// Names on the daemon are the job's key, a dot, and the name that the job
// gave; the job's own network has the key alone.

func (p *Proxy) prefix() string { return p.job.Key + "." }

func (p *Proxy) inner(name string) string { return p.prefix() + name }

// bridge is how jobs call their own network.
const bridge = "bridge"

// outer is how the job calls what has a name on the daemon.
func (p *Proxy) outer(name string) string {
	if name == p.job.Key {
		return bridge
	}
	if rest, ok := strings.CutPrefix(name, "/"+p.prefix()); ok {
		return "/" + rest
	}
	return strings.TrimPrefix(name, p.prefix())
}

// outerText rewrites names in what dockerd says.
func (p *Proxy) outerText(text string) string {
	text = strings.ReplaceAll(text, p.prefix(), "")
	text = scoped.ReplaceAllString(text, "")
	return strings.ReplaceAll(text, `"`+p.job.Key+`"`, `"`+bridge+`"`)
}

var scoped = regexp.MustCompile(regexp.QuoteMeta(names.Domain) + `/[a-z0-9-]+/(un)?protected/`)
