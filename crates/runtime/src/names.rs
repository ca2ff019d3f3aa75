//! Names that several programs must agree on: ports, labels, annotations, files, users.
//!
//! README's table has the ports too; what a foreign client expects is called as Istio calls it.

/// Ports of the sidecar.
pub mod ports {
    /// Captured outbound connections.
    pub const OUTBOUND: u16 = 15001;
    /// Captured inbound connections.
    pub const INBOUND: u16 = 15006;
    /// Admin endpoint, on loopback only.
    pub const ADMIN: u16 = 15000;
    /// Merged metrics and rewritten probes.
    pub const METRICS: u16 = 15020;
    /// Readiness.
    pub const READINESS: u16 = 15021;
    /// DNS when captured.
    pub const DNS: u16 = 15053;
    /// Control plane: xDS and CA over TLS.
    pub const XDS: u16 = 15012;
    /// Control plane: metrics and debug.
    pub const CONTROL_ADMIN: u16 = 15014;
    /// Control plane: admission webhook.
    pub const WEBHOOK: u16 = 15017;
}

/// Where Prometheus finds the sidecar's metrics on [`ports::METRICS`], and those of its app behind them; as in Istio.
pub const METRICS_PATH: &str = "/stats/prometheus";

/// User and group id of the sidecar; its own connections are exempt from capture.
pub const PROXY_UID: u32 = 1337;

/// Socket mark of the sidecar's own connections where it cannot have a uid of its own (rootless sandbox only).
pub const PROXY_MARK: u32 = 0x54_55_4c;

/// Source address of the connection from the sidecar to its own app: the first thing that capture exempts.
pub const INBOUND_SOURCE_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(127, 0, 0, 6);
/// As [`INBOUND_SOURCE_V4`], for IPv6; capture adds it to `lo`.
pub const INBOUND_SOURCE_V6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// DNS name that the control plane's certificate carries and every client verifies.
pub const CONTROL_DNS_NAME: &str = "tulle-control.tulle-system.svc";
/// Namespace of the control plane.
pub const CONTROL_NAMESPACE: &str = "tulle-system";
/// Namespaces whose pods the mesh depends on: it never sits in front of them.
pub const SYSTEM_NAMESPACES: [&str; 4] = [
    "kube-system",
    "kube-public",
    "kube-node-lease",
    CONTROL_NAMESPACE,
];
/// Service account of the control plane.
pub const CONTROL_SERVICE_ACCOUNT: &str = "tulle-control";
/// Name of the injector: its Deployment, Service, service account and webhook configuration; of a revision other than the
/// default one, `-REVISION` follows.
pub const INJECTOR: &str = "tulle-injector";
/// DNS name that the certificate of the default revision's injector carries and the API server verifies.
pub const INJECTOR_DNS_NAME: &str = "tulle-injector.tulle-system.svc";
/// The revision of the control plane that serves namespaces which name none.
pub const DEFAULT_REVISION: &str = "default";
/// Secret in the control plane's namespace with the mesh's roots and their keys.
pub const CA_SECRET: &str = "tulle-ca";
/// Lease by which the control plane's replicas elect the one that writes.
pub const LEASE: &str = "tulle-control";
/// Trust domain unless the operator chose another.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// DNS domain of the cluster unless the operator chose another.
pub const DEFAULT_CLUSTER_DOMAIN: &str = "cluster.local";
/// Audience of the service account token that the CA accepts.
pub const TOKEN_AUDIENCE: &str = "tulle-ca";

