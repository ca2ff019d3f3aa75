//! Why discovery streams are refused or ended, by the names that metrics have for it. README explains each.

tulle_runtime::named! {
    /// Why a stream is refused, or ended for what it asked.
    pub(crate) enum Refused {
        /// No certificate of the mesh.
        NoSvid = "no_svid",
        /// The first request names no node.
        NoNode = "no_node",
        /// The node's id is none.
        BadNode = "bad_node",
        /// The node is another's pod.
        ForeignPod = "foreign_pod",
        /// The pod is not known yet.
        NotYet = "not_yet",
        /// No request came in time.
        NoRequest = "no_request",
        /// A message that cannot be read, or is too long.
        BadMessage = "bad_message",
        /// A request that makes no sense.
        BadRequest = "bad_request",
        /// Its client was denied too many streams.
        TooManyDenied = "too_many_denied",
        /// Its client has as many streams as it may.
        TooManyStreams = "too_many_streams",
        /// It asks for more names than it may.
        TooManyNames = "too_many_names",
    }
}

#[cfg(test)]
mod tests {
    use tulle_runtime::reasons::explained;

    use super::*;

    #[test]
    fn readme_has_every_reason() {
        let readme = include_str!("../../../README.md");
        let head = "\n`tulle_xds_refused_streams_total{reason}`, of";
        let said = explained(readme, head).expect("a table of each once");
        let counted = Refused::ALL.iter().map(|reason| reason.name());
        assert_eq!(said, counted.collect());
    }
}
