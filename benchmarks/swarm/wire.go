package main

// The few fields of Envoy's messages that a proxy's subscriptions depend on, read from the wire without generated code.

import (
	"hash/maphash"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
)

const (
	clusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	endpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	listenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
	hostType     = "type.googleapis.com/envoy.config.route.v3.VirtualHost"
	routeType    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// fields calls visit for each length-delimited or varint field of a message; it stops at the first malformed one.
func fields(message []byte, visit func(number protowire.Number, value []byte, varint uint64)) {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return
		}
		message = message[n:]
		switch kind {
		case protowire.BytesType:
			value, n := protowire.ConsumeBytes(message)
			if n < 0 {
				return
			}
			visit(number, value, 0)
			message = message[n:]
		case protowire.VarintType:
			value, n := protowire.ConsumeVarint(message)
			if n < 0 {
				return
			}
			visit(number, nil, value)
			message = message[n:]
		default:
			n := protowire.ConsumeFieldValue(number, kind, message)
			if n < 0 {
				return
			}
			message = message[n:]
		}
	}
}

// resource is one entry of a response.
type resource struct {
	name, version string
	body          []byte
}

// response is a DeltaDiscoveryResponse or a DiscoveryResponse.
type response struct {
	typeURL, nonce, version string
	resources               []resource
	removed                 []string
}

// fault is what Envoy would reject the response for, as far as it shows without decoding the resources; empty for nothing.
func (r *response) fault() string {
	if r.typeURL == "" || r.nonce == "" {
		return "a response without a type or a nonce"
	}
	seen := make(map[string]struct{}, len(r.resources))
	for _, res := range r.resources {
		if res.name == "" || len(res.body) == 0 {
			return "a resource of " + r.typeURL + " without a name or a body"
		}
		if _, twice := seen[res.name]; twice {
			return "duplicate resource " + res.name
		}
		seen[res.name] = struct{}{}
	}
	return ""
}

func parseDelta(message []byte) response {
	var r response
	fields(message, func(number protowire.Number, value []byte, _ uint64) {
		switch number {
		case 2:
			r.resources = append(r.resources, parseResource(value))
		case 4:
			r.typeURL = known(value)
		case 5:
			r.nonce = string(value)
		case 6:
			r.removed = append(r.removed, intern(value))
		}
	})
	return r
}

func parseResource(message []byte) resource {
	var r resource
	fields(message, func(number protowire.Number, value []byte, _ uint64) {
		switch number {
		case 1:
			r.version = intern(value)
		case 2:
			r.body = anyValue(value)
		case 3:
			r.name = intern(value)
		}
	})
	return r
}

func parseSotw(message []byte) response {
	var r response
	fields(message, func(number protowire.Number, value []byte, _ uint64) {
		switch number {
		case 1:
			r.version = string(value)
		case 2:
			body := anyValue(value)
			r.resources = append(r.resources, resource{body: body})
		case 4:
			r.typeURL = known(value)
		case 5:
			r.nonce = string(value)
		}
	})
	for i := range r.resources {
		r.resources[i].name = learn(r.typeURL, r.resources[i].body).name
		r.resources[i].version = r.version
	}
	return r
}

func anyValue(message []byte) []byte {
	var body []byte
	fields(message, func(number protowire.Number, value []byte, _ uint64) {
		if number == 2 {
			body = value
		}
	})
	return body
}

func known(typeURL []byte) string {
	for _, t := range []string{clusterType, endpointType, listenerType, routeType, hostType} {
		if t == string(typeURL) {
			return t
		}
	}
	return string(typeURL)
}

// Strings repeat in every proxy: one copy of each will do.
var (
	internLock sync.RWMutex
	interned   = map[string]string{}
)

func intern(b []byte) string {
	internLock.RLock()
	s, ok := interned[string(b)]
	internLock.RUnlock()
	if ok {
		return s
	}
	s = string(b)
	internLock.Lock()
	interned[s] = s
	internLock.Unlock()
	return s
}

// lesson is what one resource tells a proxy to ask for. Equal resources are decoded once for all proxies.
type lesson struct {
	name  string
	wants []string // assignments of a cluster, route tables of a listener
}

var (
	seed     = maphash.MakeSeed()
	lessons  sync.Map // hash of a body -> *lesson
	noLesson = &lesson{}
)

