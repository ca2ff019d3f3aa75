//! Strangers who send much, many names, or what should not be believed: the sidecar's memory, metrics and log stay as they
//! were.

mod edge;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tulle_runtime::names::{containers, ports};
use tulle_sandbox::PodIps;
use tulle_tests::{Arena, Mesh, app, eventually, progress, scaled};

use crate::behaved::Behaved;
use crate::process::Process;

use edge::row_12_nobody_is_told_what_a_stranger_says_in_the_name_of_a_proxy;

tulle_tests::cases! {
    row_12_nobody_is_told_what_a_stranger_says_in_the_name_of_a_proxy;
    row_22_a_huge_body_that_might_be_retried_costs_no_memory ["curl"];
    row_26_however_many_names_are_asked_for_metrics_and_memory_stay_bounded;
    row_56_nothing_is_sent_on_to_a_sidecar_s_own_ports;
    row_56_nothing_is_sent_on_to_a_sidecar_s_own_ports_over_ipv6 ["ipv6"];
    row_60_what_strangers_say_stays_in_its_string_and_on_its_line;
}

/// Name of the role.
pub(crate) const ROLE: &str = "stranger";
const MIB: u64 = 1 << 20;
/// Connections that names are asked over, and requests under way on each.
const CONNECTIONS: usize = 4;
const UNDER_WAY: usize = 32;
const DEADLINE: Duration = Duration::from_secs(20);

/// Runs the role: `names HOST:PORT FROM NUMBER` asks for so many hosts and paths, `raw HOST:PORT HEX` sends bytes.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["names", target, from, number] => names(target, from.parse()?, number.parse()?),
        ["raw", target, hex] => raw(target, hex),
        _ => bail!("{ROLE} names HOST:PORT FROM NUMBER, or {ROLE} raw HOST:PORT HEX"),
    }
}

/// Asks over several connections, with some requests under way on each all the time.
fn names(target: &str, from: usize, number: usize) -> anyhow::Result<()> {
    let each = number.div_ceil(CONNECTIONS);
    std::thread::scope(|scope| {
        let parts = (from..from + number).step_by(each.max(1)).map(|first| {
            let end = (first + each).min(from + number);
            scope.spawn(move || names_in(target, first..end))
        });
        let parts: Vec<_> = parts.collect();
        parts.into_iter().try_for_each(|part| {
            part.join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))?
        })
    })
}

fn names_in(target: &str, range: std::ops::Range<usize>) -> anyhow::Result<()> {
    let mut tcp = TcpStream::connect(target)?;
    tcp.set_nodelay(true)?;
    let (mut asked, mut buffer, mut seen) = (range.start, vec![0; 64 * 1024], Vec::new());
    for answered in range.clone() {
        // As many at once as fit; the next ones when half of them are answered.
        if asked - answered <= UNDER_WAY / 2 {
            let until = (answered + UNDER_WAY).min(range.end);
            let requests: String = (asked..until).map(named).collect();
            tcp.write_all(requests.as_bytes())?;
            asked = until;
        }
        let length = loop {
            match answer(&seen)? {
                Some(length) if length <= seen.len() => break length,
                _ => {}
            }
            let read = tcp.read(&mut buffer)?;
            let said = String::from_utf8_lossy(&seen);
            ensure!(read > 0, "closed after {answered}: {said}");
            seen.extend_from_slice(&buffer[..read]);
        };
        seen.drain(..length);
    }
    ensure!(seen.is_empty(), "more came than was asked for");
    Ok(())
}

fn named(i: usize) -> String {
    format!(
        "GET /path-{i}?size=8&q={i} HTTP/1.1\r\nhost: host-{i}.example\r\nuser-agent: agent-{i}\r\nx-request-id: {i}\r\n\r\n"
    )
}

