// Package errand is how a command that runs in a Job is told what to do, and how it tells its result: through Secrets that were
// made for it, empty, and that are the only ones it may change. The result is sealed with a key of this one Job, so that nobody
// else's is believed.
package errand

import (
	"bytes"
	"compress/gzip"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-cd/sluice/internal/fault"
)

// The fields of a Secret. The head, which is the Secret of the errand's own name, says of how many parts the result is and what
// all of them together are.
const (
	resultField = "result"
	sealField   = "seal"
	partsField  = "parts"
	wholeField  = "whole"
)

// limit is the size of a part: what etcd takes in one piece without trouble.
const limit = 256 << 10

// report is what the parts hold together, compressed.
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

// Head returns the name of the head of one share's result.
func Head(errand string, share int) string { return errand + "-share-" + strconv.Itoa(share) }

// Names returns the names of the Secrets of an errand, its head first.
func Names(head string, parts int) []string {
	names := []string{head}
	for i := 1; i < parts; i++ {
		names = append(names, head+"-"+strconv.Itoa(i))
	}
	return names
}

// seal proves that a part was made by whoever has the key, for this Secret, and is of this whole.
func seal(key, secret, parts, whole string, body []byte) []byte {
	h := hmac.New(sha256.New, []byte(key))
	for _, s := range []string{secret, parts, whole} {
		fmt.Fprintf(h, "%d:%s:", len(s), s)
	}
	h.Write(body)
	return []byte(base64.StdEncoding.EncodeToString(h.Sum(nil)))
}

// Data makes the content of the Secrets from a result, or from the error that there is instead; at most of as many as there are.
func Data(key, head string, most int, result any, failed error) ([]map[string][]byte, error) {
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
	body, err := packed(r)
	if err != nil {
		return nil, fmt.Errorf("write the result: %w", err)
	}
	if len(body) > most*limit {
		if failed != nil {
			return nil, fault.Newf(fault.Invalid, "the failure has %d KiB, more than its Secrets are given: %.1000s", len(body)>>10, failed.Error())
		}
		return Data(key, head, most, nil, fault.Newf(fault.Invalid, "the result has %d KiB, more than the %d KiB that its Secrets are given", len(body)>>10, most*limit>>10))
	}
	pieces := slices.Collect(slices.Chunk(body, limit))
	whole, parts := fmt.Sprintf("%x", sha256.Sum256(body)), strconv.Itoa(len(pieces))
	var out []map[string][]byte
	for i, name := range Names(head, len(pieces)) {
		out = append(out, map[string][]byte{resultField: pieces[i], sealField: seal(key, name, parts, whole, pieces[i])})
	}
	out[0][partsField], out[0][wholeField] = []byte(parts), []byte(whole)
	return out, nil
}

func packed(r report) ([]byte, error) {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	err := json.NewEncoder(z).Encode(r)
	if err == nil {
		err = z.Close()
	}
	return out.Bytes(), err
}

// Read returns the result that the head and the parts that it names hold. Where told is false there is none yet, or the error is
// that a part could not be had.
func Read(key, head string, data map[string][]byte, part func(secret string) (map[string][]byte, error)) (result json.RawMessage, told bool, err error) {
	if len(data[resultField]) == 0 {
		return nil, false, nil
	}
	parts, whole := string(data[partsField]), string(data[wholeField])
	n, err := strconv.Atoi(parts)
	if err != nil {
		return nil, true, fault.WithRemedy(fault.Newf(fault.Lost, "the result in Secret %s does not say of how many parts it is", head),
			"use the image of the same version of Sluice as jobs.image of the account")
	}
	var body []byte
	take := func(name string, content map[string][]byte) error {
		piece := content[resultField]
		if len(piece) == 0 {
			return fault.Newf(fault.Lost, "a part of the result is missing: Secret %s is empty", name)
		}
		if !hmac.Equal(seal(key, name, parts, whole, piece), content[sealField]) {
			return fault.Newf(fault.Denied, "the result in Secret %s was not written by the Job that it was made for, or not all of it", name)
		}
		body = append(body, piece...)
		return nil
	}
	if err := take(head, data); err != nil {
		return nil, true, err
	}
	for _, name := range Names(head, n)[1:] {
		content, err := part(name)
		if err != nil {
			return nil, false, err
		}
		if err := take(name, content); err != nil {
			return nil, true, err
		}
	}
	r, err := unpacked(body)
	if err != nil {
		return nil, true, fault.Newf(fault.Lost, "the result in Secret %s cannot be read: %w", head, err)
	}
	if f := r.Error; f != nil {
		err := error(&fault.Error{Kind: f.Kind, Remedy: f.Remedy, Err: errors.New(f.Message)})
		return nil, true, err
	}
	return r.Result, true, nil
}

func unpacked(body []byte) (r report, err error) {
	z, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return r, err
	}
	text, err := io.ReadAll(z)
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(text, &r)
}
