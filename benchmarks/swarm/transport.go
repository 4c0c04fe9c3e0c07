package main

// One gRPC stream on a connection of its own, spoken as HTTP/2 frames by one goroutine: what is measured shares the machine with a
// thousand of these, so that each costs two system calls a message.

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Envoy's windows.
const (
	streamWindow     = 16 << 20
	connectionWindow = 24 << 20
	defaultWindow    = 65535
	onlyStream       = 1
	prefixSize       = 5 // of a gRPC message: whether it is compressed, and its length
)

var errEnded = errors.New("the server ended the stream")

// buffers holds what messages were received in: whole route tables come to all at once, and to make room for each anew costs as much as
// to read it.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// stream is a bidirectional call. Only one goroutine may use it, but any may close the connection.
type stream struct {
	connection net.Conn
	framer     *http2.Framer
	out        bytes.Buffer // frames that are to be written
	queued     []byte       // of our messages, what the server's windows do not let through yet
	message    []byte       // what has come of the message that is coming
	unread     int          // bytes taken in since the server's windows were last widened
	frameSize  int
	initial    int // the server's window for a new stream
	mayStream  int // bytes that its windows allow
	mayConnect int
}

// dial connects, and begins a call.
func dial(address, method string) (*stream, error) {
	connection, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	s := &stream{
		connection: connection, frameSize: 16384, initial: defaultWindow, mayStream: defaultWindow, mayConnect: defaultWindow,
	}
	s.framer = http2.NewFramer(&s.out, bufio.NewReaderSize(connection, 16384))
	s.framer.SetReuseFrames()
	s.out.WriteString(http2.ClientPreface)
	var headers bytes.Buffer
	encoder := hpack.NewEncoder(&headers)
	for _, field := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", method}, {":authority", address},
		{"te", "trailers"}, {"content-type", "application/grpc"},
	} {
		if err := encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}); err != nil {
			return nil, err
		}
	}
	err = errors.Join(
		s.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: streamWindow}),
		s.framer.WriteWindowUpdate(0, connectionWindow-defaultWindow),
		s.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: onlyStream, BlockFragment: headers.Bytes(), EndHeaders: true}),
		s.flush(),
	)
	if err != nil {
		connection.Close()
		return nil, err
	}
	return s, nil
}

func (s *stream) close() { s.connection.Close() }

// send writes messages, as far as the server's windows allow; the rest goes when they widen.
func (s *stream) send(messages ...[]byte) error {
	for _, message := range messages {
		s.queued = append(s.queued, 0)
		s.queued = binary.BigEndian.AppendUint32(s.queued, uint32(len(message)))
		s.queued = append(s.queued, message...)
	}
	return s.flush()
}

func (s *stream) flush() error {
	for size := 1; size > 0; {
		size = min(len(s.queued), s.mayStream, s.mayConnect, s.frameSize)
		if size > 0 {
			if err := s.framer.WriteData(onlyStream, false, s.queued[:size]); err != nil {
				return err
			}
			s.queued = s.queued[size:]
			s.mayStream -= size
			s.mayConnect -= size
		}
	}
	if len(s.queued) == 0 {
		s.queued = nil
	}
	if s.out.Len() == 0 {
		return nil
	}
	_, err := s.connection.Write(s.out.Bytes())
	if s.out.Cap() > 1<<16 {
		s.out = bytes.Buffer{}
	}
	s.out.Reset()
	return err
}

// receive returns the next message. It is valid until the call of taken that has to follow.
func (s *stream) receive() ([]byte, error) {
	for len(s.message) < prefixSize || len(s.message) < prefixSize+s.expected() {
		frame, err := s.framer.ReadFrame()
		if err != nil {
			return nil, err
		}
		if err := s.handle(frame); err != nil {
			return nil, err
		}
		if err := s.flush(); err != nil {
			return nil, err
		}
	}
	return s.message[prefixSize : prefixSize+s.expected()], nil
}

// taken lets go of the message that was received last.
func (s *stream) taken() {
	rest := s.message[prefixSize+s.expected():]
	s.message = append(s.message[:0], rest...)
	if empty := s.message; len(empty) == 0 {
		buffers.Put(&empty)
		s.message = nil
	}
}

func (s *stream) expected() int { return int(binary.BigEndian.Uint32(s.message[1:prefixSize])) }

func (s *stream) handle(frame http2.Frame) error {
	switch frame := frame.(type) {
	case *http2.DataFrame:
		if s.message == nil {
			s.message = *buffers.Get().(*[]byte)
		}
		s.message = append(s.message, frame.Data()...)
		if len(s.message) >= prefixSize {
			s.message = slices.Grow(s.message, max(0, prefixSize+s.expected()-len(s.message)))
		}
		s.unread += int(frame.Length)
		if s.unread >= streamWindow/2 {
			widened := uint32(s.unread)
			s.unread = 0
			return errors.Join(s.framer.WriteWindowUpdate(0, widened), s.framer.WriteWindowUpdate(onlyStream, widened))
		}
	case *http2.SettingsFrame:
		if frame.IsAck() {
			return nil
		}
		if size, ok := frame.Value(http2.SettingMaxFrameSize); ok {
			s.frameSize = int(size)
		}
		if window, ok := frame.Value(http2.SettingInitialWindowSize); ok {
			s.mayStream += int(window) - s.initial
			s.initial = int(window)
		}
		return s.framer.WriteSettingsAck()
	case *http2.PingFrame:
		if !frame.IsAck() {
			return s.framer.WritePing(true, frame.Data)
		}
	case *http2.WindowUpdateFrame:
		if frame.StreamID == 0 {
			s.mayConnect += int(frame.Increment)
		} else {
			s.mayStream += int(frame.Increment)
		}
	case *http2.HeadersFrame:
		if frame.StreamEnded() {
			return errEnded
		}
	case *http2.RSTStreamFrame:
		return errEnded
	}
	return nil
}
