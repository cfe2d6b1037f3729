package archive

import (
	"archive/zip"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Zip writes files of the directory dir.
func Zip(w io.Writer, dir string, files []string) error {
	archive := zip.NewWriter(w)
	for _, file := range files {
		if err := addFile(archive, dir, file); err != nil {
			return fmt.Errorf("archive %s: %w", file, err)
		}
	}
	return archive.Close()
}

func addFile(archive *zip.Writer, dir, file string) error {
	full := filepath.Join(dir, file)
	info, err := os.Lstat(full)
	if err != nil {
		return err
	}
	header, err := zip.FileInfoHeader(info)
	if err != nil {
		return err
	}
	header.Name = file
	switch {
	case info.IsDir():
		header.Name += "/"
		_, err = archive.CreateHeader(header)
		return err
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(full)
		if err != nil {
			return err
		}
		w, err := archive.CreateHeader(header)
		if err != nil {
			return err
		}
		_, err = io.WriteString(w, target)
		return err
	case !info.Mode().IsRegular():
		return nil // sockets, pipes and devices are not archived
	}
	header.Method = zip.Deflate
	w, err := archive.CreateHeader(header)
	if err != nil {
		return err
	}
	f, err := os.Open(full)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// Gzip writes files one after the other, each as a gzip member with its name,
// which is the form of reports.
func Gzip(w io.Writer, dir string, files []string) error {
	for _, file := range files {
		info, err := os.Lstat(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			continue
		}
		f, err := os.Open(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		member := gzip.NewWriter(w)
		member.Name, member.Comment, member.ModTime = filepath.Base(file), file, info.ModTime()
		_, err = io.Copy(member, f)
		if err := errors.Join(err, member.Close(), f.Close()); err != nil {
			return fmt.Errorf("archive %s: %w", file, err)
		}
	}
	return nil
}

// Unzip extracts into the directory dir and nowhere else: what leads out of
// it, by name or through a symbolic link, fails.
func Unzip(file, dir string) error {
	archive, err := zip.OpenReader(file)
	if err != nil {
		return fmt.Errorf("open archive: %w", err)
	}
	defer func() { _ = archive.Close() }() // was only read
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	defer func() { _ = root.Close() }() // no file of ours
	for _, f := range archive.File {
		if err := extract(root, f); err != nil {
			return fmt.Errorf("extract %s: %w", f.Name, err)
		}
	}
	// Directories last: what is extracted into them changes their times and
	// needs them writable.
	for _, f := range archive.File {
		if err := restore(root, f); err != nil {
			return fmt.Errorf("restore mode of %s: %w", f.Name, err)
		}
	}
	return nil
}

func extract(root *os.Root, f *zip.File) error {
	name := filepath.Clean(f.Name)
	if f.Mode().IsDir() {
		return root.MkdirAll(name, 0o777)
	}
	if err := root.MkdirAll(filepath.Dir(name), 0o777); err != nil {
		return err
	}
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	in, err := f.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	if f.Mode()&fs.ModeSymlink != 0 {
		target, err := io.ReadAll(io.LimitReader(in, unix.PathMax))
		if err != nil {
			return err
		}
		return root.Symlink(string(target), name)
	}
	out, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func restore(root *os.Root, f *zip.File) error {
	if f.Mode()&fs.ModeSymlink != 0 {
		return nil
	}
	name := filepath.Clean(f.Name)
	if err := root.Chmod(name, f.Mode().Perm()); err != nil {
		return err
	}
	return root.Chtimes(name, time.Time{}, f.Modified)
}
