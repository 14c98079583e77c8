// Package manifest loads, renders and orders Kubernetes objects.
package manifest

import "k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

// Object is one Kubernetes object and where it was read.
type Object struct {
	unstructured.Unstructured
	Origin string // file:line, for messages
}

// Ref names an object: "StatefulSet/mongo" in a namespace.
type Ref struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// String returns namespace/Kind/name.
func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + "/" + r.Name
	}
	return r.Namespace + "/" + r.Kind + "/" + r.Name
}

// Ref returns the object's name.
func (o Object) Ref() Ref {
	return Ref{Kind: o.GetKind(), Namespace: o.GetNamespace(), Name: o.GetName()}
}
