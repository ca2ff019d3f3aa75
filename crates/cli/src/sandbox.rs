//! `tulle sandbox`: a mesh from the user's own manifests on this machine, and the way into its pods.
//!
//! `up` is the sandbox and stays in the foreground; every other command asks it over its socket from another terminal.

mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use tulle_sandbox::{Client, PodLine, Request, Sandbox};

use crate::error::CliError;
use crate::narrate::Format;
use crate::output;

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  tulle sandbox up -f manifests/                 run what the directory says, and follow its edits
  tulle sandbox status                           from another terminal: the pods
  tulle sandbox exec shop/client -- curl -s http://web/
  tulle sandbox logs shop/client -c tulle-proxy  what the sidecar says
  tulle sandbox down                             end it, as Ctrl-C does

It needs Linux with network namespaces and nf_tables, as root or with unprivileged user namespaces. Containers run \
programs of this machine; images are not pulled.")]
pub(crate) struct SandboxArgs {
    #[command(subcommand)]
    pub(crate) command: SandboxCommand,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum SandboxCommand {
    /// Run a directory of manifests as a mesh on this machine, until Ctrl-C
    #[command(after_help = "\
Pods, Deployments, StatefulSets, Services and ConfigMaps run here; routes and policies go to the control plane, which \
reads the same files. Edit a file, and the mesh follows. Everything lives in namespaces of its own and ends with the \
command.

Examples:
  tulle sandbox up -f manifests/
  tulle sandbox up -f manifests/ --leaf-ttl 40s  watch certificates rotate")]
    Up(UpArgs),
    /// Run a program in a pod, with this terminal's input and output; exits with its status
    #[command(after_help = "\
The program sees the container's network, files and user. `tulle` is this program, whether or not it is installed.

Examples:
  tulle sandbox exec shop/client -- tulle app call http://web/
  tulle sandbox exec shop/client -c tulle-proxy -- id
  tulle sandbox exec client -- sh                the pod `client` in the namespace `default`")]
    Exec(ExecArgs),
    /// List the pods
    Status(StatusArgs),
    /// Print what a container wrote
    #[command(after_help = "\
Examples:
  tulle sandbox logs shop/client
  tulle sandbox logs shop/client -c tulle-proxy")]
    Logs(LogsArgs),
    /// End the sandbox and everything in it
    Down(Which),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct UpArgs {
    /// Directory of manifests
    #[arg(short = 'f', long = "file", value_name = "DIR")]
    directory: PathBuf,
    /// Life of a certificate, such as 40s; the control plane's default unless given
    #[arg(long, value_name = "DURATION")]
    leaf_ttl: Option<String>,
    /// How to tell what happens: on standard error, or as one JSON document a line on standard output
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// Which of several.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Which {
    /// Process id of the sandbox; needed only while several are running
    #[arg(long, value_name = "ID")]
    sandbox: Option<u32>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    which: Which,
    /// NAMESPACE/NAME, or NAME in the namespace `default`
    pod: String,
    /// The container; the first of the app unless given
    #[arg(short, long)]
    container: Option<String>,
    /// Program and arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    argv: Vec<String>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    which: Which,
    /// How to print them
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    which: Which,
    /// NAMESPACE/NAME, or NAME in the namespace `default`
    pod: String,
    /// The container; the first of the app unless given
    #[arg(short, long)]
    container: Option<String>,
}

/// Runs the command. Call it before the process has a second thread: `up` moves into namespaces of its own.
pub(crate) fn run(command: SandboxCommand) -> Result<ExitCode, CliError> {
    let (which, request) = match command {
        SandboxCommand::Up(args) => {
            return up::run(&args.directory, args.leaf_ttl.as_deref(), args.output);
        }
        SandboxCommand::Status(args) => return status(args.which, args.output),
        SandboxCommand::Exec(args) => (
            args.which,
            Request::Exec {
                pod: args.pod,
                container: args.container,
                argv: args.argv,
            },
        ),
        SandboxCommand::Logs(args) => (
            args.which,
            Request::Logs {
                pod: args.pod,
                container: args.container,
            },
        ),
        SandboxCommand::Down(which) => (which, Request::Down),
    };
    let status = Client::connect(which.sandbox)?.run(&request)?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)))
}

/// The words by which a command printed now reaches this sandbox: none while it is the only one.
pub(crate) fn which(sandbox: &Sandbox) -> String {
    if tulle_sandbox::others(sandbox.id()).is_empty() {
        String::new()
    } else {
        format!(" --sandbox {}", sandbox.id())
    }
}

fn status(which: Which, format: Format) -> Result<ExitCode, CliError> {
    let pods = Client::connect(which.sandbox)?.status()?;
    match format {
        Format::Json => {
            let text = serde_json::to_string_pretty(&pods)
                .map_err(|error| CliError::Render(error.into()))?;
            output::line(&text)?;
        }
        Format::Text if pods.is_empty() => output::note("The sandbox runs no pods."),
        Format::Text => output::line(&table(&pods))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Columns as `kubectl get pods` has them.
fn table(pods: &[PodLine]) -> String {
    let row = |pod: &PodLine| {
        [
            pod.pod.clone(),
            pod.ready.clone(),
            pod.status.clone(),
            pod.restarts.to_string(),
            pod.ip.clone(),
        ]
    };
    output::aligned(
        ["POD", "READY", "STATUS", "RESTARTS", "IP"],
        pods.iter().map(row),
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn parse(line: &str) -> Result<SandboxCommand, clap::Error> {
        match Cli::try_parse_from(line.split(' '))?.command {
            Command::Sandbox(args) => Ok(args.command),
            other => panic!("{other:?} is another command"),
        }
    }

    #[test]
    fn what_follows_two_dashes_is_for_the_program_alone() {
        let Ok(SandboxCommand::Exec(args)) =
            parse("tulle sandbox exec shop/client -c app -- ls -c --container x")
        else {
            panic!("it is an exec");
        };
        assert_eq!(args.pod, "shop/client");
        assert_eq!(args.container.as_deref(), Some("app"));
        assert_eq!(args.argv, ["ls", "-c", "--container", "x"]);
    }

    #[test]
    fn exec_without_a_program_is_refused() {
        assert!(parse("tulle sandbox exec shop/client").is_err());
        assert!(parse("tulle sandbox exec shop/client --").is_err());
    }

    #[test]
    fn the_table_aligns_its_columns() {
        let line = |pod: &str, status: &str| PodLine {
            pod: pod.to_owned(),
            ready: "2/2".to_owned(),
            status: status.to_owned(),
            restarts: 0,
            ip: "10.0.0.2".to_owned(),
        };
        let text = table(&[
            line("shop/web-1", "Running"),
            line("a/b", "CrashLoopBackOff"),
        ]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "POD         READY  STATUS            RESTARTS  IP",
                "shop/web-1  2/2    Running           0         10.0.0.2",
                "a/b         2/2    CrashLoopBackOff  0         10.0.0.2",
            ]
        );
    }
}
