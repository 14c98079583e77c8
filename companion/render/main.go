// Command render turns a kustomization or a Helm chart into manifests, by the libraries of kustomize and Helm. It reads the
// files of a folder, and of the folders that a kustomization has as its bases: nothing is fetched, no program is run, no cluster is asked.
//
//	render [--namespace NAME] FOLDER
//
// It prints a JSON list of {"file", "body"}: what came of each file. An error is one line, and exit code 1.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
)

// rendered is what came of a file.
type rendered struct {
	File string `json:"file"`
	Body string `json:"body"`
}

func main() {
	namespace := flag.String("namespace", "default", "`namespace` of the release")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: render [--namespace NAME] FOLDER")
		os.Exit(2)
	}
	shut()
	out, err := render(flag.Arg(0), *namespace)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// errShut is the answer to whatever would leave this machine.
var errShut = errors.New("nothing is fetched: put the files beside the others")

type shutTransport struct{}

// RoundTrip refuses.
func (shutTransport) RoundTrip(*http.Request) (*http.Response, error) { return nil, errShut }

// shut has the libraries reach nothing: kustomize would fetch resources by HTTP and by git, which it would find on the PATH.
func shut() {
	http.DefaultTransport = shutTransport{}
	_ = os.Setenv("PATH", "")
}

// render chooses by what the folder holds.
func render(folder, namespace string) ([]rendered, error) {
	if there(filepath.Join(folder, "Chart.yaml")) {
		return chart(folder, namespace)
	}
	for _, name := range []string{"kustomization.yaml", "kustomization.yml", "Kustomization"} {
		if there(filepath.Join(folder, name)) {
			return kustomization(folder, name)
		}
	}
	return nil, fmt.Errorf("%s holds neither a kustomization nor a Helm chart", folder)
}

func there(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
