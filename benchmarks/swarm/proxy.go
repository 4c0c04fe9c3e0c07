package main

// One proxy: a connection, a stream, what it holds, and when what came.

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// monotonic is CLOCK_MONOTONIC in nanoseconds: other processes of this machine read the same clock.
func monotonic() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err)
	}
	return t.Nano()
}

type proxy struct {
	swarm *swarm
	node  []byte

	lock      sync.Mutex
	held      map[string]map[string]string // type -> name -> version; kept over reconnects
	wanted    map[string]map[string]int    // type -> name -> how many resources ask for it
	waiting   map[string]map[string]bool   // type -> names asked for and not answered
	answered  map[string]bool              // types that have had a first answer on this stream
	completed int64                        // when nothing was missing any more, since the last reset
	seen      int64                        // when the awaited resource came, since the last reset
	bytes     int64
	resources int64
	messages  int64
	refused   int64
	rejected  int64
	drop      func() // ends the connection
}

// structField writes one entry of a protobuf Struct.
func structField(key string, value []byte) []byte {
	return appendMessage(nil, 1, appendMessage(appendString(nil, 1, key), 2, value))
}

func stringValue(s string) []byte { return appendString(nil, 3, s) }

func newProxy(s *swarm, index int) *proxy {
	namespace := fmt.Sprintf("%s%d", s.namespacePrefix, index%s.namespaces)
	ip := fmt.Sprintf("10.%d.%d.%d", 200+index/65000, index/250%260, 1+index%250)
	name := fmt.Sprintf("client-%d", index)
	labels := structField("app", stringValue("client"))
	var metadata []byte
	for _, kv := range [][2]string{
		{"NAMESPACE", namespace}, {"NAME", name}, {"WORKLOAD_NAME", "client"}, {"CLUSTER_ID", "Kubernetes"}, {"INSTANCE_IPS", ip},
		{"SERVICE_ACCOUNT", "default"}, {"INTERCEPTION_MODE", "REDIRECT"}, {"MESH_ID", "cluster.local"}, {"ISTIO_VERSION", "1.29.0"},
	} {
		metadata = append(metadata, structField(kv[0], stringValue(kv[1]))...)
	}
	if s.pieces {
		metadata = append(metadata, structField("ROUTE_TABLES", stringValue("pieces"))...)
	}
	metadata = append(metadata, structField("LABELS", appendMessage(nil, 5, labels))...)
	var node []byte
	node = appendString(node, 1, fmt.Sprintf("sidecar~%s~%s.%s~%s.svc.cluster.local", ip, name, namespace, namespace))
	node = appendString(node, 2, "client."+namespace)
	node = appendMessage(node, 3, metadata)
	node = appendString(node, 6, "envoy")
	return &proxy{swarm: s, node: node, held: map[string]map[string]string{}}
}

// run keeps the proxy connected until ctx ends, as Envoy does: with back-off, and with what it holds.
func (p *proxy) run(ctx context.Context) {
	backoff := 100 * time.Millisecond
	for ctx.Err() == nil {
		if p.session(ctx) {
			backoff = 100 * time.Millisecond
		} else if ctx.Err() == nil {
			p.lock.Lock()
			p.refused++
			p.lock.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, 2*time.Second)
	}
}

// session is one connection; whether it got any answer.
func (p *proxy) session(parent context.Context) bool {
	method := "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
	if p.swarm.sotw {
		method = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
	}
	stream, err := dial(p.swarm.address, method)
	if err != nil {
		return false
	}
	defer stream.close()
	defer context.AfterFunc(parent, stream.close)()
	p.lock.Lock()
	p.drop = stream.close
	p.wanted = map[string]map[string]int{}
	p.waiting = map[string]map[string]bool{}
	p.answered = map[string]bool{}
	first := p.opening()
	p.lock.Unlock()
	if stream.send(first...) != nil {
		return false
	}
	got := false
	for {
		message, err := stream.receive()
		if err != nil {
			return got
		}
		got = true
		answers := p.take(message)
		stream.taken()
		if stream.send(answers...) != nil {
			return got
		}
	}
}

// opening makes the first requests of a stream: wildcards, and by name what is held from before.
func (p *proxy) opening() [][]byte {
	var out [][]byte
	node := p.node
	for _, typeURL := range []string{clusterType, endpointType, listenerType, routeType, hostType} {
		if typeURL == hostType && len(p.held[hostType]) == 0 {
			continue // it is asked for when the first route table has come
		}
		names := []string{}
		for name := range p.held[typeURL] {
			names = append(names, name)
		}
		byName := typeURL == endpointType || typeURL == routeType
		if byName {
			if len(names) == 0 {
				continue
			}
			p.wanted[typeURL] = map[string]int{}
			for _, name := range names {
				p.wanted[typeURL][name] = 1
			}
		} else {
			names = nil
		}
		if p.swarm.sotw {
			out = append(out, sotwRequest(node, typeURL, "", "", names))
		} else {
			out = append(out, deltaRequest(node, typeURL, "", names, nil, p.held[typeURL]))
		}
		node = nil
	}
	return out
}

