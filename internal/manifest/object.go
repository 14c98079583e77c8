// Package manifest loads, renders and orders Kubernetes objects.
package manifest

import (
	stdjson "encoding/json"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
)

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

// wire is an object with its origin, as it is kept and sent.
type wire struct {
	Origin string         `json:"origin,omitempty"`
	Object map[string]any `json:"object"`
}

// MarshalJSON keeps the origin, which the object alone would lose.
func (o Object) MarshalJSON() ([]byte, error) {
	return stdjson.Marshal(wire{Origin: o.Origin, Object: o.Object})
}

// UnmarshalJSON reads what MarshalJSON wrote. Whole numbers stay whole, as the Kubernetes libraries expect them.
func (o *Object) UnmarshalJSON(body []byte) error {
	var w wire
	if err := json.Unmarshal(body, &w); err != nil {
		return err
	}
	o.Origin, o.Object = w.Origin, w.Object
	return nil
}
