//! Why requests for certificates are refused, by the names that metrics have for it. README explains each.

tulle_runtime::named! {
    /// Why a request is refused.
    pub(crate) enum Failure {
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
        /// The roots may have changed, and cannot be looked up.
        StaleRoots = "stale_roots",
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
}

#[cfg(test)]
mod tests {
    use tulle_runtime::reasons::explained;

    use super::*;

    #[test]
    fn readme_has_every_reason() {
        let readme = include_str!("../../../README.md");
        let head = "\n`tulle_ca_csr_failures_total{reason}`, of";
        let said = explained(readme, head).expect("a table of each once");
        let counted = Failure::ALL.iter().map(|reason| reason.name());
        assert_eq!(said, counted.collect());
    }
}
