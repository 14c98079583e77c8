package stream

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"time"

	"github.com/sluice-cd/sluice/internal/fault"
)

// receiverName is whom the sender wants to speak to, wherever that one is reached.
const receiverName = "receiver.stream.sluice.dev"

// Identity is what an end of one transfer proves itself with, and by whom it knows the other.
type Identity struct {
	Certificate []byte `json:"certificate"` // all as PEM
	Key         []byte `json:"key"`
	Authority   []byte `json:"authority"`
}

// NewIdentities makes the identities of both ends of one transfer. The key that signs them is forgotten with the return, so that
// nobody else is ever believed. An end cannot pass for the other.
func NewIdentities(valid time.Duration) (sender, receiver Identity, err error) {
	now := time.Now()
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "one transfer of Sluice"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(valid),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return sender, receiver, err
	}
	signed, err := x509.CreateCertificate(rand.Reader, authority, authority, key.Public(), key)
	if err != nil {
		return sender, receiver, err
	}
	one := func(serial int64, name string, use x509.ExtKeyUsage) (Identity, error) {
		its, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return Identity{}, err
		}
		c, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
			NotBefore: authority.NotBefore, NotAfter: authority.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{use}}, authority, its.Public(), key)
		if err != nil {
			return Identity{}, err
		}
		private, err := x509.MarshalPKCS8PrivateKey(its)
		return Identity{Certificate: block("CERTIFICATE", c), Key: block("PRIVATE KEY", private), Authority: block("CERTIFICATE", signed)}, err
	}
	if sender, err = one(2, "sender.stream.sluice.dev", x509.ExtKeyUsageClientAuth); err == nil {
		receiver, err = one(3, receiverName, x509.ExtKeyUsageServerAuth)
	}
	return sender, receiver, err
}

func block(kind string, body []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: body})
}

// config is for either end; each refuses who has no certificate of this transfer.
func (i Identity) config() (*tls.Config, error) {
	own, err := tls.X509KeyPair(i.Certificate, i.Key)
	others := x509.NewCertPool()
	if err != nil || !others.AppendCertsFromPEM(i.Authority) {
		return nil, fault.Newf(fault.Invalid, "the identity of this end of the stream cannot be read: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{own}, RootCAs: others, ServerName: receiverName,
		ClientCAs: others, ClientAuth: tls.RequireAndVerifyClientCert, SessionTicketsDisabled: true}, nil
}