/// Files that a sidecar finds in its volumes.
///
/// Token and bundle come from one projected volume and the state lies beside it, not under it: kubelet mounts
/// projected volumes read-only, so nothing can be mounted inside one.
pub mod files {
    /// Directory of the projected volume with the token and the bundle.
    pub const SECRETS_DIR: &str = "/var/run/secrets/tulle";
    /// Projected service account token.
    pub const TOKEN: &str = "/var/run/secrets/tulle/token";
    /// Directory of the trust bundle (from the ConfigMap, followed live).
    pub const CA_DIR: &str = "/var/run/secrets/tulle/ca";
    /// Trust bundle: PEM roots.
    pub const CA_BUNDLE: &str = "/var/run/secrets/tulle/ca/root.pem";
    /// File name of the bundle inside its directory, and key of the ConfigMap.
    pub const CA_BUNDLE_KEY: &str = "root.pem";
    /// Memory-backed directory that only the sidecar mounts: SVID, key and last good config.
    pub const STATE_DIR: &str = "/var/run/secrets/tulle-state";
}

/// What `tulle agent` writes for clients that are not ours, and where they find it.
pub mod agent {
    /// Discovery streams of one pod: as many as the relay carries, and the control plane takes, unless told otherwise.
    /// gRPC opens one for each target that it is given (gRFC A71).
    pub const STREAMS: u32 = 100;
    /// Directory of the files unless told otherwise.
    pub const DIR: &str = "/var/run/secrets/tulle-state/agent";
    /// Certificate chain, leaf first.
    pub const CERT: &str = "tls.crt";
    /// Private key.
    pub const KEY: &str = "tls.key";
    /// Trust bundle.
    pub const ROOTS: &str = "ca.crt";
    /// Envoy's SDS resource of chain and key, which follows the files; a `path_config_source` names it.
    pub const SDS_SVID_FILE: &str = "svid.sds.json";
    /// Name of the secret in it.
    pub const SDS_SVID: &str = "svid";
    /// Envoy's SDS resource of the trust bundle.
    pub const SDS_ROOTS_FILE: &str = "roots.sds.json";
    /// Name of the secret in it.
    pub const SDS_ROOTS: &str = "roots";
    /// Name of the certificate provider instance in gRPC's bootstrap.
    pub const CERTIFICATE_PROVIDER: &str = "default";
    /// Name that a gRPC server asks its listener by; `%s` is the address that it listens on.
    pub const SERVER_LISTENER_TEMPLATE: &str = "grpc/server?xds.resource.listening_address=%s";
}

/// ConfigMap with the trust bundle in every meshed namespace.
pub const CA_CONFIG_MAP: &str = "tulle-ca-root";

/// Labels and annotations on Kubernetes objects.
pub mod labels {
    /// On a namespace, `enabled`: inject its pods. On a pod, `enabled`/`disabled`: opt in or out.
    pub const INJECT: &str = "tulle.dev/inject";
    /// On a namespace or a pod: the revision of the control plane that injects it, unless it is the default one.
    pub const REVISION: &str = "tulle.dev/rev";
    /// Whether a namespace with these values of [`INJECT`] and [`REVISION`] asks for the mesh. Pods of others may still be in it
    /// by labels of their own.
    #[must_use]
    pub fn ask_for_the_mesh(inject: Option<&str>, revision: Option<&str>) -> bool {
        inject.map_or(revision.is_some(), |word| word == "enabled")
    }
    /// On everything that is installed or written by Tulle: what it belongs to.
    pub const PART_OF: &str = "app.kubernetes.io/part-of";
    /// The value of [`PART_OF`].
    pub const PART_OF_TULLE: &str = "tulle";
    /// On a pod, `true`: it runs a sidecar; set by the injector, read by control. `grpc`: its app is a gRPC server that does
    /// the mesh's TLS itself, by xDS; set by whoever writes the manifest.
    pub const PROXIED: &str = "tulle.dev/proxied";
    /// The value of [`PROXIED`] of a pod whose app does the mesh's TLS itself.
    pub const PROXIED_GRPC: &str = "grpc";
    /// Canonical service name of a workload; set by the injector where absent.
    pub const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
    /// Canonical revision of a workload.
    pub const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
    /// Kubernetes' recommended application name.
    pub const APP_NAME: &str = "app.kubernetes.io/name";
    /// Kubernetes' recommended application version.
    pub const APP_VERSION: &str = "app.kubernetes.io/version";
}

