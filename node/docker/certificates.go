package docker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// Files that docker clients look for in DOCKER_CERT_PATH, and those of the
// server's side, in a directory of their own that no container gets.
const (
	caFile   = "ca.pem"
	certFile = "cert.pem"
	keyFile  = "key.pem"
)

// validity is longer than any job.
const validity = 30 * 24 * time.Hour

// certificates gives the server's side of TLS, and makes client/ for the
// clients below dir. Those that are there, of an earlier berthd, are kept.
func certificates(dir string, addr netip.Addr) (*tls.Config, error) {
	server, client := filepath.Join(dir, "server"), filepath.Join(dir, "client")
	if _, err := os.Stat(filepath.Join(client, keyFile)); err != nil {
		if err := issue(server, client, addr); err != nil {
			return nil, fmt.Errorf("make certificates: %w", err)
		}
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(server, certFile), filepath.Join(server, keyFile))
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	ca, err := os.ReadFile(filepath.Join(client, caFile))
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &tls.Config{
		Certificates: []tls.Certificate{pair},
		ClientCAs:    roots,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"http/1.1"},
	}, nil
}

func issue(server, client string, addr netip.Addr) error {
	for dir, mode := range map[string]os.FileMode{filepath.Dir(server): 0o755, server: 0o700, client: 0o755} {
		if err := errors.Join(os.MkdirAll(dir, mode), os.Chmod(dir, mode)); err != nil {
			return err
		}
	}
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "docker CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(validity),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, &key.PublicKey, key)
	if err != nil {
		return err
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for n, leaf := range []struct {
		dir  string
		mode os.FileMode
		cert *x509.Certificate
	}{
		{server, 0o600, &x509.Certificate{
			Subject: pkix.Name{CommonName: "docker"}, DNSNames: []string{"docker", "localhost"},
			IPAddresses: []net.IP{addr.AsSlice()}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}},
		// Whoever runs in the job may read it. It comes last, as it tells that
		// all are there.
		{client, 0o644, &x509.Certificate{Subject: pkix.Name{CommonName: "docker client"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}},
	} {
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		leaf.cert.SerialNumber, leaf.cert.NotBefore, leaf.cert.NotAfter = big.NewInt(int64(n+2)), authority.NotBefore, authority.NotAfter
		leaf.cert.KeyUsage = x509.KeyUsageDigitalSignature
		der, err := x509.CreateCertificate(rand.Reader, leaf.cert, authority, &own.PublicKey, key)
		if err != nil {
			return err
		}
		secret, err := x509.MarshalECPrivateKey(own)
		if err != nil {
			return err
		}
		for _, f := range []struct {
			name string
			text []byte
		}{
			{caFile, ca},
			{certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})},
			{keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret})},
		} {
			path := filepath.Join(leaf.dir, f.name)
			if err := errors.Join(os.WriteFile(path, f.text, leaf.mode), os.Chmod(path, leaf.mode)); err != nil {
				return err
			}
		}
	}
	return nil
}
