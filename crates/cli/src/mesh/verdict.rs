//! What the control plane says of the manifests, told as events of the sandbox: nobody looks into its log while he edits.
//!
//! It is asked again and again, so that an answer that got lost is no news that got lost.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tulle_runtime::names::ports;
use tulle_sandbox::{Event, Problem, Sandbox, What};

/// How often it is asked.
const LOOK: Duration = Duration::from_millis(400);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct Report {
    problems: Vec<Problem>,
}

/// Tells of problems as they come and go. Never ends.
pub(crate) async fn follow(sandbox: &Sandbox) {
    let mut known = Vec::new();
    loop {
        // While it is down nothing is known to have changed.
        if let Ok(Ok(now)) = timeout(PATIENCE, ask()).await {
            let own = sandbox.problems();
            for event in news(&known, &now) {
                if !event.problem.as_ref().is_some_and(|it| told(&own, it)) {
                    sandbox.announce(event);
                }
            }
            known = now;
        }
        sleep(LOOK).await;
    }
}

/// Whether the sandbox, which reads the same files, says by itself that this one cannot be read at all.
fn told(own: &[String], problem: &Problem) -> bool {
    let file = format!("{}:", problem.file.display());
    problem.object.is_empty() && own.iter().any(|text| text.starts_with(&file))
}

async fn ask() -> anyhow::Result<Vec<Problem>> {
    let mut stream = TcpStream::connect(("127.0.0.1", ports::CONTROL_ADMIN)).await?;
    let request = "GET /debug/source HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer has no end of its head")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "it answered {head}");
    Ok(serde_json::from_str::<Report>(body)?.problems)
}

/// What is different. Lines shift with every edit above them, and a problem that moved is none that is new.
fn news(before: &[Problem], now: &[Problem]) -> Vec<Event> {
    let same = |one: &Problem, other: &Problem| {
        one.file == other.file
            && one.object == other.object
            && one.field == other.field
            && one.message == other.message
    };
    let mut events = Vec::new();
    let mut seen = BTreeSet::new();
    for old in before {
        // What a file that cannot be read says of its objects is not known.
        let still = |problem: &Problem| {
            problem.file == old.file && (problem.object == old.object || problem.object.is_empty())
        };
        if !now.iter().any(still) && seen.insert((&old.file, &old.object)) {
            events.push(Event {
                subject: format!("manifest {}", old.file.display()),
                what: What::Mended,
                detail: old.object.clone(),
                problem: None,
            });
        }
    }
    for problem in now {
        if !before.iter().any(|old| same(old, problem)) {
            events.push(refused(problem));
        }
    }
    events
}

fn refused(problem: &Problem) -> Event {
    let line = match problem.line {
        0 => String::new(),
        line => format!(":{line}"),
    };
    let parts = [&problem.object, &problem.field, &problem.message];
    let detail: Vec<&str> = parts
        .into_iter()
        .map(String::as_str)
        .filter(|part| !part.is_empty())
        .collect();
    Event {
        subject: format!("manifest {}{line}", problem.file.display()),
        what: What::Refused,
        detail: format!(
            "{}; the last good version stays in force",
            detail.join(": ")
        ),
        problem: Some(problem.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(line: u64, object: &str, message: &str) -> Problem {
        Problem {
            file: "/m/a.yaml".into(),
            line,
            object: object.to_owned(),
            field: String::new(),
            message: message.to_owned(),
        }
    }

    #[test]
    fn each_change_of_verdict_is_told_once() {
        let bad = problem(3, "HTTPRoute shop/a", "weight is -1");
        let moved = problem(9, "HTTPRoute shop/a", "weight is -1");
        let worse = problem(3, "HTTPRoute shop/a", "weight is -2");
        let other = problem(7, "Service shop/b", "no port");
        let broken = problem(0, "", "not YAML");
        let (refused, mended) = (What::Refused, What::Mended);
        type Case<'a> = (&'a str, &'a [&'a Problem], &'a [&'a Problem], &'a [What]);
        let table: [Case<'_>; 8] = [
            ("nothing", &[], &[], &[]),
            ("a new one", &[], &[&bad], &[refused]),
            ("the same further down", &[&bad], &[&moved], &[]),
            ("wrong in another way", &[&bad], &[&worse], &[refused]),
            ("one of two mended", &[&bad, &other], &[&other], &[mended]),
            ("two of one object", &[&bad, &worse], &[], &[mended]),
            ("a file that broke", &[&bad], &[&broken], &[refused]),
            (
                "a file that reads again",
                &[&broken],
                &[&bad],
                &[mended, refused],
            ),
        ];
        for (case, before, now, expected) in table {
            let owned = |list: &[&Problem]| list.iter().map(|it| (*it).clone()).collect::<Vec<_>>();
            let events = news(&owned(before), &owned(now));
            let kinds: Vec<_> = events.iter().map(|event| event.what).collect();
            assert_eq!(kinds, expected, "{case}");
        }
    }

    #[test]
    fn a_file_that_the_sandbox_cannot_read_is_told_once() {
        let own = ["/m/a.yaml:4: not YAML".to_owned()];
        assert!(told(&own, &problem(4, "", "not YAML")));
        assert!(!told(&own, &problem(4, "HTTPRoute shop/a", "weight is -1")));
        assert!(!told(&[], &problem(4, "", "not YAML")));
    }
}
