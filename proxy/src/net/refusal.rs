//! Why captured connections are refused, by the names that metrics have for it. README explains each.

tulle_runtime::named! {
    /// Why a captured connection is refused.
    pub enum Refusal {
        /// The kernel does not know where it meant to go.
        NotCaptured = "not_captured",
        /// It would lead back to this sidecar, or to another one's own ports.
        Loop = "loop",
        /// It was over before it was looked at.
        Closed = "closed",
        /// Nothing is known yet of what may come in.
        NoConfig = "no_config",
        /// No TLS, where the policy wants it.
        PlaintextUnderStrict = "plaintext_under_strict",
        /// No ClientHello in time, where the policy wants TLS.
        NoHello = "no_hello",
        /// The handshake failed.
        Tls = "tls",
        /// TLS without a protocol of the mesh.
        Alpn = "alpn",
        /// The root of its client is trusted no more.
        DistrustedRoot = "distrusted_root",
        /// The app of the pod does not answer.
        AppUnreachable = "app_unreachable",
        /// The control plane did not say in time what is there.
        Undiscovered = "undiscovered",
        /// Of what it wants no endpoint answers.
        NoUpstream = "no_upstream",
        /// What came on it is no HTTP.
        MalformedHttp = "malformed_http",
        /// A head of HTTP/1 that does not end.
        SlowHead = "slow_head",
    }
}