// take takes in a response; what to send for it: the ACK, and requests for what it names.
func (p *proxy) take(raw []byte) [][]byte {
	now := monotonic()
	var r response
	if p.swarm.sotw {
		r = parseSotw(raw)
	} else {
		r = parseDelta(raw)
	}
	p.lock.Lock()
	defer p.lock.Unlock()
	p.bytes += int64(len(raw))
	p.messages++
	p.swarm.messages.Add(1)
	p.resources += int64(len(r.resources))
	first := !p.answered[r.typeURL]
	p.answered[r.typeURL] = true
	if fault := r.fault(); fault != "" {
		p.rejected++
		fmt.Fprintln(os.Stderr, "swarm: rejected:", fault)
		if p.swarm.sotw {
			return [][]byte{sotwNack(r, p.names(r.typeURL), fault)}
		}
		return [][]byte{deltaNack(r, fault)}
	}
	held := p.held[r.typeURL]
	if held == nil {
		held = map[string]string{}
		p.held[r.typeURL] = held
	}
	await := p.swarm.awaited.Load()
	var asked []string
	below := map[string]string{clusterType: endpointType, listenerType: routeType}[r.typeURL]
	for _, res := range r.resources {
		held[res.name] = res.version
		delete(p.waiting[r.typeURL], res.name)
		if await != nil && p.seen == 0 && await.matches(r.typeURL, res.name, res.body) {
			p.seen = now
		}
		if below == "" {
			continue
		}
		for _, name := range learn(r.typeURL, res.body).wants {
			asked = p.want(below, name, asked)
		}
	}
	for _, name := range r.removed {
		delete(held, name)
		delete(p.waiting[r.typeURL], name)
		if await != nil && p.seen == 0 && await.removal && await.matches(r.typeURL, name, nil) {
			p.seen = now
		}
	}
	var out [][]byte
	if p.swarm.sotw {
		out = append(out, sotwRequest(nil, r.typeURL, r.version, r.nonce, p.names(r.typeURL)))
		if len(asked) > 0 {
			out = append(out, sotwRequest(nil, below, "", "", p.names(below)))
		}
	} else {
		out = append(out, deltaRequest(nil, r.typeURL, r.nonce, nil, nil, nil))
		if len(asked) > 0 {
			out = append(out, deltaRequest(nil, below, "", asked, nil, nil))
		}
	}
	if first && r.typeURL == routeType && p.swarm.pieces && len(p.held[hostType]) == 0 {
		out = append(out, deltaRequest(nil, hostType, "", nil, nil, nil))
	}
	if p.completed == 0 && p.isComplete() {
		p.completed = now
	}
	return out
}

func (p *proxy) want(typeURL, name string, asked []string) []string {
	wanted := p.wanted[typeURL]
	if wanted == nil {
		wanted = map[string]int{}
		p.wanted[typeURL] = wanted
	}
	if wanted[name] == 0 {
		asked = append(asked, name)
		if _, has := p.held[typeURL][name]; !has {
			if p.waiting[typeURL] == nil {
				p.waiting[typeURL] = map[string]bool{}
			}
			p.waiting[typeURL][name] = true
		}
	}
	wanted[name] = 1
	return asked
}

func (p *proxy) names(typeURL string) []string {
	names := make([]string, 0, len(p.wanted[typeURL]))
	for name := range p.wanted[typeURL] {
		names = append(names, name)
	}
	return names
}

// isComplete tells whether the proxy has an answer for everything that it asked for on this stream.
func (p *proxy) isComplete() bool {
	if !p.answered[clusterType] || !p.answered[listenerType] {
		return false
	}
	for _, typeURL := range []string{endpointType, routeType} {
		if len(p.wanted[typeURL]) > 0 && len(p.held[typeURL]) == 0 || len(p.waiting[typeURL]) > 0 {
			return false
		}
	}
	return !p.swarm.pieces || len(p.held[hostType]) > 0
}

// reset starts a new measurement.
func (p *proxy) reset() {
	p.lock.Lock()
	defer p.lock.Unlock()
	p.seen, p.completed, p.bytes, p.resources, p.messages, p.refused, p.rejected = 0, 0, 0, 0, 0, 0, 0
}

// hangUp ends the connection; the proxy comes back.
func (p *proxy) hangUp() {
	p.lock.Lock()
	drop := p.drop
	p.completed = 0
	p.lock.Unlock()
	if drop != nil {
		drop()
	}
}
