//! Why requests for certificates are refused, by the names that metrics have for it. README explains each.

macro_rules! failures {
    ($($(#[$about:meta])* $reason:ident = $name:literal,)*) => {
        /// Why a request is refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Failure {
            $($(#[$about])* $reason,)*
        }

        impl Failure {
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

failures! {
    /// No token came with it.
    NoToken = "no_token",
    /// The token is not good.
    Token = "token",
    /// Nobody could say whether the token is good.
    TokenCheck = "token_check",
    /// There is no such pod.
    NoPod = "no_pod",
    /// Not all pods are known yet.
    NotSynced = "not_synced",
    /// Token and certificate are of two workloads.
    OtherPeer = "other_peer",
    /// The token names no workload of the mesh.
    Id = "id",
    /// What it wants signed is not good.
    Csr = "csr",
    /// Signing failed.
    Issue = "issue",
    /// A message that cannot be read, or is too long.
    BadMessage = "bad_message",
    /// Its client asks more often than it may.
    Pace = "pace",
    /// It took too long.
    Deadline = "deadline",
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn readme_has_every_reason() {
        let readme = include_str!("../../../README.md");
        let head = "\n`tulle_ca_csr_failures_total{reason}`, of";
        let (_, table) = readme.split_once(head).expect("it is there");
        let rows = table.lines().skip_while(|line| !line.starts_with('|'));
        let rows = rows.take_while(|line| line.starts_with('|'));
        let said: Vec<_> = rows
            .filter_map(|row| row.strip_prefix("| `")?.split('`').next())
            .collect();
        let unlike: BTreeSet<_> = said.iter().copied().collect();
        assert_eq!(unlike.len(), said.len(), "a row is there twice");
        let counted = Failure::ALL.iter().map(|reason| reason.name());
        assert_eq!(unlike, counted.collect());
    }
}
