//! What clients may make grow: how a limit that was reached is counted and told, and who has how much of what.
//!
//! Nothing here knows what is limited. A count is exact; a log line may be one of many, and says how many were left out.

mod kept;
mod network;
mod pace;
mod shares;
mod slack;

pub(crate) use kept::Kept;
pub(crate) use network::network;
pub(crate) use pace::Pace;
pub(crate) use shares::{Share, Shares};
pub(crate) use slack::{LARGE, Slack};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Counts how often limits were reached. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reached(Family<Limit, Counter>);

/// A limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Limit {
    limit: &'static str,
}

impl Reached {
    /// Registers the metric in `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let reached = Self::default();
        let help = "How often a limit on clients of the control plane was reached, by limit";
        registry.register("control_limits_reached", help, reached.0.clone());
        reached
    }

    /// It was reached once more.
    pub(crate) fn count(&self, limit: &'static str) {
        self.count_all(limit, 1);
    }

    /// It was reached that many times.
    pub(crate) fn count_all(&self, limit: &'static str, times: u32) {
        self.0.get_or_create(&Limit { limit }).inc_by(times.into());
    }
}
