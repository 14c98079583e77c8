package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/fingerprint"
)

func (a *app) dataCommand() *cobra.Command {
	c := &cobra.Command{Use: "data", Short: "Compare databases, and look after copies of them"}
	c.AddCommand(a.dataVerify(), a.dataDiff(), a.dataGrants(), a.dataList(), a.dataDelete(),
		unbuilt("copy", "Copy a database", "copyData in the beforeDeployment of a deploy file copies one"),
		unbuilt("checkpoint", "Keep a copy of a database", "checkpointData in a deploy file keeps one"),
		unbuilt("restore", "Restore a checkpoint", "sluice deploy rollback takes a delivery back, with its data"))
	return c
}

// unbuilt is a command that the design names and that no code does yet.
func unbuilt(name, short, instead string) *cobra.Command {
	return &cobra.Command{Use: name, Short: short + " (not built yet)", Hidden: true, DisableFlagParsing: true, RunE: func(*cobra.Command, []string) error {
		return &exit{exitUnable, fault.WithRemedy(fault.Newf(fault.Invalid, "sluice data %s is not built yet", name), "%s", instead)}
	}}
}

const sidesHelp = `SOURCE is what was, TARGET what is: a URL as psql and mongosh take it, env:NAME for one in an environment variable, file:PATH
for one in a file. A URL names one database, and a MongoDB URL without one the whole server; --cluster compares everything.`

func (a *app) dataVerify() *cobra.Command {
	var f compareFlags
	c := &cobra.Command{
		Use:   "verify SOURCE TARGET",
		Short: "Tell whether two databases are equal, and if not, what differs",
		Long: `Verify compares every row and the schema of two databases and tells which tables differ, by how many rows, in which columns and by
what pattern, with the first keys of each.

` + sidesHelp + `

Exit code: 0 equal, 1 different, 2 it could not be told.`,
		Args: twoDatabases,
		RunE: func(c *cobra.Command, args []string) error { return a.verify(c.Context(), args, f) },
	}
	f.bind(c)
	c.Flags().StringVar(&f.differences, "differences", "", "write every differing row to this `file` as NDJSON")
	return c
}

func twoDatabases(c *cobra.Command, args []string) error {
	if len(args) != 2 {
		return &exit{exitUnable, fault.WithRemedy(fmt.Errorf("two databases are compared, %d are given", len(args)), "%s", c.UseLine())}
	}
	return nil
}

func (a *app) verify(ctx context.Context, args []string, f compareFlags) error {
	var o fingerprint.Options
	var file *rowFile
	if f.differences != "" {
		var err error
		if file, err = createRowFile(f.differences); err != nil {
			return &exit{exitUnable, err}
		}
		o.Differences = file.w
	}
	r, err := a.compare(ctx, args, f, o)
	err = errors.Join(err, file.close())
	if r.report == nil && a.output != "text" && ctx.Err() == nil {
		// Programs get a report even where nothing could be read.
		r.report = &fingerprint.Report{Verdict: fingerprint.Unknown, Reason: err.Error(), Tables: []fingerprint.TableReport{}}
	}
	if r.report != nil && ctx.Err() == nil {
		shown := a.show(r.report, func(w io.Writer) error {
			if err := r.report.WriteText(w); err != nil {
				return err
			}
			return r.writeSides(w)
		})
		err = errors.Join(err, shown)
	}
	if err != nil {
		return undecided(ctx, err)
	}
	a.uncovered(r)
	return verdictCode(r.report.Verdict)
}

// uncovered warns where a verdict does not speak of everything.
func (a *app) uncovered(r compared) {
	if n := r.report.Coverage.NotCompared; n > 0 {
		fmt.Fprintf(a.errs, "warning: %s could not be compared, and nothing is said about them; if privileges are missing, sluice data grants %s prints them\n",
			count(n, "object"), r.sides[0].engine)
	}
}

// rowFile is a file of rows. Nobody but its owner reads it.
type rowFile struct {
	f *os.File
	w *bufio.Writer
}

func createRowFile(path string) (*rowFile, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the file of differences: %w", err)
	}
	return &rowFile{f, bufio.NewWriterSize(f, 1<<16)}, nil
}

func (r *rowFile) close() error {
	if r == nil {
		return nil
	}
	if err := errors.Join(r.w.Flush(), r.f.Close()); err != nil {
		return fmt.Errorf("write the differences: %w", err)
	}
	return nil
}

