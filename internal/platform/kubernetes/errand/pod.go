package errand

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
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
	PartsEnv     = "SLUICE_ERRAND_PARTS"  // how many Secrets there are for it
	NamespaceEnv = "SLUICE_ERRAND_NAMESPACE"
	KeyEnv       = "SLUICE_ERRAND_KEY"
	InputEnv     = "SLUICE_ERRAND_INPUT"  // the file with its Input, where it has one
	shareEnv     = "JOB_COMPLETION_INDEX" // which pod of an Indexed Job it is; the cluster sets it
)

// Share returns which share of the errand this process is to do; 0 where it is not shared.
func Share() int {
	n, _ := strconv.Atoi(os.Getenv(shareEnv)) // the cluster writes a number, or nothing
	return n
}

// Input is what a Job is told by a file, because it may hold passwords.
type Input struct {
	Task      json.RawMessage   `json:"task"`
	Addresses map[string]string `json:"addresses"` // namespace/service:port → where it leads
}

// Told reads the input of the errand that this process runs, and its task into a value.
func Told(task any) (Input, error) {
	var in Input
	body, err := os.ReadFile(os.Getenv(InputEnv))
	if err != nil {
		return in, fault.WithRemedy(fault.Newf(fault.Invalid, "errands are run by Sluice's Jobs, and this process is in none"), "%s names no file", InputEnv)
	}
	// The errors would show what is in the file.
	if json.Unmarshal(body, &in) != nil || json.Unmarshal(in.Task, task) != nil {
		return in, fault.WithRemedy(fault.Newf(fault.Invalid, "the errand does not understand what it was told"), "use the image of the same version of Sluice as jobs.image of the account")
	}
	return in, nil
}

// Dial connects to a port of one of the Services that the errand was given.
func (in Input) Dial(ctx context.Context, namespace, service, port string) (net.Conn, error) {
	service, _, _ = strings.Cut(service, ".")
	address, ok := in.Addresses[Port(namespace, service, port)]
	if !ok {
		return nil, fault.Newf(fault.Denied, "a connection to port %s of Service %s in namespace %s was refused: it is not meant", port, service, namespace)
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", address)
}

// Port names a port of a Service in Input.Addresses.
func Port(namespace, service, port string) string { return namespace + "/" + service + ":" + port }

// Report writes the result of the errand that this process runs, or its error, to where the environment says: the head last,
// because it is what is waited for.
func Report(ctx context.Context, result any, failed error) error {
	secret, namespace, key := os.Getenv(SecretEnv), os.Getenv(NamespaceEnv), os.Getenv(KeyEnv)
	most, err := strconv.Atoi(os.Getenv(PartsEnv))
	if secret == "" || namespace == "" || key == "" || err != nil {
		return fault.WithRemedy(fault.Newf(fault.Invalid, "errands are run by Sluice's Jobs, and this process is in none"),
			"%s, %s, %s and %s are not set", SecretEnv, PartsEnv, NamespaceEnv, KeyEnv)
	}
	if os.Getenv(shareEnv) != "" {
		secret = Head(secret, Share())
	}
	data, err := Data(key, secret, most, result, failed)
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
	names := Names(secret, len(data))
	for i := len(data) - 1; i >= 0; i-- {
		patch, err := json.Marshal(map[string]any{"data": data[i]})
		if err != nil {
			return err
		}
		if _, err := secrets.Patch(ctx, names[i], types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "sluice-errand"}); err != nil {
			return fmt.Errorf("write the result into Secret %s/%s: %w", namespace, names[i], err)
		}
	}
	return nil
}
