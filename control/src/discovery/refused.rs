//! Why discovery streams are refused or ended, by the names that metrics have for it. README explains each.

macro_rules! refuseds {
    ($($(#[$about:meta])* $reason:ident = $name:literal,)*) => {
        /// Why a stream is refused, or ended for what it asked.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Refused {
            $($(#[$about])* $reason,)*
        }

        impl Refused {
            /// Every one of them.
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$reason),*];

            /// Its name in metrics and logs.

            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Self::$reason => $name,)*
                }
            }
        }
    };
}

refuseds! {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn readme_has_every_reason() {
        let readme = include_str!("../../../README.md");
        let head = "\n`tulle_xds_refused_streams_total{reason}`, of";
        let (_, table) = readme.split_once(head).expect("it is there");
        let rows = table.lines().skip_while(|line| !line.starts_with('|'));
        let rows = rows.take_while(|line| line.starts_with('|'));
        let said: Vec<_> = rows
            .filter_map(|row| row.strip_prefix("| `")?.split('`').next())
            .collect();
        let unlike: BTreeSet<_> = said.iter().copied().collect();
        assert_eq!(unlike.len(), said.len(), "a row is there twice");
        let counted = Refused::ALL.iter().map(|reason| reason.name());
        assert_eq!(unlike, counted.collect());
    }
}
