// Command reaper stands in for Ryuk, whose image and module the tests cannot
// get: it speaks Ryuk's protocol with Testcontainers, and like Ryuk it is a
// client of the docker socket that is mounted in its container.
//
// A client sends lines of filters, label=KEY=VALUE joined by &, each of which
// is answered with ACK. When no client has been there for a while, whatever
// the filters match is removed.
package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"time"

	"github.com/moby/moby/client"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	first, err1 := duration("RYUK_CONNECTION_TIMEOUT", time.Minute)
	again, err2 := duration("RYUK_RECONNECTION_TIMEOUT", 10*time.Second)
	docker, err3 := client.New(client.FromEnv)
	l, err4 := net.Listen("tcp", ":"+cmp.Or(os.Getenv("RYUK_PORT"), "8080"))
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	if _, err := docker.Ping(ctx, client.PingOptions{}); err != nil {
		return err
	}
	fmt.Println("Started") // what Testcontainers waits for
	filters, left := make(chan client.Filters), make(chan int)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			left <- 1
			go func() {
				defer func() { left <- -1 }()
				defer conn.Close()
				serve(conn, filters)
			}()
		}
	}()
	var all []client.Filters
	clients := 0
	deadline := time.NewTimer(first)
	for {
		select {
		case f := <-filters:
			all = append(all, f)
		case n := <-left:
			if clients += n; clients == 0 {
				deadline.Reset(again)
			} else {
				deadline.Stop()
			}
		case <-deadline.C:
			l.Close()
			return reap(ctx, docker, all)
		}
	}
}

func duration(variable string, otherwise time.Duration) (time.Duration, error) {
	text := os.Getenv(variable)
	if text == "" {
		return otherwise, nil
	}
	return time.ParseDuration(text)
}

// serve takes a client's filters until it is gone.
func serve(conn net.Conn, filters chan<- client.Filters) {
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		query, err := url.ParseQuery(lines.Text())
		if err != nil || len(query) == 0 {
			return
		}
		f := client.Filters{}
		for key, values := range query {
			f.Add(key, values...)
		}
		filters <- f
		if _, err := conn.Write([]byte("ACK\n")); err != nil {
			return
		}
	}
}

// reap removes what matches: containers first, which hold the rest.
func reap(ctx context.Context, docker *client.Client, all []client.Filters) (err error) {
	for _, f := range all {
		containers, e := docker.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: f})
		err = errors.Join(err, e)
		for _, c := range containers.Items {
			_, e := docker.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
			err = errors.Join(err, e)
		}
		networks, e := docker.NetworkList(ctx, client.NetworkListOptions{Filters: f})
		err = errors.Join(err, e)
		for _, n := range networks.Items {
			_, e := docker.NetworkRemove(ctx, n.ID, client.NetworkRemoveOptions{})
			err = errors.Join(err, e)
		}
		volumes, e := docker.VolumeList(ctx, client.VolumeListOptions{Filters: f})
		err = errors.Join(err, e)
		for _, v := range volumes.Items {
			_, e := docker.VolumeRemove(ctx, v.Name, client.VolumeRemoveOptions{Force: true})
			err = errors.Join(err, e)
		}
		images, e := docker.ImageList(ctx, client.ImageListOptions{Filters: f})
		err = errors.Join(err, e)
		for _, i := range images.Items {
			_, e := docker.ImageRemove(ctx, i.ID, client.ImageRemoveOptions{Force: true, PruneChildren: true})
			err = errors.Join(err, e)
		}
	}
	return err
}
