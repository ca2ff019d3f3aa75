//! ztunnel in the place of the sidecar of both pods, in its dedicated mode, where a binary of it is given.
//!
//! It knows layer 4 alone: it carries every connection as a stream of HTTP/2 CONNECT (HBONE) inside mutual TLS connections
//! that stay. It asks the CA that the others ask, a file tells it both pods, and its log goes where theirs go.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use tulle_runtime::env::Env;
use tulle_runtime::names::{CONTROL_DNS_NAME, DEFAULT_TRUST_DOMAIN, annotations, files, ports};
use tulle_sandbox::PodView;
use tulle_tests::{App, Mesh, thin};

use crate::bare::PEER;
use crate::systems::{CLIENT, System};
use crate::who::Who;
use crate::{again, cores, serve};

/// Where tunnels come in.
pub(crate) const HBONE: u16 = 15008;
/// What is negotiated on them.
pub(crate) const ALPN: &[u8] = b"h2";
/// What to do about one that prefers another cipher than the others.
pub(crate) const ADVICE: &str = "ztunnel as it is released prefers AES-256-GCM: put TLS13_AES_128_GCM_SHA256 first in \
     provider() of its src/tls/lib.rs, build it so, and give that binary with --ztunnel";
/// What a reader must know of its figures, wherever they stand.
pub(crate) const CAVEAT: &str = "ztunnel knows layer 4 alone: it reads no HTTP, counts no requests and logs connections. \
     Connections are streams of HTTP/2 CONNECT inside mutual TLS connections that they share and that stay: one of them \
     has no handshake of its own. A column beside the others, no target.";

/// Its file in [`thin::place`]'s directory, and that with the workloads.
const PROGRAM: &str = "ztunnel";
const WORKLOADS: &str = "ztunnel-workloads.json";
/// How long pods may take to have addresses, and between two looks.
const BUILD_UP: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);

/// Puts it where pods find it.
pub(crate) fn install(program: &Path) -> anyhow::Result<()> {
    thin::install_file(program, PROGRAM)?;
    Ok(())
}

/// The app with what capture must leave alone for it.
///
/// Tunnels reach it by its own port; it connects to its app from the pod's own address, which the rules would take for
/// another call of the pod to itself; its calls to the CA bear no mark where marks are what tells its sockets.
pub(crate) fn annotate(app: App) -> App {
    let apps = [serve::HTTP1, serve::HTTP2, serve::GRPC, serve::TCP];
    let inbound = apps.map(|port| port.to_string()).join(",");
    app.annotate(
        annotations::EXCLUDE_INBOUND_PORTS,
        &format!("{HBONE},{inbound}"),
    )
    .annotate(annotations::EXCLUDE_OUTBOUND_PORTS, &ports::XDS.to_string())
}

/// Tells both pods of both, as soon as they have addresses.
pub(crate) async fn tell(mesh: &Mesh) -> anyhow::Result<()> {
    let known = |pods: &[PodView]| [CLIENT, PEER].map(|app| Some((app, address(pods, app)?)));
    mesh.sandbox
        .wait_until(BUILD_UP, |pods| known(pods).iter().all(Option::is_some))
        .await?;
    let known = known(&mesh.sandbox.pods()).into_iter().flatten();
    let namespace = System::Ztunnel.namespace();
    let workloads = known.map(|(app, ip)| workload(namespace, app, ip));
    write(&place(WORKLOADS), workloads.collect())
}

fn write(file: &Path, workloads: Vec<Value>) -> anyhow::Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, json!({ "workloads": workloads }).to_string())?;
    Ok(std::fs::rename(new, file)?)
}

fn address(pods: &[PodView], app: &str) -> Option<Ipv4Addr> {
    let found = pods.iter().find(|pod| {
        let own = pod.key.namespace == System::Ztunnel.namespace();
        own && pod.key.name.starts_with(app)
    });
    found.map(|pod| pod.ips.v4)
}

