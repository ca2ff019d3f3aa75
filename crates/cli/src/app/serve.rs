//! `tulle app serve`: the echo workload.
//!
//! One [`App`] answers on every port. On SIGTERM it turns unready, stops accepting, finishes what is open and ends.

mod counts;
mod grpc;
mod http;
mod knobs;
mod tcp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use parking_lot::RwLock;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tulle_runtime::drain::{self, DrainWatch};
use tulle_runtime::env::parse_duration;
use tulle_runtime::signals;
use tulle_runtime::tasks::Tasks;

pub(super) use self::http::listed;
use crate::error::CliError;
use crate::output;
use counts::Counts;
use knobs::Knobs;

#[derive(Debug, Clone, Args)]
#[command(disable_version_flag = true)]
#[command(after_help = "\
Paths:
  /ready                 200 while ready, else 503
  /count?id=ID           how often a request with this id was received; /counts?prefix=P lists all
  /behave?status=503&probability=0.5&latency=10ms&ready=false
                         changes how this process behaves from now on
  /echo                  sends the request's body back as it arrives
  anything else          says who answered and what arrived, as JSON

Knobs of one request, as query parameters or as headers x-tulle-app-NAME:
  latency=50ms  status=503  probability=0.2  size=65536  chunks=4  interval=10ms
  trailer=NAME:VALUE  close=true  abort=true (no answer)  early=true (answers before the body)  id=ID

`Upgrade: anything` is answered with 101 and an echo of what follows.")]
pub(crate) struct ServeArgs {
    /// HTTP/1.1 and h2c (gRPC too) on this port; may be repeated, as may the other ports
    #[arg(long, value_name = "PORT")]
    pub(crate) http: Vec<u16>,
    /// gRPC on this port: echo and health services
    #[arg(long, value_name = "PORT")]
    pub(crate) grpc: Vec<u16>,
    /// TCP echo on this port
    #[arg(long, value_name = "PORT")]
    pub(crate) tcp: Vec<u16>,
    /// TCP on this port: sends a banner at once, then echoes in upper case
    #[arg(long, value_name = "PORT")]
    pub(crate) tcp_server_first: Vec<u16>,
    /// Address to listen on; all of IPv4 and IPv6 by default
    #[arg(long, value_name = "IP")]
    pub(crate) bind: Option<IpAddr>,
    /// Name of the app
    #[arg(long, default_value = "app")]
    pub(crate) name: String,
    /// Version of the app
    #[arg(
        long = "version",
        id = "app-version",
        value_name = "VERSION",
        default_value = "v1"
    )]
    pub(crate) version: String,
    /// Name of the pod; the host's by default
    #[arg(long, env = "POD_NAME")]
    pub(crate) pod: Option<String>,
    /// Time before each answer
    #[arg(long, value_parser = parse_duration, default_value = "0s")]
    pub(crate) latency: Duration,
    /// Status of failing answers
    #[arg(long, default_value_t = 503, value_parser = clap::value_parser!(u16).range(200..=599))]
    pub(crate) fail_status: u16,
    /// How many answers fail, from 0 to 1
    #[arg(long, default_value_t = 0.0, value_parser = knobs::probability)]
    pub(crate) fail_probability: f64,
    /// Be unready from the start
    #[arg(long)]
    pub(crate) fail_ready: bool,
    /// How long to keep accepting after SIGTERM
    #[arg(long, value_parser = parse_duration, default_value = "0s")]
    pub(crate) keep_serving: Duration,
    /// How long open requests and connections may take after that
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    pub(crate) grace: Duration,
}

/// The workload: who it is, how it behaves, what it has seen.
#[derive(Debug)]
pub(crate) struct App {
    name: String,
    version: String,
    pod: String,
    behaviour: RwLock<Knobs>,
    ready: watch::Sender<bool>,
    counts: Counts,
}

impl App {
    fn new(args: &ServeArgs) -> Self {
        let behaviour = Knobs {
            latency: args.latency,
            status: args.fail_status,
            probability: args.fail_probability,
            ..Knobs::default()
        };
        Self {
            name: args.name.clone(),
            version: args.version.clone(),
            pod: args.pod.clone().unwrap_or_else(host_name),
            behaviour: RwLock::new(behaviour),
            ready: watch::Sender::new(!args.fail_ready),
            counts: Counts::default(),
        }
    }
}

fn host_name() -> String {
    let name = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| "unknown".to_owned())
}

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http,
    Grpc,
    Tcp,
    TcpServerFirst,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::TcpServerFirst => "tcp-server-first",
        }
    }
}

