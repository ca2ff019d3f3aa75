//! The command line: `run` is the sidecar, `capture` is the init container before it, `await` is the sidecar's hook.

use std::ffi::OsString;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use tulle_runtime::env::{Env, parse_duration};
use tulle_runtime::names::variables;
use tulle_runtime::trace;

use crate::app;
use crate::capture::{Capture, CaptureError, Owner};
use crate::ready;

/// The sidecar proxy of a Tulle mesh.
#[derive(Debug, Parser)]
#[command(name = "tulle-proxy", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What the sidecar program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the sidecar, as the environment says
    #[command(after_help = RUN_VARIABLES)]
    Run,
    /// Bring the connections of the pod whose network namespace this is to the sidecar
    #[command(after_help = CAPTURE_VARIABLES)]
    Capture(CaptureArgs),
    /// Wait until the sidecar of this pod is ready, as its postStart hook does before the app starts
    Await {
        /// How long to wait; then the kubelet ends the sidecar and starts it anew. As long as this it deletes no pod that waits
        #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
        timeout: Duration,
    },
}

pub(crate) const RUN_VARIABLES: &str = "\
Environment, required (the injector sets it by the downward API):
  POD_NAME, POD_NAMESPACE, POD_IP, SERVICE_ACCOUNT

Environment, optional:
  TULLE_CONTROL_ADDRESS  control plane, as host:port
  TULLE_TRUST_DOMAIN     trust domain of the mesh
  TULLE_CLUSTER_DOMAIN   DNS domain of the cluster
  TULLE_LOG              log filter, such as info or tulle_proxy=debug
  TULLE_ACCESS_LOG       json (default) or off
  TULLE_WORKERS          number of data-path workers
  TULLE_DRAIN_DEADLINE   how long a drain may take, such as 25s
  TULLE_OUTLIVE_APP      where the sidecar is told to end when the app is, as an ordinary container: listeners, to drain when
                         nobody else listens in the pod, or when that deadline is near; deadline, for that alone
  TULLE_REQUEST_HEAD_TIMEOUT
                         how long the head of an HTTP/1 request may take, 30s if not said
  TULLE_FIRST_REQUEST_TIMEOUT
                         how long an HTTP connection may be open without a first request, 5m if not said
  TULLE_IDLE_TIMEOUT     how long an HTTP connection may be open without another request, 1h if not said
  TULLE_BODY_TIMEOUT     how long a client may pause within the body of a request without an answer, 15m if not said
  TULLE_BODY_RATE        bytes a second that such a body must bring over that time, 16 if not said; 0: only pauses count
  TULLE_UNREAD_TIMEOUT   how long an HTTP client may leave an answer unread, 15m if not said
  TULLE_FLUSH_TIMEOUT    how long a client may take nothing of an answer on HTTP/2, 5m if not said
  TULLE_TCP_IDLE_TIMEOUT how long nothing may move on an opaque connection, 1h if not said
  TULLE_MAX_CONNECTIONS  captured connections open at a time in each direction; what the limit of open files has
                         room for if not said
  TULLE_MAX_REQUESTS     requests that a worker may have in flight, 20000 if not said
  TULLE_MAX_HEAD         longest head of an HTTP/1 request or answer, 64Ki if not said, at least 8Ki
  TULLE_MAX_FIELDS       most fields of one, 100 if not said
  TULLE_MAX_SUBSCRIPTIONS
                         destinations, and as many addresses of clients, that the control plane is asked about at a time,
                         4096 if not said
  TULLE_MAX_CONNECTING   connections with mTLS that a worker makes to one peer at a time on HTTP/1, 32 if not said
  TULLE_MAX_ADMIN_CONNECTIONS
                         connections that each of the servers for operators, metrics and readiness takes, 64 if not said
  TULLE_MAX_APP_METRICS  bytes of the app's own metrics that are passed on to Prometheus, 8Mi if not said
  TULLE_MEMORY_LIMIT     memory that the sidecar may use, such as 256Mi; the limit of its cgroup if not said
  TULLE_DISCOVERY        on-demand (default) or wildcard
  TULLE_XDS_ADDRESS      a control plane of somebody else's for the config, as host:port; the mesh's own still issues the
                         certificate; wildcard is the default of TULLE_DISCOVERY then
  TULLE_XDS_NAME         who that must prove to be, a DNS name or a SPIFFE id; the name of the mesh's own if not said
  TULLE_UNDISCOVERED     refuse (default) or passthrough
  TULLE_INGRESS_HEADERS  strip (default) or keep: X-Forwarded-Host, -Port, -Prefix, -Proto and -Scheme of clients outside
                         the mesh, such as an ingress without a sidecar
  TULLE_APP_PROBES       the app's own probes by rewritten path, as JSON
  TULLE_APP_METRICS      where the app's own metrics are, as JSON with port, path and scheme
  TULLE_MARK_SOCKETS     true where the sidecar has no user id of its own

