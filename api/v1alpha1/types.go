// Package v1alpha1 is how deliveries are kept in a cluster: the resources Delivery and DeliveryAction of sluice.dev.
//
// The definitions in config/crd and in the chart, and the deep copies in this package, are generated from these types.
//
// +kubebuilder:object:generate=true
// +groupName=sluice.dev
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Delivery is one run of a deploy file. Its specification never changes; a controller carries it out and keeps in its status
// how far it is.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=deliveries,scope=Namespaced,categories=sluice
// +kubebuilder:selectablefield:JSONPath=`.spec.application`
// +kubebuilder:printcolumn:name="Application",type=string,JSONPath=`.spec.application`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Target",type=string,JSONPath=`.status.target`
// +kubebuilder:printcolumn:name="Step",type=string,JSONPath=`.status.step`
// +kubebuilder:printcolumn:name="Since",type=date,JSONPath=`.status.since`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.reason`
type Delivery struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="the specification of a delivery never changes: start another one"
	Spec   DeliverySpec   `json:"spec"`
	Status DeliveryStatus `json:"status,omitempty"`
}

// DeliverySpec is what a delivery is to do. The plan itself, with its manifests, is in the Secrets that it names, because
// there may be Secrets among the manifests.
type DeliverySpec struct {
	// Application is what is delivered; one delivery of it runs at a time.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Application string `json:"application"`

	// Plan says where the whole plan is.
	Plan PlanRef `json:"plan"`

	// Steps are the steps of the plan without their arguments, for people.
	//
	// +kubebuilder:validation:MaxItems=2000
	// +listType=map
	// +listMapKey=path
	Steps []Step `json:"steps,omitempty"`

	// By is who started it.
	//
	// +kubebuilder:validation:MaxLength=512
	By string `json:"by,omitempty"`

	// EnqueueOne has it wait while another delivery of the application runs, in place of one that waits already. Without it
	// the delivery is refused then.
	EnqueueOne bool `json:"enqueueOne,omitempty"`
}

