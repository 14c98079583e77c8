// Package errand is how a command that runs in a Job tells its result: through a Secret that was made for it, empty, and that
// is the only one it may change. The result is sealed with a key of this one Job, so that nobody else's is believed.
package errand

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/sluice-cd/sluice/internal/fault"
)

// What a Job is told by its environment.
const (
	SecretEnv    = "SLUICE_ERRAND_SECRET" // the name of the Secret for its result
	NamespaceEnv = "SLUICE_ERRAND_NAMESPACE"
	KeyEnv       = "SLUICE_ERRAND_KEY"
)

// The fields of the Secret.
const (
	resultField = "result"
	sealField   = "seal"
)

// limit is the size of a result: what etcd takes in one piece without trouble.
const limit = 256 << 10

// report is what the Secret holds.
type report struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  *failure        `json:"error,omitempty"`
}

// failure is an error on its way between two processes.
type failure struct {
	Kind    fault.Kind `json:"kind,omitempty"`
	Message string     `json:"message"`
	Remedy  string     `json:"remedy,omitempty"`
}

// NewKey returns a key for one Job.
func NewKey() string { return rand.Text() }

// seal proves that a body was made by whoever has the key, for this Secret.
func seal(key, secret string, body []byte) string {
	h := hmac.New(sha256.New, []byte(key))
	fmt.Fprintf(h, "%d:%s:", len(secret), secret)
	h.Write(body)
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}

// Data makes the content of the Secret from a result, or from the error that there is instead.
func Data(key, secret string, result any, failed error) (map[string][]byte, error) {
	var r report
	if failed != nil {
		f := &failure{Kind: fault.KindOf(failed), Message: failed.Error()}
		if e, ok := errors.AsType[*fault.Error](failed); ok && e.Remedy != "" {
			f.Remedy, f.Message = e.Remedy, strings.TrimSuffix(f.Message, " ("+e.Remedy+")")
		}
		r.Error = f
	} else {
		body, err := json.Marshal(result)
		if err != nil {
			return nil, fmt.Errorf("write the result: %w", err)
		}
		r.Result = body
	}
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("write the result: %w", err)
	}
	if len(body) > limit {
		return Data(key, secret, nil, fault.Newf(fault.Invalid, "the result has %d KiB, more than the %d KiB that a Secret is given", len(body)>>10, limit>>10))
	}
	return map[string][]byte{resultField: body, sealField: []byte(seal(key, secret, body))}, nil
}

// Read returns the result in a Secret's content. There is none yet where told is false.
func Read(key, secret string, data map[string][]byte) (result json.RawMessage, told bool, err error) {
	body := data[resultField]
	if len(body) == 0 {
		return nil, false, nil
	}
	if !hmac.Equal([]byte(seal(key, secret, body)), data[sealField]) {
		return nil, true, fault.Newf(fault.Denied, "the result in Secret %s was not written by the Job that it was made for", secret)
	}
	var r report
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, true, fault.Newf(fault.Lost, "the result in Secret %s cannot be read: %w", secret, err)
	}
	if f := r.Error; f != nil {
		err := error(&fault.Error{Kind: f.Kind, Remedy: f.Remedy, Err: errors.New(f.Message)})
		return nil, true, err
	}
	return r.Result, true, nil
}

// Report writes the result of the errand that this process runs, or its error, to where the environment says.
func Report(ctx context.Context, result any, failed error) error {
	secret, namespace, key := os.Getenv(SecretEnv), os.Getenv(NamespaceEnv), os.Getenv(KeyEnv)
	if secret == "" || namespace == "" || key == "" {
		return fault.WithRemedy(fault.Newf(fault.Invalid, "errands are run by Sluice's Jobs, and this process is in none"), "%s, %s and %s are not set", SecretEnv, NamespaceEnv, KeyEnv)
	}
	data, err := Data(key, secret, result, failed)
	if err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"data": data})
	if err != nil {
		return err
	}
	config, err := rest.InClusterConfig()
	if err != nil {
		return fmt.Errorf("reach the cluster from its pod: %w", err)
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("reach the cluster from its pod: %w", err)
	}
	secrets := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}).Namespace(namespace)
	if _, err := secrets.Patch(ctx, secret, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "sluice-errand"}); err != nil {
		return fmt.Errorf("write the result into Secret %s/%s: %w", namespace, secret, err)
	}
	return nil
}
