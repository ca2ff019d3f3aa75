//! The news of a running sandbox, an event a line: on standard error for people, as JSON on standard output for machines.

use std::convert::Infallible;

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tulle_sandbox::{Event, HostProcess, What};

use crate::error::CliError;
use crate::{mesh, output};

/// How much of the control plane's output is shown when it ended.
const LAST_LINES: usize = 10;

const DIM: Style = Style::new().dimmed();
const BAD: Style = AnsiColor::Red.on_default();
const GOOD: Style = AnsiColor::Green.on_default();

/// How to tell them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// For machines
    Json,
}

/// Tells what happens for as long as it can be told; why it cannot any more.
pub(crate) async fn narrate(
    events: Receiver<Event>,
    control: &HostProcess,
    format: Format,
) -> CliError {
    match tell_all(events, control, format).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn tell_all(
    mut events: Receiver<Event>,
    control: &HostProcess,
    format: Format,
) -> Result<Infallible, CliError> {
    loop {
        match events.recv().await {
            Ok(event) => {
                match format {
                    Format::Text => {
                        let style = style(event.what);
                        output::note(&format!("{style}{event}{style:#}"));
                    }
                    Format::Json => {
                        let line = serde_json::to_string(&event);
                        output::line(&line.map_err(|error| CliError::Render(error.into()))?)?;
                    }
                }
                if event.subject == mesh::CONTROL && event.what == What::Ended {
                    let text = String::from_utf8_lossy(&control.logs()).into_owned();
                    output::note(&last_lines(&text, LAST_LINES));
                }
            }
            Err(RecvError::Lagged(missed)) => {
                output::note(&format!("... and {missed} more events"));
            }
            // The sandbox has ended, and the caller knows.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

fn style(what: What) -> Style {
    match what {
        What::Ready | What::Mended => GOOD,
        What::Refused | What::Unready => BAD,
        _ => DIM,
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_long_log_is_shown() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a\n", 2), "a");
        assert_eq!(last_lines("", 2), "");
    }
}
