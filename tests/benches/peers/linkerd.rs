//! linkerd2-proxy in the place of the sidecar of both pods, where a binary of it is given.
//!
//! What its own control plane would tell it, a stand-in beside it in the pod does: policies for both directions, endpoints,
//! profiles, as `answers` writes them, and the certificate, of an `authority` of its own. The stand-in is a process of its
//! own and counts for nothing. The proxy's settings are those of its chart unless said.

mod answers;
mod authority;
mod stand_in;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use prost::Message;
use serde_json::{Value, json};
use tulle_identity::mesh_server_name;
use tulle_runtime::env::Env;
use tulle_runtime::names::{annotations, files, ports, variables};
use tulle_tests::{App, thin};

use crate::bare::PEER;
use crate::systems::System;
use crate::who::Who;
use crate::{again, cores, serve};

pub(crate) use authority::root;
pub(crate) use stand_in::{ROLE, run as stand_in};

/// What is negotiated with the port that everything comes in by, and said first then.
pub(crate) const ALPN: &[u8] = b"transport.l5d.io/v1";

/// As the client's sidecar says to which port of the app a connection goes.
pub(crate) fn header(port: u16) -> Vec<u8> {
    let message = Header { port: port.into() }.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [ALPN, b"\r\n\r\n", &length.to_be_bytes(), &message].concat()
}

/// `transport.l5d.io/v1` as far as it is used.
#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(int32, tag = "1")]
    port: i32,
}

/// What to do about one that prefers another cipher than the others.
pub(crate) const ADVICE: &str =
    "linkerd2-proxy prefers AES-256-GCM where it is built for FIPS: give one that is not";
/// What a reader must know of its figures, wherever they stand.
pub(crate) const CAVEAT: &str = "HTTP/1.1 goes as HTTP/2 between its sidecars, and everything in connections to one port with \
     a header of its own, as its charts have it; it logs HTTP requests, once, at the server, and no connections. Policies, \
     endpoints and certificates come from a stand-in in its pod. A column beside the others, no target.";

/// Its file in [`thin::place`]'s directory, and that with the server's address.
const PROGRAM: &str = "linkerd2-proxy";
const SERVER: &str = "linkerd-server-ip";

/// Puts it where pods find it.
pub(crate) fn install(program: &Path) -> anyhow::Result<()> {
    thin::install_file(program, PROGRAM)?;
    authority::create()
}

/// Tells the client's stand-in where the server is.
pub(crate) fn tell(server: &str) -> anyhow::Result<()> {
    Ok(std::fs::write(place(SERVER), server)?)
}

fn place(name: &str) -> PathBuf {
    thin::place().with_file_name(name)
}

/// The server with what capture must leave alone for it: it connects to its app from the pod's own address, which the
/// rules would take for another call of the pod to itself.
pub(crate) fn annotate_server(app: App) -> App {
    app.annotate(annotations::EXCLUDE_OUTBOUND_PORTS, &join(&APPS))
}

/// What the server's app listens on.
const APPS: [u16; 4] = [serve::HTTP1, serve::HTTP2, serve::GRPC, serve::TCP];

fn join(ports: &[u16]) -> String {
    let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
    ports.join(",")
}

/// Becomes it, as the sidecar of this pod. Returns only if that fails.
pub(crate) fn run(env: Env) -> anyhow::Result<()> {
    cores::raise_descriptors()?;
    prepare(env)?;
    again::exec(System::Linkerd)
}

