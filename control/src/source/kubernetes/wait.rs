//! What has to be read before the world counts, and what is waited for no longer.
//!
//! Without the kinds that every cluster has, and without policies, nothing that is told would be true. One kind of routes
//! is another matter: a definition whose objects cannot be listed, as of a conversion webhook that is gone, must not keep
//! every control plane from serving that begins after it. The same goes for what is stored of broken routes.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::snapshots;
use crate::snapshot::Snapshots;
use crate::source::report::SourceReport;
use crate::store::Kind;

/// How often it is looked, while some patience lasts.
const LOOKS: u32 = 30;

/// Who waits.
pub(super) struct Wait {
    missing: BTreeSet<Kind>,
    report: SourceReport,
    snapshots: Snapshots,
    patience: Duration,
    /// Since when everything is there that every cluster has.
    core: Option<Instant>,
    over: bool,
}

impl Wait {
    /// Waits for these kinds, and so long for those that fail when everything else is there.
    pub(super) fn new(
        missing: BTreeSet<Kind>,
        report: SourceReport,
        snapshots: Snapshots,
        patience: Duration,
    ) -> Self {
        report.awaited().wait_for(&missing);
        let mut wait = Self {
            missing,
            report,
            snapshots,
            patience,
            core: None,
            over: false,
        };
        wait.look_at_core();
        wait
    }

    /// A kind need not be waited for.
    pub(super) fn settled(&mut self, kind: Kind) {
        if self.missing.remove(&kind) {
            self.report.awaited().wait_for(&self.missing);
            self.look_at_core();
        }
    }

    /// When to look again, whatever happens.
    pub(super) fn look_again(&self) -> Option<Instant> {
        let waits = !self.over && self.core.is_some();
        waits.then(|| Instant::now() + self.patience / LOOKS)
    }

    /// Whether it is over now and was not before.
    pub(super) fn ends(&mut self) -> bool {
        if self.over {
            return false;
        }
        if self.missing.is_empty() {
            tracing::info!("everything in the cluster has been read");
            self.over = true;
            return true;
        }
        if self.fails(snapshots::KIND) && self.snapshots.waive() {
            tracing::warn!(
                resource.type = snapshots::KIND,
                "cannot be listed, and is waited for no longer: of routes that were broken before, nothing is in force (see /debug/source)"
            );
        }
        let dispensable = |kind: &Kind| kind.is_route() && self.fails(kind.as_str());
        self.over = self.missing.iter().all(dispensable);
        if self.over {
            let kinds: Vec<_> = self.missing.iter().map(|kind| kind.as_str()).collect();
            tracing::warn!(
                resource.type = kinds.join(", "),
                "cannot be listed, and is waited for no longer: none of these routes is in force (see /debug/source)"
            );
        }
        self.over
    }

    /// Whether one could not be listed for as long as there is patience.
    fn fails(&self, kind: &str) -> bool {
        let since = self.report.awaited().failing_since(kind);
        let since = since.zip(self.core);
        since.is_some_and(|(since, core)| since.max(core).elapsed() >= self.patience)
    }

    fn look_at_core(&mut self) {
        if self.core.is_none() && self.missing.iter().all(|kind| kind.is_authored()) {
            self.core = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::report::Place;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// What is missing, what fails, and whether it is over and what is stored is done without.
    type Row = (
        &'static str,
        &'static [Kind],
        &'static [&'static str],
        (bool, bool),
    );

    /// Whether it is over with these missing, after some patience and a bit more, if these fail all the time.
    async fn ends(missing: &[Kind], failing: &[&str]) -> (bool, bool) {
        let (report, snapshots) = (SourceReport::default(), Snapshots::default());
        let missing = missing.iter().copied().collect();
        let mut wait = Wait::new(missing, report.clone(), snapshots.clone(), PATIENCE);
        for kind in failing {
            let place = Place::Resource((*kind).into());
            let now = Instant::now();
            report
                .awaited()
                .fails(&(*kind).into(), place, now, "no".to_owned());
        }
        tokio::time::advance(PATIENCE - Duration::from_millis(1)).await;
        let is_settled = || snapshots.is_settled(Kind::HttpRoute);
        assert!(!wait.ends() && !is_settled(), "there is patience");
        tokio::time::advance(Duration::from_millis(1)).await;
        let ends = (wait.ends(), is_settled());
        for policy in [Kind::PeerAuthentication, Kind::IstioPeerAuthentication] {
            assert!(!snapshots.is_settled(policy), "a policy waits");
        }
        ends
    }

    #[tokio::test(start_paused = true)]
    async fn only_routes_and_what_is_stored_are_done_without_and_only_if_they_fail() {
        const ROUTE: &str = "HTTPRoute";
        let rows: [Row; 7] = [
            (
                "a route that fails",
                &[Kind::HttpRoute],
                &[ROUTE],
                (true, false),
            ),
            (
                "a route that is slow",
                &[Kind::HttpRoute],
                &[],
                (false, false),
            ),
            (
                "one of each",
                &[Kind::HttpRoute, Kind::TlsRoute],
                &[ROUTE],
                (false, false),
            ),
            (
                "a policy",
                &[Kind::PeerAuthentication],
                &["PeerAuthentication"],
                (false, false),
            ),
            (
                "a route, and pods",
                &[Kind::HttpRoute, Kind::Pod],
                &[ROUTE],
                (false, false),
            ),
            (
                "what is stored",
                &[Kind::PeerAuthentication],
                &[snapshots::KIND],
                (false, true),
            ),
            (
                "the same, and pods",
                &[Kind::Pod],
                &[snapshots::KIND],
                (false, false),
            ),
        ];
        for (name, missing, failing, expected) in rows {
            assert_eq!(ends(missing, failing).await, expected, "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn patience_begins_when_everything_else_is_there() {
        let report = SourceReport::default();
        let missing = BTreeSet::from([Kind::HttpRoute, Kind::Pod]);
        let mut wait = Wait::new(missing, report.clone(), Snapshots::default(), PATIENCE);
        let place = Place::Resource("r".into());
        report
            .awaited()
            .fails(&"HTTPRoute".into(), place, Instant::now(), "no".to_owned());
        tokio::time::advance(PATIENCE * 9).await;
        assert_eq!(wait.look_again(), None);
        wait.settled(Kind::Pod);
        assert!(!wait.ends() && wait.look_again().is_some());
        tokio::time::advance(PATIENCE).await;
        assert!(wait.ends());
        assert!(!wait.ends() && wait.look_again().is_none(), "once");
    }
}