func (a *app) dataDiff() *cobra.Command {
	var f compareFlags
	c := &cobra.Command{
		Use:   "diff SOURCE TARGET",
		Short: "Print every row in which two databases differ",
		Long: `Diff compares two databases and prints every differing row as soon as it is known: missing (only the source has it), extra (only the
target has it), changed, with the old and the new value of each column. With -o json each is one line of JSON. What was found
is summed up on standard error.

` + sidesHelp + `

Exit code: 0 equal, 1 different, 2 it could not be told.`,
		Args: twoDatabases,
		RunE: func(c *cobra.Command, args []string) error { return a.diff(c.Context(), args, f) },
	}
	f.bind(c)
	return c
}

func (a *app) diff(ctx context.Context, args []string, f compareFlags) error {
	if a.output == "yaml" {
		return &exit{exitUnable, errors.New("diff streams its rows: -o json gives one line of JSON for each, -o yaml does not exist")}
	}
	out := bufio.NewWriterSize(a.out, 1<<16)
	o := fingerprint.Options{Differences: out}
	if a.output == "text" {
		o.Differences = rowLines{out}
	}
	r, err := a.compare(ctx, args, f, o)
	err = errors.Join(err, out.Flush())
	if err != nil {
		return undecided(ctx, err)
	}
	if err := r.sum(a.errs); err != nil {
		return err
	}
	a.uncovered(r)
	return verdictCode(r.report.Verdict)
}

// sum says in a few lines what was found.
func (c compared) sum(w io.Writer) error {
	r := c.report
	text := strings.ToUpper(string(r.Verdict))
	if r.Reason != "" {
		text += ": " + r.Reason
	}
	for i := range r.Tables {
		if t := &r.Tables[i]; t.Verdict != fingerprint.Equal {
			text += fmt.Sprintf("\n%s: %d missing, %d extra, %d changed, %d otherwise; %d rows, was %d", t.Name, t.Missing, t.Extra, t.Changed,
				t.Differences()-t.Missing-t.Extra-t.Changed, t.TargetRows, t.SourceRows)
			if t.Note != "" {
				text += "; " + t.Note
			}
		}
	}
	for _, f := range r.Schema {
		text += fmt.Sprintf("\nschema: %s: %s: %s", f.Object, f.Class, f.Message)
	}
	_, err := fmt.Fprintf(w, "%s\n%.1f s, %s rows/s, %s spilled\n", text, r.Cost.Seconds, grouped(int64(r.Cost.RowsPerSecond)), byteText(r.Cost.SpillBytes))
	return err
}

// rowLines turns lines of NDJSON, which come one at a time, into lines for people.
type rowLines struct{ w io.Writer }

// Write implements io.Writer.
func (l rowLines) Write(line []byte) (int, error) {
	var d fingerprint.Difference
	if err := json.Unmarshal(line, &d); err != nil {
		return 0, fmt.Errorf("a differing row cannot be shown: %w", err)
	}
	if _, err := fmt.Fprintln(l.w, rowLine(d)); err != nil {
		return 0, err
	}
	return len(line), nil
}

func rowLine(d fingerprint.Difference) string {
	text := fmt.Sprintf("%-9s %s", d.Class, d.Relation)
	if d.Key != "" {
		text += " " + d.Key
	}
	if d.NewKey != "" {
		text += " → " + d.NewKey
	}
	var parts []string
	for _, c := range d.Changes {
		parts = append(parts, fmt.Sprintf("%s %s → %s", c.Path, valueText(c.Old, c.New), valueText(c.New, c.Old)))
	}
	if len(d.Changes) == 0 {
		for _, v := range d.Row {
			parts = append(parts, v.Path+"="+v.Text)
		}
	}
	if d.SourceCopies+d.TargetCopies > 0 {
		parts = append(parts, fmt.Sprintf("%d copies, was %d", d.TargetCopies, d.SourceCopies))
	}
	if len(parts) > 0 {
		text += ": " + strings.Join(parts, ", ")
	}
	return text
}

// valueText shows a value, with its type where the other's is another.
func valueText(v, other *fingerprint.Value) string {
	switch {
	case v == nil:
		return "absent"
	case other != nil && other.Type != v.Type:
		return v.Text + " (" + v.Type + ")"
	}
	return v.Text
}
