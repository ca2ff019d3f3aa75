// A control plane that is not ours: go-control-plane's snapshot cache behind an ADS server over mutual TLS.
//
//	go-control-plane -cert chain.pem -key key.pem -roots roots.pem -snapshot first.json [-listen 127.0.0.1:0]
//
// A snapshot is {"version": "1", "resources": [{"@type": ..., ...}, ...]} in protobuf's JSON. Each line on standard input
// names the file of the next one. What happens is told on standard output, one JSON object a line: where it listens, each
// stream with the SPIFFE id of its client, each request (with the reason, if it refuses something) and each response.
// It serves every node the same and ends when its standard input does.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	// What snapshots may hold.
	_ "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
)

// Everybody gets this node's snapshot.
const everybody = "everybody"

type anyNode struct{}

func (anyNode) ID(*core.Node) string { return everybody }

// Writes events; streams are served at the same time.
type teller struct {
	lock sync.Mutex
	out  *json.Encoder
}

func (t *teller) tell(event string, fields map[string]any) {
	fields["event"] = event
	t.lock.Lock()
	defer t.lock.Unlock()
	if err := t.out.Encode(fields); err != nil {
		os.Exit(1)
	}
}

func (t *teller) callbacks() server.Callbacks {
	return server.CallbackFuncs{
		DeltaStreamOpenFunc: func(ctx context.Context, id int64, _ string) error {
			t.tell("stream", map[string]any{"stream": id, "client": clientOf(ctx)})
			return nil
		},
		DeltaStreamClosedFunc: func(id int64, _ *core.Node) {
			t.tell("closed", map[string]any{"stream": id})
		},
		StreamDeltaRequestFunc: func(id int64, request *discovery.DeltaDiscoveryRequest) error {
			fields := map[string]any{
				"stream":      id,
				"type":        request.GetTypeUrl(),
				"subscribe":   request.GetResourceNamesSubscribe(),
				"unsubscribe": request.GetResourceNamesUnsubscribe(),
				"known":       request.GetInitialResourceVersions(),
				"nonce":       request.GetResponseNonce(),
			}
			if request.GetErrorDetail() != nil {
				fields["error"] = request.GetErrorDetail().GetMessage()
			}
			if request.GetNode() != nil {
				fields["node"] = request.GetNode().GetId()
				fields["cluster"] = request.GetNode().GetCluster()
			}
			t.tell("request", fields)
			return nil
		},
		StreamDeltaResponseFunc: func(id int64, _ *discovery.DeltaDiscoveryRequest, response *discovery.DeltaDiscoveryResponse) {
			names := []string{}
			for _, sent := range response.GetResources() {
				names = append(names, sent.GetName())
			}
			t.tell("response", map[string]any{
				"stream":    id,
				"type":      response.GetTypeUrl(),
				"nonce":     response.GetNonce(),
				"resources": names,
				"removed":   response.GetRemovedResources(),
			})
		},
	}
}

func clientOf(ctx context.Context) string {
	from, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	info, ok := from.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 || len(info.State.PeerCertificates[0].URIs) == 0 {
		return ""
	}
	return info.State.PeerCertificates[0].URIs[0].String()
}

func load(path string) (cache.ResourceSnapshot, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var file struct {
		Version   string            `json:"version"`
		Resources []json.RawMessage `json:"resources"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, err
	}
	resources := map[resource.Type][]types.Resource{}
	for i, raw := range file.Resources {
		var packed anypb.Any
		if err := protojson.Unmarshal(raw, &packed); err != nil {
			return nil, fmt.Errorf("resource %d: %w", i, err)
		}
		message, err := packed.UnmarshalNew()
		if err != nil {
			return nil, fmt.Errorf("resource %d: %w", i, err)
		}
		resources[packed.GetTypeUrl()] = append(resources[packed.GetTypeUrl()], message)
	}
	return cache.NewSnapshot(file.Version, resources)
}

func security(cert, key, roots string) (credentials.TransportCredentials, error) {
	own, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(roots)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: no certificate in it", roots)
	}
	return credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{own},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
		MinVersion:   tls.VersionTLS13,
	}), nil
}

func run() error {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on")
	cert := flag.String("cert", "", "certificate chain")
	key := flag.String("key", "", "private key")
	roots := flag.String("roots", "", "roots of the clients' certificates")
	first := flag.String("snapshot", "", "first snapshot")
	flag.Parse()

	secure, err := security(*cert, *key, *roots)
	if err != nil {
		return err
	}
	telling := &teller{out: json.NewEncoder(os.Stdout)}
	snapshots := cache.NewSnapshotCache(true, anyNode{}, nil)
	set := func(path string) error {
		snapshot, err := load(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return snapshots.SetSnapshot(context.Background(), everybody, snapshot)
	}
	if err := set(*first); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	serving := grpc.NewServer(grpc.Creds(secure))
	ads := server.NewServer(context.Background(), snapshots, telling.callbacks())
	discovery.RegisterAggregatedDiscoveryServiceServer(serving, ads)
	telling.tell("listening", map[string]any{"address": listener.Addr().String()})
	failed := make(chan error, 1)
	go func() { failed <- serving.Serve(listener) }()

	lines := make(chan string)
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(os.Stdin); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	for {
		select {
		case err := <-failed:
			return err
		case path, open := <-lines:
			if !open {
				return nil
			}
			if err := set(path); err != nil {
				return err
			}
			telling.tell("serving", map[string]any{"snapshot": path})
		}
	}
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "go-control-plane:", err)
		os.Exit(1)
	}
}
