//! Why a discovery stream is not relayed, by the names that metrics have for it.

tulle_runtime::named! {
    /// Why a stream is not relayed, or ends.
    pub(super) enum Refusal {
        /// The agent is ending.
        Ending = "ending",
        /// There are as many streams as may be.
        TooManyStreams = "too_many_streams",
        /// It is no stream of aggregated discovery.
        UnknownMethod = "unknown_method",
        /// A message that cannot be read, or is too long.
        BadMessage = "bad_message",
        /// No message came in time.
        NoRequest = "no_request",
        /// The first message speaks for another pod.
        ForeignNode = "foreign_node",
    }
}
