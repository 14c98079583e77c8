package deployfile

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
	"unicode"
)

// patience is far above what any deploy file takes, so that a busy machine does not fail the test, and far below what the
// YAML library alone takes for deep nesting.
const patience = 2 * time.Second

// FuzzParse feeds Parse with any bytes: it returns, always the same, with findings that can be shown on a terminal.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/broken/*.yaml", "../../examples/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, path := range files {
			body, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(body)
		}
	}
	for _, s := range []string{"", "\x00", "a: &a\n  b: *a\n", "? a\n: b\n", "targets: {{x}}\n", "- - - -", "a: \xff", "<<: [1]\n",
		"{a: {{b}}, c: {{d}}}", "!!x &y z: |+\n \n", "%TAG ! x\n---\n..."} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		began := time.Now()
		file, found := Parse("deploy.yaml", body)
		if took := time.Since(began); took > patience {
			t.Fatalf("%d bytes took %s", len(body), took)
		}
		if file == nil {
			t.Fatal("no file")
		}
		again, foundAgain := Parse("deploy.yaml", body)
		if !reflect.DeepEqual(file, again) || !reflect.DeepEqual(found, foundAgain) {
			t.Fatal("two readings differ")
		}
		for i, x := range found {
			if x.Line < 1 || x.Column < 1 || x.Message == "" || x.Line > len(splitLines(body)) {
				t.Errorf("a finding without a place or a message: %+v", x)
			}
			if i > 0 && (found[i-1].Line > x.Line || found[i-1].Line == x.Line && found[i-1].Column > x.Column) {
				t.Errorf("not in order: %+v before %+v", found[i-1], x)
			}
		}
		var out bytes.Buffer
		if err := append(found, Unbuilt(file)...).Write(&out, "deploy.yaml", body); err != nil {
			t.Fatal(err)
		}
		for _, c := range out.String() {
			if c != '\n' && c != '\t' && !unicode.IsPrint(c) && c != '\ufffd' {
				t.Fatalf("%q would reach the terminal", c)
			}
		}
	})
}