/// A workload whose ports are open.
#[derive(Debug)]
pub(crate) struct Server {
    app: Arc<App>,
    listeners: Vec<(Protocol, TcpListener)>,
    keep_serving: Duration,
    grace: Duration,
}

pub(crate) async fn run(args: ServeArgs) -> Result<ExitCode, CliError> {
    // Asked for first, so that a signal during the start is not lost.
    let mut signal = std::pin::pin!(signals::shutdown());
    let server = tokio::select! {
        // A signal wins over a start that is still going on.
        biased;
        _ = &mut signal => return Ok(ExitCode::SUCCESS),
        server = Server::bind(&args) => server?,
    };
    for (protocol, address) in server.addresses() {
        output::note(&format!(
            "{} {} listens on {address} for {protocol}",
            args.name, args.version
        ));
    }
    server.serve(async { _ = signal.await }).await;
    Ok(ExitCode::SUCCESS)
}

impl Server {
    /// Opens every port, or says which one cannot be opened.
    pub(crate) async fn bind(args: &ServeArgs) -> Result<Self, CliError> {
        let wanted = [
            (Protocol::Http, &args.http),
            (Protocol::Grpc, &args.grpc),
            (Protocol::Tcp, &args.tcp),
            (Protocol::TcpServerFirst, &args.tcp_server_first),
        ];
        let mut listeners = Vec::new();
        for (protocol, ports) in wanted {
            for &port in ports {
                let listener = listen(args.bind, port)
                    .await
                    .map_err(|source| CliError::Bind {
                        port,
                        protocol: protocol.name(),
                        source,
                    })?;
                listeners.push((protocol, listener));
            }
        }
        if listeners.is_empty() {
            let problem = "nothing to serve: give at least one of --http, --grpc, --tcp and --tcp-server-first";
            return Err(CliError::Usage(problem.to_owned()));
        }
        Ok(Self {
            app: Arc::new(App::new(args)),
            listeners,
            keep_serving: args.keep_serving,
            grace: args.grace,
        })
    }

    /// What listens where.
    pub(crate) fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        let listeners = self.listeners.iter();
        listeners
            .filter_map(|(protocol, listener)| Some((protocol.name(), listener.local_addr().ok()?)))
            .collect()
    }

    /// Serves until `shutdown` resolves and what was open then has ended, or the grace period has.
    pub(crate) async fn serve(self, shutdown: impl Future<Output = ()>) {
        let tasks = Tasks::new();
        let (drain, watch) = drain::channel();
        for (protocol, listener) in self.listeners {
            let app = self.app.clone();
            tasks.spawn(
                "accept",
                accept(protocol, listener, app, tasks.clone(), watch.clone()),
            );
        }
        drop(watch);
        shutdown.await;
        self.app.ready.send_replace(false);
        tokio::time::sleep(self.keep_serving).await;
        drain.drain(self.grace).await;
    }
}

/// Both families where the machine has both.
async fn listen(bind: Option<IpAddr>, port: u16) -> std::io::Result<TcpListener> {
    if let Some(ip) = bind {
        return TcpListener::bind((ip, port)).await;
    }
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(error),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

async fn accept(
    protocol: Protocol,
    listener: TcpListener,
    app: Arc<App>,
    tasks: Tasks,
    watch: DrainWatch,
) {
    loop {
        let accepted = tokio::select! {
            // A drain wins: nobody who connects now would be served to the end.
            biased;
            () = watch.draining() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                let serve = connection(
                    protocol,
                    stream,
                    peer,
                    app.clone(),
                    tasks.clone(),
                    watch.clone(),
                );
                tasks.spawn_connection("serve", serve);
            }
            // Out of descriptors, most likely: give others time to close theirs.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn connection(
    protocol: Protocol,
    stream: TcpStream,
    peer: SocketAddr,
    app: Arc<App>,
    tasks: Tasks,
    watch: DrainWatch,
) {
    // Only latency would suffer.
    let _ = stream.set_nodelay(true);
    match protocol {
        Protocol::Http => http::serve(stream, peer, app, tasks, watch, false).await,
        Protocol::Grpc => http::serve(stream, peer, app, tasks, watch, true).await,
        Protocol::Tcp => tcp::echo(stream, watch).await,
        Protocol::TcpServerFirst => tcp::server_first(stream, &app, watch).await,
    }
}

#[cfg(test)]
pub(crate) mod tests;