/// How long the first answer is, once its head is there; it must be a good one.
fn answer(seen: &[u8]) -> anyhow::Result<Option<usize>> {
    let Some(end) = seen.windows(4).position(|end| end == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&seen[..end])?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse::<usize>().ok())?
    });
    let length = length.with_context(|| format!("no length: {head}"))?;
    Ok(Some(end + 4 + length))
}

fn raw(target: &str, hex: &str) -> anyhow::Result<()> {
    let digits = hex.as_bytes().chunks(2);
    let bytes =
        digits.map(|two| u8::from_str_radix(std::str::from_utf8(two)?, 16).context("no hex"));
    let bytes: Vec<u8> = bytes.collect::<anyhow::Result<_>>()?;
    let mut tcp = TcpStream::connect(target)?;
    tcp.set_read_timeout(Some(Duration::from_secs(5)))?;
    tcp.write_all(&bytes)?;
    // Whatever comes back.
    let _ = tcp.read_to_end(&mut Vec::new());
    Ok(())
}

/// Runs a program in the client to its end, however long that takes, and watches memory meanwhile: what it wrote, and the
/// most that each sidecar had more than before.
async fn watched(arena: &Arena<'_>, argv: &[&str]) -> anyhow::Result<(String, [u64; 2])> {
    let sidecars = [Process::of(arena, "client")?, Process::of(arena, "web")?];
    let before = [sidecars[0].memory()?, sidecars[1].memory()?];
    let mut more = [0; 2];
    let mut child = arena.spawn("client", argv.iter().copied())?;
    drop(child.stdin.take());
    let mut out = String::new();
    let mut stdout = child.stdout.take().context("no output")?;
    let mut reading = std::pin::pin!(stdout.read_to_string(&mut out));
    loop {
        let done = tokio::time::timeout(Duration::from_millis(20), &mut reading).await;
        for (index, sidecar) in sidecars.iter().enumerate() {
            more[index] = more[index].max(sidecar.memory()?.saturating_sub(before[index]));
        }
        if let Ok(read) = done {
            read?;
            break;
        }
    }
    let status = child.wait().await?;
    ensure!(status.success(), "{argv:?} ended with {status}: {out}");
    Ok((out, more))
}

/// What failed may be sent again, so that bodies are kept for it as long as they are small.
const RETRIES: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 8080 }]
  rules:
  - retry: { codes: [503], attempts: 2, backoff: 10ms }
    backendRefs: [{ name: web, port: 8080 }]
"#;

async fn row_22_a_huge_body_that_might_be_retried_costs_no_memory(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let manifests = app("web").http(8080) + app("client") + RETRIES;
    let arena = mesh.apply("huge", manifests).await?;
    let put = async |path: &str, bytes: usize| {
        let url = format!("http://web:8080{path}");
        let send = format!("head -c {bytes} /dev/zero | curl -sS -X PUT -H Expect: -T - {url}");
        let count = if path == "/echo" { "| wc -c" } else { "" };
        watched(&arena, &["sh", "-c", &format!("{send} {count}")]).await
    };
    let behaved = Behaved::begin(&arena, 20).await?;
    // What a sidecar needs for any large body, it has after the first. It is answered while it comes, and when all of it
    // has come; only the latter could be sent again until its end.
    for path in ["/echo", "/"] {
        for (bytes, most) in [(8 << 20, u64::MAX), (scaled(96 << 20, 1 << 30), 8 * MIB)] {
            let (out, more) = put(path, bytes).await?;
            let mut answer: Value = serde_json::from_str(&out).with_context(|| out.clone())?;
            let got = if path == "/" {
                answer["bodyLength"].take()
            } else {
                answer
            };
            ensure!(got == bytes, "{path}: {got} of {bytes} bytes");
            ensure!(
                more.iter().all(|more| *more < most),
                "{path}: the sidecars took {more:?} bytes more"
            );
        }
    }
    behaved.end(20).await
}

