package kubernetes

import (
	"net/http"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/sluice-cd/sluice/internal/fault"
)

// Client makes requests about the kinds of one version of an API, which the scheme knows. The HTTP client may be shared.
func Client(config *rest.Config, web *http.Client, version schema.GroupVersion, scheme *runtime.Scheme) (rest.Interface, error) {
	own := rest.CopyConfig(config)
	own.APIPath, own.GroupVersion = "/apis", &version
	if version.Group == "" {
		own.APIPath = "/api"
	}
	own.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	c, err := rest.RESTClientForConfigAndClient(own, web)
	if err != nil {
		return nil, fault.Newf(fault.Invalid, "the credentials cannot be used: %w", err)
	}
	return c, nil
}
