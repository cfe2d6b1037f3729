package engine

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"

	"github.com/containerd/errdefs"
)

// bufferSize is for each direction of a stream.
const bufferSize = 128 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// Copy copies a stream with a buffer from the pool.
func Copy(w io.Writer, r io.Reader) (int64, error) {
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	return io.CopyBuffer(writerOnly{w}, readerOnly{r}, *b)
}

// They hide ReadFrom and WriteTo, which would use smaller buffers.
type (
	writerOnly struct{ io.Writer }
	readerOnly struct{ io.Reader }
)

// Hijack sends a request whose connection may become a stream, and has
// answered be called with dockerd's answer: what comes after its head is read
// from ahead. The connection is closed when answered returns.
func (e *Engine) Hijack(r *http.Request, answered func(res *http.Response, conn net.Conn, ahead *bufio.Reader) error) error {
	conn, err := e.Dial(r.Context())
	if err != nil {
		return fmt.Errorf("reach the docker daemon: %w: %w", err, errdefs.ErrUnavailable)
	}
	defer conn.Close()
	defer context.AfterFunc(r.Context(), func() { conn.Close() })()
	if err := r.Write(conn); err != nil {
		return fmt.Errorf("reach the docker daemon: %w: %w", err, errdefs.ErrUnavailable)
	}
	br := bufio.NewReader(conn)
	res, err := http.ReadResponse(br, r) //nolint:bodyclose // the body is the stream, and ends with the connection
	if err != nil {
		return fmt.Errorf("read the docker daemon's answer: %w: %w", err, errdefs.ErrUnavailable)
	}
	return answered(res, conn, br)
}

// Ahead is what a reader has read ahead of a connection.
func Ahead(br *bufio.Reader) []byte {
	ahead, _ := br.Peek(br.Buffered()) // no more than there is
	return bytes.Clone(ahead)
}
