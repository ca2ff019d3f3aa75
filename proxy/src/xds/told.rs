//! What is said in the log about what a control plane sends: a few lines of each kind in a while, because it may send
//! thousands of bad resources a second. All of them are counted in metrics.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::Instant;
use tulle_xds_proto::ResourceType;

use super::tracker::shortened;
use crate::config::store::Ask;

/// Bytes that are said of a name, which may be as long as its server likes.
const NAME: usize = 256;
/// So many lines ...
const LINES: u32 = 16;
/// ... in each of these.
const WHILE: Duration = Duration::from_secs(10);

/// What was said of late.
#[derive(Debug, Default)]
pub(super) struct Told {
    refused: Lines,
    expired: Lines,
    absent: Lines,
    unasked: Lines,
}

impl Told {
    /// The name has been shortened, for it is also told the control plane.
    pub(super) fn refused(&mut self, kind: ResourceType, name: &str, error: &impl Display) {
        match self.refused.turn(Instant::now()) {
            Turn::Say => tracing::warn!(
                resource.type = kind.short_name(),
                resource.name = name,
                %error,
                "refused a resource; the last good one stays in use"
            ),
            Turn::SayMore => {
                tracing::warn!("refused more resources; tulle_xds_rejects_total counts them");
            }
            Turn::Hush => {}
        }
    }

    pub(super) fn expired(&mut self, kind: ResourceType, name: &str) {
        match self.expired.turn(Instant::now()) {
            Turn::Say => tracing::warn!(
                resource.type = kind.short_name(),
                resource.name = shortened(name, NAME),
                "the control plane gave it a lifetime and did not renew it; going on as if it did not exist"
            ),
            Turn::SayMore => tracing::warn!(
                "the control plane did not renew more resources; tulle_xds_expired_total counts them"
            ),
            Turn::Hush => {}
        }
    }

    pub(super) fn absent(&mut self, name: &str) {
        match self.absent.turn(Instant::now()) {
            Turn::Say => tracing::warn!(
                resource.name = shortened(name, NAME),
                "the control plane does not answer for it; going on as if it did not exist"
            ),
            Turn::SayMore => tracing::warn!("the control plane does not answer for more names"),
            Turn::Hush => {}
        }
    }

    pub(super) fn unasked(&mut self, ask: Ask) {
        match self.unasked.turn(Instant::now()) {
            Turn::Say => tracing::warn!(
                ?ask,
                "the control plane is not asked about it: as many as TULLE_MAX_SUBSCRIPTIONS allows are in use"
            ),
            Turn::SayMore => tracing::warn!(
                "the control plane is not asked about more; tulle_xds_refused_asks_total counts them"
            ),
            Turn::Hush => {}
        }
    }
}

/// Lines of one kind.
#[derive(Debug, Default)]
struct Lines {
    began: Option<Instant>,
    said: u32,
}

/// Whether to say something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// It is to be said.
    Say,
    /// That more is left out is to be said in its place.
    SayMore,
    /// Nothing is to be said.
    Hush,
}

impl Lines {
    fn turn(&mut self, now: Instant) -> Turn {
        if self.began.is_none_or(|began| now - began >= WHILE) {
            *self = Self {
                began: Some(now),
                said: 0,
            };
        }
        self.said = self.said.saturating_add(1);
        match self.said.cmp(&(LINES + 1)) {
            std::cmp::Ordering::Less => Turn::Say,
            std::cmp::Ordering::Equal => Turn::SayMore,
            std::cmp::Ordering::Greater => Turn::Hush,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing::field::{Field, Visit};
    use tracing::{Event, Subscriber};
    use tracing_subscriber::layer::{Context, SubscriberExt as _};
    use tracing_subscriber::{Layer, registry};

    use super::*;

    /// Keeps the names that are told of.
    #[derive(Clone, Default)]
    struct Names(Arc<Mutex<Vec<String>>>);

    impl Visit for Names {
        fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}

        fn record_str(&mut self, field: &Field, value: &str) {
            if field.name() == "resource.name" {
                self.0.lock().push(value.to_owned());
            }
        }
    }

    impl<S: Subscriber> Layer<S> for Names {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            event.record(&mut self.clone());
        }
    }

    #[test]
    fn of_a_long_name_only_the_beginning_is_said() {
        let names = Names::default();
        let long = "\u{e9}".repeat(1 << 20);
        tracing::subscriber::with_default(registry().with(names.clone()), || {
            let mut told = Told::default();
            for name in ["short", &long] {
                told.expired(ResourceType::Cluster, name);
                told.absent(name);
            }
        });
        let cut = format!("{}...", "\u{e9}".repeat(NAME / 2));
        assert_eq!(*names.0.lock(), ["short", "short", &cut, &cut]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_lines_in_a_while_and_one_that_says_that_there_is_more() {
        let (mut told, now) = (Lines::default(), Instant::now());
        let mut count = |now, turns: u32| {
            let mut said = [0, 0];
            for _ in 0..turns {
                match told.turn(now) {
                    Turn::Say => said[0] += 1,
                    Turn::SayMore => said[1] += 1,
                    Turn::Hush => {}
                }
            }
            said
        };
        assert_eq!(count(now, LINES), [LINES, 0]);
        assert_eq!(count(now + WHILE / 2, 10_000), [0, 1]);
        assert_eq!(count(now + WHILE, 10_000), [LINES, 1]);
        assert_eq!(count(now + 3 * WHILE, 1), [1, 0]);
    }
}
