//! `tulle sandbox up`: brings the mesh up, tells what happens, and takes it down.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tulle_runtime::signals;
use tulle_sandbox::{Event, HostProcess, Node, Options, Sandbox, What};

use crate::error::CliError;
use crate::{mesh, output};

/// After this long it says what the pods wait for; it goes on waiting.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it then looks whether they are ready.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long pods may take on their way out.
const GRACE: Duration = Duration::from_secs(2);
/// How much of the control plane's output is shown when it ended.
const LAST_LINES: usize = 10;

const DIM: Style = Style::new().dimmed();
const BAD: Style = AnsiColor::Red.on_default();
const GOOD: Style = AnsiColor::Green.on_default();

pub(super) fn run(directory: &Path, leaf_ttl: Option<&str>) -> Result<ExitCode, CliError> {
    if directory.is_file() {
        return Err(CliError::Usage(format!(
            "-f {} is a file: name the directory that it is in",
            directory.display()
        )));
    }
    let node = tulle_sandbox::enter_node()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    runtime.block_on(stay_up(node, directory, leaf_ttl))
}

async fn stay_up(
    node: Node,
    directory: &Path,
    leaf_ttl: Option<&str>,
) -> Result<ExitCode, CliError> {
    if node.ids().mark_sockets() {
        output::note(
            "Rootless with a single user id: sidecars mark their sockets, and an app could set the mark too.",
        );
    }
    let options = Options {
        injector: mesh::injector(),
    };
    let sandbox = Sandbox::start(node, options, directory).await?;
    let events = sandbox.events();
    let control = mesh::start_control(&sandbox, leaf_ttl)?;
    let ended = tokio::select! {
        served = sandbox.serve() => served,
        _ = signals::shutdown() => Ok(()),
        // Neither of the two ever ends.
        () = async { tokio::join!(narrate(events, &control), announce(&sandbox)); } => Ok(()),
    };
    output::note("The sandbox ends ...");
    sandbox.shutdown(GRACE).await;
    ended?;
    Ok(ExitCode::SUCCESS)
}

/// Tells what happens, a line each.
async fn narrate(mut events: Receiver<Event>, control: &HostProcess) {
    loop {
        match events.recv().await {
            Ok(event) => {
                let style = style(event.what);
                anstream::eprintln!("{style}{event}{style:#}");
                if event.subject == mesh::CONTROL && event.what == What::Ended {
                    let text = String::from_utf8_lossy(&control.logs()).into_owned();
                    anstream::eprintln!("{}", last_lines(&text, LAST_LINES));
                }
            }
            Err(RecvError::Lagged(missed)) => {
                output::note(&format!("... and {missed} more events"))
            }
            // The sandbox has ended, and the caller knows.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

fn style(what: What) -> Style {
    match what {
        What::Ready => GOOD,
        What::Refused | What::Unready => BAD,
        _ => DIM,
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Says when everything is ready and what to try next; or, once, what it waits for.
async fn announce(sandbox: &Sandbox) {
    if let Err(error) = sandbox.wait_ready(PATIENCE).await {
        output::warning(&output::chain(&error));
        output::note("Correct the manifests: the sandbox follows.");
        while sandbox.wait_ready(PATIENCE).await.is_err() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    let pods = sandbox.pods();
    let ready = match pods.len() {
        0 => "There are no pods yet.".to_owned(),
        1 => "The pod is ready.".to_owned(),
        count => format!("{count} pods are ready."),
    };
    let example = pods
        .first()
        .map_or_else(|| "NAMESPACE/POD".to_owned(), |pod| pod.key.to_string());
    let tulle = output::program();
    anstream::eprintln!(
        "\n{GOOD}{ready}{GOOD:#} Edit the manifests, and the mesh follows; Ctrl-C ends it.\n\
         In another terminal:\n\n  \
         {tulle} sandbox status\n  \
         {tulle} sandbox logs {example}\n  \
         {tulle} sandbox exec {example} -- tulle app call http://SERVICE/\n"
    );
    std::future::pending().await
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
