package stream

import (
	"path/filepath"

	"github.com/sluice-cd/sluice/internal/fault"
)

// order is the order of a walk. The receiver holds a sender to it: no name comes twice, and none below what is no folder that came.
type order struct {
	open []opened
	left bool // the root was
}

// opened is a folder that is not left yet.
type opened struct{ path, last string }

// next takes the next entry.
func (o *order) next(e entry) error {
	if len(o.open) == 0 {
		if o.left || e.Sort != folder || e.Path != "." {
			return outOfOrder(e)
		}
		o.open = append(o.open, opened{path: "."})
		return nil
	}
	in := &o.open[len(o.open)-1]
	if e.Sort == left {
		if e.Path != in.path {
			return outOfOrder(e)
		}
		o.open = o.open[:len(o.open)-1]
		o.left = len(o.open) == 0
		return nil
	}
	name := filepath.Base(e.Path)
	if e.Path == "." || filepath.Dir(e.Path) != in.path || name <= in.last {
		return outOfOrder(e)
	}
	in.last = name
	if e.Sort == folder {
		o.open = append(o.open, opened{path: e.Path})
	}
	return nil
}

func outOfOrder(e entry) error {
	return fault.Newf(fault.Denied, "%q comes out of order: this is no sender of this version", e.Path)
}

// end tells whether all came.
func (o *order) end() error {
	if !o.left {
		return fault.Newf(fault.Invalid, "the sender came to an end before it has left the root of the volume")
	}
	return nil
}
