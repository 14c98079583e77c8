package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// entry is one line of the ledger: something that the shop has acknowledged.
type entry struct {
	At       time.Time `json:"at"`
	Order    *Order    `json:"order,omitempty"`
	Customer *Customer `json:"customer,omitempty"`
}

// ledger is what the shop has acknowledged, kept outside of its database. What append has returned for is on disk.
type ledger struct {
	mu sync.Mutex
	f  *os.File
}

func openLedger(path string) (*ledger, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the ledger: %w", err)
	}
	return &ledger{f: f}, nil
}

func (l *ledger) append(entries ...entry) error {
	var body bytes.Buffer
	e := json.NewEncoder(&body)
	for _, x := range entries {
		if err := e.Encode(x); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.f.Write(body.Bytes()); err != nil {
		return fmt.Errorf("write the ledger: %w", err)
	}
	return l.f.Sync()
}

// close gives the file up. Everything in it is on disk already.
func (l *ledger) close() { _ = l.f.Close() }

// readLedger reads every whole line. A last line without its end was never acknowledged to be on disk.
func readLedger(path string) ([]entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	defer f.Close()
	var all []entry
	r := bufio.NewReader(f)
	for {
		line, err := r.ReadBytes('\n')
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the ledger: %w", err)
		}
		var e entry
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("line %d of the ledger: %w", len(all)+1, err)
		}
		all = append(all, e)
	}
}
