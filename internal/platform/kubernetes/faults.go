package kubernetes

import (
	"errors"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-cd/sluice/internal/kube"
)

// failed gives an error of the cluster a kind and says what was tried.
func failed(err error, format string, args ...any) error { return kube.Fault(err, format, args...) }

// Fault gives an error of a cluster a kind, and says what was tried.
func Fault(err error, format string, args ...any) error { return kube.Fault(err, format, args...) }

// causes returns the causes of a refusal that have a type.
func causes(err error, of metav1.CauseType) []metav1.StatusCause {
	var s apierrors.APIStatus
	if !errors.As(err, &s) || s.Status().Details == nil {
		return nil
	}
	var out []metav1.StatusCause
	for _, c := range s.Status().Details.Causes {
		if c.Type == of {
			out = append(out, c)
		}
	}
	return out
}