/// Annotations on pods that tune the sidecar. All optional.
pub mod annotations {
    /// Set by the injector: what it injected, as JSON.
    pub const STATUS: &str = "tulle.dev/status";
    /// `true` (default) or `false`: Prometheus is sent to the sidecar, which answers with the app's metrics behind its own.
    pub const MERGE_METRICS: &str = "tulle.dev/merge-metrics";
    /// Comma-separated inbound ports that stay out of the mesh.
    pub const EXCLUDE_INBOUND_PORTS: &str = "tulle.dev/exclude-inbound-ports";
    /// Comma-separated outbound ports that stay out of the mesh.
    pub const EXCLUDE_OUTBOUND_PORTS: &str = "tulle.dev/exclude-outbound-ports";
    /// Comma-separated outbound CIDRs that stay out of the mesh.
    pub const EXCLUDE_OUTBOUND_CIDRS: &str = "tulle.dev/exclude-outbound-cidrs";
    /// Log filter of the sidecar, in `tracing` directive syntax.
    pub const LOG_LEVEL: &str = "tulle.dev/proxy-log-level";
    /// `true` (default) or `false`: run the sidecar as a native sidecar (init container with `restartPolicy: Always`).
    pub const NATIVE_SIDECAR: &str = "tulle.dev/native-sidecar";
    /// `json` (default) or `off`: access log on standard output.
    pub const ACCESS_LOG: &str = "tulle.dev/access-log";
    /// `strip` (default) or `keep`: what an ingress without a sidecar says of how it was reached, such as X-Forwarded-Proto.
    pub const INGRESS_HEADERS: &str = "tulle.dev/ingress-headers";
    /// `host:port` of a control plane other than Tulle's, from which the sidecar takes its config.
    pub const XDS_ADDRESS: &str = "tulle.dev/xds-address";
    /// Who that control plane must be: a SPIFFE id, or a DNS name in its certificate.
    pub const XDS_NAME: &str = "tulle.dev/xds-name";
    /// Processor time that the sidecar asks for, such as `100m`.
    pub const CPU_REQUEST: &str = "tulle.dev/proxy-cpu-request";
    /// Processor time that the sidecar may use.
    pub const CPU_LIMIT: &str = "tulle.dev/proxy-cpu-limit";
    /// Memory that the sidecar asks for, such as `32Mi`.
    pub const MEMORY_REQUEST: &str = "tulle.dev/proxy-memory-request";
    /// Memory that the sidecar may use.
    pub const MEMORY_LIMIT: &str = "tulle.dev/proxy-memory-limit";
    /// What each annotation begins with that sets one of the sidecar's limits: see [`crate::limits`].
    pub const LIMITS: &str = "limits.tulle.dev/";
}

/// Names of the injected containers and volumes.
pub mod containers {
    /// The sidecar.
    pub const PROXY: &str = "tulle-proxy";
    /// The init container that programs the capture rules.
    pub const CAPTURE: &str = "tulle-capture";
    /// Projected volume with the service account token and the trust bundle.
    pub const TOKEN_VOLUME: &str = "tulle-token";
    /// Memory-backed volume for the sidecar's state.
    pub const STATE_VOLUME: &str = "tulle-state";
    /// Image that the injector names unless told otherwise; the sandbox maps it to the running executable.
    pub const PROXY_IMAGE: &str = "ghcr.io/tulle-mesh/tulle-proxy";
    /// Image with the whole `tulle` program (control plane, `tulle app`).
    pub const TULLE_IMAGE: &str = "ghcr.io/tulle-mesh/tulle";
}

