package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/httpstream" //nolint:staticcheck // client-go dials with the type of this package
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"

	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/manifest"
)

// Dial implements platform.Platform: through the API server to a ready pod of the Service, never to the host that a name means
// to this machine. A fence does not hold Sluice back.
func (p *Platform) Dial(ctx context.Context, service manifest.Ref, port string) (net.Conn, error) {
	return p.DialMember(ctx, service, "", port)
}

// DialMember implements platform.Members; with no name any pod will do.
func (p *Platform) DialMember(ctx context.Context, service manifest.Ref, member, port string) (net.Conn, error) {
	s, all, err := p.behind(ctx, service)
	if err != nil {
		return nil, err
	}
	target, err := targetOf(s, port)
	if err != nil {
		return nil, err
	}
	found := slices.DeleteFunc(all, func(pod corev1.Pod) bool { return member != "" && pod.Name != member })
	for _, pod := range found {
		if n := portOf(pod, target); n != 0 {
			return p.forward(ctx, pod, n)
		}
	}
	if len(found) > 0 {
		return nil, fault.Newf(fault.NotFound, "no pod of Service %s has the port %s", service, target.String())
	}
	if member != "" {
		return nil, fault.Newf(fault.Transient, "pod %s is not ready, or Service %s does not lead to it", member, service)
	}
	return nil, fault.Newf(fault.Transient, "no pod of Service %s is ready", service)
}

