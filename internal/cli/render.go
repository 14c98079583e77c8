package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"time"

	"github.com/sluice-cd/sluice/internal/config"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// renderWithin is how long a folder may take. Nothing is fetched, so only a chart that never ends takes longer.
const renderWithin = time.Minute

// render has the companion program render a folder. The libraries of kustomize and Helm are larger than all of this program.
func render(folder, namespace string) ([]manifest.Rendered, error) {
	args := []string{"--", folder}
	if namespace != "" {
		args = []string{"--namespace", namespace, "--", folder}
	}
	program := config.Companion("/render")
	ctx, cancel := context.WithTimeout(context.Background(), renderWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, fault.Newf(fault.Invalid, "%s was not rendered within %s", folder, renderWithin)
	}
	if _, ended := errors.AsType[*exec.ExitError](err); ended {
		return nil, fault.Newf(fault.Invalid, "%s", strings.TrimSpace(errs.String()))
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		return nil, fault.WithRemedy(fault.Newf(fault.Invalid, "%s has to be rendered, and the program that does is not at %s", folder, program),
			"make build puts it beside sluice, $SLUICE_COMPANIONS names another folder; or give the output of kustomize build or helm template")
	}
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", folder, err)
	}
	var all []manifest.Rendered
	if err := json.Unmarshal(out.Bytes(), &all); err != nil {
		return nil, fmt.Errorf("render %s: %w", folder, err)
	}
	return all, nil
}
