package engine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"

	"github.com/containerd/errdefs"
)

// Buffer is for each direction of a stream.
const Buffer = 128 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, Buffer); return &b }}

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

// Hijack sends a request whose connection becomes a stream in both directions
// if dockerd agrees: with 101, or with 200 where there was no upgrade asked
// for. Answered is called with dockerd's answer; it returns the client's end of the stream, nil if
// there is to be none.
func (e *Engine) Hijack(r *http.Request, answered func(*http.Response) (net.Conn, io.Reader, error)) error {
	conn, err := e.Dial(r.Context())
	if err != nil {
		return fmt.Errorf("reach the docker daemon: %w: %w", err, errdefs.ErrUnavailable)
	}
	defer conn.Close()
	defer context.AfterFunc(r.Context(), func() { conn.Close() })()
	if err := r.Write(conn); err != nil {
		return fmt.Errorf("reach the docker daemon: %w: %w", err, errdefs.ErrUnavailable)
	}
	br := bufio.NewReaderSize(conn, 64<<10)
	res, err := http.ReadResponse(br, r) //nolint:bodyclose // the body is the stream, and ends with the connection
	if err != nil {
		return fmt.Errorf("read the docker daemon's answer: %w: %w", err, errdefs.ErrUnavailable)
	}
	client, clientReader, err := answered(res)
	if err != nil || client == nil {
		return err
	}
	defer client.Close()
	return Join(client, clientReader, conn, Ahead(br, conn))
}

// Ahead reads what a reader has read ahead of a connection, and then the
// connection itself.
func Ahead(br *bufio.Reader, conn net.Conn) io.Reader {
	ahead, _ := br.Peek(br.Buffered()) // no more than there is
	if len(ahead) == 0 {
		return conn
	}
	return io.MultiReader(bytes.NewReader(bytes.Clone(ahead)), conn)
}

// Join passes on what each side of a stream sends, the end of it too, until
// the daemon's side has ended. A client that closes only its sending side goes
// on to read.
func Join(client net.Conn, clientReader io.Reader, daemon net.Conn, daemonReader io.Reader) error {
	var sent sync.WaitGroup
	sent.Go(func() {
		_, err := Copy(daemon, clientReader)
		if err == nil {
			err = closeWrite(daemon)
		}
		if err != nil {
			_ = daemon.Close() // the client has gone
		}
	})
	_, err := Copy(client, daemonReader)
	if err == nil {
		err = closeWrite(client)
	}
	// What the client still sends nobody reads.
	_ = client.Close()
	_ = daemon.Close()
	sent.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
