package ferretdb

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// The parts of a message of the wire protocol that matter here.
const (
	headerSize = 16
	opMsg      = 2013
	moreToCome = 1 << 1 // a flag of OP_MSG: the sender wants no answer
	maxMessage = 48_000_000 + headerSize
)

// serve passes requests to FerretDB and answers back until the context is cancelled and every exchange that had begun
// has ended. FerretDB alone would give its connections three seconds, wait for idle ones too, and then cancel what
// still runs; here idle connections close at once and a write that was received is carried out and answered.
func serve(ctx context.Context, l net.Listener, socket string) {
	var open sync.WaitGroup
	defer open.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		client, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of file descriptors, most likely: clients that leave give some back.
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		open.Go(func() {
			defer client.Close()
			converse(ctx, client, socket)
		})
	}
}

// converse carries one client's requests, one at a time, as drivers send them.
func converse(ctx context.Context, client net.Conn, socket string) {
	server, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer server.Close()
	// Only reading from the client is cut off: an exchange under way reads from FerretDB and writes to the client.
	stop := context.AfterFunc(ctx, func() { client.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	requests, answers := bufio.NewReader(client), bufio.NewReader(server)
	for ctx.Err() == nil {
		request, err := readMessage(requests)
		if err != nil {
			return
		}
		if _, err := server.Write(request); err != nil {
			return
		}
		// FerretDB answers every request, those that want no answer too; passed on, such an answer would be taken for the
		// next request's.
		answer, err := readMessage(answers)
		if err != nil {
			return
		}
		if wantsNone(request) {
			continue
		}
		if _, err := client.Write(answer); err != nil {
			return
		}
	}
}

// readMessage reads one whole message.
func readMessage(r io.Reader) ([]byte, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	size := binary.LittleEndian.Uint32(header[:])
	if size < headerSize || size > maxMessage {
		return nil, errors.New("not a message of the wire protocol")
	}
	message := make([]byte, size)
	copy(message, header[:])
	_, err := io.ReadFull(r, message[headerSize:])
	return message, err
}

// wantsNone reports whether a request asks for no answer.
func wantsNone(m []byte) bool {
	return binary.LittleEndian.Uint32(m[12:]) == opMsg && len(m) >= headerSize+4 && binary.LittleEndian.Uint32(m[headerSize:])&moreToCome != 0
}
