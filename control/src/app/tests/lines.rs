//! Log lines, as a test reads them.

use std::fmt::{Debug, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::subscriber::{DefaultGuard, NoSubscriber, set_default};
use tracing::{Dispatch, Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::{Layer, registry};

/// Everything that is logged, as long as it is a layer of the default subscriber.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines(Arc<Mutex<Vec<Line>>>);

/// One line: `key=value` for each field.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    pub(super) text: String,
}

impl Lines {
    /// Hears what this thread logs until the guard is dropped.
    pub(super) fn listen() -> (Self, (Dispatch, DefaultGuard)) {
        let lines = Self::default();
        // While there is but one, a thread without any decides for all whether a line is of interest.
        let another = Dispatch::new(NoSubscriber::default());
        let guard = set_default(registry().with(lines.clone()));
        (lines, (another, guard))
    }

    /// Those that contain a text.
    pub(super) fn with(&self, text: &str) -> Vec<Line> {
        let lines = self.0.lock();
        let with = lines.iter().filter(|line| line.text.contains(text));
        with.cloned().collect()
    }
}

impl Line {
    /// The value of a field that is a number.
    pub(super) fn number(&self, field: &str) -> u64 {
        let mut words = self.text.split(' ');
        let value = words.find_map(|word| word.strip_prefix(field)?.strip_prefix('='));
        value
            .and_then(|value| value.parse().ok())
            .expect("a number")
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.text, "{}={value:?} ", field.name()).expect("there is room");
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        self.0.lock().push(line);
    }
}