Limits for each HTTP/2 connection:
  TULLE_H2_MAX_STREAMS        streams open at a time, 1000 if not said
  TULLE_H2_MAX_HEADER_LIST    decoded bytes of a head, 16384 if not said
  TULLE_H2_PENDING_RESETS     streams reset before they were looked at, by clients outside the mesh, 20 if not said
  TULLE_H2_LOCAL_RESETS       streams reset for what the peer sent on them, 1000 if not said
  TULLE_H2_GIVEN_UP           requests given up, beyond those that ended, 1000 if not said
  TULLE_H2_CONTROL_FRAMES     control frames beyond what messages need, 1000 if not said
  TULLE_H2_STREAM_WINDOW      bytes under way of one message, 256Ki if not said;
                              64Ki at most from the app of the pod
  TULLE_H2_CONNECTION_WINDOW  bytes under way of all messages, 32Mi if not said
  TULLE_H2_SEND_BUFFER        bytes of a message that wait for its receiver, 32768 if not said";

const CAPTURE_VARIABLES: &str = "\
Environment:
  POD_IP              address of the pod, required to change rules; nothing is captured in a network namespace
                      that does not have it
  TULLE_LOG           log filter
  TULLE_MARK_SOCKETS  true where the sidecar has no user id of its own";

/// What stays out of the mesh.
#[derive(Debug, Args)]
pub struct CaptureArgs {
    /// Print the rules in nft syntax instead of applying them
    #[arg(long)]
    dry_run: bool,
    /// Take the rules away again, so that connections go where the app sends them
    #[arg(long, conflicts_with = "dry_run")]
    remove: bool,
    /// Ports of the pod that are reached directly, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "PORTS")]
    exclude_inbound_ports: Vec<u16>,
    /// Ports that the app reaches directly, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "PORTS")]
    exclude_outbound_ports: Vec<u16>,
    /// Networks that the app reaches directly, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "CIDRS")]
    exclude_outbound_cidrs: Vec<IpNet>,
}

impl Command {
    /// Does it, and says on standard error what went wrong.
    #[must_use]
    pub fn execute(self) -> ExitCode {
        let done = match self {
            Self::Run => app::run(Env::process()),
            Self::Capture(args) => args.execute(Env::process()),
            Self::Await { timeout } => ready::wait(ready::address(), timeout).map_err(Into::into),
        };
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                // Not held up by whoever should read it: a proxy that has to end does.
                trace::last_word(&format!("tulle-proxy: {error:#}"));
                ExitCode::FAILURE
            }
        }
    }
}

impl CaptureArgs {
    fn execute(self, env: Env) -> anyhow::Result<()> {
        let mark = env.get::<bool>(variables::MARK_SOCKETS).unwrap_or(false);
        let filter = env.text(variables::LOG).unwrap_or("info").to_owned();
        let pod = env.get::<IpAddr>(variables::POD_IP);
        env.finish()?;
        let capture = Capture {
            owner: if mark { Owner::Mark } else { Owner::User },
            exclude_inbound_ports: self.exclude_inbound_ports,
            exclude_outbound_ports: self.exclude_outbound_ports,
            exclude_outbound_cidrs: self.exclude_outbound_cidrs,
        };
        if self.dry_run {
            return write!(std::io::stdout(), "{}", capture.ruleset())
                .context("could not print the rules");
        }
        let pod = match pod {
            _ if self.remove => None,
            Some(pod) => Some(pod),
            None => return Err(CaptureError::NoPod.into()),
        };
        trace::init(&filter, trace::Format::default())?;
        match pod {
            None => capture.remove()?,
            Some(pod) => capture.apply(pod)?,
        }
        tracing::info!(
            captured = pod.is_some(),
            "rules of this network namespace changed"
        );
        Ok(())
    }
}

