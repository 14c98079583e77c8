// Package crds pins the modules whose CustomResourceDefinitions tests install: go list -m tells where their files are. Nothing
// of them is compiled into anything.
package crds
