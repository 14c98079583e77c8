package reflink

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/volume"
)

// removeCopy removes the files. Volumes that a swap took out of service lie outside of its copy's folder. They go with it:
// with the copy that they were before, or by themselves where they were production's first.
func (d *Driver) removeCopy(ctx context.Context, i volume.CopyInfo, all []volume.Copy) error {
	root, err := d.root(ctx)
	if err != nil {
		return err
	}
	own := folder(root, i.ID)
	for _, dir := range i.Dirs {
		if within(own, dir) || within(root, dir) || !within(filepath.Dir(root), dir) {
			continue
		}
		if used, err := d.used(ctx, dir, all); err != nil || used {
			return err
		}
		if err := remove(dir); err != nil {
			return err
		}
	}
	if err := os.Remove(filepath.Join(own, infoFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := remove(own); err != nil {
		return err
	}
	for _, o := range all {
		if o.ID() == i.ID || !shares(o.Info(), i) || !within(folder(root, o.ID()), o.Info().Dirs[0]) {
			continue
		}
		if err := d.Delete(ctx, o); err != nil && !fault.Is(err, fault.Denied) && !fault.Is(err, fault.Conflict) {
			return err
		}
	}
	return nil
}

// used reports whether a claim that any copy knows of is bound to the directory.
func (d *Driver) used(ctx context.Context, dir string, all []volume.Copy) (bool, error) {
	for _, c := range all {
		places := slices.Clone(c.Info().Places)
		for _, s := range c.Info().Sources {
			places = append(places, place(s))
		}
		for _, p := range places {
			bound, err := d.binder.Bound(ctx, p)
			if err != nil && !fault.Is(err, fault.NotFound) {
				return false, err
			}
			if err == nil && bound == dir {
				return true, nil
			}
		}
	}
	return false, nil
}

// within reports whether a path lies below a directory.
func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != "." && rel != ".." && !strings.HasPrefix(rel, "../")
}