/// Starts the stand-in, waits until it has what the proxy asks for, and writes down how the proxy is started.
pub(crate) fn prepare(env: Env) -> anyhow::Result<()> {
    let pod = env.text(variables::POD_NAME).unwrap_or_default().to_owned();
    let who = Who::read(env)?;
    ensure!(
        who.mark.is_none(),
        "linkerd2-proxy cannot mark its sockets: it needs a user of its own"
    );
    stand_in::start()?;
    // The probe's certificate is of the others' CA.
    let roots = authority::pem()? + &std::fs::read_to_string(files::CA_BUNDLE)?;
    let workload = json!({ "ns": who.namespace, "pod": pod }).to_string();
    let server_name = mesh_server_name();
    let mut variables = vec![
        ("POLICY_WORKLOAD", workload.clone()),
        ("DESTINATION_CONTEXT", workload),
        ("IDENTITY_SERVER_ID", who.id(&who.account)?.to_string()),
        ("IDENTITY_SERVER_NAME", server_name.to_str().into_owned()),
        ("IDENTITY_TRUST_ANCHORS", roots),
        (
            "IDENTITY_SPIRE_WORKLOAD_API_ADDRESS",
            format!("unix:{}", stand_in::socket().display()),
        ),
        ("POLICY_SVC_ADDR", stand_in::ADDRESS.to_string()),
        ("DESTINATION_SVC_ADDR", stand_in::ADDRESS.to_string()),
        ("OUTBOUND_LISTEN_ADDRS", local(ports::OUTBOUND)),
        ("INBOUND_LISTEN_ADDR", format!("0.0.0.0:{}", ports::INBOUND)),
        ("ADMIN_LISTEN_ADDR", local(ports::ADMIN)),
        ("INBOUND_IPS", who.pod_ip),
    ];
    if who.account == PEER {
        variables.push(("INBOUND_PORTS", join(&APPS)));
    }
    let always = ALWAYS.map(|(name, value)| (name, value.to_owned()));
    let all = variables.into_iter().chain(always);
    let all = all.map(|(name, value)| (format!("LINKERD2_PROXY_{name}"), value));
    again::write(&place(PROGRAM), &[], all)
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// What it is told in every pod: one worker, its access log, and what its chart says.
const ALWAYS: [(&str, &str); 17] = [
    ("CORES", "1"),
    ("ACCESS_LOG", "json"),
    (
        "LOG",
        "warn,linkerd=info,hickory=error,[{headers}]=off,[{request}]=off",
    ),
    ("DESTINATION_PROFILE_NETWORKS", "0.0.0.0/0"),
    ("DESTINATION_PROFILE_SUFFIXES", "svc.cluster.local."),
    ("POLICY_CLUSTER_NETWORKS", "0.0.0.0/0"),
    ("INBOUND_DEFAULT_POLICY", "all-unauthenticated"),
    ("INBOUND_ACCEPT_KEEPALIVE", "10000ms"),
    ("OUTBOUND_CONNECT_KEEPALIVE", "10000ms"),
    ("INBOUND_ACCEPT_USER_TIMEOUT", "30s"),
    ("OUTBOUND_CONNECT_USER_TIMEOUT", "30s"),
    ("OUTBOUND_METRICS_HOSTNAME_LABELS", "false"),
    ("INBOUND_SERVER_HTTP2_KEEP_ALIVE_INTERVAL", "10s"),
    ("INBOUND_SERVER_HTTP2_KEEP_ALIVE_TIMEOUT", "3s"),
    ("OUTBOUND_SERVER_HTTP2_KEEP_ALIVE_INTERVAL", "10s"),
    ("OUTBOUND_SERVER_HTTP2_KEEP_ALIVE_TIMEOUT", "3s"),
    ("SHUTDOWN_GRACE_PERIOD", "1s"),
];

/// What it says of itself, which it does before it finds that nothing is configured.
pub(crate) fn version(program: &Path) -> anyhow::Result<String> {
    let output = Command::new(program)
        .env_clear()
        .env("LINKERD2_PROXY_LOG", "info")
        .env("LINKERD2_PROXY_LOG_FORMAT", "json")
        .output();
    let output = output.with_context(|| format!("{} cannot be started", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let said = lines.find_map(|line: Value| {
        let message = line["fields"]["message"].as_str()?;
        // PROFILE VERSION (COMMIT) by ... on DATE
        let (version, _) = message.split_once(" by ")?;
        Some(version.to_owned())
    });
    match said {
        Some(said) => Ok(said),
        None => bail!(
            "{} does not say that it is linkerd2-proxy",
            program.display()
        ),
    }
}