// behind returns a Service, as it is when it is open, and the ready pods that it then leads to, by their names.
func (p *Platform) behind(ctx context.Context, service manifest.Ref) (s corev1.Service, found []corev1.Pod, err error) {
	live, err := p.read(ctx, service)
	if err != nil {
		return s, nil, err
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(live.Object, &s); err != nil {
		return s, nil, fault.Newf(fault.Invalid, "Service %s cannot be read: %w", service, err)
	}
	delete(s.Spec.Selector, openLabel)
	if len(s.Spec.Selector) == 0 {
		return s, nil, fault.Newf(fault.Invalid, "Service %s has no selector, so it has no pods", service)
	}
	list, err := p.dynamic.Resource(pods()).Namespace(service.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: labels.SelectorFromSet(s.Spec.Selector).String()})
	if err != nil {
		return s, nil, failed(err, "list the pods of Service %s", service)
	}
	for _, u := range list.Items {
		var pod corev1.Pod
		if runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &pod) == nil && ready(&pod) && pod.DeletionTimestamp == nil {
			found = append(found, pod)
		}
	}
	slices.SortFunc(found, func(a, b corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	return s, found, nil
}

// targetOf returns where a port of a Service leads.
func targetOf(s corev1.Service, port string) (intstr.IntOrString, error) {
	for _, sp := range s.Spec.Ports {
		if port != "" && port != sp.Name && port != strconv.Itoa(int(sp.Port)) || port == "" && len(s.Spec.Ports) > 1 {
			continue
		}
		if sp.TargetPort.String() == "0" || sp.TargetPort.String() == "" {
			return intstr.FromInt32(sp.Port), nil
		}
		return sp.TargetPort, nil
	}
	if port == "" && len(s.Spec.Ports) > 1 {
		return intstr.IntOrString{}, fault.Newf(fault.Invalid, "Service %s/%s has %d ports: name one", s.Namespace, s.Name, len(s.Spec.Ports))
	}
	return intstr.IntOrString{}, fault.Newf(fault.NotFound, "Service %s/%s has no port %q", s.Namespace, s.Name, port)
}

// portOf returns the number of a port of a pod, 0 where it has none of the name.
func portOf(pod corev1.Pod, target intstr.IntOrString) int {
	if target.Type == intstr.Int {
		return target.IntValue()
	}
	for _, c := range pod.Spec.Containers {
		for _, cp := range c.Ports {
			if cp.Name == target.StrVal {
				return int(cp.ContainerPort)
			}
		}
	}
	return 0
}

// forward connects to a port of a pod.
func (p *Platform) forward(ctx context.Context, pod corev1.Pod, port int) (net.Conn, error) {
	url := p.pods.Post().Namespace(pod.Namespace).Resource("pods").Name(pod.Name).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(p.config)
	if err != nil {
		return nil, failed(err, "reach pod %s/%s", pod.Namespace, pod.Name)
	}
	old := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	websocket, err := portforward.NewSPDYOverWebsocketDialer(url, p.config)
	if err != nil {
		return nil, failed(err, "reach pod %s/%s", pod.Namespace, pod.Name)
	}
	dialer := portforward.NewFallbackDialer(websocket, old, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	type dialed struct {
		conn net.Conn
		err  error
	}
	// The dialer knows no context.
	done := make(chan dialed, 1)
	go func() {
		c, err := tunnel(dialer, port, p.c.Conn)
		done <- dialed{c, err}
	}()
	select {
	case d := <-done:
		if d.err != nil {
			return nil, failed(d.err, "reach port %d of pod %s/%s", port, pod.Namespace, pod.Name)
		}
		return d.conn, nil
	case <-ctx.Done():
		go func() {
			if d := <-done; d.conn != nil {
				_ = d.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// tunnel opens a connection for one stream of bytes. The dialers make connections of their own, so guard, where there is one,
// stands before what is written to the stream: what it refuses ends the connection.
func tunnel(d httpstream.Dialer, port int, guard func(net.Conn) net.Conn) (net.Conn, error) {
	c, _, err := d.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		return nil, err
	}
	h := http.Header{}
	h.Set(corev1.PortHeader, strconv.Itoa(port))
	h.Set(corev1.PortForwardRequestIDHeader, "0")
	h.Set(corev1.StreamType, corev1.StreamTypeError)
	complaints, err := c.CreateStream(h)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	_ = complaints.Close() // we have nothing to say on it
	h.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := c.CreateStream(h)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	near, far := net.Pipe()
	var out net.Conn = outward{far, data}
	if guard != nil {
		out = guard(out)
	}
	f := &forwarded{Conn: near}
	broke := func(why error) {
		f.broken.CompareAndSwap(nil, &why)
		_ = far.Close()
	}
	go func() {
		if text, err := io.ReadAll(complaints); err == nil && len(text) > 0 {
			broke(silent(string(text)))
		}
	}()
	go func() {
		_, _ = io.Copy(far, data)
		_ = far.Close()
	}()
	go func() {
		if _, err := io.Copy(out, far); fault.Is(err, fault.Lost) {
			broke(err)
		}
		_ = data.Close()
		_ = c.Close()
	}()
	return f, nil
}

// outward is the near end of a tunnel as a guard sees it: what is written to it goes to the pod.
type outward struct {
	net.Conn
	data io.Writer
}

// Write implements net.Conn.
func (o outward) Write(b []byte) (int, error) { return o.data.Write(b) }

// silent is the error of a pod that takes no connection. The way through the API server ends at the pod's loopback address.
func silent(complaint string) error {
	err := fmt.Errorf("the pod does not answer: %s", complaint)
	if !strings.Contains(complaint, "refused") {
		return err
	}
	return fault.WithRemedy(fault.Newf(fault.Transient, "%w", err), "what runs in it must listen on all its addresses (0.0.0.0), because Sluice comes in by the loopback address")
}

// forwarded is a connection through the API server. Where it ended otherwise than by one of its ends, broken says why.
type forwarded struct {
	net.Conn
	broken atomic.Pointer[error]
}

// Write sends to the pod; where that has complained, or it is no longer ours to write, that is why it fails.
func (f *forwarded) Write(b []byte) (int, error) {
	n, err := f.Conn.Write(b)
	if err != nil {
		if why := f.broken.Load(); why != nil {
			return n, *why
		}
	}
	return n, err
}

// Read returns what the pod sends, and at its end why there is one.
func (f *forwarded) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	if err != nil {
		if why := f.broken.Load(); why != nil {
			return n, *why
		}
	}
	return n, err
}
