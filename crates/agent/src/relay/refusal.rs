//! Why a discovery stream is not relayed, by the names that metrics have for it.

macro_rules! refusals {
    ($($(#[$about:meta])* $refusal:ident = $name:literal,)*) => {
        /// Why a stream is not relayed, or ends.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Refusal {
            $($(#[$about])* $refusal,)*
        }

        impl Refusal {
            /// Every one of them.
            #[cfg(test)]
            pub(super) const ALL: &[Self] = &[$(Self::$refusal),*];

            /// Its name in metrics.
            pub(super) fn name(self) -> &'static str {
                match self {
                    $(Self::$refusal => $name,)*
                }
            }
        }
    };
}

refusals! {
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