async fn row_26_however_many_names_are_asked_for_metrics_and_memory_stay_bounded(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    const FIRST: usize = 200;
    const TURNS: usize = 20;
    let manifests = app("web").http(8080) + app("client");
    let arena = mesh.apply("names", manifests).await?;
    let series = async |who| {
        let text = arena.metrics(who).await?.text().to_owned();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        anyhow::Ok(lines.count())
    };
    let ask = async |from: usize, number: usize| {
        let (from, number) = (from.to_string(), number.to_string());
        let argv = ["tulle", ROLE, "names", "web:8080", &from, &number];
        watched(&arena, &argv).await
    };
    let behaved = Behaved::begin(&arena, 20).await?;
    ask(0, FIRST).await?;
    let before = [series("client").await?, series("web").await?];
    let sidecars = [Process::of(&arena, "client")?, Process::of(&arena, "web")?];
    let memory = [sidecars[0].memory()?, sidecars[1].memory()?];
    let each = scaled(1_200, 1_000_000) / TURNS;
    for turn in 0..TURNS {
        ask(FIRST + turn * each, each).await?;
        for (before, sidecar) in memory.into_iter().zip(sidecars) {
            let now = sidecar.memory()?;
            ensure!(
                now < before + 8 * MIB,
                "{before} bytes of memory became {now} by {} names",
                (turn + 1) * each
            );
        }
        progress("row 26, names", (turn + 1) * each, TURNS * each);
    }
    let after = [series("client").await?, series("web").await?];
    for (before, after) in before.iter().zip(after) {
        ensure!(after <= before + 5, "{before} series became {after}");
    }
    let text =
        arena.metrics("client").await?.text().to_owned() + arena.metrics("web").await?.text();
    for name in ["host-", "path-", "agent-"] {
        ensure!(!text.contains(name), "{name}... is in the metrics");
    }
    behaved.end(20).await
}

async fn row_56_nothing_is_sent_on_to_a_sidecar_s_own_ports(mesh: &Mesh) -> anyhow::Result<()> {
    let of = |ips: &PodIps| Some(ips.v4.to_string());
    loops(mesh, "loops", of, "127.0.0.1").await
}

async fn row_56_nothing_is_sent_on_to_a_sidecar_s_own_ports_over_ipv6(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    let of = |ips: &PodIps| Some(format!("[{}]", ips.v6?));
    loops(mesh, "loops-ipv6", of, "[::1]").await
}

/// Everybody calls a sidecar's own ports, by addresses of one family.
async fn loops(
    mesh: &Mesh,
    namespace: &str,
    address: impl Fn(&PodIps) -> Option<String>,
    loopback: &str,
) -> anyhow::Result<()> {
    let outsider = app("outsider").annotate("tulle.dev/inject", "disabled");
    let manifests = app("web").http(8080) + app("client") + outsider;
    let arena = mesh.apply(namespace, manifests).await?;
    let address = |pod: &str| address(&arena.pod(pod)?.ips).context("no such address");
    let (web, own) = (address("web")?, address("client")?);
    let accepted = async || {
        let mut all = 0.0;
        for who in ["web", "client"] {
            let metrics = arena.metrics(who).await?;
            all += metrics.sum("tulle_downstream_connections_accepted_total", &[]);
        }
        anyhow::Ok(all)
    };
    let before = accepted().await?;
    let mut calls = 0;
    for port in [ports::OUTBOUND, ports::INBOUND, ports::ADMIN] {
        for (from, to) in [
            ("client", &*web),
            ("client", &*own),
            ("client", loopback),
            ("outsider", &*web),
        ] {
            // Its own admin endpoint is an app's to call.
            if port == ports::ADMIN && to == loopback {
                continue;
            }
            let answer = arena
                .app_call(from, &[&format!("http://{to}:{port}/ready")])
                .await?;
            let refused = answer.is_string() || answer["status"].as_u64() >= Some(500);
            ensure!(refused, "{from} to {to}:{port}: {answer}");
            calls += 1;
        }
    }
    // A loop would be one connection after the other.
    let more = accepted().await? - before;
    ensure!(
        more <= f64::from(4 * calls),
        "{calls} calls made {more} connections"
    );
    let refused = [("direction", "inbound"), ("reason", "loop")];
    let metrics = arena.metrics("web").await?;
    let refused = metrics.sum("tulle_downstream_connections_refused_total", &refused);
    ensure!(refused >= 3.0, "{refused} refused as loops");
    // Whose sidecar has refused it says who that was.
    for (pod, who) in [("web", address("outsider")?), ("client", own.clone())] {
        let (log, who) = (arena.logs(pod, Some(containers::PROXY))?, format!("{who}:"));
        let mut lines = log.lines().filter(|line| line.contains("\"loop\""));
        let told = lines.any(|line| line.contains("refused: a connection") && line.contains(&who));
        ensure!(told, "{pod} does not tell of {who} in {log}");
    }
    let url = format!("http://{web}:8080/");
    let answer = arena.app_call("client", &[&url]).await?;
    ensure!(answer["status"] == 200, "{answer}");
    Ok(())
}

