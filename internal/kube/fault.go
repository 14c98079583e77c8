package kube

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/sluice-cd/sluice/internal/fault"
)

// Fault gives an error of the cluster a kind and says what was tried.
func Fault(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	did := fmt.Sprintf(format, args...)
	if fault.KindOf(err) != "" {
		return fmt.Errorf("%s: %w", did, err)
	}
	kind, remedy := classify(err)
	if kind == "" {
		return fmt.Errorf("%s: %w", did, err)
	}
	out := fault.Newf(kind, "%s: %w", did, err)
	if remedy == "" {
		return out
	}
	return fault.WithRemedy(out, "%s", remedy)
}

// classify tells what may be done about an error of the cluster.
func classify(err error) (kind fault.Kind, remedy string) {
	switch {
	case apierrors.IsUnauthorized(err):
		return fault.Denied, "the cluster does not accept the account's credentials, or no longer: renew them"
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return fault.Conflict, "the namespace is being deleted: wait until it is gone"
	case apierrors.IsForbidden(err) && strings.Contains(err.Error(), "exceeded quota"):
		return fault.Denied, "raise the namespace's ResourceQuota or ask for less"
	case apierrors.IsForbidden(err):
		return fault.Denied, "give the account's user a role that allows it"
	case apierrors.IsNotFound(err):
		return fault.NotFound, ""
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return fault.Conflict, ""
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsMethodNotSupported(err), apierrors.IsRequestEntityTooLargeError(err),
		apierrors.IsUnsupportedMediaType(err), apierrors.IsNotAcceptable(err):
		return fault.Invalid, ""
	case apierrors.IsInternalError(err) && strings.Contains(err.Error(), "failed to create typed patch object"),
		apierrors.IsInternalError(err) && strings.Contains(err.Error(), "failed to create manager for existing fields"):
		return fault.Invalid, "" // a field that the kind does not have is told as an error of the server
	case apierrors.IsTooManyRequests(err), apierrors.IsServerTimeout(err), apierrors.IsTimeout(err), apierrors.IsServiceUnavailable(err),
		apierrors.IsInternalError(err), apierrors.IsUnexpectedServerError(err), apierrors.IsResourceExpired(err):
		return fault.Transient, ""
	case errors.Is(err, context.DeadlineExceeded):
		return fault.Transient, ""
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fault.Denied, "the certificate of the cluster is not one that the kubeconfig trusts"
	}
	if strings.Contains(err.Error(), "getting credentials") {
		return fault.Denied, "the program that the kubeconfig names gives no credentials: log in again"
	}
	_, isURL := errors.AsType[*url.Error](err)
	_, isNet := errors.AsType[net.Error](err)
	if isURL || isNet {
		return fault.Transient, "the cluster cannot be reached"
	}
	return "", ""
}
