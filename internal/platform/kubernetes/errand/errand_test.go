package errand

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sluice-cd/sluice/internal/fault"
)

func TestAResultComesThrough(t *testing.T) {
	key := NewKey()
	data, err := Data(key, "s", map[string]string{"a": "b"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, told, err := Read(key, "s", data)
	if err != nil || !told || string(got) != `{"a":"b"}` {
		t.Errorf("%s, %v, %v", got, told, err)
	}
	if _, told, err := Read(key, "s", nil); told || err != nil {
		t.Errorf("an empty Secret: %v, %v", told, err)
	}
}

func TestAFailureKeepsItsKind(t *testing.T) {
	key := NewKey()
	failed := fmt.Errorf("prepare: %w", fault.WithRemedy(fault.Newf(fault.Denied, "a link leads outside"), "put the file into the volume"))
	data, err := Data(key, "s", nil, failed)
	if err != nil {
		t.Fatal(err)
	}
	_, told, err := Read(key, "s", data)
	if !told || !fault.Is(err, fault.Denied) || err.Error() != failed.Error() {
		t.Errorf("%v, %v", told, err)
	}
}

func TestOnlyTheJobsOwnResultIsBelieved(t *testing.T) {
	key := NewKey()
	data, err := Data(key, "s", "equal", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, read := range map[string]func() error{
		"of another Job":     func() error { _, _, err := Read(NewKey(), "s", data); return err },
		"for another Secret": func() error { _, _, err := Read(key, "other", data); return err },
		"changed on its way": func() error {
			_, _, err := Read(key, "s", map[string][]byte{"result": []byte(`{"result":"x"}`), "seal": data["seal"]})
			return err
		},
		"without any seal": func() error { _, _, err := Read(key, "s", map[string][]byte{"result": data["result"]}); return err },
		"too large for one": func() error {
			d, _ := Data(key, "s", strings.Repeat("x", limit), nil)
			_, _, err := Read(key, "s", d)
			return err
		},
	} {
		if read() == nil {
			t.Errorf("a result %s is believed", name)
		}
	}
}
