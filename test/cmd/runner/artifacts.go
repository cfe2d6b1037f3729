package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"gitlab.com/berth-ci/berth/test/runner/archive"
)

const tries = 3

// credentials open a job's artifacts.
type credentials struct {
	url, token string
	id         int64
}

func (c *credentials) flags(flags *pflag.FlagSet) {
	flags.StringVar(&c.url, "url", "", "GitLab's `URL`")
	flags.StringVar(&c.token, "token", "", "the job's `token`")
	flags.Int64Var(&c.id, "id", 0, "the job's `id`")
}

func (c *credentials) do(method string, query url.Values, contentType string, body io.Reader) (*http.Response, error) {
	address := fmt.Sprintf("%s/api/v4/jobs/%d/artifacts?%s", strings.TrimRight(c.url, "/"), c.id, query.Encode())
	req, err := http.NewRequest(method, address, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("JOB-TOKEN", c.token)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return http.DefaultClient.Do(req)
}

// retry repeats what fails on the server's side.
func retry(f func() (status int, err error)) error {
	for try := 1; ; try++ {
		status, err := f()
		switch {
		case err == nil && status < 300:
			return nil
		case err == nil:
			err = fmt.Errorf("the server answered %d %s", status, http.StatusText(status))
		}
		if try == tries || status >= 400 && status < 500 {
			return err
		}
		say("WARNING: Retrying... error=%v", err)
		time.Sleep(time.Second)
	}
}

func artifactsUploaderCommand() *cobra.Command {
	var target credentials
	var selection archive.Selection
	var name, expireIn, format, kind string
	cmd := &cobra.Command{
		Use:   "artifacts-uploader",
		Short: "Create and upload artifacts",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			dir, err := os.Getwd()
			if err != nil {
				return err
			}
			for _, list := range [][]string{selection.Paths, selection.Exclude} {
				for i := range list {
					list[i] = os.ExpandEnv(list[i])
				}
			}
			files, err := selection.Files(dir)
			if err != nil {
				return err
			}
			if len(files) == 0 {
				say("ERROR: No files to upload")
				return nil
			}
			query := url.Values{}
			for key, value := range map[string]string{"expire_in": expireIn, "artifact_format": format, "artifact_type": kind} {
				if value != "" {
					query.Set(key, value)
				}
			}
			pack, extension := archive.Zip, ".zip"
			if format == "gzip" {
				pack, extension = archive.Gzip, ".gz"
			}
			file := cmp.Or(filepath.Base(os.ExpandEnv(name)), "default") + extension
			return retry(func() (int, error) {
				body, contentType := form(file, func(w io.Writer) error { return pack(w, dir, files) })
				defer body.Close()
				res, err := target.do(http.MethodPost, query, contentType, body)
				if err != nil {
					return 0, fmt.Errorf("upload artifacts: %w", err)
				}
				defer res.Body.Close()
				say("Uploading artifacts as %q to coordinator... %s id=%d", kind, res.Status, target.id)
				return res.StatusCode, nil
			})
		},
	}
	target.flags(cmd.Flags())
	selectionFlags(cmd.Flags(), &selection)
	cmd.Flags().StringVar(&name, "name", "artifacts", "the archive's `name`")
	cmd.Flags().StringVar(&expireIn, "expire-in", "", "`when` the artifacts expire")
	cmd.Flags().StringVar(&format, "artifact-format", "zip", "zip or gzip")
	cmd.Flags().StringVar(&kind, "artifact-type", "archive", "archive or the `type` of report")
	cmd.Flags().DurationVar(&http.DefaultClient.Timeout, "timeout", time.Hour, "time-out of the upload")
	cmd.Flags().Duration("response-header-timeout", 0, "accepted for gitlab-runner's sake")
	return cmd
}

// form is a multipart body with one file, packed while it is read.
func form(name string, pack func(io.Writer) error) (io.ReadCloser, string) {
	r, w := io.Pipe()
	m := multipart.NewWriter(w)
	go func() {
		part, err := m.CreateFormFile("file", name)
		if err == nil {
			err = pack(part)
		}
		w.CloseWithError(errors.Join(err, m.Close()))
	}()
	return r, m.FormDataContentType()
}

func artifactsDownloaderCommand() *cobra.Command {
	var source credentials
	cmd := &cobra.Command{
		Use:   "artifacts-downloader",
		Short: "Download and extract artifacts",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			dir, err := os.Getwd()
			if err != nil {
				return err
			}
			f, err := os.CreateTemp("", "artifacts")
			if err != nil {
				return fmt.Errorf("create archive: %w", err)
			}
			defer func() { _ = os.Remove(f.Name()) }()
			defer f.Close()
			err = retry(func() (int, error) {
				res, err := source.do(http.MethodGet, nil, "", nil)
				if err != nil {
					return 0, fmt.Errorf("download artifacts: %w", err)
				}
				defer res.Body.Close()
				say("Downloading artifacts from coordinator... %s id=%d", res.Status, source.id)
				if res.StatusCode != http.StatusOK {
					return res.StatusCode, nil
				}
				if err := errors.Join(f.Truncate(0), rewind(f)); err != nil {
					return 0, err
				}
				_, err = io.Copy(f, res.Body)
				return res.StatusCode, err
			})
			if err != nil {
				return err
			}
			return archive.Unzip(f.Name(), dir)
		},
	}
	source.flags(cmd.Flags())
	return cmd
}

func rewind(f *os.File) error {
	_, err := f.Seek(0, io.SeekStart)
	return err
}
