package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// authority signs the certificates of one cluster.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// identity is a certificate that the cluster's programs or users show.
type identity struct {
	name, group string
	hosts       []string
}

// makePKI writes the cluster's certificates, keys and kubeconfigs.
func (c *Cluster) makePKI() error {
	ca, err := newAuthority(c.path("pki"))
	if err != nil {
		return err
	}
	s := c.slot
	certificates := map[string]identity{
		"apiserver": {name: "kube-apiserver", hosts: []string{
			"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost",
			"127.0.0.1", s.nodeIP(), s.apiService(),
		}},
		"apiserver-kubelet": {name: "kube-apiserver-kubelet-client", group: "system:masters"},
		"front-proxy":       {name: "front-proxy-client"},
	}
	for file, id := range certificates {
		if _, _, err := ca.issue(file, id); err != nil {
			return err
		}
	}
	if err := writeKey(ca.dir, "sa"); err != nil {
		return err
	}
	users := map[string]identity{
		"admin":     {name: "admin", group: "system:masters"},
		"scheduler": {name: "system:kube-scheduler"},
		"proxy":     {name: "system:kube-proxy"},
		"kubelet":   {name: "system:node:" + s.node(), group: "system:nodes"},
	}
	for file, id := range users {
		cert, key, err := ca.issue(file, id)
		if err != nil {
			return err
		}
		config := api.NewConfig()
		config.Clusters[c.Name] = &api.Cluster{Server: s.server(), CertificateAuthorityData: encode("CERTIFICATE", ca.cert.Raw)}
		config.AuthInfos[file] = &api.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
		config.Contexts[c.Name] = &api.Context{Cluster: c.Name, AuthInfo: file}
		config.CurrentContext = c.Name
		if err := clientcmd.WriteToFile(*config, filepath.Join(ca.dir, file+".kubeconfig")); err != nil {
			return err
		}
	}
	return nil
}

func newAuthority(dir string) (*authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "sluice-lab"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	ca := &authority{dir: dir, cert: cert, key: key}
	_, err = ca.write("ca", der, key)
	return ca, err
}

// issue makes a certificate for servers and clients, and returns both halves as PEM.
func (a *authority) issue(file string, id identity) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: id.name},
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if id.group != "" {
		template.Subject.Organization = []string{id.group}
	}
	for _, h := range id.hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, private.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	key, err = a.write(file, der, private)
	return encode("CERTIFICATE", der), key, err
}

func (a *authority) write(file string, der []byte, key *ecdsa.PrivateKey) ([]byte, error) {
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	encoded := encode("PRIVATE KEY", private)
	if err := os.WriteFile(filepath.Join(a.dir, file+".key"), encoded, 0o600); err != nil {
		return nil, err
	}
	return encoded, os.WriteFile(filepath.Join(a.dir, file+".crt"), encode("CERTIFICATE", der), 0o644)
}

// writeKey makes a key pair without a certificate: the one that signs tokens of service accounts.
func writeKey(dir, file string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, file+".key"), encode("PRIVATE KEY", private), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, file+".pub"), encode("PUBLIC KEY", public), 0o644)
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