/// The `tulle-proxy` program: reads the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    main_from(std::env::args_os())
}

/// As [`main`], for a command line of another origin. Its first word is the program's name.
#[must_use]
pub fn main_from(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match Cli::try_parse_from(args) {
        Ok(cli) => cli.command.execute(),
        Err(error) => {
            // Help and version are no errors; clap knows where each belongs.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::{ErrorKind, PipeReader, PipeWriter, Read as _, pipe};
    use std::iter;
    use std::process::{self, Stdio};
    use std::sync::mpsc;

    use clap::CommandFactory as _;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    fn capture(flags: &[&str]) -> CaptureArgs {
        let words = ["tulle-proxy", "capture"].iter().chain(flags);
        match Cli::try_parse_from(words).map(|cli| cli.command) {
            Ok(Command::Capture(args)) => args,
            other => panic!("not a capture: {other:?}"),
        }
    }

    #[test]
    fn capture_refuses_a_namespace_that_nobody_says_is_a_pods() {
        let error = capture(&[])
            .execute(Env::from_pairs([(variables::LOG, "off")]))
            .unwrap_err();
        assert!(error.to_string().contains("POD_IP"), "{error}");
    }

    #[test]
    fn rules_are_printed_without_a_pod() {
        let nobody = Env::from_pairs::<&str, &str>([]);
        capture(&["--dry-run"]).execute(nobody).unwrap();
    }

    /// Set for the child process.
    const CHILD: &str = "TULLE_TEST_UNREAD_CHILD";

    /// An end of a pipe that takes nothing more, and the one that nobody reads.
    fn full() -> (PipeReader, PipeWriter) {
        let (reader, mut writer) = pipe().unwrap();
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let full = iter::repeat_with(|| writer.write(b"\n")).find_map(Result::err);
        assert_eq!(full.unwrap().kind(), ErrorKind::WouldBlock);
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        (reader, writer)
    }

    #[test]
    fn a_sidecar_ends_although_nobody_reads_why() {
        if std::env::var_os(CHILD).is_some() {
            // There is no POD_NAME.
            let status = main_from(["tulle-proxy", "run"].map(OsString::from));
            println!("it has ended: {}", status == ExitCode::FAILURE);
            return;
        }
        let (_unread, stderr) = full();
        let name = "args::tests::a_sidecar_ends_although_nobody_reads_why";
        let mut command = process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--nocapture", name]);
        command.env_clear().env(CHILD, "1").stderr(stderr);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (told, said) = mpsc::channel();
        std::thread::spawn(move || {
            let mut all = String::new();
            let _ = stdout.read_to_string(&mut all);
            let _ = told.send(all);
        });
        let said = said.recv_timeout(Duration::from_secs(30));
        let _ = child.kill();
        child.wait().unwrap();
        let said = said.expect("it waits for its reader");
        assert!(said.contains("it has ended: true"), "{said}");
    }

    /// What `settings.rs` reads, and what it has others read for it. Limits are looked at there.
    fn variables() -> BTreeSet<&'static str> {
        let read = include_str!("settings.rs").split("variables::").skip(1);
        let names = read.filter_map(|after| after.split(|c: char| !is_of_a_name(c)).next());
        let mut names: BTreeSet<_> = names.filter(|name| !name.is_empty()).collect();
        names.extend(["POD_NAMESPACE", "SERVICE_ACCOUNT", "TRUST_DOMAIN"]);
        names
    }

    fn is_of_a_name(c: char) -> bool {
        c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'
    }

    #[test]
    fn help_lists_every_variable_that_is_read() {
        let mut cli = Cli::command();
        let run = cli.find_subcommand_mut("run").unwrap();
        let help = run.render_help().to_string();
        let words: BTreeSet<_> = help.split(|c| !is_of_a_name(c)).collect();
        let read = variables();
        assert!(read.contains("XDS_NAME") && read.contains("POD_IP") && read.len() > 15);
        for name in read {
            let listed = words.contains(name) || words.contains(&*format!("TULLE_{name}"));
            assert!(listed, "{name} in {help}");
        }
    }
}