/// A ClientHello for a name of any bytes.
fn client_hello(name: &[u8]) -> Vec<u8> {
    let sized = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes();
        [&length[..], bytes].concat()
    };
    let names = sized(&[&[0], &sized(name)[..]].concat());
    let extensions = sized(&[&[0, 0][..], &sized(&names)].concat());
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &sized(&[0x13, 1]),
        &[1, 0],
        &extensions,
    ]
    .concat();
    let message = [&[1, 0][..], &sized(&body)].concat();
    [&[22, 3, 1][..], &sized(&message)].concat()
}

async fn row_60_what_strangers_say_stays_in_its_string_and_on_its_line(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    // A port of any protocol, so that TLS passes by its first bytes.
    let web = app("web").serve("--http", 8080, "web");
    let arena = mesh.apply("forgers", web + app("client")).await?;
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let send = async |bytes: &[u8]| {
        let argv = ["tulle", ROLE, "raw", "web:8080", &hex(bytes)];
        arena.exec("client", argv).await?.ok()
    };
    let mut request =
        b"GET /mark/\"}{'%0a%1b[2J\\ HTTP/1.1\r\nhost: web\r\nconnection: close\r\n".to_vec();
    request.extend_from_slice(b"user-agent: mark\"},{\"forged\":1}\t\xff\xfe\xc2\x9b31m\r\n\r\n");
    send(&request).await?;
    send(&client_hello(b"mark\"\n\r\x1b[31m{\"forged\":1}\0")).await?;
    for who in ["client", "web"] {
        let found = eventually(DEADLINE, async || {
            let log = arena.access_log(who)?;
            let of = |key: &str| {
                let line = log
                    .iter()
                    .find(|line| line[key].as_str().is_some_and(|text| text.contains("mark")));
                line.cloned()
                    .with_context(|| format!("{who}: no line with {key}: {log:?}"))
            };
            let sni = of("requested_server_name");
            Ok([
                of("user_agent")?,
                if who == "client" { sni? } else { Value::Null },
            ])
        })
        .await?;
        ensure!(
            found[0]["user_agent"] == "mark\"},{\"forged\":1}\t\u{fffd}\u{fffd}\u{9b}31m",
            "{}",
            found[0]
        );
        if who == "client" {
            let name = "mark\"\n\r\u{1b}[31m{\"forged\":1}\0";
            ensure!(found[1]["requested_server_name"] == name, "{}", found[1]);
        }
        let log = arena.logs(who, Some(containers::PROXY))?;
        for line in log.lines() {
            let plain = line.chars().all(|c| !c.is_control() || c == '\t');
            ensure!(plain, "{who} wrote {line:?}");
            if line.starts_with('{') {
                let object: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
                ensure!(object.get("forged").is_none(), "{who} wrote {line}");
            }
        }
    }
    Ok(())
}
