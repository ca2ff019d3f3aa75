//! That nobody else can listen or talk. What must not be seen or let in is seen and let in once mutual TLS is off: so
//! neither a capture that is blind nor a server that is down can pass for a mesh that protects.

use std::time::Duration;

use serde_json::Value;
use tulle_sandbox::ObjectKey;

use crate::demo::report::Evidence;
use crate::demo::stage::Stage;

/// A way to send a word that no protocol of ours contains.
struct Way {
    protocol: &'static str,
    word: &'static str,
    url: &'static str,
    /// So often that each replica has its turn.
    times: usize,
}

const WAYS: [Way; 3] = [
    Way {
        protocol: "HTTP",
        word: "the-crown-jewels-are-in-the-attic",
        url: "http://web/",
        times: 3,
    },
    Way {
        protocol: "gRPC",
        word: "the-spare-key-is-under-the-mat",
        url: "grpc://ledger:9000",
        times: 2,
    },
    Way {
        protocol: "TCP",
        word: "the-dog-is-deaf-and-sleeps-all-day",
        url: "tcp://greeter:2525",
        times: 1,
    },
];

const LET_IN: &str = "let in";
/// How often a change is looked for, and the pause between two looks.
const LOOKS: usize = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// How often each word showed on the bridge.
type Seen = [usize; WAYS.len()];

pub(super) async fn mutual_tls(stage: &Stage, evidence: &mut Evidence) -> anyhow::Result<()> {
    let encrypted = captured(stage).await?;
    tell(evidence, "mTLS on", encrypted, |count| count == 0);
    refused(stage, evidence).await?;

    // As an operator would: first everybody takes both, then nobody sends the one.
    switch(stage, "STRICT", "PERMISSIVE")?;
    let let_in = stranger_let_in(stage).await?;
    evidence.hold("a stranger, PERMISSIVE", &let_in, let_in == LET_IN);
    switch(stage, "PERMISSIVE", "DISABLE")?;
    let clear = captured_until(stage, |count| count > 0).await?;
    tell(evidence, "mTLS off", clear, |count| count > 0);
    switch(stage, "DISABLE", "STRICT")?;
    let again = captured_until(stage, |count| count == 0).await?;
    tell(evidence, "mTLS on again", again, |count| count == 0);
    Ok(())
}

fn switch(stage: &Stage, from: &str, to: &str) -> anyhow::Result<()> {
    stage.edit("00-namespaces.yaml", |text| {
        text.replace(&format!("mode: {from}"), &format!("mode: {to}"))
    })
}

fn tell(evidence: &mut Evidence, when: &str, seen: Seen, held: impl Fn(usize) -> bool) {
    for (way, count) in WAYS.iter().zip(seen) {
        let told = match count {
            0 => "the secret is nowhere on the bridge".to_owned(),
            1 => "the secret on the bridge, once".to_owned(),
            _ => format!("the secret on the bridge, {count} times"),
        };
        evidence.hold(format!("{}, {when}", way.protocol), told, held(count));
    }
}

/// A client outside the mesh calls a pod, in plaintext and with TLS but no certificate; one that has a certificate does
/// so too.
async fn refused(stage: &Stage, evidence: &mut Evidence) -> anyhow::Result<()> {
    let (status, answer) = plaintext(stage, "outside", "stranger").await?;
    evidence.hold(
        "a stranger in plaintext",
        outcome(status, &answer),
        status != 0,
    );
    let target = format!("tls://{}:8080", stage.pod("web")?.ips.v4);
    let stranger = ObjectKey::new("outside", "stranger");
    let (status, answer) = stage.call(&stranger, &[&target]).await?;
    let outcome_of_tls = outcome(status, &answer);
    let by_certificate = status != 0 && outcome_of_tls.contains("CertificateRequired");
    evidence.hold(
        "a stranger without a certificate",
        outcome_of_tls,
        by_certificate,
    );
    let (status, answer) = plaintext(stage, "shop", "shopper").await?;
    evidence.hold(
        "the shopper, whose sidecar has one",
        outcome(status, &answer),
        status == 0,
    );
    Ok(())
}

/// A pod calls one of the web pods by its address.
async fn plaintext(stage: &Stage, namespace: &str, name: &str) -> anyhow::Result<(i32, Value)> {
    let url = format!("http://{}:8080/", stage.pod("web")?.ips.v4);
    stage.call(&ObjectKey::new(namespace, name), &[&url]).await
}

fn outcome(status: i32, answer: &Value) -> String {
    if status == 0 {
        return LET_IN.to_owned();
    }
    let reason = answer
        .get("reason")
        .and_then(Value::as_str)
        .or(answer.as_str());
    let first = reason.and_then(|reason| reason.lines().next());
    // After the URL that everybody knows.
    let said = first.map(|line| line.rsplit_once("/: ").map_or(line, |(_, said)| said));
    format!("refused: {}", said.unwrap_or("without a reason"))
}

/// How the stranger fares in the end.
async fn stranger_let_in(stage: &Stage) -> anyhow::Result<String> {
    let mut last = String::new();
    for _ in 0..LOOKS {
        let (status, answer) = plaintext(stage, "outside", "stranger").await?;
        last = outcome(status, &answer);
        if status == 0 {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(last)
}

/// Looks at the bridge until every way is as it should be, or long enough. While one sidecar has heard of the change and
/// the other has not, a call may fail.
async fn captured_until(stage: &Stage, wanted: impl Fn(usize) -> bool) -> anyhow::Result<Seen> {
    let mut last = captured(stage).await;
    for _ in 0..LOOKS {
        if last
            .as_ref()
            .is_ok_and(|seen| seen.iter().all(|count| wanted(*count)))
        {
            break;
        }
        tokio::time::sleep(PAUSE).await;
        last = captured(stage).await;
    }
    last
}

/// How often each word shows on the bridge while it is sent.
async fn captured(stage: &Stage) -> anyhow::Result<Seen> {
    let capture = stage.sandbox.capture()?;
    let shopper = ObjectKey::new("shop", "shopper");
    for way in &WAYS {
        for _ in 0..way.times {
            let arguments = [way.url, "--data", way.word];
            let (status, answer) = stage.call(&shopper, &arguments).await?;
            anyhow::ensure!(status == 0, "{}: the shopper got {answer}", way.protocol);
        }
    }
    capture.settle().await;
    anyhow::ensure!(capture.frames() > 0, "the capture saw nothing at all");
    Ok(WAYS.map(|way| capture.count(way.word.as_bytes())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_outcome_says_the_reason_without_the_url() {
        let refused =
            "error: no answer from http://10.0.0.9:8080/: request: connection reset\nnext: ...";
        for (status, answer, said) in [
            (0, json!({ "status": 200 }), "let in"),
            (1, json!(refused), "refused: request: connection reset"),
            (1, json!({ "reason": "an alert" }), "refused: an alert"),
            (1, json!({}), "refused: without a reason"),
        ] {
            assert_eq!(outcome(status, &answer), said);
        }
    }
}
