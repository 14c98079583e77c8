package errand

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/fault"
)

// written is what a cluster has of an errand's Secrets.
type written map[string]map[string][]byte

// write does what Report does.
func write(t *testing.T, key, head string, most int, result any, failed error) written {
	t.Helper()
	data, err := Data(key, head, most, result, failed)
	if err != nil {
		t.Fatal(err)
	}
	w := written{}
	for i, name := range Names(head, len(data)) {
		w[name] = data[i]
	}
	return w
}

func (w written) read(key, head string) (json.RawMessage, bool, error) {
	return Read(key, head, w[head], func(name string) (map[string][]byte, error) { return w[name], nil })
}

// incompressible is text of about so many KiB when it is packed.
func incompressible(kib int) string {
	r := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	for b.Len() < kib<<11 {
		fmt.Fprintf(&b, "%016x", r.Uint64())
	}
	return b.String()
}

func TestAResultComesThrough(t *testing.T) {
	key := NewKey()
	for name, value := range map[string]string{"small": "b", "compressible": strings.Repeat("x", 4<<20), "in three parts": incompressible(600)} {
		w := write(t, key, "s", 8, map[string]string{"a": value}, nil)
		if parts := 1 + strings.Count(name, "three")*2; len(w) != parts {
			t.Errorf("%s: %d parts", name, len(w))
		}
		for _, p := range w {
			if len(p[resultField]) > limit {
				t.Errorf("%s: a part has %d bytes", name, len(p[resultField]))
			}
		}
		got, told, err := w.read(key, "s")
		if err != nil || !told || string(got) != `{"a":"`+value+`"}` {
			t.Errorf("%s: %.100s, %v, %v", name, got, told, err)
		}
	}
	if _, told, err := Read(key, "s", nil, nil); told || err != nil {
		t.Errorf("an empty Secret: %v, %v", told, err)
	}
}

func TestAFailureKeepsItsKind(t *testing.T) {
	key := NewKey()
	failed := fmt.Errorf("prepare: %w", fault.WithRemedy(fault.Newf(fault.Denied, "a link leads outside"), "put the file into the volume"))
	_, told, err := write(t, key, "s", 1, nil, failed).read(key, "s")
	if !told || !fault.Is(err, fault.Denied) || err.Error() != failed.Error() {
		t.Errorf("%v, %v", told, err)
	}
}

func TestAResultThatHasNoRoomIsAFailure(t *testing.T) {
	key := NewKey()
	_, told, err := write(t, key, "s", 2, incompressible(600), nil).read(key, "s")
	if !told || !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "more than the 512 KiB") {
		t.Errorf("%v, %v", told, err)
	}
}

// TestOnlyTheJobsOwnResultIsBelieved forges, moves, shortens and mixes results, and wants the Secret named.
func TestOnlyTheJobsOwnResultIsBelieved(t *testing.T) {
	key := NewKey()
	large := incompressible(600)
	for name, c := range map[string]struct {
		names string // the Secret
		with  func(w written) (key, head string)
	}{
		"of another Job":     {"s ", func(written) (string, string) { return NewKey(), "s" }},
		"for another Secret": {"t ", func(w written) (string, string) { w["t"] = w["s"]; return key, "t" }},
		"with another head": {"s ", func(w written) (string, string) {
			w["s"][resultField] = []byte("forged")
			return key, "s"
		}},
		"without any seal":           {"s ", func(w written) (string, string) { delete(w["s"], sealField); return key, "s" }},
		"of fewer parts":             {"s ", func(w written) (string, string) { w["s"][partsField] = []byte("2"); return key, "s" }},
		"that hides its parts":       {"s ", func(w written) (string, string) { delete(w["s"], partsField); return key, "s" }},
		"of a part that is not ours": {"s-1 ", func(w written) (string, string) { w["s-1"][resultField][7] ^= 1; return key, "s" }},
		"of a part cut short": {"s-2 ", func(w written) (string, string) {
			w["s-2"][resultField] = w["s-2"][resultField][:100]
			return key, "s"
		}},
		"of a part that is missing": {"s-2 ", func(w written) (string, string) { delete(w, "s-2"); return key, "s" }},
		"of parts in another order": {"s-1 ", func(w written) (string, string) { w["s-1"], w["s-2"] = w["s-2"], w["s-1"]; return key, "s" }},
		"of a part of another result of the Job": {"s-1 ", func(w written) (string, string) {
			other := write(t, key, "s", 8, large+"!", nil)
			w["s-1"] = other["s-1"]
			return key, "s"
		}},
	} {
		w := write(t, key, "s", 8, large, nil)
		with, head := c.with(w)
		result, told, err := w.read(with, head)
		if !told || err == nil || result != nil {
			t.Errorf("a result %s is believed", name)
		} else if !strings.Contains(err.Error()+" ", "Secret "+c.names) {
			t.Errorf("a result %s: %v", name, err)
		}
	}
}
