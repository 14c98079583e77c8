// Package standin is a stand-in for mongod in tests: a small server that answers the read commands of the MongoDB wire
// protocol from content that it is given. It shows what FerretDB cannot hold or would alter: NaN, decimals, nested
// arrays, invalid UTF-8, validators, views, users, partial indexes. It is no proof of what a real mongod does.
package standin

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// Content is what a server has.
type Content struct {
	Databases []Database
	Users     []bson.D
	Roles     []bson.D
	Hello     bson.D            // added to the answer to hello
	Invalid   map[string]string // what validate says of a collection, by database.collection
	Deny      []string          // commands for which the user lacks the privilege
}

// Database is a database by name.
type Database struct {
	Name        string
	Collections []Collection
}

// Collection is a collection, or a view or time series by its type.
type Collection struct {
	Name      string
	Type      string // "collection" where empty
	Options   bson.D
	Indexes   []bson.D // that of _id is always there
	Documents []bson.Raw
}

// Server is a running stand-in.
type Server struct {
	content Content
	listen  net.Listener
	serving sync.WaitGroup

	mu      sync.Mutex
	conns   map[net.Conn]bool
	cursors map[int64][]bson.Raw
	last    int64
}

// Start listens on loopback and serves until Close.
func Start(c Content) (*Server, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Server{content: c, listen: l, conns: map[net.Conn]bool{}, cursors: map[int64][]bson.Raw{}}
	s.serving.Go(s.accept)
	return s, nil
}

// URL is how to connect.
func (s *Server) URL() string { return "mongodb://" + s.listen.Addr().String() + "/" }

// Close ends the server and its connections.
func (s *Server) Close() error {
	err := s.listen.Close()
	s.mu.Lock()
	for c := range s.conns {
		err = errors.Join(err, c.Close())
	}
	s.mu.Unlock()
	s.serving.Wait()
	return err
}

func (s *Server) accept() {
	for {
		c, err := s.listen.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[c] = true
		s.mu.Unlock()
		s.serving.Go(func() {
			s.converse(c)
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
			_ = c.Close() // Close may have closed it
		})
	}
}

// The messages of the protocol that a driver of today sends: OP_MSG, and OP_QUERY for its first greeting.
const (
	opReply = 1
	opQuery = 2004
	opMsg   = 2013
)

func (s *Server) converse(c net.Conn) {
	for {
		var h [16]byte
		if _, err := io.ReadFull(c, h[:]); err != nil {
			return
		}
		body := make([]byte, binary.LittleEndian.Uint32(h[:])-16)
		if _, err := io.ReadFull(c, body); err != nil {
			return
		}
		id := h[4:8]
		var answer []byte
		switch binary.LittleEndian.Uint32(h[12:]) {
		case opMsg:
			answer = message(opMsg, id, append(make([]byte, 5), s.answer(bson.Raw(body[5:]))...))
		case opQuery:
			name := slices.Index(body[4:], 0)
			head := make([]byte, 20)
			binary.LittleEndian.PutUint32(head[16:], 1)
			answer = message(opReply, id, append(head, s.answer(bson.Raw(body[4+name+1+8:]))...))
		default:
			return
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

func message(op uint32, to, body []byte) []byte {
	m := binary.LittleEndian.AppendUint32(nil, uint32(16+len(body)))
	m = append(m, 0, 0, 0, 0)
	m = append(m, to...)
	m = binary.LittleEndian.AppendUint32(m, op)
	return append(m, body...)
}
