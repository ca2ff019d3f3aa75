//! What README and `tulle-proxy run --help` say about limits is what the code does.
//!
//! A default is compared by setting it: that must change nothing.

use std::collections::BTreeSet;

use prometheus_client::registry::Registry;
use tulle_runtime::env::Env;
use tulle_runtime::limits::{Limits, VARIABLES};
use tulle_runtime::names::variables;
use tulle_runtime::reasons::explained;

use crate::args::RUN_VARIABLES;
use crate::conn::Direction;
use crate::net::{self, Refusal};
use crate::telemetry::Limit;

const README: &str = include_str!("../../../README.md");

/// The limits whose default is what the machine has, so that no number can be said.
const OF_THE_MACHINE: [&str; 2] = [variables::MAX_CONNECTIONS, variables::MEMORY_LIMIT];

/// A row of README's tables of limits.
struct Row {
    label: Option<&'static str>,
    variable: Option<&'static str>,
    default: &'static str,
}

/// What is between the heading and the next one.
fn limits() -> &'static str {
    let (_, limits) = README.split_once("\n## Limits\n").expect("the heading");
    let (limits, _) = limits.split_once("\n## ").expect("the next heading");
    limits
}

/// The rows of it.
fn rows() -> Vec<Row> {
    let cells = |line: &'static str| -> Option<Vec<&'static str>> {
        let line = line.strip_prefix("| ")?.strip_suffix(" |")?;
        Some(line.split('|').map(str::trim).collect())
    };
    let quoted = |cell: &'static str| cell.strip_prefix('`')?.strip_suffix('`');
    let lines = limits().lines().filter_map(cells);
    lines
        .filter(|cells| cells[1] != "variable")
        .map(|cells| Row {
            label: quoted(cells[0]),
            variable: quoted(cells[1]),
            default: cells[2],
        })
        .collect()
}

/// Whether a text begins with the default of a variable, or says of one that has none whose it is.
fn is_default(variable: &'static str, text: &str) -> bool {
    let word = text.split([' ', ';', ',']).next().unwrap_or_default();
    let env = Env::from_pairs([(variable, word)]);
    let limits = Limits::from_env(&env);
    let read = env.finish().is_ok();
    read != OF_THE_MACHINE.contains(&variable) && limits == Limits::default()
}

#[test]
fn readme_has_every_variable_with_its_default() {
    let mut said = BTreeSet::new();
    for row in rows() {
        let Some(variable) = row.variable else {
            continue;
        };
        assert!(VARIABLES.contains(&variable), "{variable} is no limit");
        assert!(said.insert(variable), "{variable} is there twice");
        let default = row.default;
        assert!(is_default(variable, default), "{variable}: {default}");
    }
    assert_eq!(said, VARIABLES.into());
}

#[test]
fn readme_has_every_label() {
    let said: BTreeSet<_> = rows().into_iter().filter_map(|row| row.label).collect();
    let counted: BTreeSet<_> = Limit::ALL.iter().map(|limit| limit.name()).collect();
    assert_eq!(said, counted);
}

#[test]
fn readme_has_the_metric_of_what_is_no_limit() {
    let mut registry = Registry::with_prefix("tulle");
    let connections = net::Metrics::register(&mut registry);
    connections.malformed_stream(Direction::Inbound, ([10, 0, 0, 1], 4_711).into());
    let (name, labels) = ("tulle_downstream_streams_malformed_total", "direction");
    let counted = format!("{name}{{{labels}=\"inbound\"}} 1");
    let metrics = tulle_runtime::metrics::encode(&registry);
    assert!(metrics.contains(&counted), "{metrics}");
    let row = format!("\n| (`{name}{{{labels}}}`) |");
    assert!(limits().contains(&row), "{row}");
}

#[test]
fn readme_has_every_reason_to_refuse_a_connection() {
    let name = "tulle_downstream_connections_refused_total";
    let head = format!("\n`{name}{{direction,reason}}`");
    let said = explained(README, &head).expect("a table of each once");
    let counted = Refusal::ALL.iter().map(|refusal| refusal.name());
    assert_eq!(said, counted.collect());
    let mut registry = Registry::with_prefix("tulle");
    let connections = net::Metrics::register(&mut registry);
    connections.refuse(Direction::Inbound, Refusal::Tls);
    let counted = format!("{name}{{direction=\"inbound\",reason=\"tls\"}} 1");
    let metrics = tulle_runtime::metrics::encode(&registry);
    assert!(metrics.contains(&counted), "{metrics}");
}

#[test]
fn help_has_every_variable_with_its_default() {
    for variable in VARIABLES {
        let line = format!("\n  {variable}");
        let about = RUN_VARIABLES.split(&line).skip(1);
        // Not of one that only begins so.
        let mut about = about.filter(|about| about.starts_with(char::is_whitespace));
        let about = about.next().expect(variable);
        let (about, _) = about.split_once("if not said").expect(variable);
        let word = about.split_whitespace().next_back().unwrap_or_default();
        assert!(is_default(variable, word), "{variable}: {word}");
    }
}

#[test]
fn another_default_would_be_noticed() {
    assert!(is_default(variables::MAX_HEAD, "64Ki of a request"));
    assert!(!is_default(variables::MAX_HEAD, "63Ki of a request"));
    assert!(!is_default(variables::MAX_CONNECTIONS, "4096"));
    assert!(!is_default(variables::IDLE_TIMEOUT, "as long as it likes"));
    assert!(is_default(variables::MEMORY_LIMIT, "that of the cgroup"));
}
