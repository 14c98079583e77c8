package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sluice-cd/sluice/internal/deployfile"
	"github.com/sluice-cd/sluice/internal/plan"
)

func (a *app) validate() *cobra.Command {
	var strict bool
	var named string
	c := &cobra.Command{
		Use:   "validate FILE…",
		Short: "Say what is wrong with deploy files",
		Long: `Validate reads deploy files and tells, with line and column, what would be refused, what is probably a mistake, and what is worth
knowing. Manifests that do not exist are warnings here, because CI may render them later.

Exit code: 0 nothing refused, 1 something refused, 2 wrong usage or an unreadable file.`,
		RunE: func(c *cobra.Command, args []string) error {
			if named != "" {
				args = append(args, named)
			}
			if len(args) == 0 {
				return &exit{exitUnable, errors.New("give the deploy files: sluice validate FILE…")}
			}
			return a.validateAll(a.fetcher(c.Context()), args, strict)
		},
	}
	c.Flags().BoolVar(&strict, "strict", false, "manifests that do not exist are errors")
	c.Flags().StringVarP(&named, "file", "f", "", "deploy `file`, as an argument")
	return c
}

// validated is the result for one file as programs read it.
type validated struct {
	File     string              `json:"file"`
	Valid    bool                `json:"valid"`
	Findings deployfile.Findings `json:"findings"`
}

func (a *app) validateAll(get fetcher, files []string, strict bool) error {
	var all []validated
	refused, failed := false, false
	for _, path := range files {
		body, err := readDeployFile(get, path)
		if err != nil {
			fmt.Fprintln(a.errs, "error:", err)
			failed = true
			continue
		}
		name := shownName(path)
		findings := inspect(get, path, body, strict)
		v := validated{File: name, Valid: !findings.HasErrors(), Findings: findings}
		if v.Findings == nil {
			v.Findings = deployfile.Findings{}
		}
		refused = refused || !v.Valid
		all = append(all, v)
		if a.output != "text" {
			continue
		}
		if err := findings.Write(a.out, name, body); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "%s: %s\n", name, v.sum())
	}
	if a.output != "text" {
		if err := a.show(all, nil); err != nil {
			return err
		}
	}
	switch {
	case failed:
		return &exit{code: exitUnable}
	case refused:
		return &exit{code: exitFailure}
	}
	return nil
}

// sum says in a few words how a file is.
func (v validated) sum() string {
	n := map[deployfile.Severity]int{}
	for _, f := range v.Findings {
		n[f.Severity]++
	}
	word := "valid"
	if !v.Valid {
		word = "refused"
	}
	sep := ": "
	for _, s := range []deployfile.Severity{deployfile.Error, deployfile.Warning, deployfile.Note} {
		if n[s] > 0 {
			word, sep = word+sep+count(n[s], string(s)), ", "
		}
	}
	return word
}

// inspect finds everything that is wrong with a deploy file and what it refers to.
func inspect(get fetcher, path string, body []byte, strict bool) deployfile.Findings {
	file, findings := deployfile.Parse(shownName(path), body)
	if file == nil || findings.HasErrors() {
		return findings
	}
	for _, u := range deployfile.Unbuilt(file) {
		u.Severity = deployfile.Note
		findings = append(findings, u)
	}
	m := load(get, path, file)
	for _, p := range m.problems {
		s := deployfile.Error
		if p.missing() && !strict {
			s = deployfile.Warning
		}
		findings = append(findings, deployfile.Finding{Severity: s, Pos: p.pos, Message: p.err.Error()})
	}
	if len(m.problems) > 0 || file.Kind != "kubernetes" {
		return findings
	}
	in := plan.Input{File: file, Delivery: planID, Objects: m.objects, Jobs: m.jobs}
	for _, t := range file.Targets {
		if t.Account == "" {
			// Whoever starts it can still name one.
			in.Account = "an account"
		}
	}
	if _, err := plan.Compile(in); err != nil && len(deployfile.Unbuilt(file)) == 0 {
		findings = append(findings, deployfile.Finding{Severity: deployfile.Error, Pos: deployfile.Pos{Line: 1, Column: 1}, Message: err.Error()})
	}
	return findings
}

func (a *app) schema() *cobra.Command {
	return &cobra.Command{Use: "schema", Short: "Print the JSON schema of deploy files", Long: `Schema prints the JSON schema of deploy files, for editors:

  # yaml-language-server: $schema=sluice.schema.json`,
		Args: noArguments, RunE: func(*cobra.Command, []string) error {
			body, err := deployfile.Schema()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.out, "%s\n", body)
			return err
		}}
}
