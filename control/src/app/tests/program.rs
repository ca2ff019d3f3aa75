//! The program: [`run`] in a process of its own, as `tulle control` starts it.

mod hoarders;
mod strangers;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use clap::Parser;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tonic::Code;
use tulle_runtime::env::Env;
use tulle_xds_proto::ResourceType;

use super::certificates::certify_over;
use super::files::{CLUSTER, SHOP, put, slice};
use super::harness::*;
use crate::app::{Args, run};

/// Holds the words of the command line for [`program`].
const WORDS: &str = "TULLE_TEST_CONTROL_WORDS";
/// How long a program may take to say or do something.
const SOON: Duration = Duration::from_secs(30);

#[derive(Debug, Parser)]
#[command(name = "control")]
struct Program {
    #[command(flatten)]
    args: Args,
}

/// No test by itself: what the tests below start, in a process of its own.
#[test]
fn program() {
    let environment = Env::process();
    let Some(words) = environment.text(WORDS) else {
        return;
    };
    let program = Program::parse_from(words.split('\n'));
    let ended = run(program.args);
    if let Err(error) = &ended {
        eprintln!("error: {error:#}");
    }
    std::process::exit(i32::from(ended.is_err()));
}

fn start(words: &[String]) -> Child {
    Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "--nocapture", "app::tests::program::program"])
        .env(WORDS, words.join("\n"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts")
}

/// The words for a control plane over these settings, each option with its value.
fn words(args: &Args, source: &Path) -> Vec<String> {
    let path = |path: &Option<PathBuf>| path.as_ref().expect("there is one").display().to_string();
    let options = [
        ("--source", source.display().to_string()),
        ("--state-dir", path(&args.state_dir)),
        ("--bundle-dir", path(&args.bundle_dir)),
        ("--jwks", path(&args.jwks)),
        ("--token-issuer", args.token_issuer.clone()),
        ("--xds-address", "127.0.0.1:0".to_owned()),
        ("--admin-address", "127.0.0.1:0".to_owned()),
    ];
    let options = options.map(|(option, value)| format!("{option}={value}"));
    ["control".to_owned()].into_iter().chain(options).collect()
}

/// The same with one option changed.
fn with(words: &[String], option: &str, value: impl std::fmt::Display) -> Vec<String> {
    let others = words
        .iter()
        .filter(|word| !word.starts_with(&format!("{option}=")));
    let changed = format!("{option}={value}");
    others.cloned().chain([changed]).collect()
}

/// A program that serves: its process, where proxies and operators reach it, and what it goes on to say.
struct Serving {
    process: Child,
    xds: SocketAddr,
    admin: SocketAddr,
    says: Lines<BufReader<ChildStderr>>,
}

async fn serving(words: &[String]) -> Serving {
    let mut process = start(words);
    let stderr = process.stderr.take().expect("piped");
    let mut says = BufReader::new(stderr).lines();
    let address = |line: &str, name: &str| -> Option<SocketAddr> {
        let value = line.split(' ').find_map(|word| word.strip_prefix(name))?;
        value.parse().ok()
    };
    let serves = async {
        while let Some(line) = says.next_line().await.expect("text") {
            if let (Some(xds), Some(admin)) = (address(&line, "xds="), address(&line, "admin=")) {
                return (xds, admin);
            }
        }
        panic!("it ended")
    };
    let (xds, admin) = tokio::time::timeout(SOON, serves)
        .await
        .expect("it serves soon");
    Serving {
        process,
        xds,
        admin,
        says,
    }
}

impl Serving {
    async fn terminate(&mut self) -> Option<i32> {
        let pid = self.process.id().expect("it runs").to_string();
        let status = Command::new("kill").args(["-TERM", &pid]).status().await;
        assert!(status.expect("kill runs").success());
        let ended = tokio::time::timeout(SOON, self.process.wait()).await;
        ended.expect("it ends soon").expect("a status").code()
    }
}

#[tokio::test]
async fn it_serves_a_directory_to_its_clients_until_sigterm_and_goes_on_after_a_restart() {
    let lender = Plane::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    put(dir.path(), "shop.yaml", SHOP);
    put(dir.path(), "slice.yaml", &slice("10.0.1.1"));
    let words = words(&lender.args(), dir.path());
    let mut program = serving(&words).await;
    while !get(program.admin, "/ready")
        .await
        .starts_with("HTTP/1.1 200")
    {
        tokio::task::yield_now().await;
    }

    // As a sidecar does: a certificate for the pod's token, then a stream with it.
    let anonymous = lender
        .channel_to(program.xds, None)
        .await
        .expect("it listens");
    let token = lender.tokens.token("shop", "web", "web-1", "u1");
    let svid = certify_over(anonymous, &token).await.expect("issued");
    let open = async |address| {
        let channel = lender.channel_to(address, Some(svid.clone())).await;
        let node = node(&node_id("shop", "web-1", [10, 0, 0, 1]));
        let mut proxy = Proxy::open(channel.expect("it listens"), Some(node))
            .await
            .expect("let in");
        proxy.subscribe(ResourceType::Endpoints, &[CLUSTER]).await;
        assert_eq!(
            proxy.take().await,
            ("EDS", vec![CLUSTER.to_owned()], vec![])
        );
        proxy
    };
    let mut proxy = open(program.xds).await;
    put(dir.path(), "slice.yaml", &slice("10.0.1.2"));
    assert_eq!(
        proxy.take().await,
        ("EDS", vec![CLUSTER.to_owned()], vec![])
    );

    let (code, ended) = tokio::join!(program.terminate(), proxy.next());
    assert_eq!(code, Some(0));
    assert_eq!(
        ended.expect_err("told to go elsewhere").code(),
        Code::Unavailable
    );
    // The same certificate opens a stream of its successor: the root was kept.
    let mut program = serving(&words).await;
    open(program.xds).await;
    assert_eq!(program.terminate().await, Some(0));
}

/// What a program says that does not start, and its status.
async fn failure(words: &[String]) -> (Option<i32>, String) {
    let mut process = start(words);
    let mut stderr = process.stderr.take().expect("piped");
    let mut text = String::new();
    let ends = async {
        stderr.read_to_string(&mut text).await.expect("text");
        process.wait().await.expect("a status").code()
    };
    let code = tokio::time::timeout(SOON, ends)
        .await
        .expect("it ends by itself");
    (code, text)
}

#[tokio::test]
async fn what_keeps_it_from_starting_is_named_with_the_way_out() {
    let lender = Plane::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let place = |name: &str| dir.path().join(name);
    let state = |name: &str| {
        fs::create_dir(place(name)).expect("writable");
        (place(name), place(name).join("ca.json"))
    };
    fs::write(place("file"), "").expect("writable");
    // A directory cannot be read as a file, whoever asks.
    let (unreadable, key) = state("unreadable");
    fs::create_dir(&key).expect("writable");
    owner_only(&key);
    let (broken, key) = state("broken");
    fs::write(&key, "{").expect("writable");
    owner_only(&key);
    let (exposed, key) = state("exposed");
    fs::write(&key, "{}").expect("writable");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("bound").to_string();

    let good = words(&lender.args(), dir.path());
    let text = |path: &Path| path.display().to_string();
    let table = [
        (
            "--xds-address",
            taken.clone(),
            taken.clone(),
            "--xds-address",
        ),
        ("--admin-address", taken.clone(), taken, "--admin-address"),
        (
            "--source",
            text(&place("no")),
            text(&place("no")),
            "--source",
        ),
        (
            "--state-dir",
            text(&place("file/state")),
            text(&place("file/state")),
            "--state-dir",
        ),
        (
            "--state-dir",
            text(&unreadable),
            text(&unreadable),
            "--state-dir",
        ),
        (
            "--state-dir",
            text(&broken),
            text(&broken),
            "restore it from a backup",
        ),
        ("--state-dir", text(&exposed), text(&exposed), "chmod 600"),
        (
            "--trust-domain",
            "other.mesh".into(),
            "cluster.local".into(),
            "--trust-domain",
        ),
    ];
    for (option, value, thing, remedy) in table {
        let (code, said) = failure(&with(&good, option, &value)).await;
        assert_eq!(code, Some(1), "{option}={value}: {said}");
        assert!(
            said.contains("error: ") && said.contains(&thing) && said.contains(remedy),
            "{option}={value}: {said}"
        );
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[tokio::test]
async fn a_command_line_that_means_nothing_is_refused_by_its_option() {
    let lender = Plane::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let good = words(&lender.args(), dir.path());
    let without = |option: &str| -> Vec<String> {
        let is_other = |word: &&String| !word.starts_with(option);
        good.iter().filter(is_other).cloned().collect()
    };
    for (words, named) in [
        (with(&good, "--xds-address", "15012"), "--xds-address"),
        (with(&good, "--leaf-ttl", "1s"), "--leaf-ttl"),
        (with(&good, "--log", "x=y=z"), "use directives such as"),
        (with(&good, "--trust-domain", "A B"), "--trust-domain"),
        (with(&good, "--no-such-option", "x"), "--no-such-option"),
        (without("--source"), "--source"),
        (without("--jwks"), "--jwks"),
    ] {
        let (code, said) = failure(&words).await;
        assert_eq!(code, Some(2), "{named}: {said}");
        assert!(said.contains(named), "{said}");
    }
}

#[tokio::test]
async fn a_bundle_that_cannot_be_written_is_named_and_counted_and_the_rest_serves() {
    let lender = Plane::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    fs::write(&file, "").expect("writable");
    let good = words(&lender.args(), dir.path());
    let program = serving(&with(&good, "--bundle-dir", file.join("bundle").display())).await;
    let failed = async {
        while get(program.admin, "/metrics")
            .await
            .contains("tulle_ca_bundle_failures_total 0")
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, failed).await.expect("counted");
    let mut says = program.says;
    let said = async {
        loop {
            let line = says
                .next_line()
                .await
                .expect("text")
                .expect("it still runs");
            if line.contains("bundle") && line.contains("--bundle-dir") {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, said)
        .await
        .expect("named with the way out");
    let ready = async {
        while !get(program.admin, "/ready")
            .await
            .starts_with("HTTP/1.1 200")
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, ready).await.expect("it serves");
}

/// What the kernel says of a process's memory under this name, in KiB.
fn memory(process: &Child, name: &str) -> u64 {
    let pid = process.id().expect("it runs");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(name));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.and_then(|it| it.parse().ok()).expect("a number")
}

fn owner_only(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("ours");
}
