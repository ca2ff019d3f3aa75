//! `tulle sandbox up`: brings the mesh up, tells what happens, and takes it down.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use tulle_runtime::signals;
use tulle_sandbox::{Node, Options, Sandbox};

use crate::error::CliError;
use crate::mesh::verdict;
use crate::narrate::{Format, narrate};
use crate::{mesh, output};

/// After this long it says what the pods wait for; it goes on waiting.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it then looks whether they are ready.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long pods may take on their way out.
const GRACE: Duration = Duration::from_secs(2);

const GOOD: Style = AnsiColor::Green.on_default();

pub(super) fn run(
    directory: &Path,
    leaf_ttl: Option<&str>,
    format: Format,
) -> Result<ExitCode, CliError> {
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
    runtime.block_on(stay_up(node, directory, leaf_ttl, format))
}

async fn stay_up(
    node: Node,
    directory: &Path,
    leaf_ttl: Option<&str>,
    format: Format,
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
        served = sandbox.serve() => served.map_err(CliError::from),
        _ = signals::shutdown() => Ok(()),
        error = narrate(events, &control, format) => Err(error),
        // Neither of the two ever ends.
        () = async { tokio::join!(verdict::follow(&sandbox), announce(&sandbox)); } => Ok(()),
    };
    output::note("The sandbox ends ...");
    sandbox.shutdown(GRACE).await;
    ended?;
    Ok(ExitCode::SUCCESS)
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
    let which = super::which(sandbox);
    output::note(&format!(
        "\n{GOOD}{ready}{GOOD:#} Edit the manifests, and the mesh follows; Ctrl-C ends it.\n\
         In another terminal:\n\n  \
         {tulle} sandbox status{which}\n  \
         {tulle} sandbox logs{which} {example}\n  \
         {tulle} sandbox exec{which} {example} -- tulle app call http://SERVICE/\n"
    ));
    std::future::pending().await
}
