//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apimachinery/pkg/watch"
)

// stork stands in for Stork, whose Migration copies volumes on Portworx alone. It carries the Migrations of production's
// namespace out as far as the story needs: every claim there is cut by a snapshot of its CSI driver, which is handed on to
// the same namespace of staging, where the claim of that name is replaced. As with Stork a Migration ends in the stage Final
// whether it went well or not, and its volumes say why.
type stork struct {
	t        *testing.T
	from, to *shopCluster
	cut      func() // is called just before a volume is cut
	done     sync.WaitGroup
}

// What it works on.
const (
	migrations = "migrations.stork.libopenstorage.org/v1alpha1"
	claims     = "persistentvolumeclaims"
	snapshots  = "volumesnapshots.snapshot.storage.k8s.io"
	contents   = "volumesnapshotcontents.snapshot.storage.k8s.io"
)

// start carries Migrations out until the test ends.
func (s *stork) start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.t.Cleanup(func() {
		cancel()
		s.done.Wait()
	})
	s.done.Go(func() {
		for ctx.Err() == nil {
			// The server ends a watch from time to time. A new one begins with what is there.
			if err := s.follow(ctx); err != nil && ctx.Err() == nil {
				s.t.Errorf("the stand-in for Stork: %v", err)
				return
			}
		}
	})
}

func (s *stork) follow(ctx context.Context) error {
	w, err := s.from.of(s.from.namespace, migrations).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		m, ok := e.Object.(*unstructured.Unstructured)
		if !ok || e.Type != watch.Added {
			continue
		}
		if stage, _, _ := unstructured.NestedString(m.Object, "status", "stage"); stage != "" {
			continue
		}
		if err := s.migrate(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// migrate copies all volumes and says in the status how it went.
func (s *stork) migrate(ctx context.Context, m *unstructured.Unstructured) error {
	if err := s.tell(ctx, m, map[string]any{"stage": "Volumes", "status": "InProgress"}); err != nil {
		return err
	}
	all, err := s.from.of(s.from.namespace, claims).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	status := "Successful"
	var volumes []any
	for _, c := range all.Items {
		v := map[string]any{"namespace": s.from.namespace, "persistentVolumeClaim": c.GetName(), "status": "Successful"}
		within, cancel := context.WithTimeout(ctx, time.Minute)
		if err := s.copy(within, &c); err != nil {
			status, v["status"], v["reason"] = "Failed", "Failed", err.Error()
		}
		cancel()
		volumes = append(volumes, v)
	}
	return s.tell(ctx, m, map[string]any{"stage": "Final", "status": status, "volumes": volumes, "finishTimestamp": time.Now().UTC().Format(time.RFC3339)})
}

func (s *stork) tell(ctx context.Context, m *unstructured.Unstructured, status map[string]any) error {
	m.Object["status"] = status
	now, err := s.from.of(s.from.namespace, migrations).UpdateStatus(ctx, m, metav1.UpdateOptions{})
	if err == nil {
		*m = *now
	}
	return err
}

// copy replaces staging's claim by a copy of production's.
func (s *stork) copy(ctx context.Context, claim *unstructured.Unstructured) (err error) {
	name := claim.GetName()
	if err := s.free(ctx, name); err != nil {
		return err
	}
	s.cut()
	// What is made on the way belongs to nobody afterwards, so it goes whatever happens.
	defer func() {
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, s.to.without(after, s.to.namespace, snapshots, name), s.to.without(after, "", contents, s.content()),
			s.from.without(after, s.from.namespace, snapshots, name))
	}()
	driver, handle, err := s.snapshot(ctx, name)
	if err != nil {
		return err
	}
	if err := s.to.without(ctx, s.to.namespace, claims, name); err != nil {
		return err
	}
	size, _, err := unstructured.NestedString(claim.Object, "spec", "resources", "requests", "storage")
	if err != nil {
		return err
	}
	for _, o := range []struct {
		resource, namespace, text string
	}{
		{contents, "", fmt.Sprintf(`{apiVersion: snapshot.storage.k8s.io/v1, kind: VolumeSnapshotContent, metadata: {name: %s}, spec: {deletionPolicy: Retain,
			driver: %s, source: {snapshotHandle: %q}, sourceVolumeMode: Filesystem, volumeSnapshotRef: {namespace: %s, name: %s}}}`, s.content(), driver, handle, s.to.namespace, name)},
		{snapshots, s.to.namespace, fmt.Sprintf(`{apiVersion: snapshot.storage.k8s.io/v1, kind: VolumeSnapshot, metadata: {name: %s}, spec: {source: {volumeSnapshotContentName: %s}}}`, name, s.content())},
		{claims, s.to.namespace, fmt.Sprintf(`{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: %s}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: %s}},
			dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: %s}}}`, name, size, name)},
	} {
		if err := s.to.create(ctx, o.namespace, o.resource, o.text); err != nil {
			return err
		}
	}
	_, err = s.to.await(ctx, s.to.namespace, claims, name, func(o *unstructured.Unstructured) (bool, error) {
		phase := ""
		if o != nil {
			phase, _, _ = unstructured.NestedString(o.Object, "status", "phase")
		}
		return phase == "Bound", nil
	})
	return err
}

// content is the name of the snapshot's content in staging, where it has no namespace.
func (s *stork) content() string { return s.to.namespace + "-handed-on" }

// free reports whether no pod of staging holds the claim.
func (s *stork) free(ctx context.Context, claim string) error {
	pods, err := s.to.platform.List(ctx, "Pod", s.to.namespace)
	if err != nil {
		return err
	}
	for _, o := range pods {
		var p corev1.Pod
		if err := o.Into(&p); err != nil {
			return err
		}
		for _, v := range p.Spec.Volumes {
			if v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claim {
				return fmt.Errorf("volume of claim %s is in use by pod %s of the destination", claim, p.Name)
			}
		}
	}
	return nil
}

// snapshot cuts production's claim and returns the driver, and the handle by which it knows the cut.
func (s *stork) snapshot(ctx context.Context, claim string) (driver, handle string, err error) {
	if err := s.from.create(ctx, s.from.namespace, snapshots, fmt.Sprintf(`{apiVersion: snapshot.storage.k8s.io/v1, kind: VolumeSnapshot, metadata: {name: %s},
		spec: {source: {persistentVolumeClaimName: %s}}}`, claim, claim)); err != nil {
		return "", "", err
	}
	cut, err := s.from.await(ctx, s.from.namespace, snapshots, claim, func(o *unstructured.Unstructured) (bool, error) {
		if o == nil {
			return false, nil
		}
		if message, found, _ := unstructured.NestedString(o.Object, "status", "error", "message"); found {
			return false, errors.New(message)
		}
		ready, _, err := unstructured.NestedBool(o.Object, "status", "readyToUse")
		return ready, err
	})
	if err != nil {
		return "", "", err
	}
	name, _, _ := unstructured.NestedString(cut.Object, "status", "boundVolumeSnapshotContentName")
	content, err := s.from.of("", contents).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", "", err
	}
	driver, _, err = unstructured.NestedString(content.Object, "spec", "driver")
	if err != nil {
		return "", "", err
	}
	handle, _, err = unstructured.NestedString(content.Object, "status", "snapshotHandle")
	return driver, handle, err
}

// create makes one object of YAML.
func (c *shopCluster) create(ctx context.Context, namespace, resource, text string) error {
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
		return err
	}
	_, err := c.of(namespace, resource).Create(ctx, o, metav1.CreateOptions{})
	return err
}
