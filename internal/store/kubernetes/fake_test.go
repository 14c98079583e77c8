package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// fake is as much of an API server as the store asks for, so that a test can lose answers and hold back what watches tell.
// Who asks is the token of the request.
type fake struct {
	*httptest.Server

	mu       sync.Mutex
	version  int
	objects  map[string]map[string]any // by <resource>/<name>
	watchers map[chan []byte]watched
	// answered may change the answer to a request that was carried out; 0 leaves it.
	answered func(r *http.Request) int
	// mayNot says which requests are forbidden.
	mayNot func(user, method, resource string) bool
	held   bool // watches tell nothing
	late   []func()
}

type watched struct {
	resource string
	query    selectors
}

type selectors struct{ fields, labels string }

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{objects: map[string]map[string]any{}, watchers: map[chan []byte]watched{}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(func() {
		f.CloseClientConnections()
		f.Close()
	})
	return f
}

func (f *fake) as(user string) *rest.Config {
	return &rest.Config{Host: f.URL, BearerToken: user, QPS: -1}
}

func (f *fake) config(t *testing.T, user string) Config {
	return Config{Credentials: f.as(user), Namespace: "sluice", Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

func (f *fake) users(t *testing.T) users {
	return func(user string) Config { return f.config(t, user) }
}

func (f *fake) remote(t *testing.T, user string) *Remote {
	t.Helper()
	return f.users(t).remote(t, user)
}

func (f *fake) open(t *testing.T, o Config) *Store {
	t.Helper()
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// hold has watches tell nothing until the function that it returns is called.
func (f *fake) hold() (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held = true
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.held = false
		for _, tell := range f.late {
			tell()
		}
		f.late = nil
	}
}

// names are the names of the objects of a resource.
func (f *fake) names(resource string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for k := range f.objects {
		if name, ok := strings.CutPrefix(k, resource+"/"); ok {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// told waits until there are so many Events that a test asks for, and returns them.
func told(t *testing.T, c *client, most int, asked func(corev1.Event) bool) []corev1.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	change := make(chan struct{}, 1)
	i := informer(c, events, fields.Everything(), &corev1.Event{}, cache.Indexers{})
	if _, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) {
		select {
		case change <- struct{}{}:
		default:
		}
	}}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { i.RunWithContext(ctx) })
	cache.WaitForCacheSync(ctx.Done(), i.HasSynced)
	for {
		var out []corev1.Event
		for _, v := range i.GetStore().List() {
			if e, ok := v.(*corev1.Event); ok && asked(*e) {
				out = append(out, *e)
			}
		}
		if len(out) >= most {
			return out
		}
		select {
		case <-change:
		case <-ctx.Done():
			t.Fatalf("told are %d Events and not %d: %+v", len(out), most, out)
		}
	}
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if strings.HasSuffix(r.URL.Path, "/selfsubjectreviews") {
		answer(w, http.StatusCreated, map[string]any{"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1", "status": map[string]any{"userInfo": map[string]any{"username": user}}})
		return
	}
	_, path, _ := strings.Cut(r.URL.Path, "/namespaces/sluice/")
	parts := append(strings.Split(path, "/"), "", "")
	resource, name, sub := parts[0], parts[1], parts[2]
	f.mu.Lock()
	mayNot, answered := f.mayNot, f.answered
	f.mu.Unlock()
	if mayNot != nil && mayNot(user, r.Method, resource) {
		refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden, resource+" is forbidden for "+user)
		return
	}
	q := r.URL.Query()
	if q.Get("watch") == "true" {
		f.watch(w, r, resource, selectors{q.Get("fieldSelector"), q.Get("labelSelector")}, q.Get("resourceVersion"))
		return
	}
	var body map[string]any
	if r.Body != nil {
		_ = json.NewDecoder(r.Body).Decode(&body)
	}
	code, out := f.serve(r, resource, name, sub, body)
	if answered != nil {
		if other := answered(r); other != 0 {
			code, out = other, failure(other, metav1.StatusReasonTimeout, "the answer is lost")
		}
	}
	answer(w, code, out)
}