/// Environment variables of the sidecar (`tulle-proxy`), set by the injector.
pub mod variables {
    /// Name of the pod (downward API).
    pub const POD_NAME: &str = "POD_NAME";
    /// Namespace of the pod (downward API).
    pub const POD_NAMESPACE: &str = "POD_NAMESPACE";
    /// IP address of the pod (downward API).
    pub const POD_IP: &str = "POD_IP";
    /// Service account of the pod (downward API).
    pub const SERVICE_ACCOUNT: &str = "SERVICE_ACCOUNT";
    /// `host:port` of the control plane.
    pub const CONTROL_ADDRESS: &str = "TULLE_CONTROL_ADDRESS";
    /// `host:port` of another control plane, from which the config comes; certificates still come from Tulle's.
    pub const XDS_ADDRESS: &str = "TULLE_XDS_ADDRESS";
    /// Who that control plane must be: a SPIFFE id, or a DNS name in its certificate.
    pub const XDS_NAME: &str = "TULLE_XDS_NAME";
    /// Trust domain.
    pub const TRUST_DOMAIN: &str = "TULLE_TRUST_DOMAIN";
    /// DNS domain of the cluster.
    pub const CLUSTER_DOMAIN: &str = "TULLE_CLUSTER_DOMAIN";
    /// Log filter, in `tracing` directive syntax.
    pub const LOG: &str = "TULLE_LOG";
    /// `json` or `off`.
    pub const ACCESS_LOG: &str = "TULLE_ACCESS_LOG";
    /// Number of data-path workers.
    pub const WORKERS: &str = "TULLE_WORKERS";
    /// How long a drain may take, such as `25s`.
    pub const DRAIN_DEADLINE: &str = "TULLE_DRAIN_DEADLINE";
    /// `listeners` or `deadline`, where Kubernetes tells the sidecar to end when it tells the app: it is an ordinary container.
    pub const OUTLIVE_APP: &str = "TULLE_OUTLIVE_APP";
    /// How long the head of an HTTP/1 request may take, such as `30s`.
    pub const REQUEST_HEAD_TIMEOUT: &str = "TULLE_REQUEST_HEAD_TIMEOUT";
    /// How long a connection may be open without a first request, such as `5m`.
    pub const FIRST_REQUEST_TIMEOUT: &str = "TULLE_FIRST_REQUEST_TIMEOUT";
    /// How long a connection may be open without another request, such as `1h`.
    pub const IDLE_TIMEOUT: &str = "TULLE_IDLE_TIMEOUT";
    /// How long a client may pause in the middle of a request body that its request waits for, such as `15m`.
    pub const BODY_TIMEOUT: &str = "TULLE_BODY_TIMEOUT";
    /// Bytes a second that such a body must bring, counted over that time, such as `16`; 0: only pauses count.
    pub const BODY_RATE: &str = "TULLE_BODY_RATE";
    /// How long an HTTP client may leave an answer unread, such as `15m`.
    pub const UNREAD_TIMEOUT: &str = "TULLE_UNREAD_TIMEOUT";
    /// How long an opaque connection may be open with nothing moving, such as `1h`.
    pub const TCP_IDLE_TIMEOUT: &str = "TULLE_TCP_IDLE_TIMEOUT";
    /// Captured connections that may be open at a time in each direction.
    pub const MAX_CONNECTIONS: &str = "TULLE_MAX_CONNECTIONS";
    /// Requests that a worker may have in flight.
    pub const MAX_REQUESTS: &str = "TULLE_MAX_REQUESTS";
    /// Longest head of an HTTP/1 request.
    pub const MAX_HEAD: &str = "TULLE_MAX_HEAD";
    /// Most fields of one.
    pub const MAX_FIELDS: &str = "TULLE_MAX_FIELDS";
    /// Destinations, and as many addresses of clients, that a sidecar may have asked its control plane about.
    pub const MAX_SUBSCRIPTIONS: &str = "TULLE_MAX_SUBSCRIPTIONS";
    /// Connections with mTLS that a worker makes to one peer at a time on HTTP/1.
    pub const MAX_CONNECTING: &str = "TULLE_MAX_CONNECTING";
    /// Connections that each of the servers for operators, metrics and readiness takes.
    pub const MAX_ADMIN_CONNECTIONS: &str = "TULLE_MAX_ADMIN_CONNECTIONS";
    /// Bytes of the app's own metrics that the sidecar passes on.
    pub const MAX_APP_METRICS: &str = "TULLE_MAX_APP_METRICS";
    /// Memory that the sidecar may use, such as `256Mi`; that of its cgroup if not said.
    pub const MEMORY_LIMIT: &str = "TULLE_MEMORY_LIMIT";
    /// Streams that a peer may have open on an HTTP/2 connection.
    pub const H2_MAX_STREAMS: &str = "TULLE_H2_MAX_STREAMS";
    /// Decoded size of a head on HTTP/2, in bytes.
    pub const H2_MAX_HEADER_LIST: &str = "TULLE_H2_MAX_HEADER_LIST";
    /// Streams that a client outside the mesh may have reset before they were looked at.
    pub const H2_PENDING_RESETS: &str = "TULLE_H2_PENDING_RESETS";
    /// Streams of an HTTP/2 connection that may have to be reset for what the peer sends on them.
    pub const H2_LOCAL_RESETS: &str = "TULLE_H2_LOCAL_RESETS";
    /// Requests that a client may give up on an HTTP/2 connection, beyond those that it lets end.
    pub const H2_GIVEN_UP: &str = "TULLE_H2_GIVEN_UP";
    /// Control frames that a peer may send on an HTTP/2 connection, beyond what its messages need.
    pub const H2_CONTROL_FRAMES: &str = "TULLE_H2_CONTROL_FRAMES";
    /// Bytes of a message that may be under way towards the sidecar on HTTP/2.
    pub const H2_STREAM_WINDOW: &str = "TULLE_H2_STREAM_WINDOW";
    /// Bytes of all messages of an HTTP/2 connection that may be under way towards the sidecar.
    pub const H2_CONNECTION_WINDOW: &str = "TULLE_H2_CONNECTION_WINDOW";
    /// Bytes of a message on HTTP/2 that wait in the sidecar for its receiver.
    pub const H2_SEND_BUFFER: &str = "TULLE_H2_SEND_BUFFER";
    /// How long a client may take nothing of an answer on HTTP/2, such as `5m`.
    pub const FLUSH_TIMEOUT: &str = "TULLE_FLUSH_TIMEOUT";
    /// Marks the proxy's sockets instead of relying on its uid (rootless sandbox only): `true` or `false`.
    pub const MARK_SOCKETS: &str = "TULLE_MARK_SOCKETS";
    /// `on-demand` (default) or `wildcard` (default with an address for xDS of its own).
    pub const DISCOVERY: &str = "TULLE_DISCOVERY";
    /// `refuse` (default) or `passthrough`: what to do with a destination that the control plane did not answer for.
    pub const UNDISCOVERED: &str = "TULLE_UNDISCOVERED";
    /// `strip` (default) or `keep`: X-Forwarded-Host, -Port, -Prefix, -Proto and -Scheme of clients outside the mesh.
    pub const INGRESS_HEADERS: &str = "TULLE_INGRESS_HEADERS";
    /// The app's own probes by rewritten path, as JSON: what the kubelet's probes on the metrics port stand for.
    pub const APP_PROBES: &str = "TULLE_APP_PROBES";
    /// Where the app's own metrics are, as JSON: what the sidecar's answer to Prometheus has behind its own.
    pub const APP_METRICS: &str = "TULLE_APP_METRICS";
}

/// Header with which an HTTP/1 peer inside the mesh says that the app never got the request.
/// Believed only over mTLS from a pinned identity; stripped from everyone else.
pub const UNPROCESSED_HEADER: &str = "x-tulle-unprocessed";

/// ALPN protocols between sidecars: exactly one is offered, and it says what follows.
pub mod alpn {
    /// HTTP/2.
    pub const H2: &[u8] = b"tulle-h2";
    /// HTTP/1.1.
    pub const HTTP1: &[u8] = b"tulle-http1";
    /// Opaque bytes.
    pub const TCP: &[u8] = b"tulle-tcp";
}