func learn(typeURL string, body []byte) *lesson {
	key := maphash.Bytes(seed, body) ^ maphash.String(seed, typeURL)
	if l, ok := lessons.Load(key); ok {
		return l.(*lesson)
	}
	l := noLesson
	switch typeURL {
	case clusterType:
		l = cluster(body)
	case listenerType:
		l = listener(body)
	case endpointType, routeType:
		l = &lesson{name: firstString(body)}
	}
	lessons.Store(key, l)
	return l
}

func firstString(body []byte) string {
	name := ""
	fields(body, func(number protowire.Number, value []byte, _ uint64) {
		if number == 1 && name == "" {
			name = intern(value)
		}
	})
	return name
}

func cluster(body []byte) *lesson {
	l := &lesson{}
	eds, service := false, ""
	fields(body, func(number protowire.Number, value []byte, varint uint64) {
		switch number {
		case 1:
			l.name = intern(value)
		case 2:
			eds = varint == 3
		case 3:
			fields(value, func(number protowire.Number, value []byte, _ uint64) {
				if number == 2 {
					service = intern(value)
				}
			})
		}
	})
	if eds {
		if service == "" {
			service = l.name
		}
		l.wants = []string{service}
	}
	return l
}

// listener finds the route tables in a listener's filter chains: any field path that ends in an HttpConnectionManager with rds.
func listener(body []byte) *lesson {
	l := &lesson{}
	chain := func(value []byte) {
		fields(value, func(number protowire.Number, filter []byte, _ uint64) {
			if number != 3 { // FilterChain.filters
				return
			}
			fields(filter, func(number protowire.Number, config []byte, _ uint64) {
				if number != 4 { // Filter.typed_config
					return
				}
				var url string
				var manager []byte
				fields(config, func(number protowire.Number, value []byte, _ uint64) {
					if number == 1 {
						url = string(value)
					} else if number == 2 {
						manager = value
					}
				})
				if !strings.HasSuffix(url, ".HttpConnectionManager") {
					return
				}
				fields(manager, func(number protowire.Number, rds []byte, _ uint64) {
					if number != 3 { // HttpConnectionManager.rds
						return
					}
					fields(rds, func(number protowire.Number, value []byte, _ uint64) {
						if number == 2 {
							l.wants = append(l.wants, intern(value))
						}
					})
				})
			})
		})
	}
	fields(body, func(number protowire.Number, value []byte, _ uint64) {
		switch number {
		case 1:
			l.name = intern(value)
		case 3, 25: // filter_chains, default_filter_chain
			chain(value)
		}
	})
	return l
}

func appendString(b []byte, number protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), s)
}

func appendMessage(b []byte, number protowire.Number, message []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), message)
}

// deltaNack and sotwNack write the requests that reject a response.
func deltaNack(r response, fault string) []byte {
	return appendMessage(deltaRequest(nil, r.typeURL, r.nonce, nil, nil, nil), 7, status(fault))
}

func sotwNack(r response, names []string, fault string) []byte {
	return appendMessage(sotwRequest(nil, r.typeURL, "", r.nonce, names), 6, status(fault))
}

// status writes a google.rpc.Status: INVALID_ARGUMENT and a text.
func status(text string) []byte {
	b := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 3)
	return appendString(b, 2, text)
}

// deltaRequest writes a DeltaDiscoveryRequest.
func deltaRequest(node []byte, typeURL, nonce string, subscribe, unsubscribe []string, held map[string]string) []byte {
	var b []byte
	if node != nil {
		b = appendMessage(b, 1, node)
	}
	b = appendString(b, 2, typeURL)
	for _, name := range subscribe {
		b = appendString(b, 3, name)
	}
	for _, name := range unsubscribe {
		b = appendString(b, 4, name)
	}
	for name, version := range held {
		entry := appendString(appendString(nil, 1, name), 2, version)
		b = appendMessage(b, 5, entry)
	}
	if nonce != "" {
		b = appendString(b, 6, nonce)
	}
	return b
}

// sotwRequest writes a DiscoveryRequest.
func sotwRequest(node []byte, typeURL, version, nonce string, names []string) []byte {
	var b []byte
	if version != "" {
		b = appendString(b, 1, version)
	}
	if node != nil {
		b = appendMessage(b, 2, node)
	}
	for _, name := range names {
		b = appendString(b, 3, name)
	}
	b = appendString(b, 4, typeURL)
	if nonce != "" {
		b = appendString(b, 5, nonce)
	}
	return b
}
