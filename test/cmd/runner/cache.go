package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"gitlab.com/berth-ci/berth/test/runner/archive"
)

func selectionFlags(flags *pflag.FlagSet, s *archive.Selection) {
	s.Say = say
	flags.StringArrayVar(&s.Paths, "path", nil, "add paths to archive")
	flags.StringArrayVar(&s.Exclude, "exclude", nil, "exclude paths from the archive")
	flags.BoolVar(&s.Untracked, "untracked", false, "add git untracked files")
}

// ignoredFlags are those that only matter with a cache in the cloud.
func ignoredFlags(flags *pflag.FlagSet) {
	flags.Int("timeout", 0, "accepted for gitlab-runner's sake")
	flags.String("alternate-file", "", "accepted for gitlab-runner's sake")
	flags.String("env-file", "", "accepted for gitlab-runner's sake")
}

func cacheArchiverCommand() *cobra.Command {
	var selection archive.Selection
	var file string
	cmd := &cobra.Command{
		Use:   "cache-archiver",
		Short: "Create a cache archive",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			dir, err := os.Getwd()
			if err != nil {
				return err
			}
			files, err := selection.Files(dir)
			if err != nil {
				return err
			}
			switch {
			case len(files) == 0:
				say("WARNING: No files to cache.")
				return nil
			case !newer(file, dir, files):
				say("Archive is up to date!")
				return nil
			}
			return writeArchive(file, dir, files)
		},
	}
	selectionFlags(cmd.Flags(), &selection)
	ignoredFlags(cmd.Flags())
	cmd.Flags().StringVar(&file, "file", "", "the cache `file`")
	return cmd
}

// newer reports whether any of the files is newer than the archive.
func newer(archive, dir string, files []string) bool {
	old, err := os.Stat(archive)
	if err != nil {
		return true
	}
	for _, file := range files {
		if info, err := os.Lstat(filepath.Join(dir, file)); err == nil && old.ModTime().Before(info.ModTime()) {
			return true
		}
	}
	return false
}

// writeArchive replaces the archive in one step.
func writeArchive(file, dir string, files []string) (err error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("create cache directory: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(file), "archive_")
	if err != nil {
		return fmt.Errorf("create archive: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone after the rename
	if err := errors.Join(archive.Zip(f, dir, files), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

func cacheExtractorCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "cache-extractor",
		Short: "Extract a cache archive",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
				say("WARNING: Cache file does not exist")
				os.Exit(1)
			}
			dir, err := os.Getwd()
			if err != nil {
				return err
			}
			return archive.Unzip(file, dir)
		},
	}
	ignoredFlags(cmd.Flags())
	cmd.Flags().StringVar(&file, "file", "", "the cache `file`")
	return cmd
}

func cacheInitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cache-init PATH...",
		Short: "Make cache directories writable for all",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, dirs []string) error {
			var err error
			for _, dir := range dirs {
				err = errors.Join(err, os.Chmod(dir, os.ModePerm))
			}
			return err
		},
	}
}
