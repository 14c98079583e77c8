package kube_test

import (
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/sluice-cd/sluice/lab/kube"
)

func TestParseReadsAStream(t *testing.T) {
	objects, err := kube.Parse("---\n# nothing\n---\n{apiVersion: v1, kind: Pod, metadata: {name: a}}\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: b\n")
	if err != nil || len(objects) != 2 || objects[0].GetName() != "a" || objects[1].GetKind() != "Service" {
		t.Errorf("%v, %v", objects, err)
	}
	if _, err := kube.Parse("a: [1"); err == nil {
		t.Error("a broken stream was read")
	}
}

func TestConditions(t *testing.T) {
	o := func(text string) *unstructured.Unstructured {
		objects, err := kube.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return objects[0]
	}
	ready := o(`{kind: Pod, status: {phase: Running, ready: true, conditions: [{type: Other, status: "True"}, {type: Ready, status: "True"}]}}`)
	waiting := o(`{kind: Pod, status: {phase: Pending, conditions: [{type: Ready, status: "False"}]}}`)
	fresh := o(`{kind: Pod}`)
	for name, c := range map[string]struct {
		holds func(*unstructured.Unstructured) (bool, error)
		on    *unstructured.Unstructured
		want  bool
	}{
		"ready":                  {kube.Condition("Ready"), ready, true},
		"not ready":              {kube.Condition("Ready"), waiting, false},
		"no status":              {kube.Condition("Ready"), fresh, false},
		"conditions are null":    {kube.Condition("Ready"), o(`{kind: Pod, status: {conditions: null}}`), false},
		"a field":                {kube.Field("true", "status", "ready"), ready, true},
		"another value":          {kube.Field("Running", "status", "phase"), waiting, false},
		"a field that is absent": {kube.Field("", "status", "phase"), fresh, false},
		"not ended":              {kube.PodSucceeded, ready, false},
		"a job that runs":        {kube.JobComplete, o(`{kind: Job, status: {conditions: []}}`), false},
		"a job that is complete": {kube.JobComplete, o(`{kind: Job, status: {conditions: [{type: Complete, status: "True"}]}}`), true},
		"ended":                  {kube.PodSucceeded, o(`{kind: Pod, status: {phase: Succeeded}}`), true},
	} {
		if got, err := c.holds(c.on); got != c.want || err != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := kube.PodSucceeded(o(`{kind: Pod, status: {phase: Failed}}`)); err == nil {
		t.Error("a failed pod is waited for")
	}
	if _, err := kube.JobComplete(o(`{kind: Job, status: {conditions: [{type: Failed, status: "True"}]}}`)); err == nil {
		t.Error("a failed job is waited for")
	}
}