// PlanRef names the Secrets that hold a plan: JSON, compressed by gzip and cut into parts of at most 512 KiB, each under the
// key "part" of an immutable Secret in the delivery's namespace.
type PlanRef struct {
	// Secrets are the names of the parts, in order.
	//
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	Secrets []string `json:"secrets"`

	// SHA256 is the digest of the uncompressed plan, in hexadecimal.
	//
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{64}$`
	SHA256 string `json:"sha256"`
}

// Step is one step of a plan.
type Step struct {
	// Path names the step within its delivery.
	Path string `json:"path"`
	// Title says in a few words what it does.
	Title string `json:"title,omitempty"`
	// Target is the environment that it belongs to.
	Target string `json:"target,omitempty"`
	// Phase is before, deploy or after.
	Phase string `json:"phase,omitempty"`
	// Type is the kind of step: approval, apply, setWeight and so on.
	Type string `json:"type"`
	// After are the paths of the steps that must have passed before.
	After []string `json:"after,omitempty"`
}

// DeliveryStatus is how far a delivery is.
type DeliveryStatus struct {
	// ObservedGeneration is the generation of the specification that this status is about.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// Phase is one word: Queued, Pending, Running, Paused, RollingBack, Succeeded, Failed or Cancelled.
	Phase string `json:"phase,omitempty"`

	// Reason says in one sentence why it is so.
	Reason string `json:"reason,omitempty"`

	// Target is the environment that is being delivered to, or was last.
	Target string `json:"target,omitempty"`

	// Step is the path of the step that is under way, or was last.
	Step string `json:"step,omitempty"`

	// Since is when the step began, or when the delivery ended.
	Since *metav1.Time `json:"since,omitempty"`

	// Conditions are Ready (it has succeeded), Reconciling (it is under way) and Stalled (it cannot go on by itself).
	//
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// Done is true when the delivery has ended and is cleaned up, so that another one of the application may run.
	Done bool `json:"done,omitempty"`

	// Revision counts the changes of this status.
	Revision int64 `json:"revision,omitempty"`

	// State is the state of every step: JSON, compressed by gzip. It is the controller's alone.
	State []byte `json:"state,omitempty"`

	// StateSecrets are the Secrets that hold the state in parts, where it is too large to stand here.
	StateSecrets []string `json:"stateSecrets,omitempty"`

	// BlockedBy is the delivery of the application that was running when this one was refused.
	BlockedBy string `json:"blockedBy,omitempty"`

	// Taken are the names of the actions that the delivery has looked at. Those that are refused had no effect.
	Taken []string `json:"taken,omitempty"`

	// Refused are those of the taken actions that could not be taken in: they use up no key.
	//
	// +listType=map
	// +listMapKey=action
	Refused []Refusal `json:"refused,omitempty"`

	// Journal says where the journal is.
	Journal Journal `json:"journal,omitempty"`
}

// Refusal is an action that a delivery did not take in.
type Refusal struct {
	// Action is its name.
	Action string `json:"action"`
	// Why says in one sentence why: nobody asked, not the role, too late, decided before.
	Why string `json:"why,omitempty"`
}

// Journal is the end of a delivery's journal, and says where the rest is.
type Journal struct {
	// Secrets are the Secrets that hold what came before, in order.
	Secrets []string `json:"secrets,omitempty"`
	// Records are the last records: JSON lines, compressed by gzip.
	Records []byte `json:"records,omitempty"`
	// Seq is the number of the last record.
	Seq int64 `json:"seq,omitempty"`
	// Hash is the hash of the last record, which covers all before it.
	Hash string `json:"hash,omitempty"`
}

// DeliveryList is a list of deliveries.
//
// +kubebuilder:object:root=true
type DeliveryList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Delivery `json:"items"`
}

// DeliveryAction is a decision about a delivery: an approval, a pause, the result of a webhook. It is created and never
// changed. The first of a key that can be taken in counts.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=deliveryactions,scope=Namespaced,categories=sluice
// +kubebuilder:selectablefield:JSONPath=`.spec.delivery`
// +kubebuilder:printcolumn:name="Delivery",type=string,JSONPath=`.spec.delivery`
// +kubebuilder:printcolumn:name="Action",type=string,JSONPath=`.spec.type`
// +kubebuilder:printcolumn:name="Path",type=string,JSONPath=`.spec.path`
// +kubebuilder:printcolumn:name="By",type=string,JSONPath=`.spec.by`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type DeliveryAction struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="an action never changes: create another one"
	Spec DeliveryActionSpec `json:"spec"`
}

// DeliveryActionSpec is one decision.
type DeliveryActionSpec struct {
	// Delivery is the name of the delivery, in the namespace of the action.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Delivery string `json:"delivery"`

	// Type is what is decided: approve, reject, cancel, rollback, pause, resume, retry, promote, acknowledge; callback is the
	// controller's own.
	//
	// +kubebuilder:validation:MaxLength=64
	Type string `json:"type,omitempty"`

	// Path is the step that is meant; for rollback and promote it is the target.
	//
	// +kubebuilder:validation:MaxLength=1024
	Path string `json:"path,omitempty"`

	// By is who decides. It must be the name of whoever creates the action.
	//
	// +kubebuilder:validation:MaxLength=512
	By string `json:"by,omitempty"`

	// Key makes the same decision, made twice, be one; an action that is refused does not use it up. Where it is empty the
	// action's name stands for it.
	//
	// +kubebuilder:validation:MaxLength=2048
	Key string `json:"key,omitempty"`

	// At is when it was decided, where that was before the action was created.
	At *metav1.MicroTime `json:"at,omitempty"`

	// Data are what belongs to the decision.
	//
	// +kubebuilder:validation:MaxProperties=64
	Data map[string]string `json:"data,omitempty"`
}

// DeliveryActionList is a list of actions.
//
// +kubebuilder:object:root=true
type DeliveryActionList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []DeliveryAction `json:"items"`
}