/// As an Istio control plane would describe it, named after its service account.
fn workload(namespace: &str, app: &str, ip: Ipv4Addr) -> Value {
    json!({
        "uid": format!("bench//Pod/{namespace}/{app}"),
        "name": app,
        "namespace": namespace,
        "serviceAccount": app,
        "trustDomain": DEFAULT_TRUST_DOMAIN,
        "workloadName": app,
        "workloadType": "deployment",
        "canonicalName": app,
        "canonicalRevision": "v1",
        "workloadIps": [ip],
        "protocol": "HBONE",
        "node": "bench",
        "services": {},
    })
}

fn place(name: &str) -> PathBuf {
    thin::place().with_file_name(name)
}

/// Becomes it, as the sidecar of this pod. Returns only if that fails.
pub(crate) fn run(env: Env) -> anyhow::Result<()> {
    cores::raise_descriptors()?;
    prepare(env)?;
    again::exec(System::Ztunnel)
}

/// Waits until it is known what it is to be told, or knows of nobody else; writes down how it is started.
pub(crate) fn prepare(env: Env) -> anyhow::Result<()> {
    let who = Who::read(env)?;
    // It keeps its own certificate to itself; the probe needs one.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(who.identity())?;
    let workloads = if who.namespace == System::Ztunnel.namespace() {
        wait_for(&place(WORKLOADS))?;
        place(WORKLOADS)
    } else {
        let own = Path::new(files::STATE_DIR).join(WORKLOADS);
        let workload = workload(&who.namespace, &who.account, who.pod_ip.parse()?);
        write(&own, vec![workload])?;
        own
    };
    let mut variables = vec![
        (
            "PROXY_WORKLOAD_INFO",
            format!("{}/{1}/{1}", who.namespace, who.account),
        ),
        ("LOCAL_XDS_PATH", workloads.display().to_string()),
        ("CA_ADDRESS", format!("https://{}", who.control)),
    ];
    variables.extend(who.mark.map(|mark| ("PACKET_MARK", mark.to_string())));
    let always = ALWAYS.map(|(name, value)| (name, value.to_owned()));
    let all = variables.into_iter().chain(always);
    let all = all.map(|(name, value)| (name.to_owned(), value));
    again::write(&place(PROGRAM), &[], all)
}

/// What it is told in every pod: one worker, the group that all use, and nothing that the others do not do.
const ALWAYS: [(&str, &str); 13] = [
    ("PROXY_MODE", "dedicated"),
    // No control plane: the file says everything.
    ("XDS_ADDRESS", ""),
    ("ALT_CA_HOSTNAME", CONTROL_DNS_NAME),
    ("CA_ROOT_CA", files::CA_BUNDLE),
    ("AUTH_TOKEN", files::TOKEN),
    // X25519MLKEM768 alone.
    ("COMPLIANCE_POLICY", "pqc"),
    ("ZTUNNEL_WORKER_THREADS", "1"),
    // Its access log is a part of its log.
    ("LOG_FORMAT", "json"),
    ("RUST_LOG", "info"),
    // It may not bind to the addresses of others.
    ("ENABLE_ORIG_SRC", "false"),
    ("IPV6_ENABLED", "false"),
    ("ISTIO_META_DNS_CAPTURE", "false"),
    ("CLUSTER_ID", "bench"),
];

fn wait_for(file: &Path) -> anyhow::Result<()> {
    let began = Instant::now();
    while !file.exists() {
        ensure!(
            began.elapsed() < BUILD_UP,
            "nobody has told ztunnel its workloads: there is no {}",
            file.display()
        );
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// What it says of itself.
pub(crate) fn version(program: &Path) -> anyhow::Result<String> {
    let output = Command::new(program).arg("version").output();
    let output = output.with_context(|| format!("{} cannot be started", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let of = |name: &str| {
        let (_, rest) = text.split_once(&format!("{name}:\""))?;
        rest.split_once('"').map(|(value, _)| value)
    };
    let version = (of("Version"), of("GitRevision"), of("CryptoProvider"));
    let (Some(version), Some(commit), Some(provider)) = version else {
        bail!("{} does not say that it is ztunnel", program.display());
    };
    if version == "unknown" {
        return Ok(format!("of a build that tells no version ({provider})"));
    }
    Ok(format!("{version} ({commit}, {provider})"))
}
