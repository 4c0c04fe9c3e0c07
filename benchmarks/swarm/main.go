// swarm behaves like many Envoys, each on a connection of its own, and measures when what reaches them.
//
// It reads commands from standard input, one JSON object a line, and answers each with one line:
//
//	{"do": "connect"}                        connect all; answers when each holds everything
//	{"do": "await", "type": "…", "name": "…", "text": "…", "removal": false}
//	                                         from now on, note when each proxy gets this resource; answers at once
//	{"do": "result", "seconds": 30}          answers when all, or "count" of them, have it, or after that many seconds
//	{"do": "drop"}                           close all connections; they come back, with what they hold
//	{"do": "back"}                           answers when all have come back after the server ended
//	{"do": "quiet", "seconds": 0.2}          answers when nothing has come for so long
//	{"do": "counts"}                         what has come since the last "await", "drop" or "connect"
//	{"do": "disconnect"}                     close all connections for good
//
// Times are CLOCK_MONOTONIC in nanoseconds, so that whoever made a change can subtract when.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"sort"
	"strings"
	"sync/atomic"
	"time"
)

type awaited struct {
	typeURL, name, text string
	removal             bool
	found               atomic.Int64 // where the text was last
}

func (a *awaited) matches(typeURL, name string, body []byte) bool {
	return strings.HasSuffix(typeURL, a.typeURL) && (a.name == "" || name == a.name) && (a.text == "" || a.removal || a.isIn(body))
}

// isIn tells whether the text is in a resource: mostly where it was in the last one.
func (a *awaited) isIn(body []byte) bool {
	text := []byte(a.text)
	if at := int(a.found.Load()); at < len(body) && bytes.HasPrefix(body[at:], text) {
		return true
	}
	at := bytes.Index(body, text)
	if at >= 0 {
		a.found.Store(int64(at))
	}
	return at >= 0
}

type swarm struct {
	address         string
	namespacePrefix string
	namespaces      int
	sotw            bool
	pieces          bool
	proxies         []*proxy
	awaited         atomic.Pointer[awaited]
	messages        atomic.Int64 // that came, in all
}

type command struct {
	Do      string  `json:"do"`
	Type    string  `json:"type"`
	Name    string  `json:"name"`
	Text    string  `json:"text"`
	Removal bool    `json:"removal"`
	Seconds float64 `json:"seconds"`
	Count   int     `json:"count"` // how many proxies are to see it; 0: all
}

type answer struct {
	Now       int64   `json:"now"`
	Proxies   int     `json:"proxies"`
	Done      int     `json:"done"`
	Times     []int64 `json:"times,omitempty"` // sorted, one a proxy
	Bytes     int64   `json:"bytes"`
	Resources int64   `json:"resources"`
	Messages  int64   `json:"messages"`
	Refused   int64   `json:"refused"`
	Rejected  int64   `json:"rejected"` // responses answered with a NACK
}

// collect sums up what came; time picks the moment of interest of a proxy, 0 where it has not come.
func (s *swarm) collect(moment func(*proxy) int64) answer {
	a := answer{Now: monotonic(), Proxies: len(s.proxies)}
	for _, p := range s.proxies {
		p.lock.Lock()
		a.Bytes += p.bytes
		a.Resources += p.resources
		a.Messages += p.messages
		a.Refused += p.refused
		a.Rejected += p.rejected
		at := moment(p)
		p.lock.Unlock()
		if at != 0 {
			a.Done++
			a.Times = append(a.Times, at)
		}
	}
	sort.Slice(a.Times, func(i, j int) bool { return a.Times[i] < a.Times[j] })
	return a
}

// wait polls until every proxy has its moment, or the time is up.
func (s *swarm) wait(seconds float64, count int, moment func(*proxy) int64) answer {
	if seconds == 0 {
		seconds = 120
	}
	if count == 0 {
		count = len(s.proxies)
	}
	until := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	for {
		done := 0
		for _, p := range s.proxies {
			p.lock.Lock()
			if moment(p) != 0 {
				done++
			}
			p.lock.Unlock()
		}
		if done >= count || time.Now().After(until) {
			return s.collect(moment)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// quiet returns when no proxy has got anything for so long, or after a minute.
func (s *swarm) quiet(silence time.Duration) {
	var last int64 = -1
	since, until := time.Now(), time.Now().Add(time.Minute)
	for time.Since(since) < silence && time.Now().Before(until) {
		time.Sleep(10 * time.Millisecond)
		if now := s.messages.Load(); now != last {
			last, since = now, time.Now()
		}
	}
}

func (s *swarm) reset() {
	for _, p := range s.proxies {
		p.reset()
	}
}

func main() {
	debug.SetGCPercent(400) // memory is not what this machine lacks
	s := &swarm{}
	count := 0
	flag.StringVar(&s.address, "address", "127.0.0.1:15010", "the xDS server, plain text")
	flag.IntVar(&count, "proxies", 100, "how many proxies")
	flag.IntVar(&s.namespaces, "namespaces", 50, "over how many namespaces they are spread")
	flag.StringVar(&s.namespacePrefix, "namespace-prefix", "ns", "the namespaces are this and a number from 0")
	flag.BoolVar(&s.sotw, "sotw", false, "ask for the state of the world instead of differences")
	flag.BoolVar(&s.pieces, "pieces", false, "ask for the virtual hosts of route tables one by one")
	flag.Parse()
	for i := range count {
		s.proxies = append(s.proxies, newProxy(s, i))
	}
	completed := func(p *proxy) int64 { return p.completed }
	seen := func(p *proxy) int64 { return p.seen }
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	input := bufio.NewScanner(os.Stdin)
	output := json.NewEncoder(os.Stdout)
	for input.Scan() {
		var c command
		if err := json.Unmarshal(input.Bytes(), &c); err != nil {
			fmt.Fprintln(os.Stderr, "swarm:", err)
			os.Exit(2)
		}
		var a answer
		switch c.Do {
		case "connect":
			for _, p := range s.proxies {
				go p.run(ctx)
			}
			a = s.wait(c.Seconds, c.Count, completed)
		case "await":
			s.awaited.Store(&awaited{typeURL: c.Type, name: c.Name, text: c.Text, removal: c.Removal})
			s.reset()
			a = answer{Now: monotonic(), Proxies: count}
		case "result":
			a = s.wait(c.Seconds, c.Count, seen)
		case "back":
			a = s.wait(c.Seconds, c.Count, completed)
		case "drop":
			s.reset()
			started := monotonic()
			for _, p := range s.proxies {
				p.hangUp()
			}
			a = s.wait(c.Seconds, c.Count, func(p *proxy) int64 {
				if p.completed > started {
					return p.completed
				}
				return 0
			})
		case "quiet":
			s.quiet(time.Duration(c.Seconds * float64(time.Second)))
			a = s.collect(seen)
		case "counts":
			a = s.collect(seen)
		case "disconnect":
			cancel()
			a = s.collect(seen)
		default:
			fmt.Fprintln(os.Stderr, "swarm: unknown command", c.Do)
			os.Exit(2)
		}
		if err := output.Encode(a); err != nil {
			os.Exit(1)
		}
	}
}