func (f *fake) serve(r *http.Request, resource, name, sub string, body map[string]any) (int, map[string]any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Method == http.MethodGet && name == "" {
		items := []any{}
		for _, k := range slices.Sorted(maps.Keys(f.objects)) {
			if o := f.objects[k]; strings.HasPrefix(k, resource+"/") && (selectors{r.URL.Query().Get("fieldSelector"), r.URL.Query().Get("labelSelector")}).match(o) {
				items = append(items, o)
			}
		}
		return http.StatusOK, map[string]any{"kind": kinds()[resource] + "List", "apiVersion": versionOf(resource), "items": items, "metadata": map[string]any{"resourceVersion": strconv.Itoa(f.version)}}
	}
	if r.Method == http.MethodPost {
		name, _ = metadata(body)["name"].(string)
		if f.objects[resource+"/"+name] != nil {
			return http.StatusConflict, failure(http.StatusConflict, metav1.StatusReasonAlreadyExists, name+" exists already")
		}
		metadata(body)["uid"] = fmt.Sprintf("uid-%d", f.version)
		metadata(body)["creationTimestamp"] = time.Now().UTC().Format(time.RFC3339)
		if resource == deliveries {
			delete(body, "status")
		}
		return http.StatusCreated, f.put("ADDED", resource, body)
	}
	old := f.objects[resource+"/"+name]
	if old == nil {
		return http.StatusNotFound, failure(http.StatusNotFound, metav1.StatusReasonNotFound, name+" is not found")
	}
	switch r.Method {
	case http.MethodPut, http.MethodPatch:
		if at, given := metadata(body)["resourceVersion"]; given && at != metadata(old)["resourceVersion"] {
			return http.StatusConflict, failure(http.StatusConflict, metav1.StatusReasonConflict, name+" has changed")
		}
		next := copied(old)
		switch {
		case sub == "status":
			next["status"] = body["status"]
		case r.Method == http.MethodPut:
			next = body
		default:
			merged(next, body)
		}
		if left, _ := metadata(next)["finalizers"].([]any); metadata(next)["deletionTimestamp"] != nil && len(left) == 0 {
			return http.StatusOK, f.put("DELETED", resource, next)
		}
		return http.StatusOK, f.put("MODIFIED", resource, next)
	case http.MethodDelete:
		p, _ := body["preconditions"].(map[string]any)
		if uid := p["uid"]; uid != nil && uid != metadata(old)["uid"] {
			return http.StatusConflict, failure(http.StatusConflict, metav1.StatusReasonConflict, name+" is another one")
		}
		next := copied(old)
		if left, _ := metadata(next)["finalizers"].([]any); len(left) > 0 {
			metadata(next)["deletionTimestamp"] = time.Now().UTC().Format(time.RFC3339)
			return http.StatusOK, f.put("MODIFIED", resource, next)
		}
		return http.StatusOK, f.put("DELETED", resource, next)
	}
	return http.StatusOK, old
}

// put keeps an object, or removes it, and tells the watches. It is called with the lock.
func (f *fake) put(event, resource string, o map[string]any) map[string]any {
	f.version++
	o["kind"], o["apiVersion"] = kinds()[resource], versionOf(resource)
	metadata(o)["namespace"], metadata(o)["resourceVersion"] = "sluice", strconv.Itoa(f.version)
	name, _ := metadata(o)["name"].(string)
	f.objects[resource+"/"+name] = o
	if event == "DELETED" {
		delete(f.objects, resource+"/"+name)
	}
	line, _ := json.Marshal(map[string]any{"type": event, "object": o})
	tell := func() {
		for c, w := range f.watchers {
			if w.resource == resource && w.query.match(o) {
				c <- line
			}
		}
	}
	if f.held {
		f.late = append(f.late, tell)
	} else {
		tell()
	}
	return o
}

func (f *fake) watch(w http.ResponseWriter, r *http.Request, resource string, q selectors, since string) {
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		refuse(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "no streaming of lists")
		return
	}
	c := make(chan []byte, 10000)
	f.mu.Lock()
	after, _ := strconv.Atoi(since)
	for k, o := range f.objects {
		at, _ := strconv.Atoi(fmt.Sprint(metadata(o)["resourceVersion"]))
		if strings.HasPrefix(k, resource+"/") && at > after && q.match(o) {
			line, _ := json.Marshal(map[string]any{"type": "ADDED", "object": o})
			c <- line
		}
	}
	f.watchers[c] = watched{resource, q}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.watchers, c)
		f.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "application/json")
	_ = http.NewResponseController(w).Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case line := <-c:
			_, _ = w.Write(line)
			_ = http.NewResponseController(w).Flush()
		}
	}
}

func (s selectors) match(o map[string]any) bool {
	for term := range strings.SplitSeq(s.fields, ",") {
		path, want, _ := strings.Cut(term, "=")
		var at any = o
		for part := range strings.SplitSeq(path, ".") {
			in, _ := at.(map[string]any)
			at = in[part]
		}
		if term != "" && at != want {
			return false
		}
	}
	labels, _ := metadata(o)["labels"].(map[string]any)
	key, want, _ := strings.Cut(s.labels, "=")
	return s.labels == "" || labels[key] == want
}

func kinds() map[string]string {
	return map[string]string{deliveries: "Delivery", actions: "DeliveryAction", secrets: "Secret", leases: "Lease", events: "Event"}
}

func versionOf(resource string) string {
	switch resource {
	case deliveries, actions:
		return "sluice.dev/v1alpha1"
	case leases:
		return "coordination.k8s.io/v1"
	}
	return "v1"
}

func metadata(o map[string]any) map[string]any {
	m, _ := o["metadata"].(map[string]any)
	if m == nil {
		m = map[string]any{}
		o["metadata"] = m
	}
	return m
}

func copied(o map[string]any) map[string]any {
	body, _ := json.Marshal(o)
	out := map[string]any{}
	_ = json.Unmarshal(body, &out)
	return out
}

func merged(into, patch map[string]any) {
	for k, v := range patch {
		in, is := into[k].(map[string]any)
		with, also := v.(map[string]any)
		switch {
		case v == nil:
			delete(into, k)
		case is && also:
			merged(in, with)
		default:
			into[k] = v
		}
	}
}

func failure(code int, reason metav1.StatusReason, message string) map[string]any {
	return map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": string(reason), "message": message}
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	answer(w, code, failure(code, reason, message))
}

func answer(w http.ResponseWriter, code int, body map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}
